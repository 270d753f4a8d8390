//! What waits for the gate: transactions that were received completely and are not known to be
//! visible.
//!
//! Owns their order and the snapshot that decides. Synchronous; knows no socket and no clock.
//! Invariants: a transaction leaves only once the gate sees it; one that is stuck delays no other;
//! memory is bounded, because the reader stops when too much is held, and [`Held::collapse`] makes
//! room.

use std::collections::VecDeque;
use std::time::Instant;

use super::part::{Part, Size};
use crate::change::Xid;
use crate::coherence::gate::{Gate, Snapshot};
use crate::mutant::{self, Mutant};
use crate::rules::RuleSet;

/// The transactions that wait for the gate, in commit order.
#[derive(Debug, Default)]
pub(super) struct Held {
    gate: Gate,
    transactions: VecDeque<HeldTransaction>,
    size: Size,
}

/// A transaction that waits, or several that were collapsed into one.
#[derive(Debug)]
struct HeldTransaction {
    xids: Vec<Xid>,
    part: Part,
}

/// A question to the primary, without whose answer held or waiting ops cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GateQuestion {
    /// What is visible.
    Snapshot,
    /// What is visible, and a position that was never used: a version key must rise, and readers
    /// may have seen the position of its own transaction.
    FreshPosition,
}

impl Held {
    /// When the next snapshot may be asked for.
    pub(super) fn ask_at(&self, now: Instant) -> Instant {
        self.gate.ask_at(now)
    }

    /// A snapshot was asked for.
    pub(super) fn asked(&mut self, now: Instant) {
        self.gate.asked(now);
    }

    /// Forgets the snapshot: transaction ids wrap around, so an old one would see the future.
    pub(super) fn forget_snapshot(&mut self) {
        self.gate.forget();
    }

    /// Takes the primary's snapshot.
    pub(super) fn learn(&mut self, snapshot: Snapshot) {
        self.gate.learn(snapshot);
    }

    /// Whether a transaction that begins to arrive is known to be visible. If not, the gate begins
    /// to wait for it.
    pub(super) fn admit(&mut self, xid: Xid, now: Instant) -> bool {
        let is_visible = self.gate.sees(xid) || mutant::is(Mutant::NoGate);
        if !is_visible {
            self.gate.wait(now);
        }
        is_visible
    }

    /// Whether a transaction that has committed is known to be visible.
    pub(super) fn sees(&self, xid: Xid) -> bool {
        self.gate.sees(xid)
    }

    /// Adds a transaction that was received completely.
    pub(super) fn push(&mut self, xid: Xid, part: Part) {
        self.size.add(part.size());
        self.transactions.push_back(HeldTransaction { xids: vec![xid], part });
    }

    /// Adds what must wait until everything is visible that is held now, and the transaction that
    /// is arriving. Returns it if nothing is.
    pub(super) fn push_after_all(&mut self, part: Part, arriving: Option<Xid>) -> Option<Part> {
        let held = self.transactions.iter().flat_map(|held| held.xids.iter().copied());
        let xids: Vec<_> = held.chain(arriving).collect();
        if xids.is_empty() {
            return Some(part);
        }
        self.size.add(part.size());
        self.transactions.push_back(HeldTransaction { xids, part });
        None
    }

    /// Moves every visible transaction to `waiting`, in commit order.
    pub(super) fn release(&mut self, waiting: &mut Part) {
        for transaction in std::mem::take(&mut self.transactions) {
            if transaction.xids.iter().all(|&xid| self.gate.sees(xid)) {
                waiting.append(transaction.part);
            } else {
                self.transactions.push_back(transaction);
            }
        }
        self.measure();
    }

    /// Makes room: what is held will delete everything that its rules match, once it is visible,
    /// instead of its own keys. Returns how many messages were dropped.
    pub(super) fn collapse(&mut self, rules: &RuleSet) -> usize {
        let mut all = HeldTransaction { xids: Vec::new(), part: Part::default() };
        for HeldTransaction { xids, part } in std::mem::take(&mut self.transactions) {
            all.xids.extend(xids);
            all.part.append(part);
        }
        let dropped = all.part.collapse(rules);
        if !all.xids.is_empty() {
            self.transactions.push_back(all);
        }
        self.measure();
        dropped
    }

    fn measure(&mut self) {
        self.size = Size::default();
        self.transactions.iter().for_each(|transaction| self.size.add(transaction.part.size()));
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    pub(super) fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// The first transaction that waits.
    pub(super) fn first(&self) -> Option<Xid> {
        self.transactions.front().and_then(|held| held.xids.first()).copied()
    }
}
