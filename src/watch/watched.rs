//! What is watched.
//!
//! Owns the list. It must not ask a server.

use crate::change::{RelationId, TableName};
use crate::config::Settings;
use crate::plan::Removal;
use crate::rules::Capture;

/// Everything that is watched in a database.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The tables of the rules.
    pub tables: Vec<WatchedTable>,
    /// The materialized views of the reads.
    pub views: Vec<WatchedView>,
    /// What carries their changes.
    pub carrier: Carrier,
}

/// A table of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedTable {
    /// The name in the rules, schema included.
    pub name: TableName,
    /// The table that it meant when the rules were read.
    pub id: RelationId,
}

/// A materialized view that reads use. No row change says that it was refreshed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedView {
    /// Its name, schema included.
    pub name: TableName,
    /// The cached values that are made of it.
    pub removals: Vec<Removal>,
}

/// What carries the changes of tables to the daemon.
#[derive(Clone, Debug)]
pub enum Carrier {
    /// The publication of this name.
    Publication(String),
    /// The triggers of an outbox.
    Triggers {
        /// The settings, which name the outbox.
        settings: Box<Settings>,
        /// What the triggers must record.
        captures: Vec<Capture>,
        /// Whether applications emit events.
        events: bool,
    },
}
