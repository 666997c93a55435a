//! What the API and the worker both need. In reading order:
//!
//! - [`config`]: settings; [`ids`]: typed ids; [`telemetry`]: logs, metrics, traces; [`process`], [`health`]: what servers share
//! - [`catalogue`]: the pipelines (detector + alignment + model) that can be run
//! - [`models`]: those that are registered in the database, which every process follows
//! - [`comparison`]: what a run's two models say of the same faces
//! - [`job`]: kinds, arguments, states and answers of jobs; [`batch`]: what batches of them list; [`heif`]: pictures of phones; [`embedding`]: a model's vector of one face
//! - [`access`]: API keys, their scopes and what they hold for
//! - [`db`]: entities and named queries, the job state machine among them
//! - [`queue`]: how job ids reach a worker; [`dispatch`]: from the jobs table into the queue
//! - [`objects`]: where pictures lie; [`face_index`]: which persons are near a vector; [`template`]: what a person's faces say together;
//!   [`joint_bayes`]: how likely two vectors are one person's
//! - [`transfer`]: a collection's people and faces as a file
//! - [`backends`]: the services of a production set-up, opened together
//! - [`secret_key`]: the installation's key; [`webhooks`]: what is told to other programs, and how
//! - [`finished`]: who waits for a job hears that it is done; [`digest`]: checksums as text; [`failpoints`]: where tests let
//!   a process die

pub mod access;
pub mod backends;
pub mod batch;
pub mod catalogue;
pub mod comparison;
pub mod config;
pub mod db;
pub mod digest;
pub mod dispatch;
pub mod embedding;
pub mod face_index;
pub mod failpoints;
pub mod finished;
pub mod health;
pub mod heif;
pub mod ids;
pub mod job;
pub mod joint_bayes;
pub mod models;
pub mod object;
pub mod objects;
pub mod process;
pub mod queue;
pub mod secret_key;
pub mod telemetry;
pub mod template;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transfer;
pub mod webhooks;
pub mod whole;
