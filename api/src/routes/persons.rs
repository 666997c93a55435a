//! Persons.

use std::collections::HashMap;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use shared::db::entity::{image, person};
use shared::db::erasures::{Erasure, request};
use shared::db::faces::{self, FaceFilter};
use shared::db::images;
use shared::db::merges::{self, Merged};
use shared::db::persons::{self, PersonChanges, Updated};
use shared::ids::{CollectionId, FaceId, ImageId, PersonId};
use shared::job::PersonRef;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::erasures::{ErasureView, accepted, to_its_end};
use super::faces::{FaceQuery, FaceView};
use super::instant;
use super::jobs::ImageView;
use super::submit::{check_description, check_external_id, check_text};
use crate::auth::{Caller, Read, Write};
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::etag::Version;
use crate::extract::{self, Json, Path, Query};
use crate::state::AppState;

/// A person of a collection.
#[derive(Debug, Serialize, ToSchema)]
pub struct PersonView {
    id: PersonId,
    collection_id: CollectionId,
    external_id: Option<String>,
    name: Option<String>,
    description: Option<String>,
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
    #[param(minimum = 1, maximum = 500)]
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
        description: row.description,
        created_at: instant(row.created_at),
    })
}

pub(super) async fn find(state: &AppState, collection: CollectionId, id: PersonId) -> ApiResult<person::Model> {
    let row = persons::find(&state.db.read, collection, id).await?;
    match row {
        Some(row) => Ok(row),
        None => Err(missing(state, collection, id).await?),
    }
}

/// Why there is no person of that id: merged into another, or not there.
pub(super) async fn missing(state: &AppState, collection: CollectionId, id: PersonId) -> ApiResult<ApiError> {
    check_merged(state, collection, &PersonRef::Id { id }).await?;
    Ok(ApiError::not_found("person_not_found", format!("there is no person {id} in this collection")))
}

/// Refuses a person that was merged into another.
pub(super) async fn check_merged(state: &AppState, collection: CollectionId, person: &PersonRef) -> ApiResult<()> {
    match merges::merged_into(&state.db.read, collection, person).await? {
        Some(into) => {
            Err(ApiError::gone("person_merged", format!("the person was merged into person {into}; name that one")))
        }
        None => Ok(()),
    }
}

/// A person to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPerson {
    /// The caller's own id of the person, unique in the collection.
    #[schema(max_length = 256)]
    external_id: Option<String>,
    /// A name to show.
    #[schema(max_length = 256)]
    name: Option<String>,
    /// What else is to be known of the person.
    #[schema(max_length = 2000)]
    description: Option<String>,
}

/// Makes a person without faces.
#[utoipa::path(post, path = "/v1/collections/{collection}/persons", tag = "persons", security(("api_key" = ["write"])), request_body = NewPerson,
    params(("collection" = String, Path, description = "Its id or name")), responses(
    (status = 201, body = PersonView), (status = 410)))]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path(collection): Path<String>,
    Json(new): Json<NewPerson>,
) -> ApiResult<impl IntoResponse> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    if new.external_id.is_none() && new.name.is_none() {
        return Err(ApiError::invalid("#", "needs an external_id, a name, or both"));
    }
    if let Some(external_id) = &new.external_id {
        check_external_id("#/external_id", external_id)?;
        let person = PersonRef::External { external_id: external_id.clone(), name: None, description: None };
        check_merged(&state, collection.id, &person).await?;
    }
    new.name.as_ref().map_or(Ok(()), |name| check_text("#/name", name))?;
    new.description.as_ref().map_or(Ok(()), |text| check_description("#/description", text))?;
    let made = persons::create(&state.db, collection.id, new.external_id, new.name, new.description).await?;
    let row = made.ok_or_else(taken)?;
    let location = [(header::LOCATION, format!("/v1/collections/{}/persons/{}", row.collection_id, row.id))];
    Ok((StatusCode::CREATED, location, axum::Json(view(&state, row).await?)))
}

