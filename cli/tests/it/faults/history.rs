//! What the database saw of the jobs, written down by triggers that the product does not know, and a judge of it: an effect
//! that came twice, or a write by somebody who had lost the job, leaves a trace here even where the product's own tables
//! look well in the end.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use services::postgres::Postgres;

/// What happened, in order, and what is there.
#[derive(Deserialize)]
pub(crate) struct History {
    pub(crate) events: Vec<Event>,
    pub(crate) jobs: Vec<Job>,
}

/// A write of a transaction that was committed.
#[derive(Deserialize)]
pub(crate) struct Event {
    transaction: String,
    /// Who wrote, see [`signed`].
    process: Option<String>,
    #[serde(flatten)]
    what: What,
}

#[derive(Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum What {
    /// A job's state was written. `held` is the claim that its row named before.
    Move { job: String, before: String, after: String, held: Option<String>, holds: Option<String> },
    /// A job's result was written.
    Result { job: String },
    /// A face was stored.
    Face,
}

/// A job as it is now. What the server makes by itself, to match faces again, stores none and is left out.
#[derive(Deserialize)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) batch: Option<String>,
    /// The client's key, or the picture's place in its batch: one a job.
    key: Option<String>,
    /// Its result says that somebody had done it before.
    already: bool,
    /// Faces on the picture that its result names: every job has a picture of one face for itself.
    pub(crate) faces: usize,
    /// Its result names a face that is there, and whose it should be.
    named: bool,
}

/// How much there is that must not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Effects beyond one a job, or one a key.
    pub(crate) doubled: usize,
    /// Writes by somebody who did not hold the job any more.
    pub(crate) stale_writes: usize,
}

/// The address of a database for a process that signs its writes in the history.
pub(crate) fn signed(url: &str, process: &str) -> String {
    format!("{url}?options[history.process]={process}")
}

/// Begins to write the history of a migrated database.
pub(crate) async fn begin(postgres: &Postgres, database: &str) {
    postgres.psql(database, TRIGGERS).await.unwrap();
}

impl History {
    pub(crate) async fn read(postgres: &Postgres, database: &str) -> Self {
        serde_json::from_str(&postgres.psql(database, READ).await.unwrap()).unwrap()
    }

    pub(crate) fn judge(&self) -> Found {
        let mut found = Found::default();
        let mut holders: HashMap<&str, Option<&str>> = HashMap::new();
        let mut ended: HashSet<(&str, &str)> = HashSet::new();
        let mut room_for_faces: HashMap<&str, usize> = HashMap::new();
        let mut have_results: HashSet<&str> = HashSet::new();
        // Within a job the events are in order: its row is locked from one to the end of their transaction.
        for Event { transaction, process, what } in &self.events {
            let What::Move { job, before, after, held, holds } = what else { continue };
            found.doubled += usize::from(is_terminal(before));
            if let (Some(claim), true) = (holds, after == "running") {
                holders.insert(claim, process.as_deref());
            }
            // Any reaper may give a job back or give it up; its answer comes from who holds it.
            if after == "succeeded" || after == "rejected" {
                let holder = held.as_deref().and_then(|claim| holders.get(claim));
                found.stale_writes += usize::from(holder != Some(&process.as_deref()));
                ended.insert((transaction.as_str(), job.as_str()));
                *room_for_faces.entry(transaction).or_default() += usize::from(after == "succeeded");
            }
        }
        for Event { transaction, what, .. } in &self.events {
            match what {
                What::Move { .. } => {}
                What::Result { job } => {
                    let with_its_end = ended.contains(&(transaction.as_str(), job.as_str()));
                    found.stale_writes += usize::from(!have_results.insert(job) || !with_its_end);
                }
                What::Face => match room_for_faces.get_mut(transaction.as_str()) {
                    Some(room) if *room > 0 => *room -= 1,
                    _ => found.stale_writes += 1,
                },
            }
        }
        let mut keys = HashSet::new();
        for job in &self.jobs {
            found.doubled += usize::from(job.key.as_ref().is_some_and(|key| !keys.insert(key)));
            found.doubled += usize::from(job.already) + job.faces.saturating_sub(1);
            found.stale_writes += usize::from(job.state == "succeeded" && !job.named);
        }
        found
    }
}

pub(crate) fn is_terminal(state: &str) -> bool {
    state != "queued" && state != "running"
}

const TRIGGERS: &str = "
    CREATE TABLE history (
        n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        transaction text NOT NULL DEFAULT pg_current_xact_id()::text,
        process text DEFAULT current_setting('history.process', true),
        what text NOT NULL, job uuid, before text, after text, held uuid, holds uuid
    );
    CREATE FUNCTION history_of_jobs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO history (what, job, before, after, held, holds)
        VALUES ('move', NEW.id, OLD.state, NEW.state, OLD.claim_id, NEW.claim_id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER history AFTER UPDATE OF state ON jobs FOR EACH ROW EXECUTE FUNCTION history_of_jobs();
    CREATE FUNCTION history_of_results() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO history (what, job) VALUES ('result', NEW.job_id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER history AFTER UPDATE OF result ON job_payloads FOR EACH ROW
        WHEN (NEW.result IS NOT NULL) EXECUTE FUNCTION history_of_results();
    CREATE FUNCTION history_of_faces() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO history (what) VALUES ('face');
        RETURN NULL;
    END $$;
    CREATE TRIGGER history AFTER INSERT ON faces FOR EACH ROW EXECUTE FUNCTION history_of_faces();";

const READ: &str = "
    SELECT json_build_object('events', COALESCE((SELECT json_agg(h ORDER BY n) FROM history h
            WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = h.job AND j.kind = 'rematch')), '[]'),
        'jobs', COALESCE((SELECT json_agg(json_build_object(
            'id', j.id, 'state', j.state, 'batch', j.batch_id,
            'key', COALESCE(a.args::json #>> '{image,s3}', j.tag),
            'already', COALESCE((r ->> 'already_enrolled')::boolean, (r ->> 'already_indexed')::boolean, false),
            'faces', (SELECT count(*) FROM faces f WHERE f.image_id = (r ->> 'image_id')::uuid),
            'named', EXISTS (SELECT 1 FROM faces f LEFT JOIN persons p ON p.id = f.person_id
                WHERE f.id = COALESCE(r ->> 'face_id', r #>> '{faces,0,face_id}')::uuid
                AND (j.kind <> 'enroll' OR p.external_id = j.tag))
        )) FROM jobs j JOIN job_payloads a ON a.job_id = j.id CROSS JOIN LATERAL (SELECT a.result::json AS r) AS r
            WHERE j.kind <> 'rematch'), '[]'))";
