//! Clusters: unknown faces that look like one person.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use shared::db::clusters::edits::{self, Edited, Undone};
use shared::db::clusters::{self, Cluster, ClusterChange, Wanted, queue};
use shared::db::entity::collection;
use shared::ids::{ClusterChangeId, ClusterId, CollectionId, FaceId, PersonId};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::faces::FaceView;
use super::instant;
use super::submit::{PersonInput, check_person};
use crate::auth::{Caller, Read, Write};
use crate::cursor::{Page, PageQuery};
use crate::error::{ApiError, ApiResult};
use crate::extract::{self, Json, Path, Query};
use crate::state::AppState;

/// Faces that show who a cluster is.
const COVER: usize = 5;
/// Clusters or faces that one request may name.
const MAX_NAMED: usize = 1000;

/// Faces that look like one person.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClusterView {
    id: ClusterId,
    collection_id: CollectionId,
    /// Who it is; null where nobody said.
    person_id: Option<PersonId>,
    /// How many faces it has.
    faces: i64,
    /// Up to five of its faces, the clearest first.
    cover: Vec<FaceId>,
    created_at: String,
}

/// A page of clusters.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClusterPage {
    /// The largest first.
    items: Vec<ClusterView>,
    /// Ask for the next page with it; null on the last one.
    next_cursor: Option<String>,
    /// Changed or new faces that wait to be looked at.
    pending: i64,
}

/// Which clusters to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ClusterQuery {
    /// Only those of at least so many faces; 2 where absent.
    min_faces: Option<i64>,
    /// Only those with a person, or without.
    named: Option<bool>,
    /// Rows of the page, 1 to 500; 50 where absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Clusters that are one person.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterMerge {
    /// They become part of the cluster in the path.
    #[schema(min_items = 1, max_items = 1000)]
    clusters: Vec<ClusterId>,
}

/// Faces that are not the cluster's person.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SplitRequest {
    /// Some of the cluster's faces.
    #[schema(min_items = 1, max_items = 1000)]
    faces: Vec<FaceId>,
}

/// Who a cluster is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NameRequest {
    /// A person by id, or by an external id, made where there is none yet.
    #[serde(deserialize_with = "shared::object::only")]
    person: PersonInput,
    /// Faces of the cluster that you have looked at: they form templates, by which the person is recognised from now on. The
    /// cluster's cover where absent.
    #[schema(max_items = 1000)]
    confirmed: Option<Vec<FaceId>>,
}

/// A cluster after a change.
#[derive(Debug, Serialize, ToSchema)]
pub struct EditedView {
    /// The cluster: the merged one, the one that was split off, or the named one.
    cluster: ClusterView,
    /// To undo it: `POST .../cluster-changes/{id}/undo`.
    change_id: ClusterChangeId,
}

/// What a user changed.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangeView {
    id: ClusterChangeId,
    /// `merge`, `split` or `name`.
    kind: String,
    /// The cluster that it gave.
    cluster_id: ClusterId,
    person_id: Option<PersonId>,
    created_at: String,
    /// Null while it stands.
    undone_at: Option<String>,
}

impl From<ClusterChange> for ChangeView {
    fn from(change: ClusterChange) -> Self {
        Self {
            id: change.id,
            kind: change.kind,
            cluster_id: change.cluster_id,
            person_id: change.person_id,
            created_at: instant(change.created_at),
            undone_at: change.undone_at.map(instant),
        }
    }
}

async fn view(state: &AppState, cluster: Cluster) -> ApiResult<ClusterView> {
    Ok(ClusterView {
        cover: clusters::cover(&state.db, cluster.id, COVER).await?,
        id: cluster.id,
        collection_id: cluster.collection_id,
        person_id: cluster.person_id,
        faces: cluster.faces,
        created_at: instant(cluster.created_at),
    })
}

fn not_found(id: ClusterId) -> ApiError {
    let detail = format!("there is no cluster {id} in this collection; it may have become part of another");
    ApiError::not_found("cluster_not_found", detail)
}

async fn find(state: &AppState, collection: &collection::Model, id: ClusterId) -> ApiResult<Cluster> {
    clusters::find(&state.db.read, collection.id, id).await?.ok_or_else(|| not_found(id))
}

