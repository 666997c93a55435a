use std::collections::HashMap;

use proptest::prelude::*;
use shared::catalogue::Catalogue;

use super::*;

const LIMITS: Limits = Limits { alone: 0.52, together: 0.40 };

/// A number in -1..1 that looks random and is always the same for the same seed.
fn noise(seed: u64) -> f32 {
    // The finaliser of SplitMix64 (Steele et al. 2014).
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x >> 40) as f32) / (1 << 23) as f32 - 1.0
}

/// A face of a person, on an image of its own.
fn member(person: u64, n: u64) -> Member {
    let component = |at: u64| noise(person * 1000 + at) + 0.75 * noise((person << 32) + (n << 16) + at + 1);
    Member {
        face: FaceId(Uuid::from_u128(u128::from(person) << 64 | u128::from(n))),
        image: ImageId(Uuid::from_u128(u128::from(person) << 64 | u128::from(n))),
        embedding: Embedding::normalised((0..64).map(component).collect()).unwrap(),
        not: Vec::new(),
        sides: Vec::new(),
    }
}

fn namer() -> impl FnMut() -> ClusterId {
    let mut next = 1u128 << 100;
    move || {
        next += 1;
        ClusterId(Uuid::from_u128(next))
    }
}

/// What merges say of where each face is.
fn place(clusters: &mut HashMap<FaceId, ClusterId>, merges: &[Merge]) {
    for merge in merges {
        for part in merge.parts.into_iter().flatten() {
            match part {
                UnitId::Face(face) => {
                    clusters.insert(face, merge.into);
                }
                UnitId::Cluster(gone) => {
                    for cluster in clusters.values_mut().filter(|c| **c == gone) {
                        *cluster = merge.into;
                    }
                }
            }
        }
    }
}

fn arrive(members: &[Member], slice: usize) -> HashMap<FaceId, ClusterId> {
    arrive_by(members, slice, Metric::Cosine, LIMITS)
}

fn arrive_by(members: &[Member], slice: usize, metric: Metric, limits: Limits) -> HashMap<FaceId, ClusterId> {
    let (mut units, mut clusters, mut name) = (Units::new(metric), HashMap::new(), namer());
    for new in members.chunks(slice) {
        let merges = units.arrive(new, limits, &mut name).unwrap();
        place(&mut clusters, &merges);
    }
    assert_eq!(units.faces(), members.len(), "no face is lost");
    clusters
}

/// The faces that lie together, in an order of their own.
fn groups(clusters: &HashMap<FaceId, ClusterId>) -> BTreeSet<BTreeSet<FaceId>> {
    let mut groups: HashMap<ClusterId, BTreeSet<FaceId>> = HashMap::new();
    for (face, cluster) in clusters {
        groups.entry(*cluster).or_default().insert(*face);
    }
    groups.into_values().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn people_are_found_in_any_order(order in Just((0..60usize).collect::<Vec<_>>()).prop_shuffle(), slice in 1usize..70) {
        let all: Vec<Member> = (1..=10).flat_map(|person| (1..=6).map(move |n| member(person, n))).collect();
        let members: Vec<Member> = order.iter().map(|n| all[*n].clone()).collect();
        let found = groups(&arrive(&members, slice));
        let people: BTreeSet<BTreeSet<FaceId>> =
            all.chunks(6).map(|faces| faces.iter().map(|m| m.face).collect()).collect();
        prop_assert_eq!(&found, &people);

        // The same faces, as a model would have them whose vectors lie far from zero: no cosine tells them apart.
        let away = |member: &Member| {
            let values = member.embedding.as_slice().iter().map(|value| value + 10.0).collect();
            Member { embedding: Embedding::as_given(values).unwrap(), ..member.clone() }
        };
        let members: Vec<Member> = members.iter().map(away).collect();
        let distance = |cosine: f32| 1.0 - (2.0 - 2.0 * cosine).sqrt();
        let limits = Limits { alone: distance(LIMITS.alone), together: distance(LIMITS.together) };
        prop_assert_eq!(groups(&arrive_by(&members, slice, Metric::Euclidean, limits)), people);
    }
}

#[test]
fn the_mean_distance_is_that_of_all_pairs() {
    let unit = |person: u64, faces: u64, n: u128| {
        let mut unit = Unit::empty(UnitId::Cluster(ClusterId(Uuid::from_u128(n))), None);
        (1..=faces).for_each(|face| unit.add(&member(person, face)));
        unit
    };
    for (faces, others) in [(1, 1), (1, 4), (5, 3)] {
        let (mut sum, pairs) = (0.0, (faces * others) as f32);
        for one in 1..=faces {
            for other in 1..=others {
                let score = member(1, one).embedding.score(&member(2, other).embedding, Metric::Euclidean);
                sum += (1.0 - score).powi(2);
            }
        }
        let found = unit(1, faces, 1).mean_score(&unit(2, others, 2), Metric::Euclidean);
        assert!((found - (1.0 - (sum / pairs).sqrt())).abs() < 1e-5, "{faces} and {others}");
    }
    let alone = unit(1, 1, 1);
    assert_eq!(alone.mean_score(&alone, Metric::Euclidean).to_bits(), 1.0_f32.to_bits());
}

