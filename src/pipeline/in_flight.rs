//! The batch in flight: sent to Redis, and not known to be in force.
//!
//! Owns what becomes true with its outcome. It must not know how a batch is sent.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::error::SessionError;
use crate::change::Lsn;
use crate::coherence::progress::Ticket;
use crate::sink::DueDeletes;

/// What becomes true when the batch in flight is in force.
#[derive(Debug)]
pub(super) struct InFlight {
    /// A part of these transactions is in force.
    pub(super) tickets: Vec<Ticket>,
    /// Redis has recorded this position as applied.
    pub(super) record: Option<Lsn>,
    /// Everything committed before this moment is in force.
    pub(super) heartbeat: Option<Instant>,
    /// Second deletes are stored, with these delays.
    pub(super) delays: BTreeSet<Duration>,
    /// So many second deletes are done.
    pub(super) repeated: usize,
}

/// From where a session goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resumed {
    /// Invalidations up to this position may be in force.
    pub(super) started: Lsn,
    /// What Redis remembers of the database's catalog. None: a new epoch has begun, so no value is
    /// older than the catalog.
    pub(super) catalog: Option<HashMap<String, String>>,
}

/// How one run of the sink ended.
#[derive(Debug)]
pub(super) enum SinkOutcome {
    /// History is proven, or a new epoch has begun.
    Resumed(Resumed),
    /// The batch is in force. These second deletes are due, if it asked.
    Applied(DueDeletes),
    /// Neither. The session ends.
    Failed(SessionError),
}
