//! A collection's people and faces as a file, written while the client takes it.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use shared::db::entity::collection;
use shared::db::transfer::export::{ExportedImage, Page, Snapshot};
use shared::transfer::{CollectionHeader, Counts, Header, Line};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::batches::NDJSON;
use crate::auth::{Admin, Caller};
use crate::error::{ApiError, ApiResult};
use crate::extract::{self, Path};
use crate::state::AppState;

/// Persons of one page.
const PERSONS: u64 = 500;
/// Pictures of one page: with vectors of several pipelines a page of faces is some 10 MB.
const PAGE: Page = Page { images: 100, faces: 1000 };
/// A piece ends with the line that fills it.
const PIECE_BYTES: usize = 1 << 20;
/// Longest time in seconds that whoever reads an export may leave it waiting.
const PAUSE_S: u64 = 60;
/// Longest time of a whole export: as long as it takes, the database cannot clean up.
const WHOLE: Duration = Duration::from_secs(2 * 60 * 60);

/// Writes a collection's persons, pictures (without pixels), faces and vectors as they are at this moment: one JSON object a
/// line, the last of which counts the others. An answer without that last line was cut.
#[utoipa::path(get, path = "/v1/collections/{collection}/export", tag = "collections", security(("api_key" = ["admin"])),
    params(("collection" = String, Path, description = "Its id or name")), responses(
    (status = 200, body = String, content_type = "application/x-ndjson"), (status = 422)))]
pub async fn export(
    State(state): State<AppState>,
    caller: Caller<Admin>,
    Path(collection): Path<String>,
) -> ApiResult<Response> {
    let row = extract::collection(&state, &caller, &collection).await?;
    check_one_detector(&row)?;
    let place = state.places.exports.clone().try_acquire_owned().map_err(|_| {
        ApiError::unavailable("as many exports as this server allows are under way; try again when one has ended")
    })?;
    let snapshot = Snapshot::begin(&state.db, row.id, PAUSE_S * 2).await?;
    let (header, pipelines) = header(&state, row, &snapshot).await?;
    let (pieces, receiver) = mpsc::channel(2);
    let stop = state.stop.clone();
    let writing = state.tasks.spawn(async move {
        let written = within(WHOLE, &stop, write(&snapshot, header, &pipelines, &pieces)).await;
        if let Err(error) = &written {
            tracing::warn!(%error, "an export broke off");
        }
        if let Err(error) = snapshot.end().await {
            tracing::warn!(%error, "the end of an export's transaction");
        }
        drop(place);
        written
    });
    let pieces = futures_util::stream::unfold((receiver, Some(writing)), |(mut receiver, writing)| async move {
        if let Some(piece) = receiver.recv().await {
            return Some((Ok(piece), (receiver, writing)));
        }
        // One that broke off must not look like a file that ended.
        let error = match writing?.await {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => error,
            Err(error) => std::io::Error::other(error),
        };
        Some((Err(error), (receiver, None)))
    });
    Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(pieces)).into_response())
}

/// Refuses a collection of which two detectors know faces: a file does not say which of them are shown.
pub(super) fn check_one_detector(row: &collection::Model) -> ApiResult<()> {
    if row.hidden_revision.is_none() && row.shown_revision.is_none() {
        return Ok(());
    }
    let detail = "a reprocess run of the collection looks for faces with another detector; prune or cancel it first";
    Err(ApiError::conflict("reprocess_open", detail))
}

/// The first line, and the pipelines whose vectors there are.
async fn header(state: &AppState, row: collection::Model, snapshot: &Snapshot) -> ApiResult<(Header, Vec<String>)> {
    let mut pipelines = Vec::new();
    state.models.refresh().await?;
    let catalogue = state.models.now();
    for pipeline in catalogue.pipelines() {
        if pipeline.name == row.pipeline || snapshot.has_vectors(&pipeline.name).await? {
            pipelines.push(pipeline);
        }
    }
    let names: Vec<String> = pipelines.iter().map(|pipeline| pipeline.name.clone()).collect();
    if !names.contains(&row.pipeline) {
        let detail = format!("the collection's pipeline {} is not registered; add it", row.pipeline);
        return Err(ApiError::unprocessable("unknown_pipeline", detail));
    }
    let settings = row.settings()?;
    let collection = CollectionHeader { id: row.id, name: row.name, pipeline: row.pipeline, settings };
    Ok((Header::new(collection, &pipelines), names))
}

