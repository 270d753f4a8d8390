//! What the session's ledger knows of the database's catalog.
//!
//! Owns the names of tables by OID, and the transactions that are done only once the database was
//! observed. It must not compare catalogs; [`super::watching`] does. Invariant: while changes of
//! some table do not arrive, a ticket is open.

use std::collections::HashMap;

use crate::change::{Change, Operation, RelationId, TableName};
use crate::coherence::progress::Ticket;

/// The names of tables, and what waits for an observation.
#[derive(Debug, Default)]
pub(super) struct CatalogChecks {
    /// The names by which rules mean each table that they concern.
    pub(super) tables: HashMap<RelationId, Vec<TableName>>,
    /// Transactions that are done only once the database was observed after them.
    waiting: Vec<Ticket>,
    /// Those for which it is observed now.
    observing: Vec<Ticket>,
    /// Open while changes of some table do not arrive.
    pub(super) blind: Option<Ticket>,
    /// The tables that were truncated since the last observation began.
    truncated: Vec<TableName>,
    /// Something said that the database may have changed.
    has_hint: bool,
}

impl CatalogChecks {
    /// The names by which rules mean a relation, if the catalog was asked about it. None: the
    /// relation is new.
    pub(super) fn names(&self, relation: RelationId) -> Option<&[TableName]> {
        self.tables.get(&relation).map(Vec::as_slice)
    }

    /// Something says that the database may have changed.
    pub(super) fn hint(&mut self) {
        self.has_hint = true;
    }

    /// These visible transactions are done only once the database was observed after them.
    pub(super) fn wait(&mut self, tickets: &mut Vec<Ticket>) {
        self.waiting.append(tickets);
    }

    /// Whether the database must be observed soon.
    pub(super) fn take_due(&mut self) -> bool {
        std::mem::take(&mut self.has_hint) || !self.waiting.is_empty()
    }

    /// The rows of a truncated table have another file. That is no reason to remove anything more.
    pub(super) fn note_truncate(&mut self, change: &Change) {
        if change.operation == Operation::Truncate {
            self.truncated.extend(std::iter::once(&change.relation.name).chain(&change.relation.also).cloned());
        }
    }

    /// The database is observed from now on. Returns the tables that were truncated before.
    pub(super) fn begin(&mut self) -> Vec<TableName> {
        self.observing.append(&mut self.waiting);
        std::mem::take(&mut self.truncated)
    }

    /// The database was observed. Returns the tickets that waited for it.
    pub(super) fn end(&mut self) -> Vec<Ticket> {
        let mut tickets = std::mem::take(&mut self.observing);
        tickets.extend(self.blind.take());
        tickets
    }
}
