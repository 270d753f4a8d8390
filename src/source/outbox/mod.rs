//! The outbox: a table to which triggers write what changed, for servers without logical replication.
//!
//! Owns reading it. What is installed is [`crate::install::outbox`]'s. It must not know rules or Redis. Invariant: an
//! entry is deleted in the transaction that is committed once everything it asks for is in force, and in no other.

pub mod claim;
pub mod entry;
pub mod pending;
pub mod survey;

/// Who reads an outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// The name: `source.slot`.
    pub name: String,
    /// What tells the rules of each table from any others, as a JSON object.
    pub rules: String,
}

/// The channel on which a sleeping daemon is rung; no message says more than that.
pub const CHANNEL: &str = "unstale";

/// What a connection is told on which something is held: a daemon that is frozen, or whose machine is gone, gives
/// it back. One that only waits says something now and then.
pub const MORTAL: &str = "set idle_session_timeout = '60s'; set idle_in_transaction_session_timeout = '60s'";