/// Lists clusters, the largest first.
#[utoipa::path(get, path = "/v1/collections/{collection}/clusters", tag = "clusters", security(("api_key" = ["read"])),
    params(("collection" = String, Path, description = "Its id or name"), ClusterQuery), responses(
    (status = 200, body = ClusterPage)))]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(collection): Path<String>,
    Query(query): Query<ClusterQuery>,
) -> ApiResult<axum::Json<ClusterPage>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let min_faces = query.min_faces.unwrap_or(2);
    let filters = (collection.id, min_faces, query.named);
    let page = PageQuery::new(query.limit, query.cursor).of(&state.secret_key, "clusters", &filters)?;
    let wanted = Wanted { min_faces, named: query.named, after: page.token::<24>()?.map(read_token) };
    // Before the list, so that none that waits no longer is missing from it.
    let pending = queue::pending(&state.db, collection.id).await?;
    let rows = clusters::list(&state.db, collection.id, wanted, page.rows()).await?;
    let Page { items: rows, next_cursor } = page.page_after(rows, token, |row| row);
    let mut items = Vec::with_capacity(rows.len());
    for row in rows {
        items.push(view(&state, row).await?);
    }
    Ok(axum::Json(ClusterPage { items, next_cursor, pending }))
}

/// How many faces a cluster has, and its id.
fn token(cluster: &Cluster) -> [u8; 24] {
    let mut token = [0; 24];
    token[..8].copy_from_slice(&cluster.faces.to_be_bytes());
    token[8..].copy_from_slice(cluster.id.0.as_bytes());
    token
}

fn read_token(token: [u8; 24]) -> (i64, ClusterId) {
    let (mut faces, mut id) = ([0; 8], [0; 16]);
    faces.copy_from_slice(&token[..8]);
    id.copy_from_slice(&token[8..]);
    (i64::from_be_bytes(faces), ClusterId(Uuid::from_bytes(id)))
}

/// Shows a cluster.
#[utoipa::path(get, path = "/v1/collections/{collection}/clusters/{cluster}", tag = "clusters", security(("api_key" = ["read"])),
    params(("collection" = String, Path, description = "Its id or name"), ("cluster" = ClusterId, Path)), responses(
    (status = 200, body = ClusterView)))]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path((collection, cluster)): Path<(String, ClusterId)>,
) -> ApiResult<axum::Json<ClusterView>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let row = find(&state, &collection, cluster).await?;
    Ok(axum::Json(view(&state, row).await?))
}

/// Lists a cluster's faces.
#[utoipa::path(get, path = "/v1/collections/{collection}/clusters/{cluster}/faces", tag = "clusters", security(("api_key" = ["read"])),
    params(("collection" = String, Path, description = "Its id or name"), ("cluster" = ClusterId, Path), PageQuery),
    responses((status = 200, body = Page<FaceView>)))]
pub async fn faces(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path((collection, cluster)): Path<(String, ClusterId)>,
    Query(page): Query<PageQuery>,
) -> ApiResult<axum::Json<Page<FaceView>>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    find(&state, &collection, cluster).await?;
    let page = page.of(&state.secret_key, "cluster faces", &(collection.id, cluster))?;
    let rows = clusters::faces_of(&state.db, cluster, page.after()?.map(FaceId), page.rows()).await?;
    super::faces::page(&state, &page, rows).await
}

/// Makes one cluster of several.
#[utoipa::path(post, path = "/v1/collections/{collection}/clusters/{cluster}/merge", tag = "clusters", security(("api_key" = ["write"])),
    params(("collection" = String, Path, description = "Its id or name"), ("cluster" = ClusterId, Path)),
    request_body = ClusterMerge, responses((status = 200, body = EditedView)))]
pub async fn merge(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path((collection, cluster)): Path<(String, ClusterId)>,
    Json(request): Json<ClusterMerge>,
) -> ApiResult<axum::Json<EditedView>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let others = distinct("#/clusters", request.clusters)?;
    if others.contains(&cluster) {
        return Err(ApiError::invalid("#/clusters", "names the cluster itself"));
    }
    let edited = edits::merge(&state.db, collection.id, cluster, &others).await?;
    answer(&state, "#/clusters", edited).await
}

/// Takes faces out of a cluster into one of their own. By itself, they never come together again.
#[utoipa::path(post, path = "/v1/collections/{collection}/clusters/{cluster}/split", tag = "clusters", security(("api_key" = ["write"])),
    params(("collection" = String, Path, description = "Its id or name"), ("cluster" = ClusterId, Path)),
    request_body = SplitRequest, responses((status = 200, body = EditedView)))]
