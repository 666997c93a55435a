//! Webhooks in the database: [`endpoints`] that are told, [`events`] written in the transaction that makes them, with one row
//! of [`deliveries`] an endpoint; [`log`] is what clients see of those.
//!
//! Locks are taken in one order: what an event is about, endpoint, deliveries.

pub mod deliveries;
pub mod endpoints;
pub mod events;
pub mod log;

#[cfg(test)]
mod tests;

use sea_orm::ConnectionTrait;

use super::is_postgres;

/// The lock on an endpoint's row under which its deliveries change; events that are written for it do not wait for it.
fn lock_endpoint(conn: &impl ConnectionTrait) -> &'static str {
    if is_postgres(conn) { "FOR NO KEY UPDATE" } else { "" }
}
