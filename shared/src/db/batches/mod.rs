//! Batches: many jobs that a client asked for in one request.

pub mod deltas;
