//! What each request asks: whose token is this, and does it open anything?

use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::{ApiKey, COLUMNS, KeyState, Row, keys_of};
use crate::access::token::Presented;
use crate::db::{Db, count, execute, micros, statement};
use crate::ids::ApiKeyId;

/// How exactly it is told when a key was used last.
const USED_WITHIN: Duration = Duration::from_secs(60);

/// A key as it was a moment ago, and what tells its token.
#[derive(Clone, Debug)]
pub struct KnownKey {
    /// The key.
    pub key: ApiKey,
    secret_hash: String,
}

impl KnownKey {
    /// Whether the token is this key's, and the key is good.
    pub fn opens_with(&self, token: &Presented) -> bool {
        token.hash.is(&self.secret_hash) && self.key.state == KeyState::Active
    }
}

/// The key of that prefix, be it good or not.
pub async fn look_up(db: &Db, prefix: &str) -> Result<Option<KnownKey>, DbErr> {
    let sql = format!("SELECT {COLUMNS} FROM api_keys k WHERE k.prefix = $1");
    let rows = Row::find_by_statement(statement(&db.read, &sql, [prefix.into()])).all(&db.read).await?;
    let known = keys_of(&db.read, rows).await?.pop();
    Ok(known.map(|(key, secret_hash)| KnownKey { key, secret_hash }))
}

/// Whether somebody made a key, be it good or not: a server does not open again when its last one ends. Those that commands
/// made for themselves are none.
pub async fn any(db: &Db) -> Result<bool, DbErr> {
    Ok(count(&db.read, "SELECT count(*) AS n FROM (SELECT 1 FROM api_keys WHERE NOT of_command LIMIT 1) AS one", [])
        .await?
        > 0)
}

/// Whether there is a key that is good, a command's own too.
pub async fn any_good(db: &Db) -> Result<bool, DbErr> {
    let sql = "SELECT count(*) AS n FROM (SELECT 1 FROM api_keys
        WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {now}) LIMIT 1) AS one";
    Ok(count(&db.read, sql, []).await? > 0)
}

/// Notes that the key was used now, where that was not noted within the last minute.
pub async fn touch(db: &Db, key: ApiKeyId) -> Result<(), DbErr> {
    let sql = "UPDATE api_keys SET last_used_at = {now}
        WHERE id = $1 AND (last_used_at IS NULL OR last_used_at <= {now} - $2)";
    execute(&db.write, sql, [key.into(), micros(USED_WITHIN).into()]).await?;
    Ok(())
}
