//! What is to be done about changes: ops, and the plan that collects them once each.
//!
//! Owns de-duplication and the order of ops. It must not know rules, rows or Redis commands.
//! Invariant: a plan names no key twice under the same action, and keeps the order in which the ops
//! were first asked for.

use std::collections::BTreeSet;
use std::fmt;

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use indexmap::map::Entry;

use crate::change::Lsn;
use crate::key::{CacheKey, Glob};

/// Which rule of the rule set asked for an op: its position in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(u32);

impl RuleId {
    /// The rule at this position.
    pub fn new(position: usize) -> Self {
        Self(u32::try_from(position).expect("a file that fits in memory has fewer than 2^32 rules"))
    }

    /// The position.
    pub fn position(self) -> usize {
        self.0 as usize
    }
}

/// A message on a channel that a rule names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Publish {
    /// The channel, namespace included.
    pub channel: CacheKey,
    /// The message: one JSON value.
    pub data: Vec<u8>,
}

/// One concrete effect on Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Remove the key.
    Delete(&'a CacheKey),
    /// Remove every key that the glob matches.
    Pattern(&'a Glob),
    /// Raise the version key.
    Bump(&'a CacheKey, Lsn),
    /// Send a message.
    Publish(&'a Publish),
}

impl Op<'_> {
    /// The word for the action in output and messages.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Delete(_) => "delete",
            Self::Pattern(_) => "pattern",
            Self::Bump(..) => "bump",
            Self::Publish(_) => "publish",
        }
    }

    /// The full name of what is affected: a key, a glob or a channel.
    pub fn name(&self) -> &[u8] {
        match self {
            Self::Delete(key) | Self::Bump(key, _) => key.as_bytes(),
            Self::Pattern(glob) => glob.as_bytes(),
            Self::Publish(publish) => publish.channel.as_bytes(),
        }
    }

    /// What the op carries, as JSON, if anything.
    pub fn data(&self) -> Option<&[u8]> {
        match self {
            Self::Publish(publish) => Some(&publish.data),
            Self::Delete(_) | Self::Pattern(_) | Self::Bump(..) => None,
        }
    }
}

impl fmt::Display for Op<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.word())?;
        crate::key::write_printable(f, self.name())
    }
}

/// Ops by what they name, each once, in the order first asked for.
type Once<K, V> = IndexMap<K, V, RandomState>;

/// The de-duplicated ops of one transaction, of a part of a large one, or of several small ones.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    deletes: Once<CacheKey, RuleId>,
    patterns: Once<Glob, RuleId>,
    bumps: Once<CacheKey, (Lsn, RuleId)>,
    /// With the number of their transaction: equal messages of two transactions are no duplicates.
    publishes: Once<(u64, Publish), RuleId>,
    /// The number of the transaction that was begun last.
    transaction: u64,
    /// How many numbers were used.
    transactions: u64,
    /// Whether that transaction goes on.
    open: bool,
    /// The version keys that the open transaction raises, as positions in `bumps`.
    open_bumps: Vec<usize>,
    bytes: usize,
}

impl Plan {
    /// What follows belongs to another transaction: it sends its own messages.
    pub fn begin_transaction(&mut self) {
        self.transactions += 1;
        self.transaction = self.transactions;
        self.open = true;
        self.open_bumps.clear();
    }

    /// The end of the open transaction is known: the version keys it raised rise to there.
    pub fn end_transaction(&mut self, end_lsn: Lsn) {
        self.open = false;
        for position in self.open_bumps.drain(..) {
            if let Some((_, (lsn, _))) = self.bumps.get_index_mut(position) {
                *lsn = end_lsn.max(*lsn);
            }
        }
    }

    /// Removes a key.
    pub fn delete(&mut self, rule: RuleId, key: CacheKey) {
        let bytes = key.as_bytes().len();
        if let Entry::Vacant(entry) = self.deletes.entry(key) {
            entry.insert(rule);
            self.bytes += bytes;
        }
    }

    /// Removes every key that a glob matches.
    pub fn pattern(&mut self, rule: RuleId, glob: Glob) {
        let bytes = glob.as_bytes().len();
        if let Entry::Vacant(entry) = self.patterns.entry(glob) {
            entry.insert(rule);
            self.bytes += bytes;
        }
    }

