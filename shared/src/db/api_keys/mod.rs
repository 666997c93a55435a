//! Queries on API keys: [`lookup`] is what each request needs, [`changes`] what an administrator does, [`usage`] what keys
//! have taken of their limits.

pub mod changes;
pub mod lookup;
pub mod usage;

use std::collections::BTreeSet;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::{Db, placeholders, scoped, statement};
use crate::access::{Grant, GrantedKey, Limits, Reach, Scope};
use crate::ids::{ApiKeyId, CollectionId};

#[cfg(test)]
mod tests;

/// A key, without anything of its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct ApiKey {
    pub id: ApiKeyId,
    /// The first of the keys of which each was rotated into the next.
    pub line: ApiKeyId,
    pub name: String,
    /// The part of its token that is no secret.
    pub prefix: String,
    pub scopes: BTreeSet<Scope>,
    pub reach: Reach,
    pub limits: KeyLimits,
    pub state: KeyState,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub revoked_at: Option<i64>,
    /// To the minute.
    pub last_used_at: Option<i64>,
    /// What it was rotated into.
    pub successor: Option<ApiKeyId>,
}

/// Limits of a key's own: `None` is the configured one, 0 none at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "see `Limits`")]
pub struct KeyLimits {
    pub requests_per_minute: Option<u32>,
    pub jobs_in_flight: Option<u32>,
    pub images_per_day: Option<u32>,
}

/// Whether a key opens anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It does.
    Active,
    /// Its time is over.
    Expired,
    /// Somebody ended it.
    Revoked,
}

impl KeyLimits {
    /// With what is configured where a key has no limit of its own.
    pub fn or(self, configured: Limits) -> Limits {
        Limits {
            requests_per_minute: self.requests_per_minute.unwrap_or(configured.requests_per_minute),
            jobs_in_flight: self.jobs_in_flight.unwrap_or(configured.jobs_in_flight),
            images_per_day: self.images_per_day.unwrap_or(configured.images_per_day),
        }
    }
}

impl ApiKey {
    /// What it gives, with the limits that are configured for keys without their own.
    pub fn grant(&self, configured: Limits) -> Grant {
        let key = GrantedKey { id: self.id, line: self.line };
        Grant::of_key(key, self.scopes.iter().copied(), self.reach.clone(), self.limits.or(configured))
    }

    /// Whether it may administer everything.
    pub fn is_full_admin(&self) -> bool {
        self.scopes.contains(&Scope::Admin) && self.reach == Reach::All
    }
}

/// A row of `api_keys`; the clock of the database says whether its time is over.
#[derive(FromQueryResult)]
struct Row {
    id: ApiKeyId,
    line_id: ApiKeyId,
    name: String,
    prefix: String,
    secret_hash: String,
    scopes: String,
    all_collections: bool,
    requests_per_minute: Option<i64>,
    jobs_in_flight: Option<i64>,
    images_per_day: Option<i64>,
    created_at: i64,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
    last_used_at: Option<i64>,
    successor_id: Option<ApiKeyId>,
    is_expired: bool,
}

const COLUMNS: &str = "k.*, COALESCE(k.expires_at <= {now}, FALSE) AS is_expired";

/// The key of that id, if the grant shows it.
pub async fn find(db: &Db, grant: &Grant, id: ApiKeyId) -> Result<Option<ApiKey>, DbErr> {
    find_in(&db.read, grant, id).await
}

async fn find_in(conn: &impl ConnectionTrait, grant: &Grant, id: ApiKeyId) -> Result<Option<ApiKey>, DbErr> {
    let (shown, values) = shown(grant, 2);
    let sql = format!("SELECT {COLUMNS} FROM api_keys k WHERE k.id = $1 AND {shown}");
    let values = std::iter::once(id.into()).chain(values);
    let rows = Row::find_by_statement(statement(conn, &sql, values)).all(conn).await?;
    Ok(keys_of(conn, rows).await?.pop().map(|(key, _)| key))
}

