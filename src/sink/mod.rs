//! Redis as the place where plans take effect.
//!
//! Owns the commands and the connection. It must not know rules or sources. Invariant: a batch counts as
//! applied only when Redis answered every one of its commands without an error.

mod broadcast;
mod encode;
mod redis;
mod refusal;

pub use broadcast::{Broadcast, BroadcastOp};
pub use encode::Batch;
pub use redis::{Sink, SinkError, connect_subscriber};
