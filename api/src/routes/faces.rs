//! Faces.

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Deserializer, Serialize};
use shared::db::erasures::request;
use shared::db::faces::{self, AssignedBy, FaceFilter, PlacedFace};
use shared::db::faces_by_hand::{self, Changed, FaceChange, PersonChange};
use shared::db::images::{self, PictureTimes};
use shared::ids::{FaceId, ImageId, PersonId};
use shared::job::FaceBox;
use shared::telemetry::metrics;
use utoipa::{IntoParams, ToSchema};

use super::erasures::{ErasureView, accepted};
use super::instant;
use crate::auth::{Caller, Read, Write};
use crate::cursor::{Page, PageQuery, Paging};
use crate::error::{ApiError, ApiResult};
use crate::extract::{self, Json, Path, Query};
use crate::state::AppState;

/// A stored face.
#[derive(Debug, Serialize, ToSchema)]
pub struct FaceView {
    id: FaceId,
    pub(super) image_id: ImageId,
    /// Whose it is; null where that is not known.
    person_id: Option<PersonId>,
    /// Who said so.
    assigned_by: Option<AssignedBy>,
    /// Nothing automatic changes whose it is.
    locked: bool,
    /// Left out of lists, matching and clusters.
    hidden: bool,
    #[serde(rename = "box")]
    face_box: FaceBox,
    /// Five points in upright pixels: image-left eye, image-right eye, nose, image-left and image-right mouth corner; of models
    /// that place other points, an object with their `scheme` (`dlib-5`, `ibug-68`) and `points`.
    landmarks: serde_json::Value,
    /// The detector's, 0 to 1.
    score: f32,
    quality: serde_json::Value,
    /// When its picture was taken, by a clock at the place: `YYYY-MM-DDTHH:MM:SS`, with `+HH:MM` behind it where known.
    captured_at: Option<String>,
    /// When its picture was found to lie nowhere any more.
    gone_at: Option<String>,
    created_at: String,
}

impl FaceView {
    fn new(PlacedFace { face, geometry }: PlacedFace, picture: PictureTimes) -> Self {
        Self {
            captured_at: picture.captured_at,
            gone_at: picture.gone_at.map(instant),
            id: face.id,
            image_id: face.image_id,
            person_id: face.person_id,
            assigned_by: face.assigned_by.filter(|_| face.person_id.is_some()),
            locked: face.locked,
            hidden: face.hidden,
            face_box: geometry.face_box(),
            landmarks: serde_json::from_str(&geometry.landmarks).unwrap_or_default(),
            score: geometry.score,
            quality: serde_json::from_str(&geometry.quality).unwrap_or_default(),
            created_at: instant(face.created_at),
        }
    }
}

/// The faces as answers show them.
pub(super) async fn views(state: &AppState, faces: Vec<PlacedFace>) -> ApiResult<Vec<FaceView>> {
    let mut images: Vec<ImageId> = faces.iter().map(|placed| placed.face.image_id).collect();
    images.dedup();
    let times = images::times(&state.db.read, &images).await?;
    let view = |placed: PlacedFace| {
        let picture = times.get(&placed.face.image_id).cloned().unwrap_or_default();
        FaceView::new(placed, picture)
    };
    Ok(faces.into_iter().map(view).collect())
}

/// A page of faces.
pub(super) async fn page(
    state: &AppState,
    page: &Paging<'_>,
    rows: Vec<PlacedFace>,
) -> ApiResult<axum::Json<Page<FaceView>>> {
    let Page { items, next_cursor } = page.page(rows, |r| r.face.id.0, |r| r);
    Ok(axum::Json(Page { items: views(state, items).await?, next_cursor }))
}

async fn view(state: &AppState, face: PlacedFace) -> ApiResult<axum::Json<FaceView>> {
    let times = images::times(&state.db.read, &[face.face.image_id]).await?.into_values().next();
    Ok(axum::Json(FaceView::new(face, times.unwrap_or_default())))
}

/// Which faces to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FaceQuery {
    /// True: only faces that are hidden; else only those that are not.
    #[serde(default)]
    pub(super) hidden: bool,
    /// Rows of the page, 1 to 500; 50 where absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

impl FaceQuery {
    pub(super) fn page(&self) -> PageQuery {
        PageQuery::new(self.limit, self.cursor.clone())
    }
}