/// The key of that prefix.
pub async fn find_by_prefix(db: &Db, prefix: &str) -> Result<Option<ApiKey>, DbErr> {
    Ok(lookup::look_up(db, prefix).await?.map(|known| known.key))
}

/// Up to `limit` keys that the grant shows, in the order in which they were made, those after `after`.
pub async fn list(db: &Db, grant: &Grant, after: Option<ApiKeyId>, limit: u64) -> Result<Vec<ApiKey>, DbErr> {
    let (shown, values) = shown(grant, 2);
    let sql = format!("SELECT {COLUMNS} FROM api_keys k WHERE k.id > $1 AND {shown} ORDER BY k.id LIMIT {limit}");
    let after = after.unwrap_or(ApiKeyId(Uuid::nil()));
    let values = std::iter::once(after.into()).chain(values);
    let rows = Row::find_by_statement(statement(&db.read, &sql, values)).all(&db.read).await?;
    Ok(keys_of(&db.read, rows).await?.into_iter().map(|(key, _)| key).collect())
}

/// The condition that a grant shows the key `k`: whoever has single collections sees the keys of no others.
fn shown(grant: &Grant, first: usize) -> (String, Vec<Value>) {
    if grant.reach() == &Reach::All {
        return ("TRUE".to_owned(), Vec::new());
    }
    let (own, values) = scoped::sql(grant, "c.collection_id", first);
    let of_key = "SELECT 1 FROM api_key_collections c WHERE c.api_key_id = k.id";
    let sql =
        format!("NOT k.all_collections AND EXISTS ({of_key} AND {own}) AND NOT EXISTS ({of_key} AND NOT ({own}))");
    (sql, values)
}

/// The keys with their collections, and the digest of each one's secret.
async fn keys_of(conn: &impl ConnectionTrait, rows: Vec<Row>) -> Result<Vec<(ApiKey, String)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Held {
        api_key_id: ApiKeyId,
        collection_id: CollectionId,
    }
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT api_key_id, collection_id FROM api_key_collections WHERE api_key_id IN ({})",
        placeholders(1, rows.len())
    );
    let held = statement(conn, &sql, rows.iter().map(|row| Value::from(row.id)));
    let held = Held::find_by_statement(held).all(conn).await?;
    let of = |id| held.iter().filter(|held| held.api_key_id == id).map(|held| held.collection_id).collect();
    rows.into_iter().map(|row| row.key(of)).collect()
}

impl Row {
    fn key(self, collections: impl Fn(ApiKeyId) -> BTreeSet<CollectionId>) -> Result<(ApiKey, String), DbErr> {
        let limit = |n: Option<i64>| n.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let key = ApiKey {
            reach: if self.all_collections { Reach::All } else { Reach::Only(collections(self.id)) },
            scopes: scopes(&self.scopes)?,
            limits: KeyLimits {
                requests_per_minute: limit(self.requests_per_minute),
                jobs_in_flight: limit(self.jobs_in_flight),
                images_per_day: limit(self.images_per_day),
            },
            state: match (self.revoked_at, self.is_expired) {
                (Some(_), _) => KeyState::Revoked,
                (None, true) => KeyState::Expired,
                (None, false) => KeyState::Active,
            },
            id: self.id,
            line: self.line_id,
            name: self.name,
            prefix: self.prefix,
            created_at: self.created_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
            last_used_at: self.last_used_at,
            successor: self.successor_id,
        };
        Ok((key, self.secret_hash))
    }
}

/// As a row holds them: their names with commas between.
fn scopes_text(scopes: &BTreeSet<Scope>) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(",")
}

fn scopes(text: &str) -> Result<BTreeSet<Scope>, DbErr> {
    let scope = |name: &str| name.parse::<Scope>().map_err(|error| DbErr::Custom(error.to_string()));
    text.split(',').filter(|name| !name.is_empty()).map(scope).collect()
}