/// Lists persons.
#[utoipa::path(get, path = "/v1/collections/{collection}/persons", tag = "persons", security(("api_key" = ["read"])),
    params(("collection" = String, Path, description = "Its id or name"), PersonQuery), responses(
    (status = 200, body = Page<PersonView>)))]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(collection): Path<String>,
    Query(query): Query<PersonQuery>,
) -> ApiResult<axum::Json<Page<PersonView>>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let filters = (collection.id, &query.external_id);
    let page = PageQuery::new(query.limit, query.cursor).of(&state.secret_key, "persons", &filters)?;
    let after = page.after()?.map(PersonId);
    let rows = match &query.external_id {
        Some(external_id) => {
            persons::find_by_external_id(&state.db.read, collection.id, external_id).await?.into_iter().collect()
        }
        None => persons::list(&state.db, collection.id, after, page.rows()).await?,
    };
    let Page { items, next_cursor } = page.page(rows, |r| r.id.0, |r| r);
    let mut views = Vec::with_capacity(items.len());
    for row in items {
        views.push(view(&state, row).await?);
    }
    Ok(axum::Json(Page { items: views, next_cursor }))
}

/// Shows a person.
#[utoipa::path(get, path = "/v1/collections/{collection}/persons/{person}", tag = "persons", security(("api_key" = ["read"])),
    params(("collection" = String, Path, description = "Its id or name"), ("person" = PersonId, Path)), responses(
    (status = 200, body = PersonView, headers(("ETag" = String, description = "The version of what can be changed"))), (status = 410)))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path((collection, person)): Path<(String, PersonId)>,
) -> ApiResult<impl IntoResponse> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let row = find(&state, collection.id, person).await?;
    Ok(([version(&row).header()], axum::Json(view(&state, row).await?)))
}

/// What is to be changed of a person (RFC 7396): what is absent stays, what is null is taken away.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::option_option, reason = "null and what is absent are two things")]
pub struct PersonPatch {
    /// The caller's own id of the person, unique in the collection.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 256)]
    external_id: Option<Option<String>>,
    /// A name to show.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 256)]
    name: Option<Option<String>>,
    /// What else is to be known of the person.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 2000)]
    description: Option<Option<String>>,
}

/// Tells null from what is absent.
#[expect(clippy::option_option, reason = "null and what is absent are two things")]
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<String>>, D::Error> {
    Option::<String>::deserialize(value).map(Some)
}

/// Changes a person's name, description or external id; with `If-Match` only where nobody else did since it was read.
#[utoipa::path(patch, path = "/v1/collections/{collection}/persons/{person}", tag = "persons",
    security(("api_key" = ["write"])), request_body = PersonPatch,
    params(("collection" = String, Path, description = "Its id or name"), ("person" = PersonId, Path),
        ("If-Match" = Option<String>, Header, description = "The ETag that was read")), responses(
    (status = 200, body = PersonView, headers(("ETag" = String, description = "The version of what can be changed"))), (status = 410)))]
pub async fn update(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path((collection, id)): Path<(String, PersonId)>,
    headers: HeaderMap,
    Json(patch): Json<PersonPatch>,
) -> ApiResult<impl IntoResponse> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    if let Some(Some(external_id)) = &patch.external_id {
        check_external_id("#/external_id", external_id)?;
        let person = PersonRef::External { external_id: external_id.clone(), name: None, description: None };
        check_merged(&state, collection.id, &person).await?;
    }
    if let Some(Some(name)) = &patch.name {
        check_text("#/name", name)?;
    }
    if let Some(Some(text)) = &patch.description {
        check_description("#/description", text)?;
    }
    let changes = PersonChanges { external_id: patch.external_id, name: patch.name, description: patch.description };
    let is_expected = |row: &person::Model| version(row).may_change(&headers);
    match persons::update(&state.db, collection.id, id, changes, is_expected).await? {
        Updated::Done(row) => Ok(([version(&row).header()], axum::Json(view(&state, row).await?))),
        Updated::Otherwise => Err(ApiError::precondition_failed()),
        Updated::Taken => Err(taken()),
        Updated::Nameless => Err(ApiError::invalid("#", "must leave an external_id, a name, or both")),
        Updated::NoPerson => Err(missing(&state, collection.id, id).await?),
    }
}