/// Changes to a face by hand; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FaceChanges {
    /// Whose it is. Null: not that of the person it has, which nothing automatic will say of it again.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<PersonId>)]
    person_id: PersonChange,
    /// Whether it is left out of lists, matching and clusters.
    hidden: Option<bool>,
    /// Whether nothing automatic may change whose it is; true where absent for a face that is assigned, false for one that
    /// is un-assigned.
    locked: Option<bool>,
}

/// A person or null; what is left out is neither.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<PersonChange, D::Error> {
    Ok(Option::deserialize(value)?.map_or(PersonChange::Unassign, PersonChange::Assign))
}

fn not_found(id: FaceId) -> ApiError {
    ApiError::not_found("face_not_found", format!("there is no face {id} in this collection"))
}

/// Lists faces.
#[utoipa::path(get, path = "/v1/collections/{collection}/faces", tag = "faces", security(("api_key" = ["read"])),
    params(("collection" = String, Path, description = "Its id or name"), FaceQuery), responses(
    (status = 200, body = Page<FaceView>)))]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(collection): Path<String>,
    Query(query): Query<FaceQuery>,
) -> ApiResult<axum::Json<Page<FaceView>>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let asked = query.page().of(&state.secret_key, "faces", &(collection.id, query.hidden))?;
    let filter = FaceFilter { hidden: query.hidden, ..FaceFilter::default() };
    let rows = faces::list(&state.db, collection.id, filter, asked.after()?.map(FaceId), asked.rows()).await?;
    page(&state, &asked, rows).await
}

/// Shows a face.
#[utoipa::path(get, path = "/v1/collections/{collection}/faces/{face}", tag = "faces", security(("api_key" = ["read"])),
    params(("collection" = String, Path, description = "Its id or name"), ("face" = FaceId, Path)), responses(
    (status = 200, body = FaceView)))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path((collection, face)): Path<(String, FaceId)>,
) -> ApiResult<axum::Json<FaceView>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let found = faces::find(&state.db.read, collection.id, face).await?;
    view(&state, found.ok_or_else(|| not_found(face))?).await
}

/// Changes whose a face is, or whether it is left out, by hand.
#[utoipa::path(patch, path = "/v1/collections/{collection}/faces/{face}", tag = "faces", security(("api_key" = ["write"])), request_body = FaceChanges,
    params(("collection" = String, Path, description = "Its id or name"), ("face" = FaceId, Path)), responses(
    (status = 200, body = FaceView), (status = 410)))]
pub async fn update(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path((collection, face)): Path<(String, FaceId)>,
    Json(changes): Json<FaceChanges>,
) -> ApiResult<axum::Json<FaceView>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let change = FaceChange { person: changes.person_id, hidden: changes.hidden, locked: changes.locked };
    if change == FaceChange::default() {
        return Err(ApiError::invalid("#", "names no change; give person_id, hidden or locked"));
    }
    match faces_by_hand::change(&state.db, collection.id, face, change).await? {
        Changed::Done(faces) => {
            let [before, after] = *faces;
            tracing::info!(face.id = %face, collection.id = %collection.id, "face changed by hand");
            metrics::face_changed(&before.face, &after.face);
            view(&state, after).await
        }
        Changed::NoFace => Err(not_found(face)),
        Changed::NoPerson(person) => Err(super::persons::missing(&state, collection.id, person).await?),
    }
}

/// Erases a face: vectors of every model, crops, every trace in jobs and events, and the picture where it was sent and shows
/// nobody else. On a picture that stays no detector finds it again.
#[utoipa::path(delete, path = "/v1/collections/{collection}/faces/{face}", tag = "faces", security(("api_key" = ["write"])),
    params(("collection" = String, Path, description = "Its id or name"), ("face" = FaceId, Path)), responses(
    (status = 202, body = ErasureView, description = "No answer has it any more; the receipt, the same each time",
        headers(("Location" = String, description = "The receipt's path")))))]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path((collection, face)): Path<(String, FaceId)>,
) -> ApiResult<Response> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let erasure = request::face(&state.db, &state.secret_key, collection.id, face).await?;
    erasure.map(accepted).ok_or_else(|| not_found(face))
}
