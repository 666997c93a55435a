//! Which calibration counts, on both databases.

use super::*;
use crate::access::{GrantedKey, Limits, Reach, Scope};
use crate::db::collections::CollectionSettings;
use crate::db::count;
use crate::ids::ApiKeyId;

const PIPELINE: &str = "p";

fn measured(measured_on: &str) -> Measured {
    let point = |far: f64, cosine: f32| CalibrationPoint { far, cosine, lower: far / 2.0, upper: far * 2.0 };
    Measured {
        pipeline: PIPELINE.to_owned(),
        measured_on: measured_on.to_owned(),
        points: vec![point(1e-1, 0.1), point(1e-2, 0.25), point(1e-3, 0.5)],
        measured_far: 1e-2,
        people: 100,
        faces: 200,
        comparisons: 19_900,
        confidence: 0.99,
    }
}

async fn on_both(test: impl AsyncFn(Db, CollectionId, CollectionId)) {
    let folder = tempfile::tempdir().unwrap();
    for db in crate::testing::databases(folder.path()).await {
        for pipeline in [PIPELINE, "another"] {
            models::put_name(&db, pipeline).await;
        }
        let settings = CollectionSettings::default();
        let made = async |name| collections::create(&db, name, PIPELINE, &settings).await.unwrap().unwrap().id;
        let (one, other) = (made("one").await, made("other").await);
        test(db, one, other).await;
    }
}

/// Stores it, and gives its id.
async fn stored(db: &Db, collection: Option<CollectionId>, measured_on: &str) -> CalibrationId {
    store(db, collection, &measured(measured_on), false).await.unwrap().unwrap().id
}

/// What the collection's calibration was measured on.
async fn used(db: &Db, pipeline: &str, collection: CollectionId) -> Option<String> {
    in_use(&db.read, pipeline, collection).await.unwrap().map(|found| found.measured_on)
}

