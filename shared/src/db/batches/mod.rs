//! Batches: many jobs that a client asked for in one request.
//!
//! In the order of a batch's life: [`submit`], [`listing`] (its items become jobs), [`deltas`] (what their moves add up
//! to), [`missing`] and [`sweep`] (known places that are gone), [`control`] (pause, resume, cancel, retry, and its end),
//! [`read`].

pub mod control;
pub mod deltas;
pub mod listing;
pub mod missing;
pub mod read;
pub mod submit;
pub mod sweep;

#[cfg(test)]
mod sweep_tests;
#[cfg(test)]
mod tests;
