//! The HTTP API: checks, stores, enqueues and answers. It decodes no image and runs no model. In reading order:
//!
//! - [`serve_within()`] takes requests until it is told to stop, `connections` bounds those of clients; [`state`] is what every handler may touch
//! - [`router`] is the one table of routes, `openapi` completes what is told of them, `docs` shows it; [`routes`] holds a file a noun, `legacy` the requests of an older system
//! - [`auth`] finds out who calls, and what that caller may do
//! - [`extract`] reads requests, [`buffered`] bounds what is held of them, [`pictures`] takes in pictures, `manifest` lists of them, `lines` reads them, `portion` holds what of an import is written together, [`error`] is the only place of statuses and problems
//! - [`cursor`] pages through lists, `etag` knows versions, [`in_flight`] the idempotency keys of this moment, `backlog` how much waits and when that is too much

pub mod auth;
pub mod backlog;
pub mod buffered;
pub mod command;
mod connections;
pub mod cursor;
mod docs;
pub mod error;
mod etag;
pub mod extract;
pub mod in_flight;
mod legacy;
mod lines;
mod manifest;
mod openapi;
pub mod pictures;
mod portion;
mod requests;
pub mod router;
pub mod routes;
mod serve;
pub mod state;

pub use serve::serve_within;
