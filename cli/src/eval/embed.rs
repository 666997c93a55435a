//! Pictures to vectors through the worker's own analysis, and how fast that is beside the bare model runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::try_join_all;
use indicatif::{ProgressBar, ProgressStyle};
use shared::catalogue::{Detector, DetectorFamily};
use shared::embedding::Embedding;
use shared::job::FaceChoice;
use tokio::task::JoinSet;
use worker::analysis::{embed_faces, find_faces};
use worker::inference::Engine;
use worker::vision::choose::choose_face;
use worker::vision::decode::photo::Photo;
use worker::vision::decode::{DecodeLimits, decode};
use worker::vision::detect::{overview_side, passes};
use worker::vision::recognize;
use worker::vision::tensor::Tensor;
use worker::vision::test_crop::test_crop;

/// LFW promises a face on every picture: where none reaches the detector's own score, this one is tried.
pub(super) const SECOND_SCORE: f32 = 0.1;
/// Pictures of the bare measurement, a round; their inputs are held in memory, 2 MB each.
const BARE_PICTURES: usize = 80;
const BARE_ROUNDS: usize = 4;

/// The models and how they are used here.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) engine: Engine,
    pub(crate) limits: DecodeLimits,
    /// Pictures worked on at a time.
    pub(crate) in_flight: usize,
}

/// The vectors of a list of pictures.
pub(super) struct Embedded {
    /// One a picture, none where no face was found.
    pub(super) embeddings: Vec<Option<Embedding>>,
    /// Pictures that needed the lower score.
    pub(super) second_try: usize,
    pub(super) took: Duration,
}

/// The vector of the most central face of each picture.
pub(super) async fn embed(setup: &Setup, paths: &[PathBuf]) -> anyhow::Result<Embedded> {
    let bar = progress(paths.len() as u64)?;
    let began = Instant::now();
    let found = side_by_side(setup.in_flight, paths.to_vec(), &bar, |path| embed_one(setup.clone(), path)).await?;
    let took = began.elapsed();
    bar.finish_and_clear();
    let second_try = found.iter().filter(|(_, is_second_try)| *is_second_try).count();
    Ok(Embedded { embeddings: found.into_iter().map(|(embedding, _)| embedding).collect(), second_try, took })
}

/// Pictures a second where only the models run, on inputs of the sizes that these pictures need; none of a pipeline whose models
/// are shown what others found.
pub(super) async fn bare_rate(setup: &Setup, paths: &[PathBuf]) -> anyhow::Result<Option<f64>> {
    let pipeline = setup.engine.pipeline();
    if pipeline.detector.family == DetectorFamily::Mtcnn || pipeline.landmarks.is_some() {
        return Ok(None);
    }
    let [width, height] = pipeline.alignment.size();
    // Any pixels will do: a convolution takes as long on all of them.
    let crop = recognize::input(&pipeline.recognizer, &test_crop(1, width, height), 0);
    let chosen: Vec<PathBuf> = paths.iter().step_by(paths.len().div_ceil(BARE_PICTURES).max(1)).cloned().collect();
    let bar = ProgressBar::hidden();
    let prepared = side_by_side(setup.in_flight, chosen, &bar, |path| {
        let (setup, crop) = (setup.clone(), crop.clone());
        async move {
            let photo = read(&setup, path).await?;
            let detector = setup.engine.pipeline().detector.clone();
            let shown = tokio::task::spawn_blocking(move || passes(&photo.overview.picture, &detector)).await?;
            Ok((shown.into_iter().map(|pass| pass.input).collect(), crop))
        }
    })
    .await?;
    let mut took = Duration::ZERO;
    for _ in 0..BARE_ROUNDS {
        let inputs = prepared.clone();
        let began = Instant::now();
        let run = |(shown, crop): (Vec<Tensor>, Tensor)| {
            let engine = setup.engine.clone();
            async move {
                try_join_all(shown.into_iter().map(|input| engine.detect(input))).await?;
                engine.embed(crop).await?;
                Ok(())
            }
        };
        side_by_side(setup.in_flight, inputs, &bar, run).await?;
        took += began.elapsed();
    }
    Ok(Some((prepared.len() * BARE_ROUNDS) as f64 / took.as_secs_f64()))
}

