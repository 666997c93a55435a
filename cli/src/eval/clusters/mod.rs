//! How well faces are put together that are one person's, in whatever order the pictures come.

mod score;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use shared::ids::{ClusterId, FaceId, ImageId};
use shared::job::FaceChoice;
use uuid::Uuid;
use worker::analysis::{AnalysedFace, analyse};
use worker::clusters::units::{Limits, Member, Merge, UnitId, Units};
use worker::vision::choose::choose_face;
use worker::vision::crops::Keep;
use worker::vision::quality::Gate;

use self::score::{Score, score};
use super::calibration::ALIASES;
use super::embed::{Setup, progress, side_by_side};

/// People of at least so many pictures are scored by themselves too.
const MANY: usize = 5;

#[derive(clap::Args)]
pub(crate) struct ClustersArgs {
    /// Pictures as `DIR/<person>/<name>.jpg`; on each, the most central face is that person's.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The pipeline; the default one where absent.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Orders to try beside that of the names, each looking random.
    #[arg(long, value_name = "N", default_value_t = 10)]
    orders: u32,
    /// Pictures that come at a time.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    slice: u32,
    /// Write the figures here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl ClustersArgs {
    pub(super) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }
}

/// A picture of a person.
pub(super) struct Photo {
    pub(super) path: PathBuf,
    pub(super) person: String,
}

/// A picture's faces.
struct Found {
    /// Those that are clear enough to be compared.
    faces: Vec<Member>,
    /// The central one, which may be none of those, with its person.
    central: Option<(FaceId, String)>,
}

/// What a worker sees on a picture: its faces, which of them are clear enough, and which is the central one.
struct Looked {
    faces: Vec<(AnalysedFace, bool)>,
    central: Option<usize>,
}

