//! A collection's people and faces as a file: written, and taken in.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use shared::db::entity::collection;
use shared::db::transfer::export::{ExportedImage, Snapshot};
use shared::db::transfer::import;
use shared::ids::CollectionId;
use shared::transfer::{
    Checker, CollectionHeader, Counts, Header, Line, MAX_LINE_BYTES, MergeLine, PersonLine, TransferError,
};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::batches::NDJSON;
use crate::error::{ApiError, ApiResult, ProblemBody};
use crate::extract::{self, Path, media_type};
use crate::lines::Lines;
use crate::state::AppState;

/// Persons of one page.
const PERSONS: u64 = 500;
/// Pictures of one page.
const IMAGES: u64 = 100;
/// Longest time in seconds that whoever reads an export may leave it waiting.
const PAUSE_S: u64 = 60;
/// Lines that are written in one transaction; a picture's faces stay together as far as they fit.
const SOME: usize = 500;
/// A transaction that is this full ends within a picture.
const MANY: usize = 2000;

/// What an import did.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImportView {
    /// What the file has.
    read: Counts,
    /// What of that was new to the collection.
    added: Counts,
}

/// Writes a collection's persons, pictures (without pixels), faces and vectors as they are at this moment: one JSON object a
/// line, the last of which counts the others. An answer without that last line was cut.
#[utoipa::path(get, path = "/v1/collections/{collection}/export", tag = "collections",
    params(("collection" = String, Path, description = "Its id or name")), responses(
    (status = 200, body = String, content_type = "application/x-ndjson"),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn export(State(state): State<AppState>, Path(collection): Path<String>) -> ApiResult<Response> {
    let row = extract::collection(&state, &collection).await?;
    let place = state.exports.clone().try_acquire_owned().map_err(|_| {
        ApiError::unavailable("as many exports as this server allows are under way; try again when one has ended")
    })?;
    let snapshot = Snapshot::begin(&state.db, row.id, PAUSE_S * 2).await?;
    let (header, pipelines) = header(&state, row, &snapshot).await?;
    let (pieces, receiver) = mpsc::channel(2);
    let stop = state.stop.clone();
    tokio::spawn(async move {
        let written = tokio::select! {
            written = write(&snapshot, header, &pipelines, &pieces) => written,
            () = stop.cancelled() => Err(std::io::Error::other("the server stops")),
        };
        if let Err(error) = written {
            tracing::warn!(%error, "an export broke off");
            // It must not look like a file that ended.
            let _ = tokio::time::timeout(Duration::from_secs(PAUSE_S), pieces.send(Err(error))).await;
        }
        if let Err(error) = snapshot.end().await {
            tracing::warn!(%error, "the end of an export's transaction");
        }
        drop(place);
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece: std::io::Result<Bytes>| (piece, receiver))
    });
    Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(pieces)).into_response())
}

/// The first line, and the pipelines whose vectors there are.
async fn header(state: &AppState, row: collection::Model, snapshot: &Snapshot) -> ApiResult<(Header, Vec<String>)> {
    let mut pipelines = Vec::new();
    for pipeline in state.catalogue.pipelines() {
        if pipeline.name == row.pipeline || snapshot.has_vectors(&pipeline.name).await? {
            pipelines.push(pipeline);
        }
    }
    let names: Vec<String> = pipelines.iter().map(|pipeline| pipeline.name.clone()).collect();
    if !names.contains(&row.pipeline) {
        let detail = format!("the collection's pipeline {} is not in this server's catalogue; add it", row.pipeline);
        return Err(ApiError::unprocessable("unknown_pipeline", detail));
    }
    let settings = row.settings()?;
    let collection = CollectionHeader { id: row.id, name: row.name, pipeline: row.pipeline, settings };
    Ok((Header::new(collection, &pipelines), names))
}

type Pieces = mpsc::Sender<std::io::Result<Bytes>>;

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
        let images = snapshot.images(&after, IMAGES, pipelines).await.map_err(std::io::Error::other)?;
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

async fn send(pieces: &Pieces, lines: impl IntoIterator<Item = Line>) -> std::io::Result<()> {
    let mut piece = Vec::new();
    for line in lines {
        line.write_to(&mut piece);
    }
    match tokio::time::timeout(Duration::from_secs(PAUSE_S), pieces.send(Ok(piece.into()))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(std::io::Error::other("the client went away")),
        Err(_) => Err(std::io::Error::other("the client took nothing for too long")),
    }
}

