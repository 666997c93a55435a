//! Figures of vectors that are made up.

use std::collections::BTreeSet;

use shared::catalogue::{Metric, Pipeline};
use shared::comparison::{MovedDecisions, Outcome, OutcomeCounts};
use shared::face_index::matches::candidates;
use shared::ids::PersonId;

use super::*;
use crate::calibrations::InUse;
use crate::jobs::identify::RUNNER_UP;
use crate::testing;

fn labels(persons: &[usize]) -> Vec<Labelled> {
    let ids: Vec<PersonId> = (0..=persons.iter().copied().max().unwrap_or_default()).map(|_| PersonId::new()).collect();
    persons.iter().map(|person| Labelled { face_id: FaceId::new(), person_id: ids[*person] }).collect()
}

/// Vectors of a plane at these angles in degrees.
fn at(degrees: f32) -> Embedding {
    Embedding::normalised(vec![degrees.to_radians().cos(), degrees.to_radians().sin()]).unwrap()
}

fn faces(labels: &[Labelled], from: &[f32], to: &[f32]) -> Faces {
    let mut faces = Faces::default();
    for (n, label) in labels.iter().enumerate() {
        faces.push(*label, at(from[n]), at(to[n]));
    }
    faces
}

fn by(pipeline: &Pipeline, match_cosine: Option<f32>) -> Terms {
    let calibration = pipeline.calibration.clone().map(|calibration| Arc::new(InUse { id: None, calibration }));
    let settings = CollectionSettings { match_cosine, ..CollectionSettings::default() };
    Terms { pipeline: pipeline.name.clone(), metric: pipeline.recognizer.metric, settings, calibration }
}

fn compared(faces: &Faces, terms: &[Terms; 2]) -> (ComparisonReport, Vec<Disagreement>) {
    let thresholds = terms.each_ref().map(|terms| Thresholds::identify(terms, 10).ok());
    let pipelines = [("old", terms[0].metric), ("new", terms[1].metric)];
    compare(faces, 100, pipelines, &thresholds, &AtomicBool::new(false)).unwrap()
}

#[test]
fn decisions_move_and_the_worst_are_told_first() {
    let pipeline = testing::tiny_pipeline();
    // Two persons of two faces, and one of one.
    let labels = labels(&[0, 0, 1, 1, 2]);
    // By the new one the first person's second face lies at the second person's, and the last one is near nobody's.
    let faces = faces(&labels, &[0.0, 5.0, 90.0, 95.0, 150.0], &[0.0, 92.0, 90.0, 130.0, 200.0]);
    // Match within 25.8 degrees, uncertain within 31.8.
    let (report, worst) = compared(&faces, &[by(&pipeline, Some(0.9)), by(&pipeline, Some(0.9))]);
    assert_eq!((report.labelled_faces, report.faces, report.persons, report.faces_with_mates), (100, 5, 3, 4));
    assert_eq!((report.from.genuine_pairs, report.from.impostor_pairs), (2, 8));
    let counts = |right, wrong, unknown| Some(OutcomeCounts { right, wrong, uncertain: 0, unknown });
    assert_eq!(report.from.outcomes, counts(4, 0, 1));
    assert_eq!((report.to.outcomes, report.to.rank_1), (counts(0, 2, 3), Some(0.0)));
    let moved = |to, faces| MovedDecisions { from: Outcome::Right, to, faces };
    assert_eq!(report.moved, [moved(Outcome::Wrong, 2), moved(Outcome::Unknown, 2)]);
    assert!(report.from.tar[0].tar.is_none() && report.from.tar[0].why_not.as_ref().unwrap().contains("too few"));
    assert_eq!(worst.len(), 4);
    assert_eq!((worst[0].to.outcome, worst[3].to.outcome), (Outcome::Wrong, Outcome::Unknown));
    let moved = worst.iter().find(|one| one.face_id == labels[1].face_id).unwrap();
    assert_eq!(moved.to.person_id, Some(labels[2].person_id));
    assert!((moved.to.score - f64::from(at(92.0).cosine(&at(90.0)))).abs() < 1e-6);
}

