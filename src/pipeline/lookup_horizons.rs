//! What lookups may have seen: commits that are later than the change that they are for.
//!
//! Owns which transactions must wait for them. It must not know lookups. Invariant: a transaction
//! waits for the furthest of the states in which its lookups were answered.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::change::Lsn;
use crate::coherence::progress::{Progress, Ticket};

/// What the state of the database may contain in which lookups were answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookupHorizon {
    /// Commits up to this position of the log.
    Log(Lsn),
    /// Entries of the outbox up to this number.
    Outbox(i64),
}

/// The horizons of the transactions of one session. Those in the log are the ledger's.
#[derive(Debug, Default)]
pub(super) struct LookupHorizons {
    /// The highest entry of the outbox that the lookups of a transaction may have seen.
    entries: BTreeMap<Ticket, i64>,
    /// What the last lookups may have seen.
    last: Option<LookupHorizon>,
}

impl LookupHorizons {
    /// Lookups for these transactions were answered.
    pub(super) fn answered(&mut self, tickets: &[Ticket], horizon: Option<LookupHorizon>, progress: &mut Progress) {
        let Some(horizon) = horizon else { return };
        self.last = Some(horizon);
        tickets.iter().for_each(|ticket| self.hold(*ticket, horizon, progress));
    }

    /// Lookups for the first rows of a transaction may have been answered before it was complete.
    pub(super) fn completed(&mut self, ticket: Ticket, progress: &mut Progress) {
        if let Some(horizon) = self.last {
            self.hold(ticket, horizon, progress);
        }
    }

    fn hold(&mut self, ticket: Ticket, horizon: LookupHorizon, progress: &mut Progress) {
        match horizon {
            LookupHorizon::Log(position) => progress.looked(ticket, position),
            LookupHorizon::Outbox(entry) => {
                let held = self.entries.entry(ticket).or_default();
                *held = entry.max(*held);
            }
        }
    }

    /// The highest entry that the lookups of these transactions may have seen.
    pub(super) fn entry(&self, tickets: &RangeInclusive<Ticket>) -> Option<i64> {
        self.entries.range(tickets.clone()).map(|(_, entry)| *entry).max()
    }

    /// The entries of these transactions are gone from the outbox.
    pub(super) fn are_gone(&mut self, tickets: &RangeInclusive<Ticket>) {
        self.entries.retain(|ticket, _| !tickets.contains(ticket));
    }
}
