//! Why something was not installed or removed.
//!
//! Owns these errors, and the limits of waiting for locks. It must not know what is installed.

use tokio_postgres::error::SqlState;

/// The lock timeout of `setup` and `teardown`. Writers queue behind the waiting lock, so it is
/// short, and below `deadlock_timeout` (1 s by default), so that an application's transaction never
/// fails.
pub(crate) const LOCK_TIMEOUT: &str = "500ms";

/// The most attempts to lock a table.
pub(super) const ATTEMPTS: usize = 6;

/// Why something was not installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A database has one outbox, and it belongs to the slot of this name.
    #[error(
        "the outbox of this database belongs to `{0}`; set source.slot to `{0}`, or remove the outbox by \
         `unstale teardown` with a file that does"
    )]
    OtherConsumer(String),
    /// A function `unstale.emit` was not installed by unstale.
    #[error("unstale.emit(text, jsonb) was not installed by unstale; rename or drop it, then run `unstale setup`")]
    ForeignEmit,
    /// Rules read this virtual generated column.
    #[error(
        "{0} is a virtual generated column, so triggers do not see it; make it STORED, or use the columns that it is \
         computed from"
    )]
    Invisible(String),
    /// A transaction that uses one of the tables stayed open.
    #[error(
        "a table could not be locked in time, so nothing was changed there; wait until transactions that use it have ended \
         (see pg_stat_activity), then try again"
    )]
    Locked,
    /// A process reads the slot.
    #[error("the slot `{slot}` is read by process {pid}; stop `unstale run`, then try again")]
    SlotActive {
        /// The slot.
        slot: String,
        /// The process of the server that sends to it.
        pid: i32,
    },
    /// Statements would fail, each with the reason.
    #[error("nothing was changed: {}", .0.join("; "))]
    Impossible(Vec<String>),
    /// A statement failed.
    #[error("a statement failed")]
    Query(#[from] tokio_postgres::Error),
}

/// Whether the error is a lock timeout or a deadlock.
pub fn is_locked(error: &tokio_postgres::Error) -> bool {
    [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED].iter().any(|code| error.code() == Some(code))
}
