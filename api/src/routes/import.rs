//! What an export wrote, taken in while it comes.

use std::time::Duration;

use axum::extract::{Request, State};
use serde::Serialize;
use shared::access::Grant;
use shared::db::entity::collection;
use shared::db::transfer::import::{Imported, Target, begin};
use shared::transfer::{Checker, Counts, Header, Line, MAX_LINE_BYTES, TransferError};
use utoipa::ToSchema;

use super::batches::NDJSON;
use super::export::check_one_detector;
use crate::auth::{Caller, Write};
use crate::error::{ApiError, ApiResult};
use crate::extract::{self, Path, media_type};
use crate::lines::Lines;
use crate::portion::Portion;
use crate::state::AppState;

/// What an import did.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImportView {
    /// What the file has.
    read: Counts,
    /// What of that was new to the collection.
    added: Counts,
    /// What of that was left out, since it was erased while the file came.
    erased: Counts,
}

/// Takes in what an export wrote, while it comes. What is there stays and what it lacks is added: the same file a second time,
/// or after it broke off, adds what is missing. What is erased while the file comes is left out. It needs the pipeline of the collection.
#[utoipa::path(post, path = "/v1/collections/{collection}/import", tag = "collections", security(("api_key" = ["write"])),
    request_body(content((String = "application/x-ndjson"))),
    params(("collection" = String, Path, description = "Its id or name")), responses(
    (status = 200, body = ImportView)))]
pub async fn import(
    State(state): State<AppState>,
    caller: Caller<Write>,
    Path(collection): Path<String>,
    request: Request,
) -> ApiResult<axum::Json<ImportView>> {
    if !media_type(request.headers()).eq_ignore_ascii_case(NDJSON) {
        let detail = format!("send the header Content-Type: {NDJSON}");
        return Err(ApiError::unsupported_media_type("unsupported_media_type", detail));
    }
    let row = extract::collection(&state, &caller, &collection).await?;
    let _place = state.places.imports.clone().try_acquire_owned().map_err(|_| {
        ApiError::unavailable("as many imports as this server allows are under way; try again when one has ended")
    })?;
    let idle = Duration::from_secs(state.config.server.body_timeout_s);
    let mut lines = Lines::new(request.into_body(), idle, MAX_LINE_BYTES);
    let stop = state.stop.clone();
    let imported = tokio::select! {
        imported = take_in(&state, &caller, &row, &mut lines) => imported,
        () = stop.cancelled() => {
            Err(ApiError::unavailable("the server stops; send the file again to go on with the import"))
        }
    };
    let view = imported?;
    tracing::info!(collection.id = %row.id, faces = view.added.faces, "a file was imported");
    Ok(axum::Json(view))
}

async fn take_in(
    state: &AppState,
    grant: &Grant,
    collection: &collection::Model,
    lines: &mut Lines,
) -> ApiResult<ImportView> {
    let Some(begun_at) = begin(&state.db, collection.id).await? else {
        let detail = "a person of the collection is being erased; send the file again in some seconds";
        return Err(ApiError::conflict("erasure_open", detail));
    };
    let target = Target { collection: collection.id, begun_at, key: &state.secret_key };
    let mut checker = Checker::default();
    let mut portion = Portion::default();
    let mut done = Imported::default();
    let mut line = Vec::new();
    while lines.next(&mut line).await? {
        let read = checker.read(&line).map_err(|error| refused(&error))?;
        if let Line::FaceIdExport(header) = &read {
            state.models.refresh().await?;
            check_header(state, collection, header)?;
            checker.go_by(&state.models.now());
        }
        if portion.is_full_before(&read) {
            check_unchanged(state, grant, collection).await?;
            done += portion.write(&state.db, target, &read).await?;
        }
        portion.add(read, line.len());
    }
    let read = checker.finish().map_err(|error| refused(&error))?;
    check_unchanged(state, grant, collection).await?;
    done += portion.write_all(&state.db, target).await?;
    Ok(ImportView { read, added: done.added, erased: done.erased })
}

/// Refuses to go on where the collection went over to another pipeline meanwhile, or is about to.
async fn check_unchanged(state: &AppState, grant: &Grant, collection: &collection::Model) -> ApiResult<()> {
    let now = extract::collection(state, grant, &collection.id.to_string()).await?;
    check_one_detector(&now)?;
    if now.pipeline != collection.pipeline {
        let detail = "the collection went over to another pipeline while the file came; send it again";
        return Err(ApiError::conflict("collection_changed", detail));
    }
    Ok(())
}

fn refused(error: &TransferError) -> ApiError {
    ApiError::unprocessable(error.code(), error.to_string())
}

fn check_header(state: &AppState, collection: &collection::Model, header: &Header) -> ApiResult<()> {
    header.check_pipelines(&state.models.now()).map_err(|error| refused(&error))?;
    let theirs = &header.collection.pipeline;
    if *theirs == collection.pipeline {
        return Ok(());
    }
    let detail = format!(
        "the file is of a collection with the pipeline {theirs}, and this one has {}; import it into one with {theirs}",
        collection.pipeline
    );
    Err(ApiError::unprocessable("pipeline_mismatch", detail))
}
