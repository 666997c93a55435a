//! `face-id detect`: what a pipeline's detector sees on pictures, as a table and drawn into copies of them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use shared::config::Config;
use worker::analysis::find_faces;
use worker::vision::decode::decode;
use worker::vision::detect::overview_side;
use worker::vision::{Detection, Picture};

use crate::eval::embed::{Setup, read_now};

/// Colours of boxes and of points, seen apart by colour-blind readers too (Okabe and Ito 2008).
const BOX: [u8; 3] = [230, 159, 0];
const POINT: [u8; 3] = [0, 158, 115];

#[derive(clap::Args)]
pub(crate) struct DetectArgs {
    /// Pictures.
    #[arg(required = true, value_name = "FILE")]
    pictures: Vec<PathBuf>,
    /// The pipeline whose detector looks; the default one where absent.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Write a copy of each picture here, as `NAME.faces.png`, with boxes and points.
    #[arg(long, value_name = "DIR")]
    draw: Option<PathBuf>,
}

/// Prints where the faces are, and draws them where that is wanted.
#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(crate) async fn run(config: &Config, args: DetectArgs) -> anyhow::Result<()> {
    let (setup, _) = crate::eval::setup(config, args.model.as_deref(), None).await?;
    if let Some(folder) = &args.draw {
        std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    }
    let folder = args.draw.as_ref().map(|folder| folder.canonicalize()).transpose().context("find the folder")?;
    // None of the pictures is written over.
    let mut drawn: HashSet<PathBuf> = args.pictures.iter().filter_map(|picture| picture.canonicalize().ok()).collect();
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["picture", "x", "y", "width", "height", "score", "points"]);
    for picture in &args.pictures {
        let faces = faces(&setup, picture).await?;
        let name = picture.file_name().unwrap_or(picture.as_os_str()).to_string_lossy().into_owned();
        if faces.is_empty() {
            table.add_row([name.as_str(), "", "", "", "", "", "no face"]);
        }
        for face in &faces {
            table.add_row(row(&name, face));
        }
        if let Some(folder) = &folder {
            draw(&setup, picture, &faces, &target(folder, &name, &mut drawn))?;
        }
    }
    for column in 1..=5 {
        if let Some(numbers) = table.column_mut(column) {
            numbers.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
    Ok(())
}

async fn faces(setup: &Setup, picture: &Path) -> anyhow::Result<Vec<Detection>> {
    let detector = setup.engine.pipeline().detector.clone();
    let photo = read_now(picture, setup.limits, overview_side(&detector))?;
    Ok(find_faces(&setup.engine, &detector, &Arc::new(photo)).await?)
}

fn row(name: &str, face: &Detection) -> [String; 7] {
    let place = &face.bounding_box;
    let [x, y, width, height] = [place.x, place.y, place.width, place.height].map(|number| format!("{number:.1}"));
    [name.to_owned(), x, y, width, height, format!("{:.3}", face.score), face.landmarks.scheme().to_string()]
}

/// Where a picture's copy is written: a name that none has that was drawn in this run, nor one of its pictures.
fn target(folder: &Path, name: &str, drawn: &mut HashSet<PathBuf>) -> PathBuf {
    let numbered = (1..).map(|n: usize| if n == 1 { String::new() } else { format!(".{n}") });
    let mut files = numbered.map(|number| folder.join(format!("{name}{number}.faces.png")));
    let file = files.find(|file| !drawn.contains(file)).unwrap_or_else(|| folder.join(name));
    drawn.insert(file.clone());
    file
}

/// A copy of the picture at its own size.
fn draw(setup: &Setup, picture: &Path, faces: &[Detection], file: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(picture).with_context(|| format!("read {}", picture.display()))?;
    let mut copy = decode(bytes, &setup.limits, u32::MAX)?.overview.picture;
    for face in faces {
        mark(&mut copy, face);
    }
    image::save_buffer(file, &copy.rgb, copy.width, copy.height, image::ExtendedColorType::Rgb8)
        .with_context(|| format!("write {}", file.display()))
}

/// The box's edge and a dot on each point, as thick as the face is large.
fn mark(picture: &mut Picture, face: &Detection) {
    let place = face.bounding_box;
    let thick = (place.shorter_side() / 60.0).clamp(1.0, 6.0);
    let [right, bottom] = [place.x + place.width, place.y + place.height];
    for edge in [
        [place.x, place.y, right, place.y + thick],
        [place.x, bottom - thick, right, bottom],
        [place.x, place.y, place.x + thick, bottom],
        [right - thick, place.y, right, bottom],
    ] {
        fill(picture, edge, BOX);
    }
    // Many points lie close together.
    let dot = if face.landmarks.points().len() > 5 { thick / 2.0 } else { thick };
    for [x, y] in face.landmarks.points() {
        fill(picture, [x - dot, y - dot, x + dot, y + dot], POINT);
    }
}

/// Left, top, right and bottom in pixels, at least one of them each way; what lies outside of the picture is left out.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the casts saturate at the picture's edges"
)]
fn fill(picture: &mut Picture, [left, top, right, bottom]: [f32; 4], colour: [u8; 3]) {
    let along = |from: f32, to: f32, size: u32| {
        let (from, to) = (from.round() as i64, to.round() as i64);
        let clamp = |at: i64| at.clamp(0, i64::from(size)) as usize;
        clamp(from)..clamp(to.max(from + 1))
    };
    let (columns, rows) = (along(left, right, picture.width), along(top, bottom, picture.height));
    let width = picture.width as usize;
    for y in rows {
        for x in columns.clone() {
            let at = (y * width + x) * 3;
            picture.rgb[at..at + 3].copy_from_slice(&colour);
        }
    }
}

#[cfg(test)]
mod tests {
    use worker::vision::{BoundingBox, Landmarks};

    use super::*;

    #[test]
    fn copies_have_names_of_their_own() {
        let mut drawn = HashSet::new();
        let mut next = |name: &str| target(Path::new("out"), name, &mut drawn).display().to_string();
        let names = ["trip.1.jpg", "trip.2.jpg", "trip.1.jpg"].map(&mut next);
        assert_eq!(names, ["out/trip.1.jpg.faces.png", "out/trip.2.jpg.faces.png", "out/trip.1.jpg.2.faces.png"]);
    }

    #[test]
    fn a_face_is_marked_where_it_lies_and_nothing_outside_of_the_picture() {
        let mut picture = Picture { width: 40, height: 30, rgb: vec![0; 40 * 30 * 3] };
        let face = Detection {
            bounding_box: BoundingBox { x: 10.0, y: 5.0, width: 20.0, height: 40.0 },
            landmarks: Landmarks::five([[15.0, 12.0], [25.0, 12.0], [20.0, 18.0], [-50.0, 3.0], [25.0, 24.0]]),
            score: 0.9,
        };
        mark(&mut picture, &face);
        let at = |x: usize, y: usize| <[u8; 3]>::try_from(&picture.rgb[(y * 40 + x) * 3..][..3]).unwrap();
        assert_eq!([at(10, 5), at(29, 5), at(10, 29), at(20, 5)], [BOX; 4]);
        assert_eq!([at(15, 12), at(25, 24)], [POINT; 2]);
        assert_eq!([at(9, 5), at(30, 5), at(20, 10), at(0, 0)], [[0; 3]; 4]);
        assert_eq!(row("a.jpg", &face)[1..5], ["10.0", "5.0", "20.0", "40.0"]);
    }
}