/// Takes in what an export wrote, while it comes. What is there stays and what it lacks is added: the same file a second time,
/// or after it broke off, adds what is missing. It needs the pipeline of the collection.
#[utoipa::path(post, path = "/v1/collections/{collection}/import", tag = "collections",
    request_body(content((String = "application/x-ndjson"))),
    params(("collection" = String, Path, description = "Its id or name")), responses(
    (status = 200, body = ImportView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json")))]
pub async fn import(
    State(state): State<AppState>,
    Path(collection): Path<String>,
    request: Request,
) -> ApiResult<axum::Json<ImportView>> {
    if !media_type(request.headers()).eq_ignore_ascii_case(NDJSON) {
        let detail = format!("send the header Content-Type: {NDJSON}");
        return Err(ApiError::unsupported_media_type("unsupported_media_type", detail));
    }
    let row = extract::collection(&state, &collection).await?;
    let idle = Duration::from_secs(state.config.server.body_timeout_s);
    let mut lines = Lines::new(request.into_body(), idle, MAX_LINE_BYTES);
    let stop = state.stop.clone();
    let imported = tokio::select! {
        imported = take_in(&state, &row, &mut lines) => imported,
        () = stop.cancelled() => {
            Err(ApiError::unavailable("the server stops; send the file again to go on with the import"))
        }
    };
    let view = imported?;
    tracing::info!(collection.id = %row.id, faces = view.added.faces, "a file was imported");
    Ok(axum::Json(view))
}

async fn take_in(state: &AppState, collection: &collection::Model, lines: &mut Lines) -> ApiResult<ImportView> {
    let mut checker = Checker::default();
    let mut portion = Portion::default();
    let mut added = Counts::default();
    let mut line = Vec::new();
    while lines.next(&mut line).await? {
        let read = checker.read(&line).map_err(|error| refused(&error))?;
        if let Line::FaceIdExport(header) = &read {
            check_header(state, collection, header)?;
        }
        if portion.is_full_before(&read) {
            add(&mut added, portion.write(state, collection.id).await?);
        }
        portion.add(read);
    }
    let read = checker.finish().map_err(|error| refused(&error))?;
    add(&mut added, portion.write(state, collection.id).await?);
    import::finish(&state.db, collection.id).await?;
    Ok(ImportView { read, added })
}

fn refused(error: &TransferError) -> ApiError {
    ApiError::unprocessable(error.code(), error.to_string())
}

fn check_header(state: &AppState, collection: &collection::Model, header: &Header) -> ApiResult<()> {
    header.check_pipelines(&state.catalogue).map_err(|error| refused(&error))?;
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

fn add(sum: &mut Counts, counts: Counts) {
    sum.persons += counts.persons;
    sum.merges += counts.merges;
    sum.images += counts.images;
    sum.places += counts.places;
    sum.faces += counts.faces;
    sum.vectors += counts.vectors;
}

/// Lines that wait to be written together.
#[derive(Default)]
struct Portion {
    persons: Vec<PersonLine>,
    merges: Vec<MergeLine>,
    images: Vec<ExportedImage>,
    lines: usize,
}

impl Portion {
    /// Whether what waits is to be written before this line is added.
    fn is_full_before(&self, line: &Line) -> bool {
        match line {
            // Of persons first, since those that come after refer to them.
            Line::Merge(_) if !self.persons.is_empty() => true,
            Line::Image(_) => self.lines >= SOME || !self.persons.is_empty() || !self.merges.is_empty(),
            Line::Face(_) | Line::Place(_) => self.lines >= MANY,
            Line::Person(_) | Line::Merge(_) => self.lines >= SOME,
            Line::FaceIdExport(_) | Line::End(_) => false,
        }
    }

    fn add(&mut self, line: Line) {
        self.lines += 1;
        match line {
            Line::Person(person) => self.persons.push(person),
            Line::Merge(merge) => self.merges.push(merge),
            Line::Image(image) => self.images.push((image, Vec::new(), Vec::new())),
            Line::Place(place) => self.images.last_mut().expect(PICTURE_FIRST).1.push(place),
            Line::Face(face) => self.images.last_mut().expect(PICTURE_FIRST).2.push(*face),
            Line::FaceIdExport(_) | Line::End(_) => {}
        }
    }

    /// Writes what waits; the picture that goes on is kept, without what is written.
    async fn write(&mut self, state: &AppState, collection: CollectionId) -> ApiResult<Counts> {
        let mut added = Counts::default();
        if !self.persons.is_empty() {
            add(&mut added, import::add_persons(&state.db, collection, &self.persons).await?);
        }
        if !self.merges.is_empty() {
            add(&mut added, import::add_merges(&state.db, collection, &self.merges).await?);
        }
        if !self.images.is_empty() {
            add(&mut added, import::add_images(&state.db, collection, &self.images).await?);
        }
        let last = self.images.pop().map(|(image, ..)| (image, Vec::new(), Vec::new()));
        *self = Self { images: last.into_iter().collect(), ..Self::default() };
        Ok(added)
    }
}

const PICTURE_FIRST: &str = "the checker refuses what comes before a picture; this is a bug";
