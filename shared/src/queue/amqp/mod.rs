//! The queue on `RabbitMQ`.
