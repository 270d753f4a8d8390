//! Calls of lookups: what the database must be asked before the rest of a plan is known.
//!
//! Owns their shape. It must not ask the database. Invariant: a call holds all that its rule's
//! templates read of the change, so the change itself is not kept.

use super::rule_id::RuleId;
use crate::change::{Cell, Lsn};

/// One call of a rule's lookup, and what the rule's templates read of the change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LookupCall {
    /// The rule that asks.
    pub rule: RuleId,
    /// The values of the query's parameters, in order.
    pub arguments: Vec<Vec<u8>>,
    /// The values of the references of the rule's templates, in order. References to the looked-up
    /// row are absent.
    pub cells: Vec<Cell>,
}

impl LookupCall {
    /// The approximate size, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let cell = |cell: &Cell| match cell {
            Cell::Value(value) => value.len(),
            Cell::Null | Cell::Absent => 0,
        };
        self.arguments.iter().map(Vec::len).chain(self.cells.iter().map(cell)).sum()
    }
}

/// The change that a call follows from, as far as its answer or its failure needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOrigin {
    /// The position of the change.
    pub lsn: Lsn,
    /// The change, as one line of a recording.
    pub change: String,
}