#[test]
fn persons_are_judged_by_all_their_faces() {
    let pipeline = testing::tiny_pipeline();
    // The first person's fourth face is nowhere near the others, and next to the second person's only one.
    let labels = labels(&[0, 0, 0, 0, 1]);
    let faces = faces(&labels, &[0.0, 2.0, 4.0, 90.0, 91.0], &[0.0, 2.0, 4.0, 6.0, 91.0]);
    let mut uncalibrated = pipeline.clone();
    uncalibrated.calibration = None;
    let (report, _) = compared(&faces, &[by(&pipeline, Some(0.9)), by(&pipeline, Some(0.9))]);
    let counts = |right, wrong, unknown| Some(OutcomeCounts { right, wrong, uncertain: 0, unknown });
    assert_eq!(report.from.outcomes, counts(3, 1, 1), "a doubted face says nothing of another person's");
    assert_eq!(report.to.outcomes, counts(4, 0, 1));
    let (report, _) = compared(&faces, &[by(&uncalibrated, Some(0.9)), by(&pipeline, Some(0.9))]);
    assert_eq!(report.from.outcomes, counts(3, 2, 0), "without a calibration each face speaks for itself");

    assert_eq!(comparisons_of_one(&labels), 4 + 1);
    assert_eq!(comparisons_of_one(&[]), 0);
}

#[test]
fn as_many_persons_are_near_a_face_as_a_job_looks_up() {
    let persons: Vec<PersonId> = (0..10).map(|_| PersonId::new()).collect();
    let vectors: Vec<Embedding> = (0..10u8).map(|n| at(f32::from(n) * 5.0)).collect();
    let scores = scores::Scores::of(&persons, &vectors, Metric::Cosine, &AtomicBool::new(false)).unwrap();
    assert!(scores.near.iter().all(|near| near.len() == candidates(RUNNER_UP)));
    let nearest: Vec<usize> = scores.near[0].iter().map(|(face, _)| *face).collect();
    assert!(nearest.is_sorted() && nearest[0] == 1, "{nearest:?}");
}

#[test]
fn without_a_threshold_the_nearest_counts() {
    let mut pipeline = testing::tiny_pipeline();
    let measured = pipeline.clone();
    pipeline.calibration = None;
    let labels = labels(&[0, 0, 1]);
    let faces = faces(&labels, &[0.0, 5.0, 90.0], &[0.0, 60.0, 70.0]);
    let (report, worst) = compared(&faces, &[by(&measured, None), by(&pipeline, None)]);
    assert!(report.from.outcomes.is_some() && report.from.match_cosine.is_some());
    assert_eq!((report.to.outcomes, report.to.match_cosine, report.moved.len()), (None, None, 0));
    assert_eq!((report.from.rank_1, report.to.rank_1), (Some(1.0), Some(0.5)));
    assert!(worst.iter().any(|one| one.face_id == labels[1].face_id && one.to.outcome == Outcome::Wrong));
}

#[test]
fn the_true_accept_rate_is_that_at_the_impostors_threshold() {
    let pipeline = testing::tiny_pipeline();
    // 100 persons of two faces, 3.6 degrees from the next one: the old one has both at 0.4 degrees, the new one at 90.
    let persons: Vec<usize> = (0..200).map(|n| n / 2).collect();
    let angle = |apart: f32| {
        move |n: &usize| {
            let second = if n % 2 == 1 { apart } else { 0.0 };
            f32::from(u16::try_from(n / 2).unwrap()) * 3.6 + second
        }
    };
    let angles = |apart: f32| (0..200).map(|n| angle(apart)(&n)).collect::<Vec<f32>>();
    let faces = faces(&labels(&persons), &angles(0.4), &angles(90.0));
    let (report, _) = compared(&faces, &[by(&pipeline, None), by(&pipeline, None)]);
    assert_eq!((report.from.genuine_pairs, report.from.impostor_pairs), (100, 19_800));
    let tar = |figures: &shared::comparison::PipelineFigures| figures.tar.iter().map(|one| one.tar).collect::<Vec<_>>();
    assert_eq!(tar(&report.from), [Some(1.0), Some(1.0)]);
    assert_eq!(tar(&report.to), [Some(0.0), Some(0.0)]);
    assert!(report.from.tar[0].cosine.unwrap() < report.from.tar[1].cosine.unwrap());
}

