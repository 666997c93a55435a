//! End to end over HTTP, against the real command as a process of its own, with the tiny models of `models/tiny`.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it should be")]

mod backlog;
mod bad_input;
mod batches;
mod bench;
mod calibrate;
mod clusters;
mod contract;
mod crash;
mod distances;
mod docs_page;
mod erasure;
mod eval;
mod families;
mod faults;
mod gone;
mod jobs;
mod keys;
mod legacy;
mod library;
mod main_path;
mod models;
mod offer;
mod rematch;
mod reprocess;
mod second_stage;
mod server;
mod slow_clients;
mod streams;
mod traces;
mod transfer;
mod versions;
mod walk;
mod webhooks;
mod workers;
