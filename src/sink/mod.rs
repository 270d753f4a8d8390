//! Redis, where plans take effect.
//!
//! Owns the commands and the connection. It must not know rules or sources. Invariant: a batch
//! counts as applied only when Redis answered every one of its commands without an error.
//!
//! - [`batch`], [`catalog_record`], [`settings`]: what is applied, and under which names.
//! - [`encode`]: from a batch to commands; owns their order. [`scripts`], [`broadcast`],
//!   [`recent`]: parts of it.
//! - [`connection`], [`dataset`]: one connection, and what the server says of itself. [`link`]:
//!   connects again.
//! - [`proof`]: what is proven of the dataset and its history.
//! - [`refusal`], [`retry`], [`liveness`], [`warnings`]: what goes wrong, and what follows from it.
//! - [`apply`]: the [`Sink`] itself. [`resume`]: how it begins. [`replay`]: plans beside the
//!   daemon.
//! - [`owner`], [`take_name`]: which service uses the name.
//! - [`again`]: second deletes, which wait in Redis.
//! - [`commands`]: every command that is sent, for `check`.
//! - [`sweep`]: the search for what patterns and tags remove.

mod again;
mod apply;
mod batch;
mod broadcast;
mod catalog_record;
pub mod commands;
mod connection;
mod dataset;
mod encode;
mod link;
mod liveness;
mod owner;
mod proof;
mod recent;
mod refusal;
mod refused_op;
mod replay;
mod resume;
mod retry;
mod scripts;
mod settings;
mod sweep;
mod take_name;
mod warnings;

pub use again::{Again, DueDelete, DueDeletes, Repeat};
pub use apply::Sink;
pub use batch::{Batch, StreamEntry};
pub use broadcast::{Broadcast, BroadcastOp};
pub use catalog_record::CatalogRecord;
pub use connection::connect_subscriber;
pub use liveness::Liveness;
pub use owner::{NameTaken, OwnerRecord};
pub use proof::Unproven;
pub use recent::Touch;
pub use refusal::SinkError;
pub use settings::{RuleLabel, SinkSettings};
pub use sweep::Sweeper;