    /// Raises a version key to `lsn`; of two bumps of one key the later position stays.
    pub fn bump(&mut self, rule: RuleId, key: CacheKey, lsn: Lsn) {
        self.bytes += key.as_bytes().len();
        let entry = self.bumps.entry(key);
        self.open_bumps.push(entry.index());
        let (held, _) = entry.or_insert((lsn, rule));
        *held = lsn.max(*held);
    }

    /// Sends a message, unless the transaction sends an equal one already.
    pub fn publish(&mut self, rule: RuleId, publish: Publish) {
        self.bytes += publish.data.len();
        self.publishes.entry((self.transaction, publish)).or_insert(rule);
    }

    /// Adds what another plan asks for, after what this one asks for. A transaction that is open in either goes on.
    pub fn append(&mut self, other: Self) {
        let offset = self.transactions;
        for (key, rule) in other.deletes {
            self.delete(rule, key);
        }
        for (glob, rule) in other.patterns {
            self.pattern(rule, glob);
        }
        let mut open = vec![false; other.bumps.len()];
        for &position in &other.open_bumps {
            open.get_mut(position).into_iter().for_each(|open| *open = true);
        }
        for ((key, (lsn, rule)), open) in other.bumps.into_iter().zip(open) {
            self.bump(rule, key, lsn);
            if !open {
                self.open_bumps.pop();
            }
        }
        for ((transaction, publish), rule) in other.publishes {
            self.bytes += publish.data.len();
            self.publishes.entry((offset + transaction, publish)).or_insert(rule);
        }
        self.transactions += other.transactions;
        if other.open {
            (self.transaction, self.open) = (offset + other.transaction, true);
        }
    }

    /// Forgets single keys and messages in favour of what the rules that asked for them match: more than was asked
    /// for, in little memory. How many messages were dropped.
    pub fn collapse(&mut self, globs_of: impl Fn(RuleId) -> Vec<Glob>) -> usize {
        let collapsed = std::mem::take(self);
        let rules: BTreeSet<_> =
            collapsed.deletes.into_values().chain(collapsed.bumps.into_values().map(|(_, rule)| rule)).collect();
        (self.transaction, self.transactions, self.open) =
            (collapsed.transaction, collapsed.transactions, collapsed.open);
        for (glob, rule) in collapsed.patterns {
            self.pattern(rule, glob);
        }
        for rule in rules {
            globs_of(rule).into_iter().for_each(|glob| self.pattern(rule, glob));
        }
        collapsed.publishes.len()
    }

    /// Raises every version key of the plan to at least `lsn`.
    pub fn raise_bumps(&mut self, lsn: Lsn) {
        for (held, _) in self.bumps.values_mut() {
            *held = lsn.max(*held);
        }
    }

    /// How many ops there are.
    pub fn len(&self) -> usize {
        self.deletes.len() + self.patterns.len() + self.bumps.len() + self.publishes.len()
    }

    /// About how many bytes of names and messages it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys to remove.
    pub fn deletes(&self) -> impl ExactSizeIterator<Item = &CacheKey> {
        self.deletes.keys()
    }

    /// The globs whose keys to remove.
    pub fn patterns(&self) -> impl ExactSizeIterator<Item = &Glob> {
        self.patterns.keys()
    }

    /// The version keys to raise, and how far.
    pub fn bumps(&self) -> impl ExactSizeIterator<Item = (&CacheKey, Lsn)> {
        self.bumps.iter().map(|(key, &(lsn, _))| (key, lsn))
    }

    /// The messages to send.
    pub fn publishes(&self) -> impl ExactSizeIterator<Item = &Publish> {
        self.publishes.keys().map(|(_, publish)| publish)
    }

