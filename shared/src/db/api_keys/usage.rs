//! What keys have taken of their limits: one row a line of keys, counted in the minute and the day (UTC) of the database's
//! clock.

use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use crate::access::Grant;
use crate::db::{Db, count, execute, now, statement};
use crate::ids::ApiKeyId;

const MINUTE: i64 = 60_000_000;
const DAY: i64 = 86_400_000_000;

/// Requests that a process may answer without asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// How many; 0 where the minute's are spent.
    pub granted: u32,
    /// How many are left for all processes after that.
    pub left: u32,
    /// How long they are good for.
    pub ends_in: Duration,
}

/// Why a job is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverLimit {
    /// So many of the key's single jobs have not ended.
    JobsInFlight(u32),
    /// The day's pictures are spent; it ends in this.
    ImagesOfDay(u32, Duration),
}

/// A line's row, locked.
#[derive(FromQueryResult)]
struct Usage {
    minute: i64,
    requests: i64,
    day: i64,
    images: i64,
}

/// Takes up to `want` requests of this minute.
pub async fn take_requests(db: &Db, line: ApiKeyId, limit: u32, want: u32) -> Result<Slice, DbErr> {
    let txn = db.begin().await?;
    let usage = lock(&txn, line).await?;
    let now = now(&txn).await?;
    let minute = now / MINUTE;
    let taken = if usage.minute == minute { usage.requests } else { 0 };
    let granted = i64::from(want).min(i64::from(limit) - taken).max(0);
    let sql = "UPDATE api_key_usage SET minute = $2, requests = $3 WHERE line_id = $1";
    execute(&txn, sql, [line.into(), minute.into(), (taken + granted).into()]).await?;
    txn.commit().await?;
    let left = (i64::from(limit) - taken - granted).max(0);
    Ok(Slice { granted: small(granted), left: small(left), ends_in: until(now, MINUTE) })
}

/// Has a new job count; `Some` and nothing counted where the grant's limits do not allow it. Before any other lock of the
/// transaction that makes it.
pub async fn count_job(txn: &impl ConnectionTrait, grant: &Grant, images: usize) -> Result<Option<OverLimit>, DbErr> {
    let limits = grant.limits();
    let Some(line) = grant.owner() else { return Ok(None) };
    if limits.jobs_in_flight == 0 && limits.images_per_day == 0 {
        return Ok(None);
    }
    let usage = lock(txn, line).await?;
    if limits.jobs_in_flight > 0 {
        let sql = "SELECT count(*) AS n FROM jobs WHERE api_key_id = $1 AND state IN ('queued', 'running')";
        if count(txn, sql, [line.into()]).await? >= i64::from(limits.jobs_in_flight) {
            return Ok(Some(OverLimit::JobsInFlight(limits.jobs_in_flight)));
        }
    }
    let now = now(txn).await?;
    let spent = usage.images_on(now / DAY);
    let images = i64::try_from(images).unwrap_or(i64::MAX);
    if limits.images_per_day > 0 && spent + images > i64::from(limits.images_per_day) {
        return Ok(Some(OverLimit::ImagesOfDay(limits.images_per_day, until(now, DAY))));
    }
    add_images(txn, line, now / DAY, spent + images).await?;
    Ok(None)
}

/// Has a page of a batch's pictures count for the key that asked for the batch. Where the day's are spent, nothing is
/// counted, and the day ends in the answer. A page that does not fit goes through whole: what is over counts.
pub async fn count_page(
    txn: &impl ConnectionTrait,
    line: ApiKeyId,
    images: usize,
    configured: u32,
) -> Result<Option<Duration>, DbErr> {
    #[derive(FromQueryResult)]
    struct Own {
        images_per_day: Option<i64>,
    }
    // Of the newest of the line: what is changed by a rotation holds for what goes on.
    let sql = "SELECT images_per_day FROM api_keys WHERE line_id = $1 ORDER BY id DESC LIMIT 1";
    let own = Own::find_by_statement(statement(txn, sql, [line.into()])).one(txn).await?;
    let limit = own.map_or(0, |own| own.images_per_day.unwrap_or(i64::from(configured)));
    if limit == 0 || images == 0 {
        return Ok(None);
    }
    let usage = lock(txn, line).await?;
    let now = now(txn).await?;
    let spent = usage.images_on(now / DAY);
    if spent >= limit {
        return Ok(Some(until(now, DAY)));
    }
    add_images(txn, line, now / DAY, spent + i64::try_from(images).unwrap_or(i64::MAX)).await?;
    Ok(None)
}

impl Usage {
    fn images_on(&self, day: i64) -> i64 {
        if self.day == day { self.images } else { 0 }
    }
}

/// The line's row, made where there is none, and locked until the transaction ends.
async fn lock(txn: &impl ConnectionTrait, line: ApiKeyId) -> Result<Usage, DbErr> {
    let sql = "INSERT INTO api_key_usage (line_id, minute, requests, day, images) VALUES ($1, 0, 0, 0, 0)
        ON CONFLICT DO NOTHING";
    execute(txn, sql, [line.into()]).await?;
    let sql = "SELECT minute, requests, day, images FROM api_key_usage WHERE line_id = $1 {for update}";
    let row = Usage::find_by_statement(statement(txn, sql, [line.into()])).one(txn).await?;
    row.ok_or(DbErr::RecordNotInserted)
}

async fn add_images(txn: &impl ConnectionTrait, line: ApiKeyId, day: i64, images: i64) -> Result<(), DbErr> {
    let sql = "UPDATE api_key_usage SET day = $2, images = $3 WHERE line_id = $1";
    execute(txn, sql, [line.into(), day.into(), images.into()]).await?;
    Ok(())
}

/// How long the minute or day lasts from `now` on.
fn until(now: i64, length: i64) -> Duration {
    Duration::from_micros(u64::try_from(length - now.rem_euclid(length)).unwrap_or_default())
}

fn small(n: i64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
