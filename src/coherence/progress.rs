//! The ledger of transactions: which are in force, and up to where that holds without a gap.
//!
//! Owns the two positions that follow from "transaction n is applied", which may come in any order:
//! `applied` may be written to Redis, `confirmed` may be acknowledged to the slot. Synchronous;
//! knows no clock or socket. Invariants: neither position passes a transaction that is not done, or
//! ever goes back; `confirmed` is never ahead of what [`Progress::recorded`] said is durable; a
//! transaction whose ops follow from a later state of the database is done only when every commit
//! in that state is in force.

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
    /// Transactions whose parts are all in force, and that wait for later commits: each for more
    /// than those before it.
    behind: BTreeMap<Ticket, WaitingTransaction>,
    next: u64,
    /// The end of the last transaction that was received.
    received: Lsn,
    confirmed: Lsn,
    /// The source has sent everything up to here.
    sent: Lsn,
    /// The highest position of a keepalive at which no transaction was open.
    idle: Lsn,
}

/// The most transactions that wait for later commits apart from one another.
const BEHIND_MAX: usize = 1024;

/// A transaction that is not all in force.
#[derive(Clone, Copy, Debug)]
struct OpenTransaction {
    /// The end of the transaction before it.
    before: Lsn,
    end: Lsn,
    /// Its ops follow from a state of the database that may have commits up to here.
    horizon: Option<Lsn>,
    /// How many of its parts are not done.
    parts: u32,
}

/// A transaction whose parts are all in force.
#[derive(Clone, Copy, Debug)]
struct WaitingTransaction {
    /// The end of the transaction before it.
    before: Lsn,
    /// It waits for every commit up to here.
    horizon: Lsn,
}

