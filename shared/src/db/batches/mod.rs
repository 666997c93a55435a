//! Batches: many jobs that a client asked for in one request.
//!
//! In the order of a batch's life: [`submit`], [`listing`] (its items become jobs), [`deltas`] (what their moves add up
//! to), [`control`] (pause, resume, cancel, retry, and its end), [`read`].

pub mod control;
pub mod deltas;
pub mod listing;
pub mod read;
pub mod submit;

#[cfg(test)]
mod tests;
