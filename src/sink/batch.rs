//! What is applied to Redis in one pipeline.
//!
//! Owns the batch and the stream entries in it. It must not know commands. Invariant: patterns,
//! tags and lookups were taken out of the plan before.

use std::time::{Instant, SystemTime};

use super::again::Again;
use super::catalog_record::CatalogRecord;
use crate::change::Lsn;
use crate::plan::{Plan, RuleId, StreamAppend};

/// The ops of one or more transactions, or of a part of one, and what they mean for the watermarks.
#[derive(Debug)]
pub struct Batch {
    /// The ops, without patterns, tags and lookups.
    pub plan: Plan,
    /// The stream entries that may be added now, in commit order.
    pub streams: Vec<StreamEntry>,
    /// The highest position whose invalidations the batch begins to apply.
    pub started: Lsn,
    /// Every invalidation up to this position is in force and not yet recorded in Redis. None:
    /// nothing is to be recorded.
    pub record: Option<Lsn>,
    /// When the last transaction of the batch committed.
    pub at: SystemTime,
    /// Everything committed before this moment is in force once the batch is.
    pub heartbeat: Option<Instant>,
    /// Ask Redis again which dataset it holds.
    pub probe: bool,
    /// Count the batch in Redis, so that an outbox can find out whether Redis still holds it.
    pub counts: bool,
    /// What Redis remembers of the database's catalog once the batch is in force.
    pub catalog: CatalogRecord,
    /// The marks ([`StreamEntry::mark`]) whose entries in the outbox are gone.
    pub forget: Vec<String>,
    /// Second deletes: those to store, those in force, and whether to ask which are due.
    pub again: Again,
}

/// An entry to add to a stream.
#[derive(Clone, Debug)]
pub struct StreamEntry {
    /// The rule that asked for it.
    pub rule: RuleId,
    /// The stream, and the data.
    pub entry: StreamAppend,
    /// The end of its transaction: the first half of its id.
    pub end: Lsn,
    /// Its number in the transaction: the second half of its id.
    pub number: u64,
    /// When the transaction committed.
    pub at: SystemTime,
    /// Identifies the entry where its position does not: an entry of an outbox has another position
    /// each time that it is claimed.
    pub mark: Option<String>,
}
