//! sea-orm entities. They never leave `shared::db`'s callers as JSON: wire types are built by hand.

pub mod batch;
pub mod calibration;
pub mod collection;
pub mod face;
pub mod face_geometry;
pub mod image;
pub mod job;
pub mod person;
pub mod reprocess_run;
pub mod upload;
