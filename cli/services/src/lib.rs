//! `PostgreSQL` with pgvector, `RabbitMQ` and an S3 server as child processes, each with a data folder and ports of its own.

pub mod postgres;
pub mod rabbitmq;
pub mod s3;
