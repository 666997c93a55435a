//! Registered models on both databases.

use super::*;
use crate::access::Grant;
use crate::db::calibrations::{CalibrationPoint, Measured};
use crate::db::collections::{self, CollectionSettings, Created};
use crate::face_index::pgvector::has_partition;

const NAME: &str = "yunet-mobilefacenet";

async fn on_both(test: impl AsyncFn(Db)) {
    let folder = tempfile::tempdir().unwrap();
    for db in crate::testing::databases(folder.path()).await {
        test(db).await;
    }
}

fn own() -> Vec<Entry> {
    Catalogue::entries(None).unwrap()
}

/// The default entry with a change.
fn changed(origin: Origin, from: &str, to: &str) -> Entry {
    let text = own().into_iter().find(|entry| entry.pipeline.name == NAME).unwrap().text;
    assert!(text.contains(from), "{from}");
    Entry::parse(origin, "changed", text.replace(from, to)).unwrap()
}

fn named(name: &str) -> Entry {
    changed(Origin::Added, &format!("name = \"{NAME}\""), &format!("name = \"{name}\""))
}

async fn use_by_a_collection(db: &Db, pipeline: &str) -> crate::ids::CollectionId {
    collections::create(db, "c", pipeline, &CollectionSettings::default()).await.unwrap().unwrap().id
}

#[tokio::test]
async fn every_process_registers_its_own_once() {
    on_both(async |db| {
        let own = own();
        let (one, other) = tokio::join!(Models::open(&db, &own), Models::open(&db, &own));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!(one.now().pipelines().count(), own.len());
        assert_eq!(other.now().pipelines().count(), own.len());
        let before = models::find(&db.read, NAME).await.unwrap().unwrap();
        assert_eq!((before.origin(), before.registered_at), (Origin::BuiltIn, before.changed_at));
        register(&db, &own).await.unwrap();
        assert_eq!(models::find(&db.read, NAME).await.unwrap().unwrap(), before);
        if is_postgres(&db.read) {
            assert!(has_partition(&db, NAME).await.unwrap());
        }
    })
    .await;
}

#[tokio::test]
async fn what_vectors_mean_stays_while_something_uses_it() {
    on_both(async |db| {
        register(&db, &own()).await.unwrap();
        let shorter = [changed(Origin::Folder, "dimension = 128", "dimension = 64")];
        register(&db, &shorter).await.unwrap();
        assert_eq!(models::find(&db.read, NAME).await.unwrap().unwrap().origin(), Origin::Folder);
        register(&db, &own()).await.unwrap();
        assert_eq!(
            models::find(&db.read, NAME).await.unwrap().unwrap().origin(),
            Origin::Folder,
            "the operator's stays"
        );
        assert_eq!(remove(&db, NAME).await.unwrap(), Removed::Done);
        register(&db, &own()).await.unwrap();
        assert_eq!(models::find(&db.read, NAME).await.unwrap().unwrap().origin(), Origin::BuiltIn);

        let collection = use_by_a_collection(&db, NAME).await;
        let refused = register(&db, &shorter).await.unwrap_err();
        assert!(matches!(&refused, ModelsError::Changed { name, used: Use::Collection } if name == NAME), "{refused}");
        // What people read and thresholds may be others.
        let described = [changed(Origin::Folder, "0.2509", "0.2510")];
        let models = Models::open(&db, &own()).await.unwrap();
        let before = models.now();
        register(&db, &described).await.unwrap();
        models.refresh().await.unwrap();
        let after = models.now();
        assert_ne!(before.pipeline(NAME).unwrap().calibration, after.pipeline(NAME).unwrap().calibration);
        register(&db, &own()).await.unwrap();
        assert_eq!(models::find(&db.read, NAME).await.unwrap().unwrap().entry, described[0].text);
        assert!(Arc::ptr_eq(before.find("yunet-sface").unwrap(), after.find("yunet-sface").unwrap()), "unchanged");
        collections::delete(&db, collection).await.unwrap();
        register(&db, &shorter).await.unwrap();
    })
    .await;
}

/// Addresses that came over HTTP are not called; the operator's are.
#[tokio::test]
async fn an_entry_that_the_operator_takes_over_is_read_again() {
    on_both(async |db| {
        let running = Models::open(&db, &own()).await.unwrap();
        let added = named("own");
        add(&db, &added, None).await.unwrap();
        let has_addresses = async || {
            running.refresh().await.unwrap();
            running.now().pipeline("own").unwrap().files().iter().all(|file| !file.urls.is_empty())
        };
        assert!(!has_addresses().await);
        register(&db, &[Entry { origin: Origin::Folder, ..added }]).await.unwrap();
        assert!(has_addresses().await);
    })
    .await;
}

