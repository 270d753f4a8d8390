//! What makes the promise true: when a commit is visible, up to where invalidations are in force,
//! what may be acknowledged, and whether history has a gap.
//!
//! Owns the protocol between PostgreSQL, Redis and the readers that fill the cache. It must not
//! know sources or rules.

pub mod epoch;
pub mod gate;
pub mod history;
pub mod horizon;
pub mod lease;
pub mod marks;
pub mod primary;
pub mod progress;
pub mod server;
pub mod watermark;
