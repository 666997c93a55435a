//! The suite that every index runs, through HNSW too, and what only this one could get wrong.

use std::sync::Arc;

use migrations::MigratorTrait;
use sea_orm::ConnectionTrait as _;

use super::partitions::MAX_PLAIN;
use super::*;
use crate::catalogue::{Entry, Origin};
use crate::db::{count, is_lock_timeout, leaders, models};
use crate::face_index::contract::{self, METRICS, enroll, gallery, vector};

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
async fn crowded(db: &Db, metric: Metric) -> (Gallery, Embedding) {
    let gallery = gallery(db, 3, metric).await;
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
    for metric in METRICS {
        let (gallery, query) = crowded(&db, metric).await;
        enroll(&db, &gallery, "d", vector(&[0.0, 0.0, 1.0])).await;
        assert!(index.build(&gallery).await.unwrap());
        let hnsw = hnsw::find(&db, &gallery).await.unwrap().unwrap();
        let through = index.search_through(&hnsw, &gallery, &query, 4).await.unwrap();
        assert_eq!(through.len(), 1, "its candidates are all one person's");
        let found = index.search(&gallery, vec![query], 4).await.unwrap();
        assert_eq!((found.hits[0].len(), found.size.persons), (4, 4));
    }
}

#[tokio::test]
async fn a_new_person_is_found_beside_an_old_count() {
    let db = database().await;
    let index = PgvectorFaceIndex::new(db.clone(), 1);
    let (gallery, query) = crowded(&db, Metric::Cosine).await;
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
    for metric in METRICS {
        let (gallery, query) = crowded(&db, metric).await;
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
}

#[tokio::test]
async fn the_entry_says_by_which_metric_a_gallery_is_indexed() {
    let db = database().await;
    let text = include_str!("../../../../models/tiny/tiny.toml").replace("name = \"tiny\"", "name = \"contract-3\"");
    let text = text.replace("cosine = [", "score = [");
    let text = text.replace("layout = \"nchw\"", "layout = \"nchw\"\nnormalise = false\nmetric = \"euclidean\"");
    let gallery = gallery(&db, 3, Metric::Euclidean).await;
    enroll(&db, &gallery, "ann", vector(&[1.0, 0.0, 0.0])).await;
    assert!(hnsw::wanting(&db, 1).await.unwrap().is_empty(), "nobody can search what is not registered");
    let entry = Entry::parse(Origin::Added, "test", text).unwrap();
    models::put(&db.write, &entry, None).await.unwrap();
    assert_eq!(hnsw::wanting(&db, 1).await.unwrap(), [gallery]);
}

#[tokio::test]
async fn vectors_that_are_too_long_for_an_index_get_none() {
    let db = database().await;
    let text = include_str!("../../../../models/tiny/tiny.toml").replace("name = \"tiny\"", "name = \"contract-3\"");
    let gallery = gallery(&db, 3, Metric::Cosine).await;
    enroll(&db, &gallery, "ann", vector(&[1.0, 0.0, 0.0])).await;
    let text = text.replace("dimension = 64", "dimension = 2001");
    let entry = Entry::parse(Origin::Added, "test", text).unwrap();
    models::put(&db.write, &entry, None).await.unwrap();
    assert!(hnsw::wanting(&db, 1).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_gallery_whose_index_cannot_be_built_keeps_none_of_the_others_from_theirs() {
    let db = database().await;
    let index = PgvectorFaceIndex::new(db.clone(), 1);
    let [broken, whole] = [gallery(&db, 2, Metric::Cosine).await, gallery(&db, 3, Metric::Cosine).await];
    enroll(&db, &broken, "ann", vector(&[1.0, 0.0])).await;
    enroll(&db, &whole, "ann", vector(&[1.0, 0.0, 0.0])).await;
    let tiny = include_str!("../../../../models/tiny/tiny.toml");
    for name in [&broken.pipeline, &whole.pipeline] {
        let text = tiny.replace("name = \"tiny\"", &format!("name = \"{name}\""));
        let entry = Entry::parse(Origin::Added, "test", text).unwrap();
        models::put(&db.write, &entry, None).await.unwrap();
    }
    // No index can be made on a table that its name does not lead to.
    let table = partition_name(&broken.pipeline);
    execute(&db.write, &format!("ALTER TABLE {table} RENAME TO elsewhere"), []).await.unwrap();
    index.maintain().await.unwrap();
    let building = index.building.lock().unwrap().take().unwrap();
    building.await.unwrap();
    assert!(hnsw::find(&db, &broken).await.unwrap().is_none());
    assert!(hnsw::find(&db, &whole).await.unwrap().is_some());
}

#[tokio::test]
async fn what_a_killed_build_left_is_dropped() {
    let db = database().await;
    let index = PgvectorFaceIndex::new(db.clone(), 1);
    let gallery = gallery(&db, 3, Metric::Cosine).await;
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

/// All that a table is, with `x` for its name.
async fn description(db: &Db, table: &str) -> Vec<String> {
    #[derive(FromQueryResult)]
    struct Row {
        line: String,
    }
    let sql = "SELECT replace(what.line, $1, 'x') AS line FROM pg_class c CROSS JOIN LATERAL (
            SELECT concat_ws(' ', 'column', attname, format_type(atttypid, atttypmod), attstorage, attnotnull,
                attislocal, attinhcount) AS line FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0
            UNION ALL SELECT concat_ws(' ', 'constraint', o.conname, pg_get_constraintdef(o.oid), o.convalidated,
                o.conislocal, o.coninhcount, (SELECT p.conname FROM pg_constraint p WHERE p.oid = o.conparentid))
                FROM pg_constraint o WHERE o.conrelid = c.oid
            UNION ALL SELECT concat_ws(' ', 'index', pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisprimary,
                (SELECT h.inhparent::regclass FROM pg_inherits h WHERE h.inhrelid = i.indexrelid))
                FROM pg_index i WHERE i.indrelid = c.oid
            UNION ALL SELECT concat_ws(' ', 'trigger', regexp_replace(pg_get_triggerdef(t.oid), '_[0-9]+', ''),
                t.tgenabled, t.tgparentid <> 0) FROM pg_trigger t WHERE t.tgrelid = c.oid
            UNION ALL SELECT concat_ws(' ', 'bound', pg_get_expr(c.relpartbound, c.oid), c.reloptions)
        ) AS what WHERE c.oid = $1::regclass ORDER BY line";
    let rows = Row::find_by_statement(statement(&db.read, sql, [table.into()])).all(&db.read).await.unwrap();
    rows.into_iter().map(|row| row.line).collect()
}

#[tokio::test]
async fn a_partition_is_what_postgres_itself_would_make() {
    let db = database().await;
    for (pipeline, dimension) in [("small", 3), ("large", MAX_PLAIN + 1)] {
        assert!(create_partition(&db, pipeline, dimension).await.unwrap());
        let made = description(&db, &partition_name(pipeline)).await;
        assert!(["index", "trigger", "constraint"].iter().all(|kind| made.iter().any(|line| line.starts_with(kind))));
        drop_partition(&db, pipeline).await.unwrap();
        assert!(!has_partition(&db, pipeline).await.unwrap());
        let name = partition_name(pipeline);
        let own = format!(
            "CREATE TABLE {name} PARTITION OF embeddings (CHECK (vector_dims(vector) = {dimension}))
                FOR VALUES IN ('{pipeline}')"
        );
        execute(&db.write, &own, []).await.unwrap();
        if dimension <= MAX_PLAIN {
            let plain = format!("ALTER TABLE {name} ALTER COLUMN vector SET STORAGE PLAIN");
            execute(&db.write, &plain, []).await.unwrap();
        }
        assert_eq!(made, description(&db, &name).await);
    }
}

/// An export reads all vectors in one transaction, for hours perhaps.
#[tokio::test]
async fn who_reads_vectors_neither_waits_for_a_new_partition_nor_holds_it_up() {
    let db = database().await;
    let vectors = "SELECT count(*) AS n FROM embeddings JOIN faces ON faces.id = embeddings.face_id
        JOIN collections ON collections.id = faces.collection_id";
    let exporting = db.snapshot().await.unwrap();
    count(&exporting, vectors, []).await.unwrap();
    assert!(create_partition(&db, "first", 3).await.unwrap());

    let making = db.begin().await.unwrap();
    create_within(&making, "second", 3).await.unwrap();
    let searched = tokio::time::timeout(Duration::from_secs(5), count(&db.read, vectors, [])).await;
    assert_eq!(searched.expect("a search does not wait").unwrap(), 0);
    making.commit().await.unwrap();

    let removed = drop_partition(&db, "first").await.unwrap_err();
    assert!(is_lock_timeout(&removed), "{removed}");
    exporting.commit().await.unwrap();
    drop_partition(&db, "first").await.unwrap();
}