#[tokio::test]
async fn ones_own_newest_counts_then_the_newest_general_one() {
    on_both(async |db, one, other| {
        assert_eq!(used(&db, PIPELINE, one).await, None);
        let general = stored(&db, None, "general").await;
        let own = stored(&db, Some(one), "own").await;
        let newer = stored(&db, Some(one), "own, newer").await;
        let newest = stored(&db, None, "general, newer").await;
        assert_eq!(used(&db, PIPELINE, one).await.as_deref(), Some("own, newer"));
        assert_eq!(used(&db, PIPELINE, other).await.as_deref(), Some("general, newer"));
        assert_eq!(used(&db, "another", one).await, None);
        for (gone, then) in
            [(newer, Some("own")), (own, Some("general, newer")), (newest, Some("general")), (general, None)]
        {
            assert!(delete(&db, &Grant::everything(), gone).await.unwrap());
            assert!(!delete(&db, &Grant::everything(), gone).await.unwrap());
            assert_eq!(used(&db, PIPELINE, one).await.as_deref(), then);
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_stored_is_decided_by() {
    on_both(async |db, one, _| {
        stored(&db, Some(one), "own").await;
        let found = in_use(&db.read, PIPELINE, one).await.unwrap().unwrap();
        assert_eq!((found.people, found.faces, found.comparisons), (100, 200, 19_900));
        assert_eq!(found.points().unwrap(), measured("own").points);
        let calibration = found.calibration().unwrap();
        assert!((calibration.threshold_at(1e-2).score - 0.25).abs() < 1e-6);
        assert!(!calibration.threshold_at(1e-2).extrapolated);
        assert!(calibration.threshold_at(1e-3).extrapolated, "it was stored, and not measured");
    })
    .await;
}

#[tokio::test]
async fn a_calibration_goes_with_its_collection() {
    on_both(async |db, one, other| {
        let (own, general) = (stored(&db, Some(one), "own").await, stored(&db, None, "general").await);
        assert!(collections::delete(&db, one).await.unwrap());
        assert_eq!(find(&db.read, &Grant::everything(), own).await.unwrap(), None);
        assert_eq!(used(&db, PIPELINE, other).await.as_deref(), Some("general"));
        assert!(find(&db.read, &Grant::everything(), general).await.unwrap().is_some());
        assert_eq!(store(&db, Some(one), &measured("late"), false).await.unwrap(), None, "nobody decides by it");
        let removed = Measured { pipeline: "removed".to_owned(), ..measured("late") };
        assert_eq!(store(&db, None, &removed, false).await.unwrap(), None, "nor by a model that is not there");
    })
    .await;
}

#[tokio::test]
async fn who_decides_otherwise_from_then_on_is_matched_again() {
    on_both(async |db, one, other| {
        let asked = async || {
            let of = async |id: CollectionId| {
                let sql = "SELECT count(*) AS n FROM rematch_requests WHERE collection_id = $1";
                count(&db.read, sql, [id.into()]).await.unwrap()
            };
            [of(one).await, of(other).await]
        };
        let own = stored(&db, Some(one), "own").await;
        assert_eq!(asked().await, [1, 0]);
        let general = stored(&db, None, "general").await;
        assert_eq!(asked().await, [1, 1], "who has one of its own does not care");
        let elsewhere = Measured { pipeline: "another".to_owned(), ..measured("elsewhere") };
        store(&db, Some(one), &elsewhere, false).await.unwrap().unwrap();
        store(&db, None, &elsewhere, false).await.unwrap().unwrap();
        assert_eq!(asked().await, [1, 1], "nobody goes by that pipeline");
        delete(&db, &Grant::everything(), own).await.unwrap();
        delete(&db, &Grant::everything(), general).await.unwrap();
        assert_eq!(asked().await, [3, 2]);
    })
    .await;
}

#[tokio::test]
async fn a_grant_of_one_collection_shows_its_own_only() {
    on_both(async |db, one, other| {
        let general = stored(&db, None, "general").await;
        let (own, foreign) = (stored(&db, Some(one), "own").await, stored(&db, Some(other), "foreign").await);
        let key = GrantedKey { id: ApiKeyId::new(), line: ApiKeyId::new() };
        let grant = Grant::of_key(key, [Scope::Admin], Reach::Only([one].into()), Limits::default());
        let all = async |grant: &Grant| {
            let rows = list(&db, grant, &CalibrationFilter::default(), None, 10).await.unwrap();
            rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
        };
        assert_eq!(all(&grant).await, [own]);
        assert_eq!(all(&Grant::everything()).await, [foreign, own, general]);
        for hidden in [foreign, general] {
            assert_eq!(find(&db.read, &grant, hidden).await.unwrap(), None);
            assert!(!delete(&db, &grant, hidden).await.unwrap());
        }
        let filter = CalibrationFilter { collection: Some(other), pipeline: Some(PIPELINE.to_owned()) };
        let rows = list(&db, &Grant::everything(), &filter, None, 10).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [foreign]);
        assert_eq!(list(&db, &Grant::everything(), &filter, Some(foreign), 10).await.unwrap(), []);
    })
    .await;
}

#[test]
fn what_makes_no_sense_is_named() {
    type Change = fn(&mut Measured);
    let with = |change: Change| {
        let mut changed = measured("x");
        change(&mut changed);
        changed.check(Metric::Cosine).map_err(|(pointer, _)| pointer)
    };
    let mut far_apart = measured("x");
    far_apart.points.iter_mut().for_each(|point| point.cosine -= 9.0);
    assert_eq!((far_apart.check(Metric::Euclidean), far_apart.check(Metric::Cosine).is_ok()), (Ok(()), false));
    assert_eq!(with(|_| ()), Ok(()));
    let cases: [(Change, &str); 14] = [
        (|m| m.points.truncate(1), "#/points"),
        (|m| m.points = vec![m.points[0]; 33], "#/points"),
        (|m| m.points[0].far = 1.0, "#/points/0/far"),
        (|m| m.points[1].far = f64::NAN, "#/points/1/far"),
        (|m| m.points[1].far = 0.2, "#/points/1/far"),
        (|m| m.points[1].cosine = 0.1, "#/points/1/cosine"),
        (|m| m.points[2].cosine = 1.5, "#/points/2/cosine"),
        (|m| m.points[1].lower = 0.02, "#/points/1/lower"),
        (|m| m.points[1].upper = 0.005, "#/points/1/upper"),
        (|m| m.measured_far = 1e-4, "#/measured_far"),
        (|m| m.people = 1, "#/people"),
        (|m| m.faces = 99, "#/faces"),
        (|m| m.comparisons = 0, "#/comparisons"),
        (|m| m.confidence = 1.0, "#/confidence"),
    ];
    for (change, pointer) in cases {
        assert_eq!(with(change), Err(pointer.to_owned()));
    }
}

#[tokio::test]
async fn general_ones_stay_while_a_collection_is_erased() {
    on_both(async |db, one, other| {
        let all = Grant::everything();
        let (general, own) = (stored(&db, None, "general").await, stored(&db, Some(one), "own").await);
        let others = stored(&db, Some(other), "another's").await;
        execute(&db.write, "UPDATE collections SET erased_at = 1 WHERE id = $1", [one.into()]).await.unwrap();
        let found = list(&db, &all, &CalibrationFilter::default(), None, 10).await.unwrap();
        assert_eq!(found.iter().map(|row| row.id).collect::<Vec<_>>(), [others, general]);
        assert!(find(&db.read, &all, general).await.unwrap().is_some());
        assert!(find(&db.read, &all, own).await.unwrap().is_none());
    })
    .await;
}

#[tokio::test]
async fn the_last_one_is_needed_where_no_threshold_is_set() {
    on_both(async |db, one, other| {
        let found = async |id| find(&db.read, &Grant::everything(), id).await.unwrap().unwrap();
        let needed = async |id| needed_by(&db.read, &found(id).await).await.unwrap();
        let general = stored(&db, None, "general").await;
        let own = stored(&db, Some(one), "own").await;
        assert_eq!(needed(own).await, None, "the general one is left");
        assert_eq!(needed(general).await.as_deref(), Some("other"));
        let by_hand = CollectionSettings { match_cosine: Some(0.4), ..CollectionSettings::default() };
        assert!(collections::update_settings(&db, other, &by_hand, |_| true).await.unwrap());
        assert_eq!(needed(general).await, None);
        assert!(delete(&db, &Grant::everything(), general).await.unwrap());
        assert_eq!(needed(own).await.as_deref(), Some("one"));
    })
    .await;
}
