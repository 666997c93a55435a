//! End to end over HTTP, against the real command as a process of its own, with the tiny models of `models/tiny`.

mod bad_input;
mod crash;
mod jobs;
mod main_path;
mod server;