#[test]
fn two_faces_of_an_image_are_two_people() {
    let mut members = [member(1, 1), member(1, 2), member(1, 3)];
    members[1].image = members[0].image;
    let clusters = arrive(&members, 3);
    assert_eq!(clusters.len(), 2, "the third joins the one that it is more like, the other lies alone");
    let together = clusters.contains_key(&members[0].face) && clusters.contains_key(&members[1].face);
    assert!(!together);
}

#[test]
fn what_a_user_said_is_kept_to() {
    let person = [1u128, 2].map(|n| PersonId(Uuid::from_u128(n)));
    let separation = Uuid::from_u128(9);
    let name = || ClusterId(Uuid::from_u128(77));
    let cluster = UnitId::Cluster(ClusterId(Uuid::from_u128(5)));
    let core = [member(1, 1), member(1, 2)];
    let joins = |named: Option<PersonId>, core: &[Member], new: Member| {
        let mut units = Units::new(Metric::Cosine);
        units.put(cluster, named, core).unwrap();
        !units.arrive(&[new], LIMITS, name).unwrap().is_empty()
    };
    assert!(joins(None, &core, member(1, 3)));
    assert!(joins(Some(person[0]), &core, member(1, 3)));
    assert!(!joins(None, &core, member(2, 3)), "a stranger");
    let not = |person| Member { not: vec![person], ..member(1, 3) };
    assert!(!joins(Some(person[0]), &core, not(person[0])), "not this person");
    assert!(joins(Some(person[0]), &core, not(person[1])));
    let on = |side, member| Member { sides: vec![(separation, side)], ..member };
    let apart = [on(0, member(1, 1)), member(1, 2)];
    assert!(!joins(None, &apart, on(1, member(1, 3))), "split off by a user");
    assert!(joins(None, &apart, on(0, member(1, 3))));
}

#[test]
fn clusters_of_two_persons_stay_apart_and_a_named_one_stays() {
    let person = [1u128, 2].map(|n| PersonId(Uuid::from_u128(n)));
    let ids = [1u128, 2].map(|n| ClusterId(Uuid::from_u128(n)));
    let put = |persons: [Option<PersonId>; 2]| {
        let mut units = Units::new(Metric::Cosine);
        for (n, (id, person)) in (0u64..).zip(ids.into_iter().zip(persons)) {
            units.put(UnitId::Cluster(id), person, &[member(1, 2 * n + 1), member(1, 2 * n + 2)]).unwrap();
        }
        units
    };
    let arrive =
        |units: &mut Units| units.arrive(&[member(1, 9)], LIMITS, || unreachable!("no cluster is new")).unwrap();
    let mut units = put([Some(person[0]), Some(person[1])]);
    assert_eq!(arrive(&mut units).len(), 1, "the face joins one of them, and they do not join each other");
    let mut units = put([None, Some(person[1])]);
    let merges = arrive(&mut units);
    assert_eq!(merges.len(), 2);
    assert_eq!(merges[1].into, ids[1], "the named cluster takes the other in");
    assert_eq!(units.person(ids[1]), Some(person[1]));
    assert_eq!(units.faces(), 5);
}

#[test]
fn what_is_removed_takes_no_part() {
    let mut units = Units::new(Metric::Cosine);
    let core = UnitId::Cluster(ClusterId(Uuid::from_u128(5)));
    units.put(core, None, &[member(1, 1), member(1, 2)]).unwrap();
    units.remove(core);
    assert_eq!(units.faces(), 0);
    assert!(units.arrive(&[member(1, 3)], LIMITS, namer()).unwrap().is_empty());
    units.put(core, None, &[member(1, 1)]).unwrap();
    units.put(core, None, &[member(2, 1)]).unwrap();
    assert_eq!(units.faces(), 2, "put replaces");
}

#[test]
fn limits_follow_the_calibration_and_the_library() {
    let catalogue = Catalogue::load(None).unwrap();
    let calibration = catalogue.pipeline("yunet-mobilefacenet").unwrap().calibration.clone().unwrap();
    let small = Limits::of(&calibration, 0);
    assert_eq!(small, Limits::of(&calibration, 10_000));
    assert!((small.alone - calibration.threshold_at(1e-6).score).abs() < 1e-6);
    assert!((small.together - calibration.threshold_at(1e-4).score).abs() < 1e-6);
    let large = Limits::of(&calibration, 10_001);
    assert!(large.alone > small.alone && (large.together - small.together).abs() < 1e-6);
    assert!((small.between(1, 1) - small.alone).abs() < 1e-6);
    assert!(small.between(1, 2) < small.between(1, 1));
    assert!(small.between(1000, 1000) - small.together < 1e-3);
}
