//! The store on an S3-compatible service.
