//! `/api/register/`, `/api/delete/` and `/api/clear/`: an enroll job, and the end of one person or of all.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use shared::db::entity::collection;
use shared::db::entity::person;
use shared::db::erasures::request;
use shared::db::persons;
use shared::ids::PersonId;
use shared::job::{FaceChoice, JobState, PersonRef};

use super::answer::{self, CLEARED, DELETED, NOT_SAVED, SAVED};
use super::input::{self, Text};
use super::{check_reach, deadline, ended, found, found_or_made};
use crate::auth::{Admin, Caller, Write};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Json, SubmitHeaders};
use crate::routes::persons::{ErasedImages, erase};
use crate::routes::submit::{Enrollment, check_description, check_external_id, check_text, enroll_picture};
use crate::state::AppState;

/// What the front end sends to register somebody.
#[derive(Debug, Deserialize)]
pub(super) struct RegisterRequest {
    picture: String,
    #[serde(rename = "ID")]
    id: Text,
    name: Option<Text>,
    description: Option<Value>,
    boundingbox: Option<Value>,
}

/// What it sends to delete somebody.
#[derive(Debug, Deserialize)]
pub(super) struct DeleteRequest {
    #[serde(rename = "delete_ID")]
    id: Text,
}

pub(super) async fn register(
    State(state): State<AppState>,
    caller: Caller<Write>,
    headers: SubmitHeaders,
    Json(request): Json<RegisterRequest>,
) -> ApiResult<Response> {
    let face = input::face_box(request.boundingbox.as_ref())?.map_or(FaceChoice::Largest, FaceChoice::Box);
    let picture = input::picture(&request.picture)?;
    drop(request.picture);
    check_external_id("#/ID", &request.id.0)?;
    let name = request.name.map(|name| name.0).filter(|name| !name.is_empty());
    name.as_ref().map_or(Ok(()), |name| check_text("#/name", name))?;
    let description = description(request.description.as_ref());
    let is_ignored = description.is_none() && input::is_given(request.description.as_ref());
    let person = PersonRef::External { external_id: request.id.0, name, description };
    let collection = found_or_made(&state, &caller).await?;
    let until = deadline(&state);
    let enrollment = Enrollment { picture, person, face, tag: None, webhook_endpoints: None };
    let job = enroll_picture(&state, &caller, &collection, &headers, enrollment).await?;
    let job = ended(&state, &caller, job.id, until).await?;
    let response = match job.state {
        JobState::Succeeded => answer::told(SAVED),
        _ => answer::unsuccessful(NOT_SAVED, &job),
    };
    Ok(answer::ignoring(is_ignored.then_some("description"), response))
}

/// What can be kept of what the front end says of somebody: nobody stays unregistered for the rest.
fn description(given: Option<&Value>) -> Option<String> {
    let text = match given? {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    (!text.is_empty() && check_description("#/description", &text).is_ok()).then_some(text)
}

pub(super) async fn delete(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Json(request): Json<DeleteRequest>,
) -> ApiResult<Response> {
    check_external_id("#/delete_ID", &request.id.0)?;
    let absent = || ApiError::not_found("person_not_found", "nobody with that delete_ID is registered");
    let collection = found(&state, &caller).await?.ok_or_else(absent)?;
    let person = named(&state, &collection, &request.id.0).await?.ok_or_else(absent)?;
    let erased = erase(&state, collection.id, person.id, ErasedImages::Alone).await?;
    erased.map(|_| answer::told(DELETED)).ok_or_else(absent)
}

/// The person of that external id, or else of that id, by which a recognition names somebody who has none.
async fn named(state: &AppState, collection: &collection::Model, id: &str) -> ApiResult<Option<person::Model>> {
    let found = persons::find_by_external_id(&state.db.read, collection.id, id).await?;
    match (found, id.parse()) {
        (None, Ok(id)) => Ok(persons::find(&state.db.read, collection.id, PersonId(id)).await?),
        (found, _) => Ok(found),
    }
}

/// Puts an empty collection in the place of the one there is, as nothing else takes jobs and uploads along.
pub(super) async fn clear(State(state): State<AppState>, caller: Caller<Admin>) -> ApiResult<Response> {
    check_reach(&caller)?;
    if let Some(collection) = found(&state, &caller).await? {
        request::collection(&state.db, &state.secret_key, collection.id, true).await?;
    }
    Ok(answer::told(CLEARED))
}
