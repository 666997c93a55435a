//! The suite that every index runs, through HNSW too, and what only this one could get wrong.

use std::sync::Arc;

use migrations::MigratorTrait;
use sea_orm::ConnectionTrait as _;

use super::*;
use crate::db::{count, leaders};
use crate::face_index::contract::{self, enroll, gallery, vector};

async fn database() -> Db {
    let db = crate::testing::postgres_database().await;
    migrations::Migrator::up(&db.write, None).await.unwrap();
    for (pipeline, dimension) in contract::PIPELINES {
        assert!(create_partition(&db, pipeline, dimension).await.unwrap());
        assert!(!create_partition(&db, pipeline, dimension).await.unwrap(), "a second time nothing is to do");
    }
    db
}

#[tokio::test]
async fn keeps_the_contract() {
    let db = database().await;
    contract::run(&db, Arc::new(PgvectorFaceIndex::new(db.clone(), 0))).await;
}

#[tokio::test]
async fn keeps_the_contract_through_hnsw() {
    let db = database().await;
    let index = Arc::new(PgvectorFaceIndex::new(db.clone(), 1));
    contract::run_with(&db, Arc::clone(&index) as Arc<dyn FaceIndex>, async |gallery| {
        assert!(index.build(gallery).await.unwrap());
    })
    .await;
}

/// One person has more near faces than a search through HNSW looks at.
async fn crowded(db: &Db) -> (Gallery, Embedding) {
    let gallery = gallery(db, 3).await;
    for n in 0..300_u16 {
        enroll(db, &gallery, "near", vector(&[1.0, f32::from(n) / 3000.0, 0.0])).await;
    }
    for far in ["b", "c"] {
        enroll(db, &gallery, far, vector(&[0.0, 1.0, 0.1])).await;
    }
    (gallery, vector(&[1.0, 0.0, 0.0]))
}

#[tokio::test]
async fn where_hnsw_gives_too_few_persons_the_search_is_exact() {
    let db = database().await;
    let index = PgvectorFaceIndex::new(db.clone(), 1);
    let (gallery, query) = crowded(&db).await;
    enroll(&db, &gallery, "d", vector(&[0.0, 0.0, 1.0])).await;
    assert!(index.build(&gallery).await.unwrap());
    let hnsw = hnsw::find(&db, &gallery).await.unwrap().unwrap();
    let through = index.search_through(&hnsw, &gallery, &query, 4).await.unwrap();
    assert_eq!(through.len(), 1, "its candidates are all one person's");
    let found = index.search(&gallery, vec![query], 4).await.unwrap();
    assert_eq!((found.hits[0].len(), found.size.persons), (4, 4));
}

#[tokio::test]
async fn a_new_person_is_found_beside_an_old_count() {
    let db = database().await;
    let index = PgvectorFaceIndex::new(db.clone(), 1);
    let (gallery, query) = crowded(&db).await;
    assert!(index.build(&gallery).await.unwrap());
    // As if one person had been counted a moment ago, of a gallery that is too large to be counted each time.
    let counted = GallerySize { persons: 1, faces: COUNT_EACH_TIME + 1, means: 1 };
    index.sizes.lock().unwrap().insert(gallery.clone(), (counted, Instant::now()));
    let found = index.search(&gallery, vec![query], 3).await.unwrap();
    assert_eq!((found.size, found.hits[0].len()), (counted, 3));
}

#[tokio::test]
async fn the_planner_takes_the_index() {
    let db = database().await;
    let index = PgvectorFaceIndex::new(db.clone(), 1);
    let (gallery, query) = crowded(&db).await;
    assert!(index.build(&gallery).await.unwrap());
    let hnsw = hnsw::find(&db, &gallery).await.unwrap().unwrap();
    let txn = db.read.begin().await.unwrap();
    // A table this small would be scanned and sorted.
    for way in ["seqscan", "sort"] {
        execute(&txn, &format!("SET LOCAL enable_{way} = off"), []).await.unwrap();
    }
    let sql = format!("EXPLAIN {}", nearest_through(&hnsw, &gallery, query.dimension(), 10));
    let plan = txn.query_all_raw(statement(&txn, &sql, [embeddings::to_value(&txn, &query)])).await.unwrap();
    let plan: Vec<String> = plan.iter().map(|row| row.try_get("", "QUERY PLAN").unwrap()).collect();
    let scan = format!("Index Scan using {}", hnsw.name);
    assert!(plan.iter().any(|line| line.contains(&scan)), "{plan:#?}");
}

#[tokio::test]
async fn what_a_killed_build_left_is_dropped() {
    let db = database().await;
    let index = PgvectorFaceIndex::new(db.clone(), 1);
    let gallery = gallery(&db, 3).await;
    enroll(&db, &gallery, "ann", vector(&[1.0, 0.0, 0.0])).await;
    let table = partition_name(&gallery.pipeline);
    for name in ["hnsw_finished", "hnsw_broken"] {
        let left = format!("CREATE INDEX {name} ON {table} USING hnsw ((vector::vector(3)) vector_ip_ops)");
        execute(&db.write, &left, []).await.unwrap();
    }
    let broken = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'hnsw_broken'::regclass";
    execute(&db.write, broken, []).await.unwrap();
    let there = async || {
        let sql =
            "SELECT count(*) AS n FROM pg_class WHERE relname LIKE 'hnsw\\_%' AND relkind = 'i' AND relname <> $1";
        count(&db.read, sql, ["hnsw_indexes_pkey".into()]).await.unwrap()
    };
    assert_eq!(there().await, 2);

    leaders::lead(&db, "hnsw of another gallery", Uuid::now_v7(), COUNT_FOR).await.unwrap();
    assert!(index.build(&gallery).await.unwrap());
    assert_eq!(there().await, 3, "one of them may be just about to be listed by who builds it");
    execute(&db.write, "DELETE FROM leaders", []).await.unwrap();
    assert!(index.build(&gallery).await.unwrap());
    assert_eq!(there().await, 1, "the listed one");
    assert_eq!(index.search(&gallery, vec![vector(&[1.0, 0.0, 0.0])], 1).await.unwrap().hits[0].len(), 1);
}
