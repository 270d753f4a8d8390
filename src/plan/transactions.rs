//! The transactions that a plan consists of, by number.
//!
//! Owns the numbers. Invariant: two transactions never share one, also after one plan was appended
//! to another. The number 0 is the rest of a transaction that began in an earlier plan.

use std::collections::BTreeSet;

/// The transactions of a plan.
#[derive(Clone, Debug, Default)]
pub(super) struct Transactions {
    /// The one that began last.
    pub(super) current: u64,
    /// The highest number that was used.
    last: u64,
    /// Whether the current one goes on.
    is_open: bool,
    /// Those with slow work: their messages wait for it.
    slow: BTreeSet<u64>,
}

impl Transactions {
    pub(super) fn begin(&mut self) {
        self.last += 1;
        self.current = self.last;
        self.is_open = true;
    }

    pub(super) fn end(&mut self) {
        self.is_open = false;
    }

    /// The current one has slow work.
    pub(super) fn mark_slow(&mut self) {
        self.slow.insert(self.current);
    }

    /// Nothing slow is left.
    pub(super) fn clear_slow(&mut self) {
        self.slow.clear();
    }

    /// Adds those of another plan; one that is open in either plan goes on. Returns what is to be
    /// added to the other plan's numbers.
    pub(super) fn append(&mut self, other: &Self) -> u64 {
        let offset = self.last + 1;
        self.slow.extend(other.slow.iter().map(|transaction| offset + transaction));
        self.last = offset + other.last;
        if other.is_open {
            (self.current, self.is_open) = (offset + other.current, true);
        }
        offset
    }

    /// Hands over the slow ones to another plan, in which only they occur.
    pub(super) fn split_slow(&mut self) -> Self {
        Self { last: self.last, slow: std::mem::take(&mut self.slow), ..Self::default() }
    }

    /// Whether something in this transaction is slow.
    pub(super) fn is_slow(&self, transaction: u64) -> bool {
        self.slow.contains(&transaction)
    }

    pub(super) fn has_slow(&self) -> bool {
        !self.slow.is_empty()
    }

    /// The same numbers, without anything slow.
    pub(super) fn without_slow(self) -> Self {
        Self { slow: BTreeSet::new(), ..self }
    }
}
