//! Vectors from the crops that are kept, beside those from the pictures.

use super::*;
use crate::analysis::{analyse, embed_crops};
use crate::vision::crops::Keep;

#[tokio::test]
async fn a_kept_crop_gives_the_vector_of_the_picture() {
    for pipeline in ["yunet-mobilefacenet", "scrfd-mobilefacenet"] {
        let Some(bench) = Bench::load(pipeline).await else { return };
        let names =
            ["obama.jpg", "biden2.jpg", "insightface_t1.jpg", "obama_and_biden.jpg", "solvay_conference_1927.png"];
        let files = names.iter().map(|name| bench.data.join("faces").join(name)).chain(bench.lfw(20));
        let (mut cosines, mut bytes) = (Vec::new(), 0);
        for file in files {
            let analysis = analyse(&bench.engine, std::fs::read(file).unwrap(), LIMITS, Keep::Crops).await.unwrap();
            let kept = analysis.faces.iter().map(|face| face.crop.clone().unwrap());
            let crops: Vec<_> = kept.map(|crop| (crop.file, crop.landmarks)).collect();
            bytes += crops.iter().map(|(file, _)| file.len()).sum::<usize>();
            let again = embed_crops(&bench.engine, crops, LIMITS).await.unwrap();
            cosines
                .extend(analysis.faces.iter().zip(again).map(|(face, other)| face.embedding.cosine(&other.unwrap())));
        }
        cosines.sort_by(f32::total_cmp);
        let (faces, least, median) = (cosines.len(), cosines[0], cosines[cosines.len() / 2]);
        let low = cosines[faces / 100];
        eprintln!(
            "{pipeline}: {faces} faces, cosine {least} at least, {low} of 99 %, median {median}; {} bytes each",
            bytes / faces
        );
        assert!(faces > 250, "{faces} faces");
        assert!(low >= 0.985 && median >= 0.999, "{pipeline}: {low} of 99 %, median {median}");
        assert!(bytes / faces < 25_000, "{} bytes each", bytes / faces);
    }
}
