//! What Redis remembers of the database's catalog.
//!
//! Owns the record. It must not know what a state means. Invariant: a state is recorded once
//! everything that its change made stale is removed, so that a crash in between repeats the
//! removal.

use std::collections::BTreeMap;

/// States of tables and views, and what changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogRecord {
    /// The new state of each table or view that has one.
    pub states: BTreeMap<String, String>,
    /// How many changes there were, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// Why changes of tables do not arrive, by table.
    pub faults: BTreeMap<String, String>,
}

impl CatalogRecord {
    /// Whether there is nothing to record. Faults alone are recorded with the state that has them.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty() && self.counts.is_empty()
    }

    /// Adds a later record.
    pub fn append(&mut self, later: Self) {
        if later.is_empty() {
            return;
        }
        self.states.extend(later.states);
        for (kind, count) in later.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        self.faults = later.faults;
    }
}
