//! Stream entries, which keep the order of commits.
//!
//! Owns the entries whose turn has not come. Synchronous. Invariant: an entry goes on its way only when every
//! transaction before its own is in force, and everything else of its own.

use std::collections::VecDeque;
use std::time::SystemTime;

use crate::change::Lsn;
use crate::coherence::progress::{Progress, Ticket};
use crate::plan::{Entry, RuleId};
use crate::sink::StreamEntry;

/// The most entries that wait, and the most of one transaction.
pub(super) const ENTRIES_MAX: usize = 100_000;

/// The most bytes of entries that wait, and of one transaction.
pub(super) const BYTES_MAX: usize = 64 << 20;

/// The most entries of one batch: more would not be answered in time.
const ENTRIES_AT_ONCE: usize = 1000;

/// The most bytes of entries of one batch, more or less.
const BYTES_AT_ONCE: usize = 4 << 20;

/// The entries of one transaction.
#[derive(Debug)]
struct Entries {
    ticket: Ticket,
    entries: VecDeque<StreamEntry>,
}

/// Stream entries whose turn has not come.
#[derive(Debug, Default)]
pub(super) struct Streams {
    waiting: VecDeque<Entries>,
    len: usize,
    bytes: usize,
}

impl Streams {
    /// A transaction's entries, in order; their ids are its end and their number in it.
    pub(super) fn push(&mut self, ticket: Ticket, end: Lsn, at: SystemTime, entries: Vec<(RuleId, Entry)>) {
        let numbered = (0..).zip(entries);
        let entries: VecDeque<_> =
            numbered.map(|(number, (rule, entry))| StreamEntry { rule, entry, end, number, at }).collect();
        self.len += entries.len();
        self.bytes += entries.iter().map(|entry| entry.entry.data.len()).sum::<usize>();
        self.waiting.push_back(Entries { ticket, entries });
    }

    /// Those whose turn it is, as many as one batch may have, and the transactions of which none is left.
    pub(super) fn take(&mut self, progress: &Progress) -> (Vec<Ticket>, Vec<StreamEntry>) {
        let ready = progress.next_in_order(self.waiting.iter().map(|next| next.ticket));
        let (mut tickets, mut entries, mut bytes) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ready {
            let Some(next) = self.waiting.front_mut() else { break };
            while entries.len() < ENTRIES_AT_ONCE && bytes < BYTES_AT_ONCE {
                let Some(entry) = next.entries.pop_front() else { break };
                bytes += entry.entry.data.len();
                entries.push(entry);
            }
            if !next.entries.is_empty() {
                break;
            }
            tickets.push(next.ticket);
            self.waiting.pop_front();
        }
        self.len -= entries.len();
        self.bytes -= bytes;
        (tickets, entries)
    }

    /// Whether more wait than may be kept.
    pub(super) fn is_full(&self) -> bool {
        self.len >= ENTRIES_MAX || self.bytes >= BYTES_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Drops everything that waits; the tickets, and how many entries there were.
    pub(super) fn clear(&mut self) -> (Vec<Ticket>, usize) {
        let tickets = self.waiting.drain(..).map(|entries| entries.ticket).collect();
        self.bytes = 0;
        (tickets, std::mem::take(&mut self.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_go_in_order_and_not_too_many_at_once() {
        let (mut progress, mut streams) = (Progress::default(), Streams::default());
        let entry = || (RuleId::new(0), Entry { stream: "s".into(), data: b"{}".to_vec(), maxlen: 1 });
        let mut push = |progress: &mut Progress, lsn, count| {
            let ticket = progress.received(Lsn::new(lsn));
            progress.split(ticket);
            streams.push(ticket, Lsn::new(lsn), SystemTime::UNIX_EPOCH, (0..count).map(|_| entry()).collect());
            ticket
        };
        let (first, second) = (push(&mut progress, 10, 2500), push(&mut progress, 20, 1));
        progress.done(second);
        assert!(streams.take(&progress).1.is_empty(), "the first is not in force yet");
        progress.done(first);
        let mut seen = Vec::new();
        for (tickets, count) in [(0, 1000), (0, 1000), (2, 501)] {
            let (done, entries) = streams.take(&progress);
            assert_eq!((done.len(), entries.len()), (tickets, count));
            seen.extend(entries.into_iter().map(|entry| (entry.end, entry.number)));
        }
        assert!(seen.is_sorted() && streams.is_empty() && streams.bytes == 0);
    }
}
