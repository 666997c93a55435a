//! The HTTP API: checks, stores, enqueues and answers. It decodes no image and runs no model. In reading order:
//!
//! - [`serve_within()`] takes connections until it is told to stop; [`state`] is what every handler may touch
//! - [`router`] is the one table of routes; [`routes`] holds a file a noun
//! - [`auth`] finds out who calls, and what that caller may do
//! - [`extract`] reads requests, [`pictures`] takes in pictures, `manifest` lists of them, `lines` reads them, `portion` holds what of an import is written together, [`error`] is the only place of statuses and problems
//! - [`cursor`] pages through lists

pub mod auth;
pub mod command;
pub mod cursor;
pub mod error;
pub mod extract;
mod lines;
mod manifest;
pub mod pictures;
mod portion;
mod requests;
pub mod router;
pub mod routes;
mod serve;
pub mod state;

pub use serve::serve_within;
