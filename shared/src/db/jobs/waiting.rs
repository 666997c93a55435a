//! How much waits, by which to tell whether more may be taken. Jobs of batches do not count: there may be millions, and each
//! batch has its turn.

use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use crate::db::{Db, statement};
use crate::job::Lane;

/// What waits for a worker in one lane of a pipeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many jobs.
    pub jobs: u64,
    /// For how long the first of them has been due.
    pub oldest: Duration,
}

/// What waits in these lanes of pipelines, in the order given, in one statement. Of each no more than `most` jobs are counted.
pub async fn waiting(db: &Db, lines: &[(&str, Lane)], most: u64) -> Result<Vec<Waiting>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        line: i64,
        jobs: i64,
        oldest: Option<i64>,
        now: i64,
    }
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    let line = |n: usize| {
        let (pipeline, lane) = (2 * n + 1, 2 * n + 2);
        let some = format!(
            "FROM jobs WHERE state = 'queued' AND batch_id IS NULL AND pipeline = ${pipeline} AND lane = ${lane}"
        );
        format!(
            "SELECT CAST({n} AS bigint) AS line,
                (SELECT count(*) FROM (SELECT run_at {some} LIMIT {most}) AS counted) AS jobs,
                (SELECT min(run_at) {some}) AS oldest, {{now}} AS now"
        )
    };
    let sql = (0..lines.len()).map(line).collect::<Vec<_>>().join(" UNION ALL ");
    let values = lines.iter().flat_map(|(pipeline, lane)| [Value::from(*pipeline), lane.to_value().into()]);
    let rows = Row::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
    let mut waiting = vec![Waiting::default(); lines.len()];
    for row in rows {
        let age = row.oldest.map_or(0, |oldest| row.now - oldest);
        let oldest = Duration::from_micros(u64::try_from(age).unwrap_or_default());
        if let Some(place) = usize::try_from(row.line).ok().and_then(|line| waiting.get_mut(line)) {
            *place = Waiting { jobs: u64::try_from(row.jobs).unwrap_or_default(), oldest };
        }
    }
    Ok(waiting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Grant;
    use crate::db::collections::{self, CollectionSettings};
    use crate::db::execute;
    use crate::db::jobs::submit::{NewJob, Submitted, submit};
    use crate::ids::{CollectionId, JobId};
    use crate::job::{ImageRef, JobArgs};

    const TINY: [(&str, Lane); 3] = [("tiny", Lane::Interactive), ("tiny", Lane::Bulk), ("other", Lane::Interactive)];

    async fn new_job(db: &Db, collection: CollectionId, lane: Lane) -> JobId {
        let image = ImageRef::Reference { s3: "s3://b/k".to_owned(), fingerprint: None };
        let args = match lane {
            Lane::Interactive => JobArgs::Identify { image, max_matches: None },
            Lane::Bulk => JobArgs::Index { image },
        };
        let new = NewJob {
            collection,
            args,
            tag: None,
            traceparent: None,
            idempotency: None,
            inline_uploads: Vec::new(),
            webhook_endpoints: None,
        };
        let Submitted::New(job) = submit(db, &Grant::everything(), new).await.unwrap() else { panic!("it is new") };
        job.id
    }

    #[tokio::test]
    async fn what_waits_is_counted_up_to_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        for db in crate::testing::databases(folder.path()).await {
            let none = waiting(&db, &TINY, 100).await.unwrap();
            assert_eq!(none, vec![Waiting::default(); 3]);
            assert_eq!(waiting(&db, &[], 100).await.unwrap(), []);
            let made = collections::create(&db, "c", "tiny", &CollectionSettings::default()).await.unwrap();
            let collection = made.unwrap().id;
            let mut jobs = Vec::new();
            for lane in [Lane::Interactive, Lane::Interactive, Lane::Interactive, Lane::Bulk] {
                jobs.push(new_job(&db, collection, lane).await);
            }
            let counted = async |most| {
                let found = waiting(&db, &TINY, most).await.unwrap();
                found.iter().map(|line| line.jobs).collect::<Vec<_>>()
            };
            assert_eq!((counted(100).await, counted(2).await), (vec![3, 1, 0], vec![2, 1, 0]));
            let later = "UPDATE jobs SET run_at = run_at + $1 WHERE id = $2";
            let minutes = |n: i64| Value::from(n * 60_000_000);
            execute(&db.write, later, [minutes(5), jobs[0].into()]).await.unwrap();
            execute(&db.write, later, [minutes(-2), jobs[1].into()]).await.unwrap();
            execute(&db.write, later, [minutes(5), jobs[3].into()]).await.unwrap();
            let found = waiting(&db, &TINY, 100).await.unwrap();
            assert!((120..180).contains(&found[0].oldest.as_secs()), "{found:?}");
            assert_eq!(found[1], Waiting { jobs: 1, oldest: Duration::ZERO }, "it is not due yet");
            let end = "UPDATE jobs SET state = 'cancelled', finished_at = 0 WHERE id = $1";
            execute(&db.write, end, [jobs[1].into()]).await.unwrap();
            assert_eq!(counted(100).await, [2, 1, 0]);
        }
    }
}
