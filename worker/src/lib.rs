//! The worker.

pub mod assets;
pub mod inference;
pub mod vision;