impl Progress {
    /// A transaction was received whole. Must be called in commit order.
    pub fn received(&mut self, end_lsn: Lsn) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        let open = OpenTransaction { before: self.received, end: end_lsn, horizon: None, parts: 1 };
        self.open.insert(ticket, open);
        self.received = self.received.max(end_lsn);
        self.has_sent(end_lsn);
        ticket
    }

    /// Ops of a transaction follow from a state of the database that may have commits up to
    /// `horizon`. The transaction is done only when these are in force, too.
    pub fn looked(&mut self, ticket: Ticket, horizon: Lsn) {
        if let Some(open) = self.open.get_mut(&ticket) {
            open.horizon = open.horizon.max(Some(horizon));
        }
    }

    /// Whether a transaction waits until the source has sent more.
    pub fn awaits_source(&self) -> bool {
        self.behind.values().next_back().is_some_and(|waiting| waiting.horizon > self.sent)
    }

    /// The source has sent everything up to this position.
    fn has_sent(&mut self, position: Lsn) {
        self.sent = self.sent.max(position);
        self.release();
    }

    /// Adds a transaction whose parts are all in force. One that waits for no more than an earlier
    /// one is released with it, so it need not be kept.
    fn wait(&mut self, ticket: Ticket, waiting: WaitingTransaction) {
        if self.behind.range(..ticket).next_back().is_some_and(|(_, earlier)| earlier.horizon >= waiting.horizon) {
            return;
        }
        while let Some((&later, _)) =
            self.behind.range(ticket..).next().filter(|(_, later)| later.horizon <= waiting.horizon)
        {
            self.behind.remove(&later);
        }
        self.behind.insert(ticket, waiting);
        if self.behind.len() > BEHIND_MAX
            && let Some((_, last)) = self.behind.pop_last()
            && let Some(mut before) = self.behind.last_entry()
        {
            before.get_mut().horizon = last.horizon;
        }
    }

    /// Removes transactions for which every commit is in force that their ops follow from. That
    /// these commits may wait for others does not count: otherwise two could wait for each other.
    fn release(&mut self) {
        let (first, sent) = (self.open.values().next().map(|open| open.end), self.sent);
        let is_done = |horizon: Lsn| horizon <= sent && first.is_none_or(|end| end > horizon);
        while let Some(entry) = self.behind.first_entry().filter(|entry| is_done(entry.get().horizon)) {
            entry.remove();
        }
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
                if let Some(OpenTransaction { before, horizon: Some(horizon), .. }) = self.open.remove(&ticket) {
                    self.wait(ticket, WaitingTransaction { before, horizon });
                }
                self.release();
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
    /// transaction is open. Must not be called inside a transaction. Returns whether transactions
    /// are in force that waited for it.
    pub fn reached(&mut self, position: Lsn) -> bool {
        let waiting = self.behind.len();
        self.has_sent(position);
        if self.is_idle() || mutant::is(Mutant::EagerKeepalive) {
            self.idle = self.idle.max(position);
        }
        self.behind.len() < waiting
    }

    /// Everything up to this position is in force, even if transactions are open: an outbox proves
    /// that by itself, and its transactions have no positions of their own.
    pub fn proven(&mut self, position: Lsn) {
        self.idle = self.idle.max(position);
    }

    /// Whether all of these transactions are in force.
    pub fn are_done(&self, tickets: RangeInclusive<Ticket>) -> bool {
        self.open.range(tickets.clone()).next().is_none() && self.behind.range(tickets).next().is_none()
    }

    /// Every invalidation up to this position is in force. The watermark in Redis may rise to it.
    pub fn applied(&self) -> Lsn {
        let open = self.open.first_key_value().map(|(ticket, open)| (*ticket, open.before));
        let behind = self.behind.first_key_value().map(|(ticket, waiting)| (*ticket, waiting.before));
        let first = open.into_iter().chain(behind).min();
        first.map_or(self.received, |(_, before)| before).max(self.idle)
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
        self.open.is_empty() && self.behind.is_empty()
    }

    /// Whether all ops that were received are in force, but for this transaction's. Transactions
    /// may still wait for what the source has not sent.
    pub fn is_drained_but_for(&self, excepted: Option<Ticket>) -> bool {
        self.open.keys().all(|ticket| Some(*ticket) == excepted)
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
        assert_eq!((progress.applied(), progress.is_idle()), (Lsn::new(7), false));
        progress.done(second);
        assert!(progress.are_done(second..=second) && !progress.are_done(first..=second));
        progress.done(first);
        assert!(progress.are_done(first..=second) && !progress.are_done(first..=third));
        assert_eq!(progress.applied(), Lsn::new(7));
    }

    /// What happens to the transactions that end at 10, 20, 30 and so on.
    #[derive(Clone, Copy)]
    enum Step {
        /// The next one is received.
        Received,
        /// The one that ends here looked at a state with commits up to there.
        Looked(u64, u64),
        /// The one that ends here is done.
        Done(u64),
        /// A keepalive.
        Reached(u64),
    }
    use Step::{Done, Looked, Reached, Received};

    #[test]
    fn a_transaction_that_saw_later_commits_waits_for_them() {
        let check = |steps: &[Step], expected: u64, awaits: bool| {
            let (mut progress, mut tickets) = (Progress::default(), Vec::new());
            let at = |lsn: u64| usize::try_from(lsn / 10).unwrap() - 1;
            for step in steps {
                match *step {
                    Received => tickets.push(progress.received(Lsn::new(10 * (tickets.len() as u64 + 1)))),
                    Looked(ticket, horizon) => progress.looked(tickets[at(ticket)], Lsn::new(horizon)),
                    Done(ticket) => progress.done(tickets[at(ticket)]),
                    Reached(position) => _ = progress.reached(Lsn::new(position)),
                }
            }
            assert_eq!((progress.applied(), progress.awaits_source()), (Lsn::new(expected), awaits));
        };
        check(&[Received, Looked(10, 10), Done(10)], 10, false);
        check(&[Received, Looked(10, 25), Done(10)], 0, true);
        check(&[Received, Looked(10, 25), Done(10), Reached(24)], 0, true);
        check(&[Received, Looked(10, 25), Done(10), Reached(25)], 25, false);
        check(&[Received, Looked(10, 25), Reached(25), Done(10)], 10, false);
        // What arrives meanwhile must be in force, if it was committed before the answer.
        check(&[Received, Looked(10, 25), Done(10), Received], 0, true);
        check(&[Received, Looked(10, 25), Done(10), Received, Reached(25)], 0, false);
        check(&[Received, Looked(10, 25), Done(10), Received, Reached(25), Done(20)], 20, false);
        check(&[Received, Looked(10, 25), Done(10), Received, Received], 0, false);
        check(&[Received, Looked(10, 25), Done(10), Received, Received, Done(20)], 20, false);
        check(&[Received, Looked(10, 25), Done(10), Received, Received, Done(30)], 0, false);
        // The further of two answers counts.
        check(&[Received, Looked(10, 25), Looked(10, 15), Done(10), Reached(24)], 0, true);
        // Two that saw each other do not wait for each other.
        let both = [Received, Received, Looked(10, 25), Looked(20, 25), Done(20), Done(10)];
        check(&both, 0, true);
        check(&[&both[..], &[Reached(25)]].concat(), 25, false);
        // An earlier transaction must be in force, and not what it waits for.
        let earlier = [Received, Received, Looked(10, 45), Looked(20, 25), Done(20), Reached(30)];
        check(&earlier, 0, false);
        check(&[&earlier[..], &[Done(10)]].concat(), 0, true);
        check(&[&earlier[..], &[Done(10), Reached(45)]].concat(), 45, false);
    }

    #[test]
    fn what_waits_for_later_commits_takes_little_memory() {
        let mut progress = Progress::default();
        let stuck = progress.received(Lsn::new(1));
        let tickets: Vec<_> = (1..=5000).map(|n| progress.received(Lsn::new(n * 10))).collect();
        // One answer for all of them: only the first has to be remembered.
        for ticket in tickets.iter().rev() {
            progress.looked(*ticket, Lsn::new(60_000));
            progress.done(*ticket);
        }
        assert_eq!(progress.behind.len(), 1);
        for n in 1..=5000 {
            let ticket = progress.received(Lsn::new(60_000 + n * 10));
            progress.looked(ticket, Lsn::new(60_001 + n * 10));
            progress.done(ticket);
        }
        assert_eq!(progress.behind.len(), BEHIND_MAX);
        progress.done(stuck);
        assert_eq!(progress.applied(), Lsn::new(60_000 + (BEHIND_MAX as u64 - 2) * 10));
        progress.reached(Lsn::new(110_001));
        assert!(progress.is_idle());
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
