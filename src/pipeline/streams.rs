//! Stream entries, which keep the order of commits.
//!
//! Owns the entries whose turn has not come, and the marks by which Redis knows those that an
//! outbox may send again. Synchronous. Invariants: an entry goes on its way only when every
//! transaction before its own is in force, and everything else of its own; a mark is forgotten only
//! when its entry is gone from the outbox.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::SystemTime;

use crate::change::Lsn;
use crate::coherence::progress::{Progress, Ticket};
use crate::plan::{RuleId, StreamAppend};
use crate::sink::StreamEntry;

/// The most entries that wait, and the most of one transaction.
pub(super) const ENTRIES_MAX: usize = 100_000;

/// The most bytes of entries that wait, and of one transaction.
pub(super) const BYTES_MAX: usize = 64 << 20;

/// The most entries of one batch: more would not be answered in time.
const ENTRIES_AT_ONCE: usize = 1000;

/// The most bytes of entries of one batch, more or less.
const BYTES_AT_ONCE: usize = 4 << 20;

/// An entry that a rule asks for, and its mark if it has one.
pub(super) type Marked = (RuleId, StreamAppend, Option<String>);

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
    /// The marks of a transaction's entries, also of those on their way.
    marks: BTreeMap<Ticket, Vec<String>>,
    /// Those that no entry of the outbox can have any more.
    forget: Vec<String>,
}

impl Streams {
    /// A transaction's entries, in order, with their marks; their ids are its end and their number
    /// in it.
    pub(super) fn push(&mut self, ticket: Ticket, end: Lsn, at: SystemTime, entries: Vec<Marked>) {
        let marks: Vec<_> = entries.iter().filter_map(|(_, _, mark)| mark.clone()).collect();
        if !marks.is_empty() {
            self.marks.insert(ticket, marks);
        }
        let numbered = (0..).zip(entries);
        let entries: VecDeque<_> =
            numbered.map(|(number, (rule, entry, mark))| StreamEntry { rule, entry, end, number, at, mark }).collect();
        self.len += entries.len();
        self.bytes += entries.iter().map(|entry| entry.entry.data.len()).sum::<usize>();
        self.waiting.push_back(Entries { ticket, entries });
    }

    /// Those whose turn it is, as many as one batch may have, and the transactions of which none is
    /// left.
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

    /// The entries of these transactions are gone from the outbox.
    pub(super) fn are_gone(&mut self, tickets: &RangeInclusive<Ticket>) {
        self.forget.extend(self.marks.extract_if(tickets.clone(), |_, _| true).flat_map(|(_, marks)| marks));
    }

    /// The marks that Redis may forget.
    pub(super) fn take_forgotten(&mut self) -> Vec<String> {
        std::mem::take(&mut self.forget)
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
        let entry = || (RuleId::of("r"), StreamAppend { stream: "s".into(), data: b"{}".to_vec(), maxlen: 1 }, None);
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

    #[test]
    fn marks_are_forgotten_when_the_outbox_has_no_such_entry() {
        let (mut progress, mut streams) = (Progress::default(), Streams::default());
        let entry = |mark: &str| {
            let entry = StreamAppend { stream: "s".into(), data: b"{}".to_vec(), maxlen: 1 };
            (RuleId::of("r"), entry, Some(mark.to_owned()))
        };
        let [first, second] = ["7-0", "8-0"].map(|mark| {
            let ticket = progress.received(Lsn::ZERO);
            streams.push(ticket, Lsn::new(1), SystemTime::UNIX_EPOCH, vec![entry(mark)]);
            ticket
        });
        streams.are_gone(&(second..=second));
        assert_eq!(streams.take_forgotten(), ["8-0"]);
        streams.are_gone(&(first..=second));
        assert_eq!(streams.take_forgotten(), ["7-0"]);
        assert!(streams.take_forgotten().is_empty());
    }
}