/// The version of what can be changed of a person.
fn version(row: &person::Model) -> Version {
    Version::of_content(&serde_json::json!([row.external_id, row.name, row.description]))
}

fn taken() -> ApiError {
    ApiError::conflict("person_exists", "another person of this collection has that external_id")
}

/// Which pictures go with a person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErasedImages {
    /// Those that were sent and show nobody else; on others only the person's faces are erased.
    #[default]
    Alone,
    /// Every picture that shows the person, with all faces on it.
    All,
}

/// How to erase a person.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ErasePersonQuery {
    /// Which pictures go with the person.
    #[serde(default)]
    #[param(inline, required = false)]
    images: ErasedImages,
}

/// Erases a person with all faces: vectors of every model, crops, pictures, and every trace in jobs and events. What was
/// accepted before brings nothing of it back.
#[utoipa::path(delete, path = "/v1/collections/{collection}/persons/{person}", tag = "persons", security(("api_key" = ["write"])),
    params(("collection" = String, Path, description = "Its id or name"), ("person" = PersonId, Path), ErasePersonQuery),
    responses((status = 202, body = ErasureView, description = "No answer has them any more; the receipt, the same each time",
        headers(("Location" = String, description = "The receipt's path"))), (status = 410)))]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path((collection, person)): Path<(String, PersonId)>,
    Query(query): Query<ErasePersonQuery>,
) -> ApiResult<Response> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    match erase(&state, collection.id, person, query.images).await? {
        Some(erasure) => Ok(accepted(erasure)),
        None => Err(missing(&state, collection.id, person).await?),
    }
}

/// Erases a person, to the end of what a request does, even where its client gives up.
pub(crate) async fn erase(
    state: &AppState,
    collection: CollectionId,
    person: PersonId,
    images: ErasedImages,
) -> ApiResult<Option<Erasure>> {
    let (db, key) = (state.db.clone(), state.secret_key.clone());
    let erasing = async move { request::person(&db, &key, (collection, person), images == ErasedImages::All).await };
    to_its_end(state, erasing).await
}

/// Lists a person's faces.
#[utoipa::path(get, path = "/v1/collections/{collection}/persons/{person}/faces", tag = "persons", security(("api_key" = ["read"])),
    params(("collection" = String, Path, description = "Its id or name"), ("person" = PersonId, Path), FaceQuery),
    responses((status = 200, body = Page<FaceView>), (status = 410)))]
pub async fn faces(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path((collection, person)): Path<(String, PersonId)>,
    Query(query): Query<FaceQuery>,
) -> ApiResult<axum::Json<Page<FaceView>>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    find(&state, collection.id, person).await?;
    let page = query.page().of(&state.secret_key, "person faces", &(collection.id, person, query.hidden))?;
    let filter = FaceFilter { person: Some(person), hidden: query.hidden };
    let rows = faces::list(&state.db, collection.id, filter, page.after()?.map(FaceId), page.rows()).await?;
    super::faces::page(&state, &page, rows).await
}

/// A picture that shows a person.
#[derive(Debug, Serialize, ToSchema)]
pub struct PersonImageView {
    id: ImageId,
    /// Where it lies, or lay last; null of one that was uploaded.
    place: Option<ImageView>,
    /// When it was found to lie nowhere any more.
    gone_at: Option<String>,
    /// In upright pixels.
    width: i32,
    height: i32,
    /// When it was taken, by a clock at the place: `YYYY-MM-DDTHH:MM:SS`, with `+HH:MM` behind it where known.
    captured_at: Option<String>,
    created_at: String,
    /// The person's faces on it.
    faces: Vec<FaceView>,
}

