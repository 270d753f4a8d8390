//! One difference between the installed outbox and what the rules need, and its fix.
//!
//! Owns the wording and the script of a difference. It must not query a server.

use crate::change::TableName;
use crate::install::error::LOCK_TIMEOUT;

/// The part of the outbox that a difference is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboxPart {
    /// The schema, its tables and its functions.
    Base,
    /// The function `unstale.emit`.
    Events,
    /// The registered consumer.
    Consumer,
    /// The capture function and the triggers of a table.
    Table(TableName),
    /// Triggers and functions that no rule needs.
    Surplus,
}

/// A part of the outbox that is not as the rules need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxDifference {
    /// The part.
    pub part: OutboxPart,
    /// What is wrong, in words.
    pub wrong: Vec<String>,
    /// The statements that fix it, in order.
    pub statements: Vec<String>,
    /// What the statements lock.
    pub cost: String,
    /// Whether only truncate triggers of partitions are missing. PostgreSQL does not create these
    /// with a new partition.
    pub is_minor: bool,
}

impl OutboxDifference {
    /// The fix as a script to run by hand, in one transaction.
    pub fn script(&self) -> String {
        match &*self.statements {
            [only] => only.trim_end().to_owned(),
            statements => {
                format!("BEGIN;\nSET LOCAL lock_timeout = '{LOCK_TIMEOUT}';\n{}\nCOMMIT;", statements.join("\n"))
            }
        }
    }

    /// The part, in words.
    pub fn subject(&self) -> String {
        match &self.part {
            OutboxPart::Base => "the outbox: schema unstale and its tables".to_owned(),
            OutboxPart::Events => "function unstale.emit".to_owned(),
            OutboxPart::Consumer => "the consumer of the outbox".to_owned(),
            OutboxPart::Table(table) => format!("triggers of {table}"),
            OutboxPart::Surplus => "triggers that no rule needs".to_owned(),
        }
    }
}
