//! Redis as the place where plans take effect.
//!
//! Owns the commands and the connection. It must not know rules or sources. Invariant: a batch counts as
//! applied only when Redis answered every one of its commands without an error.

mod broadcast;
mod connection;
mod encode;
mod liveness;
mod recent;
mod redis;
mod refusal;
mod replay;
mod resume;
mod sweep;

pub use broadcast::{Broadcast, BroadcastOp};
pub use connection::connect_subscriber;
pub use encode::{Batch, StreamEntry};
pub use liveness::Liveness;
pub use recent::{RuleLabel, Touch};
pub use redis::{Sink, SinkSettings, Unproven};
pub use refusal::SinkError;
pub use sweep::Sweeper;
