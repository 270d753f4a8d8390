//! What is not as the rules need it, and the statements that mend it.
//!
//! Owns how a difference reads and its script. It must not ask a server.

use crate::change::TableName;

/// How long `setup` waits for a lock, and `teardown`. Writers queue behind it, and one that waits for it in turn is not
/// made to fail before `deadlock_timeout`, a second by default.
pub(super) const LOCK_TIMEOUT: &str = "500ms";

/// What a [`OutboxDifference`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboxPart {
    /// The schema, the tables in it, and the bell.
    Base,
    /// The function by which applications emit events.
    Events,
    /// Who empties it.
    Consumer,
    /// A table's function and triggers.
    Table(TableName),
    /// Triggers of a table that no rule names any more, or what is left of them.
    Surplus,
}

/// Something that is not as the rules need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxDifference {
    /// What it is about.
    pub part: OutboxPart,
    /// What is wrong, in words.
    pub wrong: Vec<String>,
    /// What mends it, in order.
    pub statements: Vec<String>,
    /// What that locks.
    pub cost: String,
    /// All that is missing are the truncate triggers of partitions, which PostgreSQL does not make with a new one.
    pub is_minor: bool,
}

impl OutboxDifference {
    /// What mends it, whole or not at all: for whoever runs it by hand.
    pub fn script(&self) -> String {
        match &*self.statements {
            [only] => only.trim_end().to_owned(),
            statements => {
                format!("BEGIN;\nSET LOCAL lock_timeout = '{LOCK_TIMEOUT}';\n{}\nCOMMIT;", statements.join("\n"))
            }
        }
    }

    /// What it is about, in words.
    pub fn subject(&self) -> String {
        match &self.part {
            OutboxPart::Base => "the outbox: schema unstale and its tables".to_owned(),
            OutboxPart::Events => "function unstale.emit".to_owned(),
            OutboxPart::Consumer => "who empties the outbox".to_owned(),
            OutboxPart::Table(table) => format!("triggers of {table}"),
            OutboxPart::Surplus => "triggers that no rule needs".to_owned(),
        }
    }
}