/// One order of arrival.
#[derive(Debug, Serialize)]
struct Run {
    order: String,
    /// Over all people.
    all: Score,
    /// Over people of at least five pictures.
    many: Score,
    clusters: usize,
    ms_per_face: f64,
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Figures {
    pipeline: String,
    images: usize,
    people: usize,
    faces: usize,
    /// Pictures on which no face was found.
    without_face: usize,
    /// Pictures whose central face is too poor to be compared: it lies alone.
    poor: usize,
    slice: u32,
    runs: Vec<Run>,
    /// The largest F1 of an order less the smallest one.
    f1_spread: f64,
    f1_spread_many: f64,
}

pub(super) async fn run(setup: &Setup, args: &ClustersArgs) -> anyhow::Result<()> {
    let photos = tokio::task::block_in_place(|| photos(&args.images))?;
    let bar = progress(photos.len() as u64)?;
    let paths: Vec<PathBuf> = photos.iter().map(|photo| photo.path.clone()).collect();
    let found = side_by_side(setup.in_flight, paths, &bar, |path| look(setup.clone(), path)).await?;
    bar.finish_and_clear();
    let found = number(&photos, found);
    let calibration = setup.engine.pipeline().calibration.as_ref();
    let calibration = calibration.context("the pipeline has no calibration to take the limits from")?;
    let faces = found.iter().map(|found| found.faces.len()).sum();
    let limits = Limits::of(calibration, faces);
    let truth = score::truth(found.iter().filter_map(|found| found.central.clone()));
    let clear: HashSet<FaceId> = found.iter().flat_map(|found| &found.faces).map(|member| member.face).collect();
    let poor = truth.keys().filter(|face| !clear.contains(face)).count();
    let mut runs = Vec::new();
    for order in 0..=args.orders {
        let mut places: Vec<usize> = (0..found.len()).collect();
        if order > 0 {
            places.sort_by_key(|place| shared::digest::sha256_hex(format!("{order} {place}").as_bytes()));
        }
        let (clusters, took) = tokio::task::block_in_place(|| arrive(&found, &places, args.slice, limits))?;
        runs.push(Run {
            order: if order == 0 { "by name".to_owned() } else { order.to_string() },
            all: score(&truth, &clusters, 1),
            many: score(&truth, &clusters, MANY),
            clusters: score::clusters(&clusters),
            ms_per_face: took.as_secs_f64() * 1000.0 / faces as f64,
        });
    }
    let spread = |f1: fn(&Run) -> f64| {
        let all: Vec<f64> = runs.iter().map(f1).collect();
        all.iter().copied().fold(f64::MIN, f64::max) - all.iter().copied().fold(f64::MAX, f64::min)
    };
    let figures = Figures {
        pipeline: setup.engine.pipeline().name.clone(),
        images: photos.len(),
        people: truth.values().collect::<HashSet<_>>().len(),
        faces,
        without_face: photos.len() - truth.len(),
        poor,
        slice: args.slice,
        f1_spread: spread(|run| run.all.f1),
        f1_spread_many: spread(|run| run.many.f1),
        runs,
    };
    figures.print()?;
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// The pictures of all people, by name; people known under two names are one.
pub(super) fn photos(folder: &Path) -> anyhow::Result<Vec<Photo>> {
    let entries = |folder: &Path| -> anyhow::Result<Vec<PathBuf>> {
        let read = std::fs::read_dir(folder).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
        let mut paths: Vec<PathBuf> = read.with_context(|| format!("list {}", folder.display()))?;
        paths.sort();
        Ok(paths)
    };
    let mut photos = Vec::new();
    for person in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        let name = person.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let alias = ALIASES.iter().find(|alias| alias.other == name);
        let name = alias.map_or(name, |alias| alias.one).to_owned();
        photos.extend(entries(&person)?.into_iter().map(|path| Photo { path, person: name.clone() }));
    }
    anyhow::ensure!(!photos.is_empty(), "there are no pictures below {}", folder.display());
    Ok(photos)
}

async fn look(setup: Setup, path: PathBuf) -> anyhow::Result<Looked> {
    let failed = || format!("analyse {}", path.display());
    let bytes = tokio::fs::read(&path).await.with_context(failed)?;
    let analysis = analyse(&setup.engine, bytes, setup.limits, Keep::Nothing).await.with_context(failed)?;
    let gate = Gate::identify(setup.engine.pipeline().detector.match_score);
    let detections: Vec<_> = analysis.faces.iter().map(|face| face.detection.clone()).collect();
    let central = choose_face(&detections, FaceChoice::Center, analysis.size).ok();
    let judged = |face: AnalysedFace| {
        let is_clear = face.quality.reasons(&gate).is_empty();
        (face, is_clear)
    };
    Ok(Looked { faces: analysis.faces.into_iter().map(judged).collect(), central })
}

/// Gives images and faces ids that are the same in every run.
fn number(photos: &[Photo], looked: Vec<Looked>) -> Vec<Found> {
    let mut next = 0u128;
    let mut id = || {
        next += 1;
        Uuid::from_u128(next)
    };
    let number = |(photo, looked): (&Photo, Looked)| {
        let image = ImageId(id());
        let mut found = Found { faces: Vec::new(), central: None };
        for (at, (face, is_clear)) in looked.faces.into_iter().enumerate() {
            let id = FaceId(id());
            if looked.central == Some(at) {
                found.central = Some((id, photo.person.clone()));
            }
            if is_clear {
                let embedding = face.embedding;
                found.faces.push(Member { face: id, image, embedding, not: Vec::new(), sides: Vec::new() });
            }
        }
        found
    };
    photos.iter().zip(looked).map(number).collect()
}

/// The cluster of each face after all pictures came in this order; a face alone has none.
fn arrive(
    found: &[Found],
    order: &[usize],
    slice: u32,
    limits: Limits,
) -> anyhow::Result<(HashMap<FaceId, ClusterId>, Duration)> {
    let began = Instant::now();
    let mut units = Units::default();
    let mut name = 1u128 << 100;
    let mut merges: Vec<Merge> = Vec::new();
    for places in order.chunks(usize::try_from(slice)?) {
        let new: Vec<Member> = places.iter().flat_map(|place| found[*place].faces.iter().cloned()).collect();
        merges.extend(units.arrive(&new, limits, || {
            name += 1;
            ClusterId(Uuid::from_u128(name))
        })?);
    }
    let took = began.elapsed();
    let (mut of_face, mut into) = (HashMap::new(), HashMap::new());
    for merge in merges {
        for part in merge.parts.into_iter().flatten() {
            match part {
                UnitId::Face(face) => {
                    of_face.insert(face, merge.into);
                }
                UnitId::Cluster(cluster) => {
                    into.insert(cluster, merge.into);
                }
            }
        }
    }
    for cluster in of_face.values_mut() {
        while let Some(next) = into.get(cluster) {
            *cluster = *next;
        }
    }
    Ok((of_face, took))
}

impl Figures {
    /// The table, and the figures in one line of JSON.
    #[expect(clippy::print_stdout, reason = "this is the command's output")]
    fn print(&self) -> anyhow::Result<()> {
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        let many = format!("people of {MANY} pictures or more");
        table.set_header(["order", "precision", "recall", "F1", &many, "clusters", "ms a face"]);
        for run in &self.runs {
            table.add_row([
                run.order.clone(),
                percent(run.all.precision),
                percent(run.all.recall),
                format!("{:.4}", run.all.f1),
                format!("{} / {}", percent(run.many.precision), percent(run.many.recall)),
                run.clusters.to_string(),
                format!("{:.2}", run.ms_per_face),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!(
            "{}: {} faces on {} pictures of {} people, {} pictures at a time; no face on {}, a poor one on {}",
            self.pipeline, self.faces, self.images, self.people, self.slice, self.without_face, self.poor
        );
        println!("{table}");
        println!("{}", serde_json::to_string(self)?);
        Ok(())
    }
}