pub async fn split(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path((collection, cluster)): Path<(String, ClusterId)>,
    Json(request): Json<SplitRequest>,
) -> ApiResult<axum::Json<EditedView>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let faces = distinct("#/faces", request.faces)?;
    let edited = edits::split(&state.db, collection.id, cluster, &faces).await?;
    answer(&state, "#/faces", edited).await
}

/// Says who a cluster is: its faces become the person's, and so do those that join it later.
#[utoipa::path(post, path = "/v1/collections/{collection}/clusters/{cluster}/name", tag = "clusters", security(("api_key" = ["write"])),
    params(("collection" = String, Path, description = "Its id or name"), ("cluster" = ClusterId, Path)),
    request_body = NameRequest, responses((status = 200, body = EditedView), (status = 410)))]
pub async fn name(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path((collection, cluster)): Path<(String, ClusterId)>,
    Json(request): Json<NameRequest>,
) -> ApiResult<axum::Json<EditedView>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let person = request.person.resolved()?;
    check_person(&state, &collection, &person).await?;
    let confirmed = match request.confirmed {
        Some(faces) if faces.is_empty() => faces,
        Some(faces) => distinct("#/confirmed", faces)?,
        None => clusters::cover(&state.db, cluster, COVER).await?,
    };
    let edited = edits::name(&state.db, collection.id, cluster, &person, &confirmed).await?;
    answer(&state, "#/confirmed", edited).await
}

/// Lists what users changed of clusters, newest first.
#[utoipa::path(get, path = "/v1/collections/{collection}/cluster-changes", tag = "clusters", security(("api_key" = ["read"])),
    params(("collection" = String, Path, description = "Its id or name"), PageQuery), responses(
    (status = 200, body = Page<ChangeView>)))]
pub async fn changes(
    State(state): State<AppState>,
    caller: Caller<Read>,
    Path(collection): Path<String>,
    Query(page): Query<PageQuery>,
) -> ApiResult<axum::Json<Page<ChangeView>>> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    let page = page.of(&state.secret_key, "cluster changes", &collection.id)?;
    let rows = clusters::changes(&state.db, collection.id, page.after()?.map(ClusterChangeId), page.rows()).await?;
    Ok(axum::Json(page.page(rows, |row| row.id.0, ChangeView::from)))
}

/// Takes a change back: faces that are still where it put them go where they were.
#[utoipa::path(post, path = "/v1/collections/{collection}/cluster-changes/{change}/undo", tag = "clusters", security(("api_key" = ["write"])),
    params(("collection" = String, Path, description = "Its id or name"), ("change" = ClusterChangeId, Path)),
    responses((status = 204)))]
pub async fn undo(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path((collection, change)): Path<(String, ClusterChangeId)>,
) -> ApiResult<axum::http::StatusCode> {
    let collection = extract::collection(&state, &caller, &collection).await?;
    match edits::undo(&state.db, collection.id, change).await? {
        Undone::Done => {
            tracing::info!(change.id = %change, "cluster change undone");
            Ok(axum::http::StatusCode::NO_CONTENT)
        }
        Undone::Before => Err(ApiError::conflict("change_undone", "the change was undone before")),
        Undone::NoChange => Err(ApiError::not_found(
            "cluster_change_not_found",
            format!("there is no change {change} of clusters in this collection"),
        )),
    }
}

/// The ids, each once.
fn distinct<T: Ord>(pointer: &str, mut ids: Vec<T>) -> ApiResult<Vec<T>> {
    ids.sort_unstable();
    ids.dedup();
    if (1..=MAX_NAMED).contains(&ids.len()) {
        return Ok(ids);
    }
    Err(ApiError::invalid(pointer, format!("must name 1 to {MAX_NAMED}")))
}

async fn answer(state: &AppState, faces: &str, edited: Edited) -> ApiResult<axum::Json<EditedView>> {
    match edited {
        Edited::Done(cluster, change_id) => {
            tracing::info!(cluster.id = %cluster.id, change.id = %change_id, "cluster changed");
            Ok(axum::Json(EditedView { cluster: view(state, cluster).await?, change_id }))
        }
        Edited::NoCluster(id) => Err(not_found(id)),
        Edited::NoPerson => Err(ApiError::not_found("person_not_found", "there is no such person in this collection")),
        Edited::TwoPersons => Err(ApiError::conflict(
            "two_persons",
            "the clusters belong to different persons; say first who they are with .../name, or merge the persons",
        )),
        Edited::NotAPart => {
            Err(ApiError::invalid(faces, "must name faces of this cluster; a split leaves some behind"))
        }
    }
}
