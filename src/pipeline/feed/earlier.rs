//! What earlier sessions found out about the source.
//!
//! Owns what must survive a session besides the planner and the sink. Invariant: it only ever makes
//! opening stricter or adds a repair; what is proven is compared anew in each session.

use crate::change::Lsn;

/// What earlier sessions of this process found out.
#[derive(Debug, Default)]
pub(in crate::pipeline) struct EarlierSessions {
    /// A session has begun, so the source existed and could be read.
    pub(in crate::pipeline) streamed: bool,
    /// The slot's position when it met log from before its publication was created: it cannot get
    /// past that.
    pub(in crate::pipeline) gap_at: Option<Lsn>,
    /// The last session met a value that has no equivalent in UTF-8, so the next one takes values
    /// as the database has them.
    pub(in crate::pipeline) as_stored: bool,
}
