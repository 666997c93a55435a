//! Vectors of labelled pictures as the service makes and uses them: by the detector's own scores, of faces that pass the gate.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;
use shared::embedding::Embedding;
use shared::job::FaceChoice;
use worker::analysis::{embed_faces, find_faces};
use worker::vision::Detection;
use worker::vision::choose::choose_face;
use worker::vision::detect::overview_side;
use worker::vision::quality::Gate;

use crate::eval::embed::{Setup, progress, read_now, side_by_side};

/// Pictures that do not count, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct LeftOut {
    /// They cannot be read, or are no picture.
    pub(super) unreadable: usize,
    /// No face was found on them.
    pub(super) undetected: usize,
    /// The face fails the gate of those that are looked up.
    pub(super) unusable: usize,
}

/// What came of a picture.
enum Outcome {
    Face(Embedding),
    Unreadable,
    Undetected,
    Unusable,
}

/// The vector of the most central face of each picture, none where the service would not match it, with how many those are.
pub(super) async fn embed(setup: &Setup, paths: Vec<PathBuf>) -> anyhow::Result<(Vec<Option<Embedding>>, LeftOut)> {
    let bar = progress(paths.len() as u64)?;
    let outcomes = side_by_side(setup.in_flight, paths, &bar, |path| outcome(setup.clone(), path)).await?;
    bar.finish_and_clear();
    Ok(counted(outcomes))
}

fn counted(outcomes: Vec<Outcome>) -> (Vec<Option<Embedding>>, LeftOut) {
    let mut left_out = LeftOut::default();
    let mut face_of = |outcome| {
        let count = match outcome {
            Outcome::Face(embedding) => return Some(embedding),
            Outcome::Unreadable => &mut left_out.unreadable,
            Outcome::Undetected => &mut left_out.undetected,
            Outcome::Unusable => &mut left_out.unusable,
        };
        *count += 1;
        None
    };
    let faces = outcomes.into_iter().map(&mut face_of).collect();
    (faces, left_out)
}

async fn outcome(setup: Setup, path: PathBuf) -> anyhow::Result<Outcome> {
    let detector = &setup.engine.pipeline().detector;
    let (limits, side) = (setup.limits, overview_side(detector));
    let reading = path.clone();
    let photo = match tokio::task::spawn_blocking(move || read_now(&reading, limits, side)).await? {
        Ok(photo) => Arc::new(photo),
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "a picture is left out");
            return Ok(Outcome::Unreadable);
        }
    };
    let failed = || format!("analyse {}", path.display());
    let gate = Gate::identify(detector.match_score);
    let found = find_faces(&setup.engine, detector, &photo).await.with_context(failed)?;
    let sure: Vec<Detection> = found.iter().filter(|face| face.score >= gate.min_score).cloned().collect();
    let Ok(chosen) = choose_face(&sure, FaceChoice::Center, photo.size) else {
        return Ok(if found.is_empty() { Outcome::Undetected } else { Outcome::Unusable });
    };
    let analysed = embed_faces(&setup.engine, &photo, vec![sure[chosen].clone()]).await.with_context(failed)?;
    let usable = analysed.into_iter().find(|face| face.quality.reasons(&gate).is_empty());
    Ok(usable.map_or(Outcome::Unusable, |face| Outcome::Face(face.embedding)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_picture_that_does_not_count_is_counted_once() {
        let face = Embedding::normalised(vec![1.0, 0.0]).unwrap();
        let outcomes = [
            Outcome::Unusable,
            Outcome::Face(face.clone()),
            Outcome::Unreadable,
            Outcome::Undetected,
            Outcome::Unusable,
        ];
        let (faces, left_out) = counted(outcomes.into());
        assert_eq!(faces, [None, Some(face), None, None, None], "in the pictures' order");
        assert_eq!(left_out, LeftOut { unreadable: 1, undetected: 1, unusable: 2 });
    }
}
