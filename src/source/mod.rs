//! Where changes come from: the replication slot, recordings, and the catalog that describes both.
//!
//! Owns the translation into [`crate::change`]. It must not know rules or Redis.

pub mod images;
pub mod peek;
pub mod recording;
pub mod replication;
pub mod table;