    /// Every op with the rule that asked first, in the order in which they are applied: what removes,
    /// then what raises, then what tells.
    pub fn ops(&self) -> impl Iterator<Item = (RuleId, Op<'_>)> {
        let deletes = self.deletes.iter().map(|(key, &rule)| (rule, Op::Delete(key)));
        let patterns = self.patterns.iter().map(|(glob, &rule)| (rule, Op::Pattern(glob)));
        let bumps = self.bumps.iter().map(|(key, &(lsn, rule))| (rule, Op::Bump(key, lsn)));
        let publishes = self.publishes.iter().map(|((_, publish), &rule)| (rule, Op::Publish(publish)));
        deletes.chain(patterns).chain(bumps).chain(publishes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: RuleId = RuleId(0);

    #[test]
    fn every_op_is_named_once() {
        let mut plan = Plan::default();
        for _ in 0..2 {
            plan.delete(RULE, "k".into());
            plan.pattern(RULE, Glob::new());
            plan.publish(RULE, Publish { channel: "c".into(), data: b"{}".to_vec() });
        }
        plan.bump(RULE, "v".into(), Lsn::new(7));
        plan.bump(RULE, "v".into(), Lsn::new(3));
        let words: Vec<_> = plan.ops().map(|(_, op)| op.word()).collect();
        assert_eq!(words, ["delete", "pattern", "bump", "publish"]);
        assert_eq!(plan.bumps().next(), Some((&"v".into(), Lsn::new(7))));
    }

    #[test]
    fn version_keys_rise_to_the_end_of_their_transaction() {
        let mut plan = Plan::default();
        plan.bump(RULE, "a".into(), Lsn::new(10));
        plan.end_transaction(Lsn::new(15));
        plan.begin_transaction();
        plan.bump(RULE, "b".into(), Lsn::new(20));
        plan.end_transaction(Lsn::new(25));
        let bumps: Vec<_> = plan.bumps().map(|(key, lsn)| (key.to_string(), lsn.offset())).collect();
        assert_eq!(bumps, [("a".to_owned(), 15), ("b".to_owned(), 25)]);
    }

    #[test]
    fn a_collapsed_plan_asks_for_what_its_rules_match() {
        let mut plan = Plan::default();
        let mut glob = Glob::new();
        glob.push_literal(b"k");
        glob.push_any();
        for number in 0..100 {
            plan.delete(RULE, CacheKey::new(format!("k{number}")));
            plan.bump(RuleId(1), CacheKey::new(format!("v{number}")), Lsn::new(7));
        }
        plan.publish(RULE, Publish { channel: "c".into(), data: b"{}".to_vec() });
        let asked = std::cell::RefCell::new(Vec::new());
        let dropped = plan.collapse(|rule| {
            asked.borrow_mut().push(rule);
            vec![glob.clone()]
        });
        assert_eq!((dropped, asked.into_inner()), (1, vec![RULE, RuleId(1)]));
        assert_eq!((plan.len(), plan.bytes(), plan.patterns().next()), (1, 2, Some(&glob)));
    }

    #[test]
    fn an_appended_plan_keeps_its_own_messages() {
        let message = || Publish { channel: "c".into(), data: b"{}".to_vec() };
        let mut plan = Plan::default();
        plan.begin_transaction();
        plan.publish(RULE, message());
        plan.delete(RULE, "k".into());
        let mut other = Plan::default();
        other.begin_transaction();
        other.publish(RULE, message());
        other.delete(RULE, "k".into());
        other.bump(RULE, "v".into(), Lsn::new(7));
        other.raise_bumps(Lsn::new(9));
        plan.append(other);
        plan.end_transaction(Lsn::new(11));
        assert_eq!((plan.publishes().len(), plan.deletes().len()), (2, 1));
        assert_eq!(plan.bumps().next(), Some((&"v".into(), Lsn::new(11))));
    }

    /// Rows of a transaction that is visible already arrive in `plan`, while older ones are let through into it.
    #[test]
    fn an_open_transaction_goes_on_after_another_was_appended() {
        let message = || Publish { channel: "c".into(), data: b"{}".to_vec() };
        let mut older = Plan::default();
        older.begin_transaction();
        older.publish(RULE, message());
        older.bump(RULE, "older".into(), Lsn::new(5));
        older.end_transaction(Lsn::new(8));
        let mut plan = Plan::default();
        plan.begin_transaction();
        plan.bump(RULE, "open".into(), Lsn::new(10));
        plan.append(older);
        plan.publish(RULE, message());
        plan.end_transaction(Lsn::new(15));
        plan.begin_transaction();
        plan.publish(RULE, message());
        assert_eq!(plan.publishes().len(), 3);
        let bumps: Vec<_> = plan.bumps().map(|(key, lsn)| (key.to_string(), lsn.offset())).collect();
        assert_eq!(bumps, [("open".to_owned(), 15), ("older".to_owned(), 8)]);
    }

    #[test]
    fn equal_messages_of_two_transactions_are_both_sent() {
        let mut plan = Plan::default();
        for _ in 0..2 {
            plan.begin_transaction();
            plan.publish(RULE, Publish { channel: "c".into(), data: b"{}".to_vec() });
        }
        assert_eq!(plan.publishes().len(), 2);
    }
}
