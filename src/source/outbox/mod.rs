//! The outbox: a table to which triggers write what changed, for servers without logical
//! replication.
//!
//! Owns reading it. What is installed is [`crate::install::outbox`]'s. It must not know rules or
//! Redis. Invariant: an entry is deleted in the transaction that is committed once everything it
//! asks for is in force, and in no other.

pub mod claim;
pub mod entry;
pub mod pending;
pub mod survey;

/// A consumer of an outbox: the daemons with one name and one set of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// The name: `source.slot`.
    pub name: String,
    /// A digest of the rules of each table, as a JSON object.
    pub rules: String,
}

/// The channel on which writers send a wakeup. Messages have no content.
pub const CHANNEL: &str = "unstale";

/// Settings of a connection that holds locks or claims: if its daemon is frozen or its machine is
/// gone, the server ends the connection. A daemon that only waits sends an empty statement now and
/// then.
pub const MORTAL: &str = "set idle_session_timeout = '60s'; set idle_in_transaction_session_timeout = '60s'";
