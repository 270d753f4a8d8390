//! Redis as the place where plans take effect.
//!
//! Owns the commands and the connection. It must not know rules or sources. Invariant: a batch counts as
//! applied only when Redis answered every one of its commands without an error.

mod broadcast;
mod connection;
mod encode;
mod pulse;
mod redis;
mod refusal;
mod resume;

pub use broadcast::{Broadcast, BroadcastOp};
pub use connection::connect_subscriber;
pub use encode::Batch;
pub use pulse::Pulse;
pub use redis::{Sink, SinkError, Unproven};
