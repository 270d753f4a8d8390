//! Stream entries, which keep the order of commits.
//!
//! Owns the entries whose turn has not come. Synchronous. Invariant: an entry goes on its way only when every
//! transaction before its own is in force, and everything else of its own.

use std::collections::{BTreeSet, VecDeque};
use std::time::SystemTime;

use crate::change::Lsn;
use crate::coherence::progress::{Progress, Ticket};
use crate::plan::{Entry, RuleId};
use crate::sink::StreamEntry;

/// The most entries that wait, and the most of one transaction.
pub(super) const ENTRIES_MAX: usize = 100_000;

/// The entries of one transaction.
#[derive(Debug)]
struct Entries {
    ticket: Ticket,
    entries: Vec<StreamEntry>,
}

/// Stream entries whose turn has not come.
#[derive(Debug, Default)]
pub(super) struct Streams {
    waiting: VecDeque<Entries>,
    len: usize,
}

impl Streams {
    /// A transaction's entries, in order; their ids are its end and their number in it.
    pub(super) fn push(&mut self, ticket: Ticket, end: Lsn, at: SystemTime, entries: Vec<(RuleId, Entry)>) {
        self.len += entries.len();
        let numbered = (0..).zip(entries);
        let entries = numbered.map(|(number, (rule, entry))| StreamEntry { rule, entry, end, number, at }).collect();
        self.waiting.push_back(Entries { ticket, entries });
    }

    /// Those whose turn it is.
    pub(super) fn take(&mut self, progress: &Progress) -> (Vec<Ticket>, Vec<StreamEntry>) {
        let (mut sent, mut entries) = (BTreeSet::new(), Vec::new());
        while let Some(next) = self.waiting.pop_front_if(|next| progress.is_next_after(next.ticket, &sent)) {
            self.len -= next.entries.len();
            sent.insert(next.ticket);
            entries.extend(next.entries);
        }
        (sent.into_iter().collect(), entries)
    }

    /// Whether more wait than may be kept.
    pub(super) fn is_full(&self) -> bool {
        self.len >= ENTRIES_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Drops everything that waits; the tickets, and how many entries there were.
    pub(super) fn clear(&mut self) -> (Vec<Ticket>, usize) {
        let tickets = self.waiting.drain(..).map(|entries| entries.ticket).collect();
        (tickets, std::mem::take(&mut self.len))
    }
}
