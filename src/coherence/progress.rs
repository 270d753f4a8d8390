//! The ledger of transactions: which are in force, and up to where that holds without a gap.
//!
//! Owns the two positions that follow from "transaction n is applied", which may come in any order:
//! `applied` may be written to Redis, `confirmed` may be acknowledged to the slot. Synchronous;
//! knows no clock or socket. Invariants: neither position passes a transaction that is not done, or
//! ever goes back; `confirmed` is never ahead of what [`Progress::recorded`] said is durable.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::change::Lsn;
use crate::mutant::{self, Mutant};

/// The number of a transaction, in commit order, within one connection to the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// The transactions of one connection that are not all in force yet.
#[derive(Debug, Default)]
pub struct Progress {
    /// A transaction that is stuck for long takes no more room than itself.
    open: BTreeMap<Ticket, OpenTransaction>,
    next: u64,
    /// The end of the last transaction that was received.
    received: Lsn,
    confirmed: Lsn,
    /// The highest position of a keepalive at which no transaction was open.
    idle: Lsn,
}

/// A transaction that is not all in force.
#[derive(Clone, Copy, Debug)]
struct OpenTransaction {
    /// The end of the transaction before it.
    before: Lsn,
    /// How many of its parts are not done.
    parts: u32,
}

impl Progress {
    /// A transaction was received whole. Must be called in commit order.
    pub fn received(&mut self, end_lsn: Lsn) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.open.insert(ticket, OpenTransaction { before: self.received, parts: 1 });
        self.received = self.received.max(end_lsn);
        ticket
    }

    /// A transaction has one more part, which is done separately.
    pub fn split(&mut self, ticket: Ticket) {
        if let Some(open) = self.open.get_mut(&ticket) {
            open.parts += 1;
        }
    }

    /// A part of a transaction is in force; with its last part, the transaction is. May be called
    /// in any order.
    pub fn done(&mut self, ticket: Ticket) {
        if let Some(open) = self.open.get_mut(&ticket) {
            open.parts -= 1;
            if open.parts == 0 {
                self.open.remove(&ticket);
            }
        }
    }

    /// How many of these transactions, in commit order, lack one part only, where every transaction
    /// before them is in force or is one of these.
    pub fn next_in_order(&self, tickets: impl Iterator<Item = Ticket>) -> usize {
        let open = self.open.iter().zip(tickets);
        open.take_while(|((open, state), ticket)| *open == ticket && state.parts == 1).count()
    }

    /// The source reached this position without a published transaction. It counts only if no
    /// transaction is open. Must not be called inside a transaction.
    pub fn reached(&mut self, position: Lsn) {
        if self.open.is_empty() || mutant::is(Mutant::EagerKeepalive) {
            self.idle = self.idle.max(position);
        }
    }

    /// Everything up to this position is in force, even if transactions are open: an outbox proves
    /// that by itself, and its transactions have no positions of their own.
    pub fn proven(&mut self, position: Lsn) {
        self.idle = self.idle.max(position);
    }

    /// Whether all of these transactions are in force.
    pub fn are_done(&self, tickets: RangeInclusive<Ticket>) -> bool {
        self.open.range(tickets).next().is_none()
    }

    /// The first transaction that is not in force.
    pub fn first_open(&self) -> Option<Ticket> {
        self.open.keys().next().copied()
    }

    /// Every invalidation up to this position is in force. The watermark in Redis may rise to it.
    pub fn applied(&self) -> Lsn {
        self.open.values().next().map_or(self.received, |open| open.before).max(self.idle)
    }

    /// Redis recorded this position as `applied`.
    pub fn recorded(&mut self, applied: Lsn) {
        debug_assert!(applied <= self.applied(), "recorded what was not applied");
        self.confirmed = self.confirmed.max(applied);
    }

    /// The position that may be acknowledged to the source.
    pub fn confirmed(&self) -> Lsn {
        if mutant::is(Mutant::AckBeforeRedis) {
            return self.received.max(self.idle);
        }
        self.confirmed
    }

    /// Whether every transaction that was received is in force.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_holds_back_what_comes_after_it() {
        let mut progress = Progress::default();
        let tickets: Vec<_> = [10, 20, 30].map(|lsn| progress.received(Lsn::new(lsn))).into();
        progress.done(tickets[2]);
        assert_eq!(progress.applied(), Lsn::ZERO);
        progress.done(tickets[0]);
        assert_eq!(progress.applied(), Lsn::new(10));
        progress.done(tickets[1]);
        assert_eq!((progress.applied(), progress.confirmed()), (Lsn::new(30), Lsn::ZERO));
        progress.recorded(Lsn::new(30));
        assert_eq!(progress.confirmed(), Lsn::new(30));
    }

    #[test]
    fn a_transaction_is_done_when_all_its_parts_are() {
        let mut progress = Progress::default();
        let [first, second] = [10, 20].map(|lsn| progress.received(Lsn::new(lsn)));
        progress.split(first);
        progress.done(first);
        assert_eq!(progress.applied(), Lsn::ZERO);
        assert_eq!(progress.next_in_order([first].into_iter()), 1);
        assert_eq!(progress.next_in_order([first, second].into_iter()), 2);
        assert_eq!(progress.next_in_order([second].into_iter()), 0);
        progress.split(second);
        assert_eq!(progress.next_in_order([first, second].into_iter()), 1);
        progress.done(first);
        progress.done(second);
        assert_eq!(progress.applied(), Lsn::new(10));
        assert_eq!(progress.next_in_order([second].into_iter()), 1);
    }

    #[test]
    fn a_keepalive_counts_only_while_nothing_is_open() {
        let mut progress = Progress::default();
        progress.reached(Lsn::new(5));
        let ticket = progress.received(Lsn::new(10));
        progress.reached(Lsn::new(50));
        assert_eq!(progress.applied(), Lsn::new(5));
        progress.done(ticket);
        assert_eq!(progress.applied(), Lsn::new(10));
        progress.reached(Lsn::new(50));
        assert_eq!(progress.applied(), Lsn::new(50));
    }

    #[test]
    fn what_an_outbox_proves_counts_whatever_is_open() {
        let mut progress = Progress::default();
        let [first, second, third] = [(); 3].map(|()| progress.received(Lsn::ZERO));
        progress.proven(Lsn::new(7));
        assert_eq!((progress.applied(), progress.first_open()), (Lsn::new(7), Some(first)));
        progress.done(second);
        assert!(progress.are_done(second..=second) && !progress.are_done(first..=second));
        progress.done(first);
        assert!(progress.are_done(first..=second) && !progress.are_done(first..=third));
        assert_eq!((progress.applied(), progress.first_open()), (Lsn::new(7), Some(third)));
    }

    #[test]
    fn done_twice_is_done_once() {
        let mut progress = Progress::default();
        let (first, second) = (progress.received(Lsn::new(1)), progress.received(Lsn::new(2)));
        progress.done(first);
        progress.done(first);
        assert_eq!(progress.applied(), Lsn::new(1));
        progress.done(second);
        assert!(progress.is_idle());
    }

    proptest! {
        /// Against the plain definition: applied is the end of the longest prefix that is done.
        #[test]
        fn any_order_gives_the_longest_prefix(order in Just((0..40_usize).collect::<Vec<_>>()).prop_shuffle()) {
            let mut progress = Progress::default();
            let tickets: Vec<_> = (0..40).map(|n| progress.received(Lsn::new(n * 10 + 10))).collect();
            let mut done = [false; 40];
            for at in order {
                progress.done(tickets[at]);
                done[at] = true;
                let prefix = done.iter().take_while(|&&done| done).count() as u64;
                prop_assert_eq!(progress.applied(), Lsn::new(prefix * 10));
            }
        }
    }
}
