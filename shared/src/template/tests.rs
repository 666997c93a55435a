use uuid::Uuid;

use super::*;

/// A hundredth of strangers' pairs reach 0.3, a thousandth 0.4.
fn calibration() -> Calibration {
    Calibration {
        measured_on: "a test".to_owned(),
        far: vec![1e-1, 1e-2, 1e-3, 1e-4],
        score: vec![0.2, 0.3, 0.4, 0.5],
        measured_far: None,
    }
}

fn face(n: u128) -> FaceId {
    FaceId(Uuid::from_u128(n))
}

fn vector(values: &[f32]) -> Embedding {
    Embedding::normalised(values.to_vec()).unwrap()
}

/// Faces 1, 2, ... of these vectors.
fn faces(vectors: &[Embedding]) -> Vec<(FaceId, Embedding)> {
    (1..).map(face).zip(vectors.iter().cloned()).collect()
}

fn template(vectors: &[Embedding]) -> Template {
    Template::of(faces(vectors), &calibration(), Metric::Cosine).unwrap()
}

/// A person's look along one axis of eight, with a part of its own along another.
fn look(axis: usize, own: usize) -> Embedding {
    let mut values = [0.0; 8];
    values[axis] = 1.0;
    values[own] = 1.0;
    vector(&values)
}

fn axis(axis: usize) -> Embedding {
    look(axis, axis)
}

#[test]
fn one_and_two_faces_speak_for_themselves() {
    for vectors in [&[][..], &[axis(0)], &[axis(0), axis(1)]] {
        assert!(Template::of(faces(vectors), &calibration(), Metric::Cosine).is_none());
    }
    assert_eq!([0, 1, 2, 3, 64].map(comparisons), [0, 1, 2, 4, 65]);
}

#[test]
fn a_mislabelled_face_of_four_decides_nothing() {
    for wrong in 0..4 {
        let mut vectors = vec![look(0, 1), look(0, 2), look(0, 3)];
        vectors.insert(wrong, axis(7));
        let template = template(&vectors);
        let id = face(wrong as u128 + 1);
        assert_eq!(template.doubted().collect::<Vec<_>>(), [id]);
        let found = template.likeness(&axis(7), id).unwrap();
        assert!(found.score.abs() < 1e-6 && found.face != id, "{found:?}");
        let found = template.likeness(&look(0, 1), id).unwrap();
        assert!((found.score - 1.0).abs() < 1e-5 && found.face != id, "{found:?}");
    }
}

#[test]
fn two_looks_of_two_faces_each_are_kept() {
    let template = template(&[look(0, 1), look(4, 5), look(0, 2), look(4, 6)]);
    assert_eq!(template.doubted().count(), 0);
    for (query, nearest) in [(look(0, 1), 1), (look(4, 6), 4)] {
        let found = template.likeness(&query, face(nearest)).unwrap();
        assert_eq!(found.face, face(nearest));
        assert!((found.score - 1.0).abs() < 1e-5, "the mean of both takes nothing from either: {found:?}");
    }
}

#[test]
fn where_most_faces_fit_nothing_none_is_doubted() {
    let strangers = template(&[axis(0), axis(1), axis(2)]);
    assert_eq!((strangers.doubted().count(), strangers.mean.is_none()), (0, true));
    let found = strangers.likeness(&look(0, 1), face(1)).unwrap();
    assert_eq!((found.face, found.score.to_bits()), (face(1), found.face_score.to_bits()));
    let most = template(&[axis(0), axis(0), axis(1), axis(2), axis(3)]);
    assert_eq!((most.doubted().count(), most.mean.is_none()), (0, true), "three of five");
    let half = template(&[axis(0), axis(0), axis(1), axis(2)]);
    assert_eq!(half.doubted().collect::<Vec<_>>(), [face(3), face(4)]);
}

