//! What is to be done about changes: ops, and the plan that collects them once each.
//!
//! Owns de-duplication and the order of ops. It must not know rules, rows or Redis commands.
//! Invariant: a plan names no key twice under the same action, and keeps the order in which the ops
//! were first asked for; of a delete and a `set` of one key, the later stays.

mod action;
mod op;
mod rule_id;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use indexmap::map::Entry;

pub use self::action::ActionKind;
pub use self::op::{CallOrigin, DeadLetter, LookupCall, Op, Publish, Removal, SetValue, StreamAppend};
pub use self::rule_id::RuleId;
use crate::change::Lsn;
use crate::key::{CacheKey, Glob};

/// Ops by what they name, each once, in the order first asked for.
type Unique<K, V> = IndexMap<K, V, RandomState>;

/// The most patterns of one rule that are searched for one by one.
const PATTERNS_PER_RULE: usize = 64;

/// The most sets of one rule that are removed one by one.
const SETS_PER_RULE: usize = 4096;

/// The most dead letters that are kept of one plan; the rest is counted.
const DEAD_MAX: usize = 100;

/// The de-duplicated ops of one transaction, of a part of a large one, or of several small ones.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    deletes: Unique<CacheKey, RuleId>,
    sets: Unique<CacheKey, (SetValue, RuleId)>,
    patterns: Unique<Glob, RuleId>,
    tags: Unique<CacheKey, RuleId>,
    tag_globs: Unique<Glob, RuleId>,
    bumps: Unique<CacheKey, (Lsn, RuleId)>,
    /// With the number of their transaction: equal messages of two transactions are no duplicates.
    publishes: Unique<(u64, Publish), RuleId>,
    streams: Vec<(RuleId, StreamAppend)>,
    /// What the database has to be asked before the rest is known.
    calls: Unique<LookupCall, CallOrigin>,
    /// What is to be removed once more, and how long after.
    repeats: Unique<(Duration, Removal), RuleId>,
    /// What was removed already and only has to be told.
    announced: Unique<Removal, RuleId>,
    dead_letters: Vec<DeadLetter>,
    /// Those that no room was left for, by rule.
    dead_letters_dropped: BTreeMap<RuleId, u64>,
    /// The number of the transaction that was begun last.
    transaction: u64,
    /// How many numbers were used.
    transactions: u64,
    /// The transactions of which something takes its time: their messages wait for it.
    slow: BTreeSet<u64>,
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
        self.sets.swap_remove(&key);
        let bytes = key.as_bytes().len();
        if let Entry::Vacant(entry) = self.deletes.entry(key) {
            entry.insert(rule);
            self.bytes += bytes;
        }
    }

    /// Writes a value.
    pub fn set(&mut self, rule: RuleId, value: SetValue) {
        if self.sets.get(&value.key).is_some_and(|(held, _)| held.lsn > value.lsn) {
            return;
        }
        self.deletes.swap_remove(&value.key);
        self.bytes += value.key.as_bytes().len() + value.body.len();
        self.sets.insert(value.key.clone(), (value, rule));
    }

    /// Removes every key that a glob matches.
    pub fn pattern(&mut self, rule: RuleId, glob: Glob) {
        self.slow.insert(self.transaction);
        let bytes = glob.as_bytes().len();
        if let Entry::Vacant(entry) = self.patterns.entry(glob) {
            entry.insert(rule);
            self.bytes += bytes;
        }
    }

    /// Removes every key of a set.
    pub fn tag(&mut self, rule: RuleId, set: CacheKey) {
        self.slow.insert(self.transaction);
        self.bytes += set.as_bytes().len();
        self.tags.entry(set).or_insert(rule);
    }

    /// Removes every key of every set that a glob matches.
    pub fn tags(&mut self, rule: RuleId, sets: Glob) {
        self.slow.insert(self.transaction);
        self.bytes += sets.as_bytes().len();
        self.tag_globs.entry(sets).or_insert(rule);
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

    /// Appends to a stream.
    pub fn stream(&mut self, rule: RuleId, entry: StreamAppend) {
        self.bytes += entry.data.len();
        self.streams.push((rule, entry));
    }

    /// Asks the database; what it answers decides what else is to be done.
    pub fn call(&mut self, call: LookupCall, asked: CallOrigin) {
        self.slow.insert(self.transaction);
        self.bytes += call.bytes() + asked.change.len();
        let lsn = asked.lsn;
        let held = self.calls.entry(call).or_insert(asked);
        held.lsn = lsn.max(held.lsn);
    }

    /// Removes something once more, some time after it was removed.
    pub fn repeat(&mut self, rule: RuleId, after: Duration, removal: Removal) {
        self.repeats.entry((after, removal)).or_insert(rule);
    }

    /// Tells that something was removed already.
    pub fn announce(&mut self, rule: RuleId, removal: Removal) {
        self.announced.entry(removal).or_insert(rule);
    }

    /// Keeps a change that a rule could not be held against.
    pub fn dead_letter(&mut self, letter: DeadLetter) {
        if self.dead_letters.len() >= DEAD_MAX {
            *self.dead_letters_dropped.entry(letter.rule).or_default() += 1;
            return;
        }
        self.bytes += letter.change.len() + letter.reason.len();
        self.dead_letters.push(letter);
    }

    /// Adds one removal, whatever its kind.
    pub fn remove(&mut self, rule: RuleId, removal: Removal) {
        match removal {
            Removal::Key(key) => self.delete(rule, key),
            Removal::Keys(glob) => self.pattern(rule, glob),
            Removal::Tag(set) => self.tag(rule, set),
            Removal::Tags(glob) => self.tags(rule, glob),
        }
    }

    /// Adds what another plan asks for, after what this one asks for. A transaction that is open in either goes on.
    pub fn append(&mut self, mut other: Self) {
        // The number 0 is the rest of a transaction that was begun elsewhere: it is nobody's here.
        let offset = self.transactions + 1;
        let slow = std::mem::take(&mut self.slow);
        for (key, rule) in other.deletes {
            self.delete(rule, key);
        }
        for (_, (value, rule)) in other.sets {
            self.set(rule, value);
        }
        for (glob, rule) in other.patterns {
            self.pattern(rule, glob);
        }
        for (set, rule) in other.tags {
            self.tag(rule, set);
        }
        for (glob, rule) in other.tag_globs {
            self.tags(rule, glob);
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
        for (rule, entry) in other.streams {
            self.stream(rule, entry);
        }
        other.calls.into_iter().for_each(|(call, asked)| self.call(call, asked));
        self.repeats.extend(other.repeats);
        self.announced.extend(other.announced);
        other.dead_letters.drain(..).for_each(|letter| self.dead_letter(letter));
        other
            .dead_letters_dropped
            .into_iter()
            .for_each(|(rule, count)| *self.dead_letters_dropped.entry(rule).or_default() += count);
        self.slow = slow;
        self.slow.extend(other.slow.into_iter().map(|transaction| offset + transaction));
        self.transactions = offset + other.transactions;
        if other.open {
            (self.transaction, self.open) = (offset + other.transaction, true);
        }
    }

    /// Takes out what may take its time, with the messages of the transactions that asked for it, which may not come
    /// before it is done; if `open`, an earlier part of the transaction that goes on asked for some.
    pub fn split_slow(&mut self, open: bool) -> Option<Self> {
        let slow = std::mem::take(&mut self.slow);
        let current = self.transaction;
        let waits = |transaction: &u64| slow.contains(transaction) || open && *transaction == current;
        if slow.is_empty() && !self.publishes.keys().any(|(transaction, _)| waits(transaction)) {
            return None;
        }
        let mut aside = Self {
            patterns: std::mem::take(&mut self.patterns),
            tags: std::mem::take(&mut self.tags),
            tag_globs: std::mem::take(&mut self.tag_globs),
            calls: std::mem::take(&mut self.calls),
            transactions: self.transactions,
            ..Self::default()
        };
        for ((transaction, publish), rule) in std::mem::take(&mut self.publishes) {
            let publishes = if waits(&transaction) { &mut aside.publishes } else { &mut self.publishes };
            publishes.insert((transaction, publish), rule);
        }
        for ((after, removal), rule) in std::mem::take(&mut self.repeats) {
            let repeats = if matches!(removal, Removal::Key(_)) { &mut self.repeats } else { &mut aside.repeats };
            repeats.insert((after, removal), rule);
        }
        // A value may land after the search that was to remove it.
        for (key, (value, rule)) in std::mem::take(&mut self.sets) {
            let few = aside.patterns.len() <= PATTERNS_PER_RULE;
            if few && !aside.patterns.keys().any(|glob| glob.matches(key.as_bytes())) {
                self.sets.insert(key, (value, rule));
            } else {
                self.delete(rule, key);
            }
        }
        aside.slow = slow;
        aside.bytes = aside.measure();
        self.bytes = self.bytes.saturating_sub(aside.bytes);
        Some(aside)
    }

    /// Many patterns or sets of one rule become what the rule may ever have made: every key is compared with each
    /// pattern, and each set is a search of its own.
    pub fn limit_sweeps(&mut self, removals_of: impl Fn(&BTreeSet<RuleId>) -> Vec<(RuleId, Removal)>) {
        let mut counts: BTreeMap<RuleId, (usize, usize)> = BTreeMap::new();
        for rule in self.patterns.values().chain(self.tag_globs.values()) {
            counts.entry(*rule).or_default().0 += 1;
        }
        for rule in self.tags.values() {
            counts.entry(*rule).or_default().1 += 1;
        }
        counts.retain(|_, (globs, sets)| *globs > PATTERNS_PER_RULE || *sets > SETS_PER_RULE);
        if counts.is_empty() {
            return;
        }
        self.patterns.retain(|_, rule| !counts.contains_key(rule));
        self.tag_globs.retain(|_, rule| !counts.contains_key(rule));
        self.tags.retain(|_, rule| !counts.contains_key(rule));
        let rules = counts.into_keys().collect();
        removals_of(&rules).into_iter().for_each(|(rule, removal)| self.remove(rule, removal));
        self.bytes = self.measure();
    }

    /// About how many bytes of names and messages what takes its time holds.
    fn measure(&self) -> usize {
        let globs = self.patterns.keys().chain(self.tag_globs.keys()).map(|glob| glob.as_bytes().len());
        let tags = self.tags.keys().map(|tag| tag.as_bytes().len());
        let calls = self.calls.iter().map(|(call, asked)| call.bytes() + asked.change.len());
        let messages = self.publishes.keys().map(|(_, publish)| publish.data.len());
        globs.chain(tags).chain(calls).chain(messages).sum()
    }

    /// Forgets single keys and messages in favour of what the rules that asked for them match: more than was asked
    /// for, in little memory. How many messages were dropped.
    pub fn collapse(&mut self, removals_of: impl Fn(&BTreeSet<RuleId>) -> Vec<(RuleId, Removal)>) -> usize {
        let collapsed = std::mem::take(self);
        let rules: BTreeSet<_> = collapsed
            .deletes
            .into_values()
            .chain(collapsed.sets.into_values().map(|(_, rule)| rule))
            .chain(collapsed.tags.into_values())
            .chain(collapsed.patterns.into_values())
            .chain(collapsed.tag_globs.into_values())
            .chain(collapsed.bumps.into_values().map(|(_, rule)| rule))
            .chain(collapsed.calls.into_keys().map(|call| call.rule))
            .collect();
        (self.transaction, self.transactions, self.open) =
            (collapsed.transaction, collapsed.transactions, collapsed.open);
        for ((after, _), rule) in collapsed.repeats {
            let removals = removals_of(&BTreeSet::from([rule]));
            removals.into_iter().for_each(|(rule, removal)| self.repeat(rule, after, removal));
        }
        removals_of(&rules).into_iter().for_each(|(rule, removal)| self.remove(rule, removal));
        collapsed.dead_letters.into_iter().for_each(|letter| self.dead_letter(letter));
        self.dead_letters_dropped.extend(collapsed.dead_letters_dropped);
        collapsed.publishes.len() + collapsed.streams.len()
    }

    /// Raises every version key of the plan to at least `lsn`.
    pub fn raise_bumps(&mut self, lsn: Lsn) {
        for (held, _) in self.bumps.values_mut() {
            *held = lsn.max(*held);
        }
    }

    /// Makes deletes of the values that show a change at or before `upto`: something newer may have been applied before.
    pub fn sets_to_deletes(&mut self, upto: Lsn) {
        for (key, (value, rule)) in std::mem::take(&mut self.sets) {
            if value.lsn <= upto {
                self.delete(rule, key);
            } else {
                self.sets.insert(key, (value, rule));
            }
        }
    }

    /// How many ops there are, and calls whose ops are not known yet.
    pub fn len(&self) -> usize {
        self.deletes.len()
            + self.sets.len()
            + self.patterns.len()
            + self.tags.len()
            + self.tag_globs.len()
            + self.bumps.len()
            + self.publishes.len()
            + self.streams.len()
            + self.calls.len()
            + self.announced.len()
            + self.dead_letters.len()
    }

    /// About how many bytes of names and messages it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.dead_letters_dropped.is_empty()
    }

    /// The keys to remove.
    pub fn deletes(&self) -> impl ExactSizeIterator<Item = &CacheKey> {
        self.deletes.keys()
    }

    /// The values to write.
    pub fn sets(&self) -> impl ExactSizeIterator<Item = &SetValue> {
        self.sets.values().map(|(value, _)| value)
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

    /// The stream entries, which leave the plan.
    pub fn take_streams(&mut self) -> Vec<(RuleId, StreamAppend)> {
        std::mem::take(&mut self.streams)
    }

    /// What the database has to be asked, which leaves the plan.
    pub fn take_calls(&mut self) -> Vec<(LookupCall, CallOrigin)> {
        std::mem::take(&mut self.calls).into_iter().collect()
    }

    /// What the database has to be asked.
    pub fn calls(&self) -> impl ExactSizeIterator<Item = &LookupCall> {
        self.calls.keys()
    }

    /// What is to be removed once more, which leaves the plan.
    pub fn take_repeats(&mut self) -> Vec<(Duration, RuleId, Removal)> {
        std::mem::take(&mut self.repeats).into_iter().map(|((after, removal), rule)| (after, rule, removal)).collect()
    }

    /// The patterns and sets to remove, which leave the plan. Unless the database has to be asked, what remains takes no
    /// time.
    pub fn take_sweeps(&mut self) -> Vec<(RuleId, Removal)> {
        if self.calls.is_empty() {
            self.slow.clear();
        }
        let patterns = std::mem::take(&mut self.patterns).into_iter().map(|(glob, rule)| (rule, Removal::Keys(glob)));
        let globs = std::mem::take(&mut self.tag_globs).into_iter().map(|(glob, rule)| (rule, Removal::Tags(glob)));
        let tags = std::mem::take(&mut self.tags).into_iter().map(|(set, rule)| (rule, Removal::Tag(set)));
        patterns.chain(globs).chain(tags).collect()
    }

    /// What rules could not be held against.
    pub fn dead_letters(&self) -> &[DeadLetter] {
        &self.dead_letters
    }

    /// How many more dead letters there were than are kept, by rule.
    pub fn dead_letters_dropped(&self) -> &BTreeMap<RuleId, u64> {
        &self.dead_letters_dropped
    }

    /// Every op with the rule that asked first, in the order in which they are applied: what removes and writes,
    /// then what raises, then what tells.
    pub fn ops(&self) -> impl Iterator<Item = (RuleId, Op<'_>)> {
        let deletes = self.deletes.iter().map(|(key, &rule)| (rule, Op::Delete(key)));
        let sets = self.sets.values().map(|(value, rule)| (*rule, Op::Set(value)));
        let patterns = self.patterns.iter().map(|(glob, &rule)| (rule, Op::Pattern(glob)));
        let tags = self.tags.iter().map(|(set, &rule)| (rule, Op::Tag(set)));
        let tag_globs = self.tag_globs.iter().map(|(glob, &rule)| (rule, Op::Tags(glob)));
        let bumps = self.bumps.iter().map(|(key, &(lsn, rule))| (rule, Op::Bump(key, lsn)));
        let publishes = self.publishes.iter().map(|((_, publish), &rule)| (rule, Op::Publish(publish)));
        let streams = self.streams.iter().map(|(rule, entry)| (*rule, Op::Stream(entry)));
        deletes.chain(sets).chain(patterns).chain(tags).chain(tag_globs).chain(bumps).chain(publishes).chain(streams)
    }

    /// What was removed already and only has to be told.
    pub fn announcements(&self) -> impl Iterator<Item = (RuleId, Op<'_>)> {
        self.announced.iter().map(|(removal, &rule)| {
            let op = match removal {
                Removal::Key(key) => Op::Delete(key),
                Removal::Keys(glob) => Op::Pattern(glob),
                Removal::Tag(set) => Op::Tag(set),
                Removal::Tags(glob) => Op::Tags(glob),
            };
            (rule, op)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(number: usize) -> RuleId {
        RuleId::of(&number.to_string())
    }

    #[test]
    fn every_op_is_named_once() {
        let mut plan = Plan::default();
        for _ in 0..2 {
            plan.delete(rule(0), "k".into());
            plan.pattern(rule(0), Glob::new());
            plan.publish(rule(0), Publish { channel: "c".into(), data: b"{}".to_vec() });
        }
        plan.bump(rule(0), "v".into(), Lsn::new(7));
        plan.bump(rule(0), "v".into(), Lsn::new(3));
        let words: Vec<_> = plan.ops().map(|(_, op)| op.kind().as_str()).collect();
        assert_eq!(words, ["delete", "pattern", "bump", "publish"]);
        assert_eq!(plan.bumps().next(), Some((&"v".into(), Lsn::new(7))));
    }

    #[test]
    fn version_keys_rise_to_the_end_of_their_transaction() {
        let mut plan = Plan::default();
        plan.bump(rule(0), "a".into(), Lsn::new(10));
        plan.end_transaction(Lsn::new(15));
        plan.begin_transaction();
        plan.bump(rule(0), "b".into(), Lsn::new(20));
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
            plan.delete(rule(0), CacheKey::new(format!("k{number}")));
            plan.bump(rule(1), CacheKey::new(format!("v{number}")), Lsn::new(7));
        }
        plan.publish(rule(0), Publish { channel: "c".into(), data: b"{}".to_vec() });
        let dropped = plan.collapse(|rules| {
            assert_eq!(*rules, BTreeSet::from([rule(0), rule(1)]));
            rules.iter().map(|&rule| (rule, Removal::Keys(glob.clone()))).collect()
        });
        assert_eq!(dropped, 1);
        assert_eq!((plan.len(), plan.bytes(), plan.patterns().next()), (1, 2, Some(&glob)));
    }

    #[test]
    fn an_appended_plan_keeps_its_own_messages() {
        let message = || Publish { channel: "c".into(), data: b"{}".to_vec() };
        let mut plan = Plan::default();
        plan.begin_transaction();
        plan.publish(rule(0), message());
        plan.delete(rule(0), "k".into());
        let mut other = Plan::default();
        other.begin_transaction();
        other.publish(rule(0), message());
        other.delete(rule(0), "k".into());
        other.bump(rule(0), "v".into(), Lsn::new(7));
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
        older.publish(rule(0), message());
        older.bump(rule(0), "older".into(), Lsn::new(5));
        older.end_transaction(Lsn::new(8));
        let mut plan = Plan::default();
        plan.begin_transaction();
        plan.bump(rule(0), "open".into(), Lsn::new(10));
        plan.append(older);
        plan.publish(rule(0), message());
        plan.end_transaction(Lsn::new(15));
        plan.begin_transaction();
        plan.publish(rule(0), message());
        assert_eq!(plan.publishes().len(), 3);
        let bumps: Vec<_> = plan.bumps().map(|(key, lsn)| (key.to_string(), lsn.offset())).collect();
        assert_eq!(bumps, [("open".to_owned(), 15), ("older".to_owned(), 8)]);
    }

    #[test]
    fn equal_messages_of_two_transactions_are_both_sent() {
        let mut plan = Plan::default();
        for _ in 0..2 {
            plan.begin_transaction();
            plan.publish(rule(0), Publish { channel: "c".into(), data: b"{}".to_vec() });
        }
        assert_eq!(plan.publishes().len(), 2);
    }

    #[test]
    fn of_a_delete_and_a_value_the_later_stays() {
        let value =
            |lsn| SetValue { key: "k".into(), body: b"{}".to_vec(), ttl: Duration::from_secs(1), lsn: Lsn::new(lsn) };
        let mut plan = Plan::default();
        plan.delete(rule(0), "k".into());
        plan.set(rule(0), value(5));
        assert_eq!((plan.deletes().len(), plan.sets().len()), (0, 1));
        plan.sets_to_deletes(Lsn::new(4));
        assert_eq!((plan.deletes().len(), plan.sets().len()), (0, 1));
        plan.sets_to_deletes(Lsn::new(5));
        assert_eq!((plan.deletes().len(), plan.sets().len()), (1, 0));
        plan.set(rule(0), value(6));
        let mut later = Plan::default();
        later.delete(rule(0), "k".into());
        plan.append(later);
        assert_eq!((plan.deletes().len(), plan.sets().len()), (1, 0));
    }

    #[test]
    fn messages_wait_for_what_their_transaction_does_slowly() {
        let message = |channel: &str| Publish { channel: channel.into(), data: b"{}".to_vec() };
        let mut plan = Plan::default();
        plan.begin_transaction();
        plan.delete(rule(0), "k".into());
        plan.publish(rule(0), message("quick"));
        plan.begin_transaction();
        plan.tag(rule(0), "tag:t".into());
        plan.publish(rule(0), message("slow"));
        let aside = plan.split_slow(false).unwrap();
        let words = |plan: &Plan| plan.ops().map(|(_, op)| op.to_string()).collect::<Vec<_>>();
        assert_eq!(words(&plan), ["delete k", "publish quick"]);
        assert_eq!(words(&aside), ["tag tag:t", "publish slow"]);
        assert!(plan.split_slow(false).is_none());
        assert!(plan.split_slow(true).is_none(), "the transaction that goes on sends nothing");
        plan.publish(rule(0), message("later"));
        assert_eq!(words(&plan.split_slow(true).unwrap()), ["publish later"]);
        assert_eq!(words(&plan), ["delete k", "publish quick"]);
    }
}