#[test]
fn a_model_of_cosines_and_one_of_distances_are_each_judged_by_their_own() {
    let pipeline = testing::tiny_pipeline();
    let mut distances = pipeline.clone();
    distances.recognizer.metric = Metric::Euclidean;
    distances.recognizer.normalise = false;
    let calibration = distances.calibration.as_mut().unwrap();
    calibration.score = calibration.score.iter().map(|cosine| 1.0 - (2.0 - 2.0 * cosine).sqrt()).collect();
    // Thirty persons of two faces, which the old one has at 0.1 degrees and the new one at a distance of 0.1. Two persons are
    // 1.9 apart there at least, in a place where no angle tells anybody apart.
    let persons: Vec<usize> = (0..60).map(|n| n / 2).collect();
    let mut faces = Faces::default();
    for (n, label) in (0u8..).zip(&labels(&persons)) {
        let (person, second) = (f32::from(n / 2), f32::from(n % 2));
        let far = Embedding::as_given(vec![1000.0, person * 2.0 + 0.1 * second]).unwrap();
        faces.push(*label, at(person * 10.0 + 0.1 * second), far);
    }
    let (report, _) = compared(&faces, &[by(&pipeline, Some(0.999)), by(&distances, Some(0.8))]);
    let all = Some(OutcomeCounts { right: 60, wrong: 0, uncertain: 0, unknown: 0 });
    assert_eq!((report.from.outcomes, report.to.outcomes), (all, all));
    let told = |figures: &shared::comparison::PipelineFigures| figures.tar[0].clone();
    assert_eq!((told(&report.from).tar, told(&report.to).tar), (Some(1.0), Some(1.0)));
    // Of 1740 pairs of two persons 29 are 1.9 apart, more than a hundredth.
    let cosine = told(&report.to).cosine.unwrap();
    assert!((-1.0..-0.85).contains(&cosine), "{cosine}");
    let (strict, _) = compared(&faces, &[by(&pipeline, Some(0.999)), by(&distances, Some(0.95))]);
    assert_eq!(strict.to.outcomes.unwrap().right, 0, "0.1 is not within 0.05");
}

#[test]
fn who_is_told_to_stop_stops() {
    let faces = faces(&labels(&[0, 0]), &[0.0, 1.0], &[0.0, 1.0]);
    let pipelines = [("old", Metric::Cosine), ("new", Metric::Cosine)];
    assert!(compare(&faces, 2, pipelines, &[None, None], &AtomicBool::new(true)).is_none());
    let mut pipeline = testing::tiny_pipeline();
    pipeline.calibration = None;
    let (report, worst) = compared(&Faces::default(), &[by(&pipeline, None), by(&pipeline, None)]);
    assert_eq!((report.faces, report.from.rank_1, worst.len()), (0, None, 0));
}

#[test]
fn a_sample_is_of_whole_persons_and_the_same_each_time() {
    // A hundred persons of one face, ten of three, and one of a hundred.
    let persons: Vec<usize> = (0..100).chain((100..110).flat_map(|n| [n; 3])).chain([110; 100]).collect();
    let all = labels(&persons);
    assert_eq!(sample(all.clone(), 1, all.len()), all);
    let some = sample(all.clone(), 1, 60);
    assert_eq!(some.len(), 60);
    assert_eq!(some, sample(all.clone(), 1, 60));
    assert_ne!(some, sample(all.clone(), 2, 60));
    let of = |person: usize| {
        some.iter()
            .filter(|face| face.person_id == all[persons.iter().position(|p| *p == person).unwrap()].person_id)
            .count()
    };
    assert!((100..110).all(|person| of(person) == 3), "those with several come first");
    assert_eq!(of(110), 20, "and nobody takes the room of all");
    assert_eq!(some.iter().map(|face| face.face_id).collect::<BTreeSet<_>>().len(), 60);
}
