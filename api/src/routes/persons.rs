//! Persons.

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use shared::db::entity::person;
use shared::db::faces::{self, FaceFilter};
use shared::db::persons;
use shared::ids::{CollectionId, FaceId, PersonId};
use utoipa::{IntoParams, ToSchema};

use super::faces::{FaceQuery, FaceView};
use super::instant;
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult, ProblemBody};
use crate::extract::{self, Path, Query};
use crate::state::AppState;

/// A person of a collection.
#[derive(Debug, Serialize, ToSchema)]
pub struct PersonView {
    id: PersonId,
    collection_id: CollectionId,
    external_id: Option<String>,
    name: Option<String>,
    /// How many faces it has.
    faces: i64,
    created_at: String,
}

/// Which persons to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PersonQuery {
    /// Only the one with this external id.
    external_id: Option<String>,
    /// Rows of the page, 1 to 500; 50 where absent.
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

async fn view(state: &AppState, row: person::Model) -> ApiResult<PersonView> {
    Ok(PersonView {
        faces: persons::count_faces(&state.db, row.id).await?,
        id: row.id,
        collection_id: row.collection_id,
        external_id: row.external_id,
        name: row.name,
        created_at: instant(row.created_at),
    })
}

async fn find(state: &AppState, collection: CollectionId, id: PersonId) -> ApiResult<person::Model> {
    let row = persons::find(&state.db.read, collection, id).await?;
    row.ok_or_else(|| not_found(id))
}

pub(super) fn not_found(id: PersonId) -> ApiError {
    ApiError::not_found("person_not_found", format!("there is no person {id} in this collection"))
}

/// Lists persons.
#[utoipa::path(get, path = "/v1/collections/{collection}/persons", tag = "persons",
    params(("collection" = String, Path, description = "Its id or name"), PersonQuery), responses(
    (status = 200, body = Page<PersonView>),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn list(
    State(state): State<AppState>,
    Path(collection): Path<String>,
    Query(query): Query<PersonQuery>,
) -> ApiResult<axum::Json<Page<PersonView>>> {
    let collection = extract::collection(&state, &collection).await?;
    let page = PageQuery::new(query.limit, query.cursor);
    let limit = page.limit()?;
    let rows = match &query.external_id {
        Some(external_id) => {
            persons::find_by_external_id(&state.db.read, collection.id, external_id).await?.into_iter().collect()
        }
        None => persons::list(&state.db, collection.id, page.after()?.map(PersonId), limit + 1).await?,
    };
    let Page { items, next_cursor } = Page::of(rows, limit, |r| r.id.0, |r| r);
    let mut views = Vec::with_capacity(items.len());
    for row in items {
        views.push(view(&state, row).await?);
    }
    Ok(axum::Json(Page { items: views, next_cursor }))
}

/// Shows a person.
#[utoipa::path(get, path = "/v1/collections/{collection}/persons/{person}", tag = "persons",
    params(("collection" = String, Path, description = "Its id or name"), ("person" = PersonId, Path)), responses(
    (status = 200, body = PersonView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn get(
    State(state): State<AppState>,
    Path((collection, person)): Path<(String, PersonId)>,
) -> ApiResult<axum::Json<PersonView>> {
    let collection = extract::collection(&state, &collection).await?;
    let row = find(&state, collection.id, person).await?;
    Ok(axum::Json(view(&state, row).await?))
}

/// Deletes a person with all faces and vectors.
#[utoipa::path(delete, path = "/v1/collections/{collection}/persons/{person}", tag = "persons",
    params(("collection" = String, Path, description = "Its id or name"), ("person" = PersonId, Path)), responses(
    (status = 204),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn delete(
    State(state): State<AppState>,
    Path((collection, person)): Path<(String, PersonId)>,
) -> ApiResult<StatusCode> {
    let collection = extract::collection(&state, &collection).await?;
    find(&state, collection.id, person).await?;
    persons::delete(&state.db, collection.id, person).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists a person's faces.
#[utoipa::path(get, path = "/v1/collections/{collection}/persons/{person}/faces", tag = "persons",
    params(("collection" = String, Path, description = "Its id or name"), ("person" = PersonId, Path), FaceQuery),
    responses((status = 200, body = Page<FaceView>),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn faces(
    State(state): State<AppState>,
    Path((collection, person)): Path<(String, PersonId)>,
    Query(query): Query<FaceQuery>,
) -> ApiResult<axum::Json<Page<FaceView>>> {
    let collection = extract::collection(&state, &collection).await?;
    find(&state, collection.id, person).await?;
    let page = query.page();
    let limit = page.limit()?;
    let after = page.after()?.map(FaceId);
    let filter = FaceFilter { person: Some(person), hidden: query.hidden };
    let rows = faces::list(&state.db, collection.id, filter, after, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |r| r.face.id.0, FaceView::from)))
}