/// The vector of the most central face, and whether it took a second try.
async fn embed_one(setup: Setup, path: PathBuf) -> anyhow::Result<(Option<Embedding>, bool)> {
    let photo = read(&setup, path.clone()).await?;
    let usual = &setup.engine.pipeline().detector;
    let failed = || format!("analyse {}", path.display());
    if let Some(embedding) = central_face(&setup.engine, usual, &photo).await.with_context(failed)? {
        return Ok((Some(embedding), false));
    }
    let lenient = Detector { store_score: SECOND_SCORE, ..usual.clone() };
    Ok((central_face(&setup.engine, &lenient, &photo).await.with_context(failed)?, true))
}

async fn central_face(engine: &Engine, detector: &Detector, photo: &Arc<Photo>) -> anyhow::Result<Option<Embedding>> {
    let faces = find_faces(engine, detector, photo).await?;
    let Ok(chosen) = choose_face(&faces, FaceChoice::Center, photo.size) else { return Ok(None) };
    let mut analysed = embed_faces(engine, photo, vec![faces[chosen].clone()]).await?;
    Ok(analysed.pop().map(|face| face.embedding))
}

async fn read(setup: &Setup, path: PathBuf) -> anyhow::Result<Arc<Photo>> {
    let (limits, side) = (setup.limits, overview_side(&setup.engine.pipeline().detector));
    Ok(Arc::new(tokio::task::spawn_blocking(move || read_now(&path, limits, side)).await??))
}

pub(crate) fn read_now(path: &Path, limits: DecodeLimits, side: u32) -> anyhow::Result<Photo> {
    let failed = || format!("read the picture {}", path.display());
    decode(std::fs::read(path).with_context(failed)?, &limits, side).with_context(failed)
}

/// Does the work of each item, `in_flight` at a time; results keep the items' order, the first error ends all.
pub(crate) async fn side_by_side<T, R, W>(
    in_flight: usize,
    items: Vec<T>,
    bar: &ProgressBar,
    work: impl Fn(T) -> W,
) -> anyhow::Result<Vec<R>>
where
    R: Send + 'static,
    W: Future<Output = anyhow::Result<R>> + Send + 'static,
{
    let mut results = Vec::with_capacity(items.len());
    let mut running = JoinSet::new();
    let mut waiting = items.into_iter().enumerate();
    loop {
        while running.len() < in_flight.max(1)
            && let Some((n, item)) = waiting.next()
        {
            let work = work(item);
            running.spawn(async move { work.await.map(|result| (n, result)) });
        }
        let Some(done) = running.join_next().await else { break };
        results.push(done??);
        bar.inc(1);
    }
    results.sort_by_key(|(n, _)| *n);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// A bar on standard error; none where that is no terminal.
pub(crate) fn progress(pictures: u64) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} images, {per_sec}, {eta} left")?;
    Ok(ProgressBar::new(pictures).with_style(style))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn results_keep_their_order_and_no_more_run_than_allowed() {
        let running = Arc::new(AtomicUsize::new(0));
        let work = |n: u64| {
            let running = Arc::clone(&running);
            async move {
                anyhow::ensure!(running.fetch_add(1, Ordering::SeqCst) < 3, "a fourth runs");
                tokio::time::sleep(Duration::from_millis(n * 7 % 5)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(n)
            }
        };
        let found = side_by_side(3, (0..20).collect(), &ProgressBar::hidden(), work).await.unwrap();
        assert_eq!(found, (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn the_first_error_ends_all() {
        let work = |n: u32| async move {
            anyhow::ensure!(n != 2, "two");
            Ok(n)
        };
        let error = side_by_side(2, (0..5).collect(), &ProgressBar::hidden(), work).await.unwrap_err();
        assert_eq!(error.to_string(), "two");
    }
}
