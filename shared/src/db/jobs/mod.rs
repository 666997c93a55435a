//! The jobs table: the truth about every job and its own outbox.
//!
//! In the order of a job's life: [`submit`], [`outbox`] (what waits to be dispatched), [`claims`], [`settle`],
//! [`retention`], and [`recovery`] for what a lost worker leaves behind; [`waiting`] tells how much waits. Every change of state goes through `transition`.

pub mod claims;
pub mod outbox;
pub mod read;
pub mod recovery;
pub mod retention;
pub mod settle;
pub mod submit;
pub(super) mod transition;
pub mod waiting;

#[cfg(test)]
mod tests;
