//! What an administrator does with keys: make, rotate, revoke.

use std::collections::BTreeSet;
use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::{ApiKey, COLUMNS, KeyLimits, KeyState, Row, find_in, keys_of, scopes_text};
use crate::access::token::NewToken;
use crate::access::{Grant, Reach, Scope};
use crate::db::{Db, count, execute, micros, statement};
use crate::ids::ApiKeyId;

/// How long a key that is rotated stays good where nobody says.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// Limits of a key that has none, whatever is configured.
pub const UNLIMITED: KeyLimits =
    KeyLimits { requests_per_minute: Some(0), jobs_in_flight: Some(0), images_per_day: Some(0) };

/// A key to be made.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct NewApiKey {
    pub name: String,
    pub scopes: BTreeSet<Scope>,
    pub reach: Reach,
    pub limits: KeyLimits,
    /// `None`: it does not end by itself.
    pub expires_in: Option<Duration>,
    /// A command made it for itself, and takes it away when it ends: it does not close a server that lets everybody in.
    pub of_command: bool,
}

/// What became of a key that was to be rotated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotated {
    /// Its successor.
    Into(Box<ApiKey>),
    /// It was rotated before, into this one.
    Before(ApiKeyId),
    /// It is expired or revoked.
    NotActive,
    /// The grant shows no such key.
    NotFound,
}

/// What becomes of the last key that may administer everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastAdmin {
    /// It is not revoked.
    IsKept,
    /// It is revoked like any other.
    MayGo,
}

/// What became of a key that was to be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// It opens nothing any more.
    Done,
    /// It is the last that may administer everything.
    LastAdmin,
    /// The grant shows no such key.
    NotFound,
}

/// Makes a key that opens with `token`.
pub async fn create(db: &Db, token: &NewToken, new: NewApiKey) -> Result<ApiKey, DbErr> {
    let id = ApiKeyId::new();
    let txn = db.begin().await?;
    let limit = |n: Option<u32>| Value::from(n.map(i64::from));
    let sql =
        "INSERT INTO api_keys (id, line_id, name, prefix, secret_hash, scopes, all_collections, requests_per_minute,
            jobs_in_flight, images_per_day, of_command, created_at, expires_at)
        VALUES ($1, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, {now}, {now} + $11)";
    let values = [
        id.into(),
        new.name.into(),
        token.prefix.as_str().into(),
        token.hash.to_hex().into(),
        scopes_text(&new.scopes).into(),
        (new.reach == Reach::All).into(),
        limit(new.limits.requests_per_minute),
        limit(new.limits.jobs_in_flight),
        limit(new.limits.images_per_day),
        new.of_command.into(),
        new.expires_in.map(micros).into(),
    ];
    execute(&txn, sql, values).await?;
    if let Reach::Only(collections) = new.reach {
        for collection in collections {
            let sql = "INSERT INTO api_key_collections (api_key_id, collection_id) VALUES ($1, $2)";
            execute(&txn, sql, [id.into(), collection.into()]).await?;
        }
    }
    let made = find_in(&txn, &Grant::everything(), id).await?;
    txn.commit().await?;
    made.ok_or(DbErr::RecordNotInserted)
}

/// Makes a key like this one that opens with `token`; the old one ends after `grace`, if not before. A key that ends by
/// itself has a successor that lives as long.
pub async fn rotate(db: &Db, grant: &Grant, id: ApiKeyId, token: &NewToken, grace: Duration) -> Result<Rotated, DbErr> {
    let txn = db.begin().await?;
    // Locked, so that it is not rotated twice at once.
    let lock = "SELECT count(*) AS n FROM (SELECT id FROM api_keys WHERE id = $1 {for update}) AS locked";
    count(&txn, lock, [id.into()]).await?;
    match find_in(&txn, grant, id).await? {
        None => return Ok(Rotated::NotFound),
        Some(ApiKey { successor: Some(successor), .. }) => return Ok(Rotated::Before(successor)),
        Some(key) if key.state != KeyState::Active => return Ok(Rotated::NotActive),
        Some(_) => {}
    }
    let successor = ApiKeyId::new();
    let sql =
        "INSERT INTO api_keys (id, line_id, name, prefix, secret_hash, scopes, all_collections, requests_per_minute,
            jobs_in_flight, images_per_day, created_at, expires_at)
        SELECT $2, line_id, name, $3, $4, scopes, all_collections, requests_per_minute,
            jobs_in_flight, images_per_day, {now}, {now} + (expires_at - created_at) FROM api_keys WHERE id = $1";
    let values = [id.into(), successor.into(), token.prefix.as_str().into(), token.hash.to_hex().into()];
    execute(&txn, sql, values).await?;
    let sql = "INSERT INTO api_key_collections (api_key_id, collection_id)
        SELECT $2, collection_id FROM api_key_collections WHERE api_key_id = $1";
    execute(&txn, sql, [id.into(), successor.into()]).await?;
    let sql = "UPDATE api_keys SET successor_id = $2,
            expires_at = CASE WHEN expires_at < {now} + $3 THEN expires_at ELSE {now} + $3 END
        WHERE id = $1";
    execute(&txn, sql, [id.into(), successor.into(), micros(grace).into()]).await?;
    let made = find_in(&txn, &Grant::everything(), successor).await?.ok_or(DbErr::RecordNotInserted)?;
    txn.commit().await?;
    Ok(Rotated::Into(Box::new(made)))
}

/// Ends a key; one that has ended stays as it is.
pub async fn revoke(db: &Db, grant: &Grant, id: ApiKeyId, last: LastAdmin) -> Result<Revoked, DbErr> {
    let txn = db.begin().await?;
    // Locked, so that two that are revoked at once do not count on each other.
    let sql = format!(
        "SELECT {COLUMNS} FROM api_keys k WHERE k.revoked_at IS NULL AND k.all_collections AND NOT k.of_command ORDER BY k.id {{for update}}"
    );
    let rows = Row::find_by_statement(statement(&txn, &sql, [])).all(&txn).await?;
    let all: Vec<ApiKey> = keys_of(&txn, rows).await?.into_iter().map(|(key, _)| key).collect();
    let Some(key) = find_in(&txn, grant, id).await? else { return Ok(Revoked::NotFound) };
    if last == LastAdmin::IsKept && is_administrator(&key) && !all.iter().any(|other| can_follow(&key, other)) {
        return Ok(Revoked::LastAdmin);
    }
    execute(&txn, "UPDATE api_keys SET revoked_at = {now} WHERE id = $1 AND revoked_at IS NULL", [id.into()]).await?;
    txn.commit().await?;
    Ok(Revoked::Done)
}

fn is_administrator(key: &ApiKey) -> bool {
    key.state == KeyState::Active && key.is_full_admin()
}

/// Whether the other key may administer everything for at least as long.
fn can_follow(key: &ApiKey, other: &ApiKey) -> bool {
    let lasts = match (other.expires_at, key.expires_at) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(theirs), Some(own)) => theirs >= own,
    };
    other.id != key.id && is_administrator(other) && lasts
}

/// Forgets a key that was made for one command.
pub async fn forget(db: &Db, id: ApiKeyId) -> Result<(), DbErr> {
    let txn = db.begin().await?;
    execute(&txn, "DELETE FROM api_key_usage WHERE line_id = $1", [id.into()]).await?;
    execute(&txn, "DELETE FROM api_keys WHERE id = $1", [id.into()]).await?;
    txn.commit().await
}