/// Lists the pictures that show a person, in the order in which they were taken, those of unknown date last.
#[utoipa::path(get, path = "/v1/collections/{collection}/persons/{person}/images", tag = "persons", security(("api_key" = ["read"])),
    params(("collection" = String, Path, description = "Its id or name"), ("person" = PersonId, Path), PageQuery),
    responses((status = 200, body = Page<PersonImageView>), (status = 410)))]
pub async fn images(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path((collection, person)): Path<(String, PersonId)>,
    Query(page): Query<PageQuery>,
) -> ApiResult<axum::Json<Page<PersonImageView>>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    find(&state, collection.id, person).await?;
    let page = page.of(&state.secret_key, "person images", &(collection.id, person))?;
    let after = page.token()?.map(place_of).transpose()?;
    let rows = images::of_person(&state.db, collection.id, person, after, page.rows()).await?;
    let Page { items, next_cursor } = page.page_after(rows, token, |image| image);
    let ids: Vec<ImageId> = items.iter().map(|image| image.id).collect();
    let mut faces: HashMap<ImageId, Vec<FaceView>> = HashMap::new();
    for face in super::faces::views(&state, faces::of_person_on(&state.db.read, person, &ids).await?).await? {
        faces.entry(face.image_id).or_default().push(face);
    }
    let view = |image: image::Model| PersonImageView {
        faces: faces.remove(&image.id).unwrap_or_default(),
        place: ImageView::of_uri(image.uri.as_deref()),
        gone_at: image.gone_at.map(instant),
        id: image.id,
        width: image.width,
        height: image.height,
        captured_at: image.captured_at,
        created_at: instant(image.created_at),
    };
    Ok(axum::Json(Page { items: items.into_iter().map(view).collect(), next_cursor }))
}

/// Bytes of a capture time at most: `YYYY-MM-DDTHH:MM:SS+HH:MM`.
const CAPTURE_TIME: usize = 25;

/// Where the next page begins: an image's place in the order of capture times, filled up with zeros, and its id.
fn token(image: &image::Model) -> [u8; CAPTURE_TIME + 16] {
    let mut token = [0; CAPTURE_TIME + 16];
    for (to, from) in token[..CAPTURE_TIME].iter_mut().zip(image.capture_order().bytes()) {
        *to = from;
    }
    token[CAPTURE_TIME..].copy_from_slice(image.id.0.as_bytes());
    token
}

/// The reverse of [`token`].
fn place_of(token: [u8; CAPTURE_TIME + 16]) -> ApiResult<(String, ImageId)> {
    let (order, id) = token.split_at(CAPTURE_TIME);
    let order = std::str::from_utf8(order).map_err(|error| ApiError::internal(&error))?;
    let id = Uuid::from_slice(id).map_err(|error| ApiError::internal(&error))?;
    Ok((order.trim_end_matches('\0').to_owned(), ImageId(id)))
}

/// Which person a person is merged into.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MergeRequest {
    /// The person who is left.
    into: PersonId,
}

/// Gives a person's faces to another one and deletes it. Faces keep their ids; the person's own ids are answered with
/// 410 `person_merged` from then on.
#[utoipa::path(post, path = "/v1/collections/{collection}/persons/{person}/merge", tag = "persons", security(("api_key" = ["write"])),
    request_body = MergeRequest,
    params(("collection" = String, Path, description = "Its id or name"), ("person" = PersonId, Path)),
    responses((status = 200, body = PersonView, description = "The person who is left"), (status = 410)))]
pub async fn merge(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path((collection, person)): Path<(String, PersonId)>,
    Json(request): Json<MergeRequest>,
) -> ApiResult<axum::Json<PersonView>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    if request.into == person {
        return Err(ApiError::invalid("#/into", "must be another person"));
    }
    match merges::merge(&state.db, collection.id, person, request.into).await? {
        Merged::Done(row) => {
            tracing::info!(person.id = %person, into.id = %row.id, collection.id = %collection.id, "person merged");
            Ok(axum::Json(view(&state, row).await?))
        }
        Merged::NoPerson(id) => Err(missing(&state, collection.id, id).await?),
    }
}
