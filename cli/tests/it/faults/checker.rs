//! The checker is shown histories that are not as they should be: it has to see them, or a good report says nothing.

use super::history::{self, Found, History};
use super::load::{Kind, request};
use crate::server::{Server, Site};

#[tokio::test]
async fn a_bad_history_is_seen() {
    let site = Site::services().await;
    let (postgres, database) = (services::postgres::shared().await, site.database());
    history::begin(postgres, database).await;
    let url = history::signed(&postgres.url(database), "worker");
    let server = Server::start_with(&site, &[("FACE_ID_DATABASE__URL", &url)]).await;
    server.make_collection("c").await;
    for (seed, kind) in [(1, Kind::Enroll), (2, Kind::Index)] {
        let job = server.run("c", kind.as_str(), &request(kind, &format!("key-{seed}"), seed)).await;
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    server.stop().await;
    let mut before = History::read(postgres, database).await;
    let moves = before.events.len();
    assert_eq!((before.jobs.len(), moves), (2, 2 * 4), "each was claimed and ended, with a result and a face");
    assert_eq!(before.judge(), Found::default());

    for (what, sql, doubled, stale_writes) in BAD {
        postgres.psql(database, sql).await.unwrap();
        let after = History::read(postgres, database).await;
        let (old, new) = (before.judge(), after.judge());
        assert_eq!(
            (new.doubled - old.doubled, new.stale_writes - old.stale_writes),
            (*doubled, *stale_writes),
            "{what}"
        );
        before = after;
    }
}

/// What is done by hand, and by how much that adds to what is found: effects twice, writes by others.
const BAD: &[(&str, &str, usize, usize)] = &[
    (
        "a job ends by the hand of one whose claim was taken away",
        "SET history.process = 'a';
         UPDATE jobs SET state = 'queued', finished_at = NULL WHERE kind = 'enroll';
         UPDATE jobs SET state = 'running', claim_id = gen_random_uuid() WHERE kind = 'enroll';
         SET history.process = 'b';
         UPDATE jobs SET state = 'succeeded', claim_id = NULL, finished_at = 1 WHERE kind = 'enroll'",
        1,
        1,
    ),
    ("a job ends again", "UPDATE jobs SET state = 'succeeded' WHERE kind = 'index'", 1, 1),
    ("a result is written over", "UPDATE job_payloads SET result = result", 0, 2),
    (
        "a face is stored twice",
        "INSERT INTO faces SELECT (jsonb_populate_record(f, jsonb_build_object('id', gen_random_uuid()))).* FROM faces f
         WHERE f.person_id IS NOT NULL",
        1,
        1,
    ),
    ("a face is not the person's", "UPDATE persons SET external_id = 'somebody else'", 0, 1),
    (
        "the effect was there before",
        "ALTER TABLE job_payloads DISABLE TRIGGER history;
         UPDATE job_payloads SET result = replace(result, '\"already_enrolled\":false', '\"already_enrolled\":true')",
        1,
        0,
    ),
    ("a key made two jobs", "UPDATE jobs SET tag = 'key'", 1, 0),
];