#[test]
fn the_mean_adds_so_much_at_most() {
    let template = template(&[look(0, 1), look(0, 2), look(0, 3)]);
    let found = template.likeness(&axis(0), face(1)).unwrap();
    let nearest = std::f32::consts::FRAC_1_SQRT_2;
    assert!((found.face_score - nearest).abs() < 1e-5);
    assert!((found.score - nearest - MEAN_GAIN).abs() < 1e-5, "the mean alone is much nearer: {found:?}");
    let found = template.likeness(&look(0, 1), face(1)).unwrap();
    assert_eq!(found.score.to_bits(), found.face_score.to_bits(), "the nearest face is nearer than the mean");
}

#[test]
fn equal_scores_go_to_the_older_face() {
    let found = template(&[axis(0), axis(0), axis(0)]).likeness(&axis(0), face(3)).unwrap();
    assert_eq!(found.face, face(1));
}

#[test]
fn more_faces_must_be_more_alike() {
    // A cosine of 0.35: enough beside one other face, not among sixty-three.
    let like = vector(&[0.35, (1.0_f32 - 0.35 * 0.35).sqrt(), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let few = template(&[axis(0), axis(0), like.clone()]);
    assert_eq!(few.doubted().count(), 0);
    let mut many = vec![axis(0); 63];
    many.push(like);
    assert_eq!(template(&many).doubted().collect::<Vec<_>>(), [face(64)]);
}

#[test]
fn of_older_faces_only_the_nearest_counts() {
    let mut vectors = vec![look(0, 1); NEWEST];
    vectors.extend([look(0, 2), look(0, 3), axis(7)]);
    let template = template(&vectors);
    assert_eq!(template.doubted().collect::<Vec<_>>(), [face(67)]);
    let at = |query: &Embedding, nearest| template.likeness(query, face(nearest)).unwrap();
    assert_eq!(at(&look(0, 2), 65).face, face(65));
    assert_eq!(at(&look(0, 2), 66).face, face(1), "as if 65 were not there");
    assert!(at(&axis(7), 67).score.abs() < 1e-6);
}

/// Vectors that share a long common part, as those of some models do: all cosines are near 1.
fn lengthy(x: f32, y: f32) -> Embedding {
    Embedding::as_given(vec![50.0, x, y]).unwrap()
}

fn by_distance(vectors: &[Embedding]) -> Template {
    Template::of(faces(vectors), &calibration(), Metric::Euclidean).unwrap()
}

#[test]
fn distances_say_which_faces_fit() {
    // A hundredth of strangers' pairs are 0.7 apart or less.
    let template = by_distance(&[lengthy(0.0, 0.0), lengthy(0.3, 0.0), lengthy(0.0, 0.3), lengthy(3.0, 3.0)]);
    assert_eq!(template.doubted().collect::<Vec<_>>(), [face(4)]);
    let found = template.likeness(&lengthy(3.0, 3.0), face(4)).unwrap();
    assert!(found.face != face(4) && found.score < -2.0, "{found:?}");
}

#[test]
fn the_mean_of_distances_is_no_unit_vector_and_takes_a_tenth_off_at_most() {
    let corners = [lengthy(0.3, 0.0), lengthy(-0.3, 0.0), lengthy(0.0, 0.3), lengthy(0.0, -0.3)];
    let template = by_distance(&corners);
    assert_eq!(template.mean.as_ref().unwrap().as_slice(), [50.0, 0.0, 0.0]);
    let found = template.likeness(&lengthy(0.0, 0.01), face(3)).unwrap();
    assert!((found.face_score - 0.71).abs() < 1e-4);
    assert!((found.score - (1.0 - 0.29 * 0.9)).abs() < 1e-4, "the mean alone is at 0.99: {found:?}");
    let found = template.likeness(&lengthy(0.3, 0.0), face(1)).unwrap();
    assert_eq!(found.score.to_bits(), found.face_score.to_bits(), "the nearest face is nearer than the mean");
}

#[test]
fn who_is_further_below_than_the_mean_gives_cannot_reach_it() {
    for (metric, floor) in [(Metric::Cosine, 0.4), (Metric::Euclidean, 0.4), (Metric::Euclidean, -11.0)] {
        let least = least_for(floor, metric);
        assert!(least < floor && (most_by_mean(least, metric) - floor).abs() < 1e-5, "{metric} {floor}");
    }
}
