//! The events and the status of a feed.
//!
//! Owns what the session learns of the source. It must not know which source it is.

use std::time::Instant;

use crate::change::Lsn;

/// What happened at the source.
#[derive(Debug)]
pub(in crate::pipeline) enum FeedEvent {
    /// Something has arrived and can be read, or a step of the feed has finished.
    Arrived,
    /// The log was written up to this position at the moment of the question.
    LogWritten(Lsn, Instant),
    /// The outbox was surveyed.
    Surveyed,
}

/// What the session must know of the feed before it decides.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::pipeline) struct FeedStatus {
    /// The feed waits to hear what is in force.
    pub(in crate::pipeline) is_urgent: bool,
    /// Nothing more arrives unless the feed asks for it.
    pub(in crate::pipeline) is_drained: bool,
}
