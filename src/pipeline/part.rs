//! What is planned and not yet sent, in pieces that can be joined.
//!
//! Owns how much of it counts as much, and what a late version key needs. It must not know when a
//! piece may be sent.

use std::time::SystemTime;

use super::watching::CatalogChange;
use crate::change::Lsn;
use crate::coherence::progress::Ticket;
use crate::plan::Plan;
use crate::rules::RuleSet;
use crate::sink::{CatalogRecord, DueDelete};

/// The most ops that wait for the batch in flight.
pub(super) const OPS_MAX: usize = 4096;

/// The most bytes of names and messages that wait.
const BYTES_MAX: usize = 4 << 20;

/// The most changes that wait: ops alone bound nothing when many rows ask for the same one.
pub(super) const CHANGES_MAX: usize = 16_384;

/// What is planned of one or more transactions, or of a part of one.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) plan: Plan,
    pub(super) tickets: Vec<Ticket>,
    pub(super) changes: usize,
    pub(super) started: Lsn,
    /// The earliest transaction that may raise or delete a version key.
    pub(super) first_bump: Option<Lsn>,
    pub(super) at: SystemTime,
    /// The second deletes that are in force with it.
    pub(super) repeated: Vec<DueDelete>,
    /// What Redis remembers of the catalog once this is in force.
    pub(super) catalog: CatalogRecord,
    /// Transactions that changed the definition of something: each is done only once the database
    /// was observed after it.
    pub(super) checks: Vec<Ticket>,
}

impl Default for Part {
    fn default() -> Self {
        Self {
            plan: Plan::default(),
            tickets: Vec::new(),
            changes: 0,
            started: Lsn::ZERO,
            first_bump: None,
            at: SystemTime::UNIX_EPOCH,
            repeated: Vec::new(),
            catalog: CatalogRecord::default(),
            checks: Vec::new(),
        }
    }
}

impl Part {
    pub(super) fn size(&self) -> Size {
        Size { ops: self.plan.len(), bytes: self.plan.bytes(), changes: self.changes }
    }

    /// What follows from a change of the catalog. With it, these tickets are done.
    pub(super) fn of_catalog(change: CatalogChange, tickets: Vec<Ticket>) -> Self {
        let mut plan = Plan::default();
        plan.begin_transaction();
        plan.append(change.sweep);
        plan.end_transaction(Lsn::ZERO);
        // Version keys may be removed: readers make them again from `started`.
        let first_bump = (!plan.is_empty()).then_some(Lsn::ZERO);
        let at = change.at.unwrap_or(SystemTime::UNIX_EPOCH);
        Self { plan, tickets, catalog: change.record, at, first_bump, ..Self::default() }
    }

    pub(super) fn append(&mut self, other: Self) {
        self.plan.append(other.plan);
        self.tickets.extend(other.tickets);
        self.changes += other.changes;
        self.started = self.started.max(other.started);
        self.first_bump = self.first_bump.into_iter().chain(other.first_bump).min();
        self.at = self.at.max(other.at);
        self.repeated.extend(other.repeated);
        self.catalog.append(other.catalog);
        self.checks.extend(other.checks);
    }

    /// Whether a version key would rise to a position that `started` has passed already, or be
    /// deleted and made again from there: a reader may have made it so before, when the transaction
    /// was not visible yet.
    pub(super) fn is_late(&self, started: Lsn) -> bool {
        self.first_bump.is_some_and(|first| first < started)
    }

    /// Replaces single keys and messages by everything that their rules match. Returns how many
    /// messages were dropped.
    pub(super) fn collapse(&mut self, rules: &RuleSet) -> usize {
        self.changes = 0;
        self.plan.collapse(|asked| rules.removals_of(asked))
    }

    /// Version keys rise to a position that was never used.
    pub(super) fn refresh(&mut self, position: Lsn) {
        self.plan.raise_bumps(position);
        self.started = self.started.max(position);
        self.first_bump = None;
    }
}

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) ops: usize,
    pub(super) bytes: usize,
    pub(super) changes: usize,
}

impl Size {
    pub(super) fn reaches(self, factor: usize) -> bool {
        self.ops >= OPS_MAX * factor || self.bytes >= BYTES_MAX * factor || self.changes >= CHANGES_MAX * factor
    }

    pub(super) fn add(&mut self, other: Self) {
        self.ops += other.ops;
        self.bytes += other.bytes;
        self.changes += other.changes;
    }
}
