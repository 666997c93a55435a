//! The worker: takes job ids from the queue, works on pictures, records results. In reading order:
//!
//! - [`run()`] starts the tasks and ends them; [`context`] is what every job may touch
//! - [`offer`] says which pipelines it can run, [`models`] keeps that true while models are added
//! - [`consumer`] takes deliveries, [`runner`] takes one through claim, work and record
//! - [`stages`] bounds how many pictures are under way, [`cores`] who may use a processor core
//! - [`jobs`] says what each kind of job does; [`thresholds`] what a score means, by which of the [`calibrations`]
//! - [`analysis`] strings [`vision`] (pure) and [`inference`] (ONNX Runtime) together, `detection` as far as faces and points;
//!   [`assets`] finds the weights; [`liveness`] tells live faces from pictures of them
//! - [`lister`] makes jobs of what batches name, [`batches`] counts and ends them
//! - [`clusters`] finds out which unknown faces are one person's
//! - `rematches` has faces looked up again when templates change
//! - `reprocess` gives collections another pipeline, beside the one that they go by
//! - `comparisons` says what a run's two models make of the same faces
//! - `webhooks` tells other programs what happened
//! - [`dispatcher`], [`reaper`], [`dead_letters`] and [`sweeper`] keep the jobs table, the queue and the object store true

pub mod analysis;
pub mod assets;
pub mod batches;
pub mod calibrations;
pub mod clusters;
pub mod command;
mod comparisons;
pub mod consumer;
pub mod context;
pub mod cores;
pub mod dead_letters;
mod detection;
pub mod dispatcher;
pub mod engines;
mod erasures;
pub mod inference;
pub mod jobs;
mod leadership;
pub mod lister;
pub mod liveness;
pub mod models;
pub mod offer;
pub mod probes;
pub mod reaper;
mod rematches;
mod reprocess;
mod retry;
mod run;
pub mod runner;
mod settle;
pub mod stages;
mod stop;
mod stored;
pub mod sweeper;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod thresholds;
pub mod vision;
mod webhooks;

pub use run::run;
