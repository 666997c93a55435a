//! Large jpegs, of which as little is decoded as their faces need, beside the same ones decoded whole.

use super::*;
use crate::analysis::AnalysedFace;
use crate::vision::crops::aligned_crops;
use crate::vision::decode::{self, camera_jpeg};
use crate::vision::detect::overview_side;

/// Longer side of a photograph of twelve megapixels.
const LARGE: u32 = 4000;

/// `rows` times `rows` copies of the picture, enlarged together.
fn large(picture: &Picture, rows: u32) -> Picture {
    let image = image_of(picture);
    let side = LARGE / rows;
    let longest = image.width().max(image.height());
    let (width, height) = (image.width() * side / longest, image.height() * side / longest);
    let one = image::imageops::resize(&image, width, height, FilterType::CatmullRom);
    let mut all = RgbImage::new(width * rows, height * rows);
    for n in 0..rows * rows {
        image::imageops::replace(&mut all, &one, i64::from(n % rows * width), i64::from(n / rows * height));
    }
    picture_of(all)
}

impl Bench {
    async fn analysed(&self, file: &[u8], side: u32) -> (Arc<Photo>, Vec<AnalysedFace>) {
        let photo = Arc::new(decode::decode(file.to_vec(), &LIMITS, side).unwrap());
        let found = find_faces(&self.engine, &self.pipeline().detector, &photo).await.unwrap();
        let faces = embed_faces(&self.engine, &photo, found).await.unwrap();
        (photo, faces)
    }
}

#[tokio::test]
async fn a_large_jpeg_gives_the_faces_of_the_whole_one() {
    let Some(bench) = Bench::load("yunet-mobilefacenet").await else { return };
    let side = overview_side(&bench.pipeline().detector);
    let cases = [
        ("astronaut.png", 1),
        ("astronaut.png", 4),
        ("biden2.jpg", 2),
        ("insightface_t1.jpg", 1),
        ("insightface_t1.jpg", 2),
        ("obama.jpg", 3),
        ("obama_and_biden.jpg", 1),
        ("solvay_conference_1927.png", 1),
        ("widerface_0_Parade_marchingband_1_149.jpg", 1),
    ];
    let (mut all, mut cosines) = (0, Vec::new());
    for (name, rows) in cases {
        let file = camera_jpeg(&large(&bench.picture(&format!("faces/{name}")), rows));
        let (whole, wanted) = bench.analysed(&file, u32::MAX).await;
        let (photo, found) = bench.analysed(&file, side).await;
        assert_eq!(photo.size, whole.size, "{name}");
        let overview = &photo.overview.picture;
        assert_eq!([overview.width, overview.height], whole.size.map(|side| side.div_ceil(2)), "{name}");
        let cosine = |face: &AnalysedFace| {
            let iou = |other: &&AnalysedFace| other.detection.bounding_box.iou(&face.detection.bounding_box);
            let same = found.iter().find(|other| iou(other) > 0.5)?;
            Some(same.embedding.cosine(&face.embedding))
        };
        all += wanted.len();
        cosines.extend(wanted.iter().filter_map(cosine));
    }
    cosines.sort_by(f32::total_cmp);
    let median = cosines[cosines.len() / 2];
    eprintln!("{} of {all} faces, median cosine {median}, least {}", cosines.len(), cosines[0]);
    assert!(all > 100 && cosines.len() * 100 >= all * 98, "{} of {all} faces", cosines.len());
    assert!(median >= 0.99, "median cosine {median}");
}

#[tokio::test]
async fn a_small_face_is_cut_out_as_of_the_whole_picture() {
    let Some(bench) = Bench::load("yunet-mobilefacenet").await else { return };
    let (detector, alignment) = (&bench.pipeline().detector, &bench.pipeline().alignment);
    let file = camera_jpeg(&large(&bench.picture("faces/solvay_conference_1927.png"), 1));
    // As it is, and mirrored.
    for value in [1, 2] {
        let file = oriented(&file, value);
        let (whole, wanted) = bench.analysed(&file, u32::MAX).await;
        let photo = decode::decode(file, &LIMITS, overview_side(detector)).unwrap();
        let faces: Vec<Detection> = wanted.iter().map(|face| face.detection.clone()).collect();
        let [one, other] = [&whole, &photo].map(|photo| aligned_crops(photo, &faces, alignment).unwrap());
        for ((one, other), face) in one.iter().zip(&other).zip(&faces) {
            let (one, other) = (one.as_ref().unwrap(), other.as_ref().unwrap());
            let apart = one.rgb.iter().zip(&other.rgb).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(apart <= 1, "{apart} levels at {:?}", face.bounding_box);
        }
    }
}
