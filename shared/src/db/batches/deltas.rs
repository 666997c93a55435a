//! What the ends of jobs add up to: every move of a batch's jobs appends how many went from which state to which, and one
//! leader folds that into the batch's row. No job waits for another, and nobody counts rows.

use std::collections::BTreeMap;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use crate::db::{Db, execute, placeholders, statement};
use crate::ids::BatchId;
use crate::job::JobState;

/// Deltas of one fold: a transaction of some milliseconds.
const FOLD: u32 = 2000;

/// Jobs of a batch that went from one state to another; `from` is `None` for new ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Delta {
    pub(crate) batch: BatchId,
    pub(crate) from: Option<JobState>,
    pub(crate) to: Option<JobState>,
    /// The code of the problem that they end, or ended, with.
    pub(crate) code: Option<String>,
}

#[derive(FromQueryResult)]
struct Row {
    batch_id: BatchId,
    state_from: Option<JobState>,
    state_to: Option<JobState>,
    code: Option<String>,
    jobs: i64,
    faces: i64,
}

/// What a batch's deltas add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    /// Jobs that came to a state, less those that left it.
    pub(crate) jobs: BTreeMap<JobState, i64>,
    /// The same by state and code of the problem.
    pub(crate) problems: BTreeMap<(JobState, String), i64>,
    pub(crate) faces: i64,
}

/// Notes that jobs moved, one row for those that moved alike, in the transaction that moves them.
pub(crate) async fn append(txn: &impl ConnectionTrait, moved: impl IntoIterator<Item = Delta>) -> Result<(), DbErr> {
    let mut jobs: BTreeMap<Delta, i64> = BTreeMap::new();
    for delta in moved {
        *jobs.entry(delta).or_default() += 1;
    }
    for (delta, jobs) in jobs {
        append_count(txn, &delta, jobs, 0).await?;
    }
    Ok(())
}

/// Notes that `jobs` jobs moved alike, and that `faces` were found.
pub(crate) async fn append_count(
    txn: &impl ConnectionTrait,
    delta: &Delta,
    jobs: i64,
    faces: i64,
) -> Result<(), DbErr> {
    let sql =
        "INSERT INTO batch_deltas (batch_id, state_from, state_to, code, jobs, faces) VALUES ($1, $2, $3, $4, $5, $6)";
    let name = |state: Option<JobState>| state.map(JobState::as_str);
    let values = [
        delta.batch.into(),
        name(delta.from).into(),
        name(delta.to).into(),
        delta.code.clone().into(),
        jobs.into(),
        faces.into(),
    ];
    execute(txn, sql, values).await?;
    Ok(())
}

/// Notes faces that a batch's jobs found.
pub async fn append_faces(txn: &impl ConnectionTrait, batch: BatchId, faces: usize) -> Result<(), DbErr> {
    if faces == 0 {
        return Ok(());
    }
    let nobody = Delta { batch, from: None, to: None, code: None };
    append_count(txn, &nobody, 0, i64::try_from(faces).unwrap_or(i64::MAX)).await
}

/// What one fold came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folded {
    /// There was nothing.
    Nothing,
    /// All there was.
    All,
    /// As much as one fold takes; there may be more.
    Some,
}

/// Folds some deltas into their batches' rows. Two that fold at once take different ones.
pub async fn fold(db: &Db) -> Result<Folded, DbErr> {
    let txn = db.begin().await?;
    let lock = if crate::db::is_postgres(&txn) { "FOR UPDATE SKIP LOCKED" } else { "" };
    let sql = format!(
        "DELETE FROM batch_deltas WHERE id IN (SELECT id FROM batch_deltas ORDER BY id LIMIT {FOLD} {lock})
         RETURNING batch_id, state_from, state_to, code, jobs, faces"
    );
    let rows = Row::find_by_statement(statement(&txn, &sql, [])).all(&txn).await?;
    let folded = match rows.len() {
        0 => return Ok(Folded::Nothing),
        n if n < FOLD as usize => Folded::All,
        _ => Folded::Some,
    };
    for (batch, sum) in sums(rows) {
        add(&txn, batch, &sum).await?;
    }
    txn.commit().await?;
    Ok(folded)
}

/// What of these batches is not folded yet.
pub(crate) async fn unfolded(
    conn: &impl ConnectionTrait,
    batches: &[BatchId],
) -> Result<BTreeMap<BatchId, Sum>, DbErr> {
    let sql = format!(
        "SELECT batch_id, state_from, state_to, code, CAST(sum(jobs) AS bigint) AS jobs,
            CAST(sum(faces) AS bigint) AS faces
         FROM batch_deltas WHERE batch_id IN ({}) GROUP BY batch_id, state_from, state_to, code",
        placeholders(1, batches.len())
    );
    let values = batches.iter().map(|batch| Value::from(*batch));
    Ok(sums(Row::find_by_statement(statement(conn, &sql, values)).all(conn).await?))
}

fn sums(rows: Vec<Row>) -> BTreeMap<BatchId, Sum> {
    let mut sums: BTreeMap<BatchId, Sum> = BTreeMap::new();
    for row in rows {
        let sum = sums.entry(row.batch_id).or_default();
        sum.faces += row.faces;
        for (state, jobs) in [(row.state_from, -row.jobs), (row.state_to, row.jobs)] {
            let Some(state) = state else { continue };
            *sum.jobs.entry(state).or_default() += jobs;
            if let Some(code) = row.code.clone().filter(|_| has_problem(state)) {
                *sum.problems.entry((state, code)).or_default() += jobs;
            }
        }
    }
    sums
}

/// Whether a job in this state has a problem that is counted by its code.
fn has_problem(state: JobState) -> bool {
    matches!(state, JobState::Rejected | JobState::Failed)
}

async fn add(txn: &impl ConnectionTrait, batch: BatchId, sum: &Sum) -> Result<(), DbErr> {
    let of = |state| Value::from(sum.jobs.get(&state).copied().unwrap_or_default());
    let sql = "UPDATE batches SET queued = queued + $1, running = running + $2, succeeded = succeeded + $3,
            rejected = rejected + $4, failed = failed + $5, cancelled = cancelled + $6, faces = faces + $7,
            version = version + 1
        WHERE id = $8";
    let values = [
        of(JobState::Queued),
        of(JobState::Running),
        of(JobState::Succeeded),
        of(JobState::Rejected),
        of(JobState::Failed),
        of(JobState::Cancelled),
        sum.faces.into(),
        batch.into(),
    ];
    if execute(txn, sql, values).await? == 0 {
        // The batch was deleted meanwhile, and its problems with it.
        return Ok(());
    }
    for ((state, code), jobs) in &sum.problems {
        let sql = "INSERT INTO batch_problems (batch_id, state, code, jobs) VALUES ($1, $2, $3, $4)
            ON CONFLICT (batch_id, state, code) DO UPDATE SET jobs = batch_problems.jobs + excluded.jobs";
        let values = [batch.into(), state.as_str().into(), code.as_str().into(), (*jobs).into()];
        execute(txn, sql, values).await?;
    }
    Ok(())
}