#[tokio::test]
async fn a_model_is_added_and_removed() {
    on_both(async |db| {
        let running = Models::open(&db, &own()).await.unwrap();
        assert!(running.pipeline("own").await.is_err());
        let Added::New(row) = add(&db, &named("own"), None).await.unwrap() else { panic!("it is new") };
        assert_eq!((row.name.as_str(), row.origin()), ("own", Origin::Added));
        let pipeline = running.pipeline("own").await.unwrap();
        assert!(pipeline.files().iter().all(|file| file.urls.is_empty()), "its addresses are not called");
        assert!(parsed(&row).unwrap().files().iter().all(|file| !file.urls.is_empty()), "and are kept");
        if is_postgres(&db.read) {
            assert!(has_partition(&db, "own").await.unwrap());
        }
        let again = Entry { text: format!("# the same\n{}", row.entry), ..named("own") };
        assert_eq!(add(&db, &again, None).await.unwrap(), Added::Known(row));
        let other = Entry { pipeline: Pipeline { description: "x".to_owned(), ..again.pipeline }, ..named("own") };
        assert_eq!(add(&db, &other, None).await.unwrap(), Added::Taken);

        let collection = use_by_a_collection(&db, "own").await;
        assert_eq!(remove(&db, "own").await.unwrap(), Removed::Used(Use::Collection));
        collections::delete(&db, collection).await.unwrap();
        assert_eq!(remove(&db, NAME).await.unwrap(), Removed::BuiltIn);
        assert_eq!(remove(&db, "own").await.unwrap(), Removed::Done);
        assert_eq!(remove(&db, "own").await.unwrap(), Removed::NotFound);
        running.refresh().await.unwrap();
        assert!(running.now().find("own").is_none());
        if is_postgres(&db.read) {
            assert!(!has_partition(&db, "own").await.unwrap());
        }
        let made = collections::create_of_registered(&db, "c", "own", &CollectionSettings::default()).await.unwrap();
        assert_eq!(made, Created::NoModel);
        // Who says it now made nothing of what is there.
        use_by_a_collection(&db, "own").await;
        assert_eq!(add(&db, &named("own"), None).await.unwrap(), Added::Used(Use::Collection));
        assert!(collections::find_by_name(&db.read, &Grant::everything(), "c").await.unwrap().is_some());
    })
    .await;
}

#[tokio::test]
async fn an_entry_of_a_newer_program_keeps_nobody_from_the_others() {
    on_both(async |db| {
        let models = Models::open(&db, &own()).await.unwrap();
        let sql = "UPDATE models SET entry = 'sharpness = 2', digest = 'x' WHERE name = 'yunet-sface'";
        crate::db::execute(&db.write, sql, []).await.unwrap();
        models.refresh().await.unwrap();
        assert_eq!(models.now().pipelines().count(), own().len() - 1);
        assert!(models.unreadable()["yunet-sface"].contains("sharpness"), "{:?}", models.unreadable());
    })
    .await;
}

#[tokio::test]
async fn what_was_measured_of_a_model_goes_with_it() {
    on_both(async |db| {
        register(&db, &own()).await.unwrap();
        let measured = async |pipeline: &str| {
            let point = |far: f64, cosine: f32| CalibrationPoint { far, cosine, lower: far, upper: far };
            let measured = Measured {
                pipeline: pipeline.to_owned(),
                measured_on: "a test".to_owned(),
                points: vec![point(1e-1, 0.1), point(1e-2, 0.2)],
                measured_far: 1e-2,
                people: 2,
                faces: 2,
                comparisons: 1,
                confidence: 0.9,
            };
            calibrations::store(&db, None, &measured, false).await.unwrap().unwrap().id
        };
        let is_kept = async |id| calibrations::find(&db.read, &Grant::everything(), id).await.unwrap().is_some();
        add(&db, &named("own"), None).await.unwrap();
        let (of_own, of_another) = (measured("own").await, measured(NAME).await);
        assert_eq!(remove(&db, "own").await.unwrap(), Removed::Done);
        assert!(!is_kept(of_own).await);
        assert!(is_kept(of_another).await);
        register(&db, &[changed(Origin::Folder, "0.2509", "0.2510")]).await.unwrap();
        assert!(is_kept(of_another).await, "its scores are the same");
        register(&db, &[changed(Origin::Folder, "dimension = 128", "dimension = 64")]).await.unwrap();
        assert!(!is_kept(of_another).await);
    })
    .await;
}
