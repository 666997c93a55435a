//! Idempotency keys: requests with the same key are one request.

use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::{Db, execute, is_postgres, micros, statement};
use crate::access::Grant;
use crate::ids::CollectionId;

/// A client's promise that requests with the same key are the same request.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// What the key was sent to, see [`route`].
    pub route: String,
    /// The client's key.
    pub key: String,
    /// A digest of the parsed arguments and the pictures' bytes.
    pub fingerprint: String,
    /// How long the key is remembered.
    pub keep: Duration,
}

/// What a caller sends a key to: the keys of one caller are not another's.
pub fn route(grant: &Grant, collection: CollectionId, to: &str) -> String {
    grant.owner().map_or_else(|| format!("{collection}/{to}"), |owner| format!("{owner}/{collection}/{to}"))
}

/// Which rows keys stand for: their table, and its column that names the row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    table: &'static str,
    column: &'static str,
}

pub(super) const OF_JOBS: Keys = Keys { table: "idempotency_keys", column: "job_id" };
pub(super) const OF_BATCHES: Keys = Keys { table: "batch_idempotency_keys", column: "batch_id" };
pub(super) const OF_RUNS: Keys = Keys { table: "reprocess_idempotency_keys", column: "run_id" };

/// What a key was used for.
pub(super) enum Used {
    /// The same request, which made this row.
    Same(Uuid),
    /// Another request.
    Otherwise,
}

/// Whether nobody else is about to have the key stand for something; nobody is until the transaction ends. `SQLite`'s one
/// writer is alone anyway.
pub(super) async fn try_lock(txn: &impl ConnectionTrait, idempotency: &Idempotency) -> Result<bool, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        locked: bool,
    }
    if !is_postgres(txn) {
        return Ok(true);
    }
    let sql = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0)) AS locked";
    let name = format!("{}\n{}", idempotency.route, idempotency.key);
    let row = Row::find_by_statement(statement(txn, sql, [name.into()])).one(txn).await?;
    Ok(row.is_some_and(|row| row.locked))
}

/// What the key was used for before, if at all.
pub(super) async fn used(
    conn: &impl ConnectionTrait,
    keys: Keys,
    idempotency: &Idempotency,
) -> Result<Option<Used>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        fingerprint: String,
        id: Uuid,
    }
    let Keys { table, column } = keys;
    let sql = format!(
        "SELECT fingerprint, {column} AS id FROM {table} WHERE route = $1 AND key = $2 AND expires_at > {{now}}"
    );
    let values = [idempotency.route.as_str().into(), idempotency.key.as_str().into()];
    let row = Row::find_by_statement(statement(conn, &sql, values)).one(conn).await?;
    let is_same = |row: &Row| row.fingerprint == idempotency.fingerprint;
    Ok(row.map(|row| if is_same(&row) { Used::Same(row.id) } else { Used::Otherwise }))
}

/// Has the key stand for a new row; false when it stands for another one. Waits for a request with the same key that is
/// under way.
pub(super) async fn remember(
    txn: &impl ConnectionTrait,
    keys: Keys,
    idempotency: &Idempotency,
    id: Uuid,
) -> Result<bool, DbErr> {
    let Keys { table, column } = keys;
    // An expired key that was not swept yet is free again.
    let sql = format!(
        "INSERT INTO {table} (route, key, fingerprint, {column}, expires_at) VALUES ($1, $2, $3, $4, {{now}} + $5)
         ON CONFLICT (route, key) DO UPDATE SET fingerprint = excluded.fingerprint, {column} = excluded.{column},
            expires_at = excluded.expires_at
         WHERE {table}.expires_at <= {{now}}"
    );
    let values = [
        idempotency.route.as_str().into(),
        idempotency.key.as_str().into(),
        idempotency.fingerprint.as_str().into(),
        id.into(),
        micros(idempotency.keep).into(),
    ];
    Ok(execute(txn, &sql, values).await? > 0)
}

/// The error of a key that was taken when it was to be remembered and is free when it is looked for.
pub(super) fn released() -> DbErr {
    DbErr::Custom("an idempotency key was taken and released within one request; send it again".to_owned())
}

/// Forgets up to `limit` keys of each kind whose time is over.
pub async fn forget_expired(db: &Db, limit: u64) -> Result<u64, DbErr> {
    let mut forgotten = 0;
    for Keys { table, .. } in [OF_JOBS, OF_BATCHES, OF_RUNS] {
        let sql = format!(
            "DELETE FROM {table} WHERE expires_at < {{now}} AND (route, key) IN
             (SELECT route, key FROM {table} WHERE expires_at < {{now}} LIMIT {limit})"
        );
        forgotten += execute(&db.write, &sql, []).await?;
    }
    Ok(forgotten)
}
