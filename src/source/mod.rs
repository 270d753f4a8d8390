//! Where changes come from: the replication slot, the outbox, recordings, and the catalog that
//! describes them.
//!
//! Owns the translation into [`crate::change`]. It must not know rules or Redis.

pub mod events;
pub mod images;
pub mod outbox;
pub mod peek;
pub mod recording;
pub mod replication;
pub mod table;
