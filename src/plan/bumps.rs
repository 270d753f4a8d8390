//! Version keys that a plan raises.
//!
//! Owns how far each rises. Invariant: a key rises to the end of the last transaction that raised
//! it; until that end is known, to the position of the change.

use super::rule_id::RuleId;
use super::unique::Unique;
use crate::change::Lsn;
use crate::key::CacheKey;

/// The version keys of a plan.
#[derive(Clone, Debug, Default)]
pub(super) struct Bumps {
    keys: Unique<CacheKey, (Lsn, RuleId)>,
    /// The keys that the open transaction raises, as positions in `keys`.
    open: Vec<usize>,
}

impl Bumps {
    /// Another transaction begins: what was raised so far keeps its position.
    pub(super) fn begin_transaction(&mut self) {
        self.open.clear();
    }

    /// The open transaction ends here: its keys rise to `end_lsn`.
    pub(super) fn end_transaction(&mut self, end_lsn: Lsn) {
        for position in self.open.drain(..) {
            if let Some((_, (lsn, _))) = self.keys.get_index_mut(position) {
                *lsn = end_lsn.max(*lsn);
            }
        }
    }

    /// Raises a key to `lsn`; of two positions of one key the later stays. How many bytes that
    /// takes.
    pub(super) fn raise(&mut self, rule: RuleId, key: CacheKey, lsn: Lsn) -> usize {
        let bytes = key.as_bytes().len();
        let entry = self.keys.entry(key);
        self.open.push(entry.index());
        let (held, _) = entry.or_insert((lsn, rule));
        *held = lsn.max(*held);
        bytes
    }

    /// Adds those of another plan, whose open transaction stays open. How many bytes that takes.
    pub(super) fn append(&mut self, other: Self) -> usize {
        let mut open = vec![false; other.keys.len()];
        for &position in &other.open {
            open.get_mut(position).into_iter().for_each(|open| *open = true);
        }
        let mut bytes = 0;
        for ((key, (lsn, rule)), open) in other.keys.into_iter().zip(open) {
            bytes += self.raise(rule, key, lsn);
            if !open {
                self.open.pop();
            }
        }
        bytes
    }

    /// Takes out a key. Returns the rule that asked for it. No transaction may be open.
    pub(super) fn remove(&mut self, key: &CacheKey) -> Option<RuleId> {
        self.open.clear();
        self.keys.shift_remove(key).map(|(_, rule)| rule)
    }

    /// Raises every key to at least `lsn`.
    pub(super) fn raise_all(&mut self, lsn: Lsn) {
        for (held, _) in self.keys.values_mut() {
            *held = lsn.max(*held);
        }
    }

    /// The keys, how far each rises, and the rule that asked first.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&CacheKey, Lsn, RuleId)> {
        self.keys.iter().map(|(key, &(lsn, rule))| (key, lsn, rule))
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}