/// Does the work, unless it takes too long or the server stops first.
async fn within(
    limit: Duration,
    stop: &CancellationToken,
    work: impl Future<Output = std::io::Result<()>>,
) -> std::io::Result<()> {
    tokio::select! {
        done = tokio::time::timeout(limit, work) => {
            done.unwrap_or_else(|_| Err(std::io::Error::other("the client took too long for all of it")))
        }
        () = stop.cancelled() => Err(std::io::Error::other("the server stops")),
    }
}

type Pieces = mpsc::Sender<Bytes>;

async fn write(snapshot: &Snapshot, header: Header, pipelines: &[String], pieces: &Pieces) -> std::io::Result<()> {
    let mut counts = Counts::default();
    send(pieces, [Line::FaceIdExport(header)]).await?;
    let mut after = None;
    loop {
        let persons = snapshot.persons(after, PERSONS).await.map_err(std::io::Error::other)?;
        let Some(last) = persons.last() else { break };
        after = Some(last.id);
        counts.persons += persons.len() as u64;
        send(pieces, persons.into_iter().map(Line::Person)).await?;
    }
    let mut after = None;
    loop {
        let merges = snapshot.merges(after, PERSONS).await.map_err(std::io::Error::other)?;
        let Some(last) = merges.last() else { break };
        after = Some(last.id);
        counts.merges += merges.len() as u64;
        send(pieces, merges.into_iter().map(Line::Merge)).await?;
    }
    let mut after = String::new();
    loop {
        let images = snapshot.images(&after, PAGE, pipelines).await.map_err(std::io::Error::other)?;
        let Some((last, ..)) = images.last() else { break };
        after.clone_from(&last.sha256);
        for (_, places, faces) in &images {
            counts.places += places.len() as u64;
            counts.faces += faces.len() as u64;
            counts.vectors += faces.iter().map(|face| face.vectors.len() as u64).sum::<u64>();
        }
        counts.images += images.len() as u64;
        send(pieces, images.into_iter().flat_map(lines_of)).await?;
    }
    send(pieces, [Line::End(counts)]).await
}

fn lines_of((image, places, faces): ExportedImage) -> impl Iterator<Item = Line> {
    let faces = faces.into_iter().map(|face| Line::Face(Box::new(face)));
    std::iter::once(Line::Image(image)).chain(places.into_iter().map(Line::Place)).chain(faces)
}

/// Sends the lines in pieces of a bounded size.
async fn send(pieces: &Pieces, lines: impl IntoIterator<Item = Line>) -> std::io::Result<()> {
    let mut piece = Vec::new();
    for line in lines {
        line.write_to(&mut piece);
        if piece.len() >= PIECE_BYTES {
            send_piece(pieces, std::mem::take(&mut piece)).await?;
        }
    }
    if piece.is_empty() { Ok(()) } else { send_piece(pieces, piece).await }
}

async fn send_piece(pieces: &Pieces, piece: Vec<u8>) -> std::io::Result<()> {
    match tokio::time::timeout(Duration::from_secs(PAUSE_S), pieces.send(piece.into())).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(std::io::Error::other("the client went away")),
        Err(_) => Err(std::io::Error::other("the client took nothing for too long")),
    }
}

#[cfg(test)]
mod tests {
    use shared::ids::PersonId;
    use shared::transfer::PersonLine;

    use super::*;

    #[tokio::test]
    async fn pieces_are_of_a_bounded_size() {
        let name = Some("x".repeat(PIECE_BYTES / 10));
        let person = |_| {
            Line::Person(PersonLine {
                id: PersonId::new(),
                external_id: None,
                name: name.clone(),
                description: None,
                created_at: 0,
            })
        };
        let (pieces, mut receiver) = mpsc::channel(8);
        send(&pieces, (0..35).map(person)).await.unwrap();
        drop(pieces);
        let (mut sent, mut lines) = (Vec::new(), 0);
        while let Some(piece) = receiver.recv().await {
            sent.push(piece.len());
            lines += piece.split(|byte| *byte == b'\n').count() - 1;
        }
        assert_eq!((sent.len(), lines), (4, 35));
        assert!(sent.iter().all(|bytes| *bytes < PIECE_BYTES * 6 / 5), "{sent:?}");
    }

    #[tokio::test]
    async fn an_export_has_an_end() {
        let (stop, moment) = (CancellationToken::new(), Duration::from_millis(10));
        within(moment, &stop, std::future::ready(Ok(()))).await.unwrap();
        let error = within(moment, &stop, std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        stop.cancel();
        let error = within(Duration::from_secs(60), &stop, std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains("stops"), "{error}");
    }
}
