//! What changes ask for: ops, and the plan that collects each of them once.
//!
//! Owns de-duplication and the order of ops. It must not know rules, rows or Redis commands.
//! Invariant: a plan names no key twice under the same action and keeps the order in which the ops
//! were first added. If a key has both a delete and a `set`, the later of them stays.

mod action;
mod bumps;
mod dead_letter;
mod lookup;
mod op;
mod removal;
mod rule_id;
mod sweeps;
mod transactions;
mod unique;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use indexmap::map::Entry;

pub use self::action::ActionKind;
use self::bumps::Bumps;
pub use self::dead_letter::DeadLetter;
use self::dead_letter::DeadLetters;
pub use self::lookup::{CallOrigin, LookupCall};
pub use self::op::{Op, Publish, SetValue, StreamAppend};
pub use self::removal::Removal;
pub use self::rule_id::RuleId;
use self::sweeps::Sweeps;
use self::transactions::Transactions;
use self::unique::Unique;
use crate::change::Lsn;
use crate::key::{CacheKey, Glob};

/// The de-duplicated ops of one transaction, of a part of a large one, or of several small ones.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    deletes: Unique<CacheKey, RuleId>,
    sets: Unique<CacheKey, (SetValue, RuleId)>,
    sweeps: Sweeps,
    bumps: Bumps,
    /// By transaction: equal messages of two transactions are both sent.
    publishes: Unique<(u64, Publish), RuleId>,
    streams: Vec<(RuleId, StreamAppend)>,
    /// Lookups whose answers add further ops.
    calls: Unique<LookupCall, CallOrigin>,
    /// What is removed once more, and how long after the first time.
    repeats: Unique<(Duration, Removal), RuleId>,
    /// What was removed already and only has to be announced.
    announced: Unique<Removal, RuleId>,
    dead_letters: DeadLetters,
    /// How often more was removed, or less was sent, than a rule asked for, because something was
    /// above a limit.
    widened: BTreeMap<RuleId, u64>,
    transactions: Transactions,
    bytes: usize,
}

/// What changes ask for, one op at a time.
impl Plan {
    /// Begins another transaction, which sends its own messages.
    pub fn begin_transaction(&mut self) {
        self.transactions.begin();
        self.bumps.begin_transaction();
    }

    /// Ends the open transaction at `end_lsn`: the version keys that it raised rise to there.
    pub fn end_transaction(&mut self, end_lsn: Lsn) {
        self.transactions.end();
        self.bumps.end_transaction(end_lsn);
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
        self.transactions.mark_slow();
        self.bytes += self.sweeps.add_pattern(rule, glob);
    }

    /// Removes every key of a set.
    pub fn tag(&mut self, rule: RuleId, set: CacheKey) {
        self.transactions.mark_slow();
        self.bytes += self.sweeps.add_tag(rule, set);
    }

    /// Removes every key of every set that a glob matches.
    pub fn tags(&mut self, rule: RuleId, sets: Glob) {
        self.transactions.mark_slow();
        self.bytes += self.sweeps.add_tags(rule, sets);
    }

    /// Raises a version key to `lsn`; of two bumps of one key the later position stays.
    pub fn bump(&mut self, rule: RuleId, key: CacheKey, lsn: Lsn) {
        self.bytes += self.bumps.raise(rule, key, lsn);
    }

    /// Sends a message, unless the transaction sends an equal one already.
    pub fn publish(&mut self, rule: RuleId, publish: Publish) {
        self.add_publish(self.transactions.current, rule, publish);
    }

    fn add_publish(&mut self, transaction: u64, rule: RuleId, publish: Publish) {
        self.bytes += publish.data.len();
        self.publishes.entry((transaction, publish)).or_insert(rule);
    }

    /// Appends to a stream.
    pub fn stream(&mut self, rule: RuleId, entry: StreamAppend) {
        self.bytes += entry.data.len();
        self.streams.push((rule, entry));
    }

    /// Asks the database; the answer adds further ops. If a call occurs twice, the later position
    /// counts.
    pub fn call(&mut self, call: LookupCall, origin: CallOrigin) {
        self.transactions.mark_slow();
        self.add_call(call, origin);
    }

    fn add_call(&mut self, call: LookupCall, origin: CallOrigin) {
        self.bytes += call.bytes() + origin.change.len();
        let lsn = origin.lsn;
        let held = self.calls.entry(call).or_insert(origin);
        held.lsn = lsn.max(held.lsn);
    }

    /// Removes something once more, `after` it was removed for the first time.
    pub fn repeat(&mut self, rule: RuleId, after: Duration, removal: Removal) {
        self.repeats.entry((after, removal)).or_insert(rule);
    }

    /// Announces a removal that has taken place.
    pub fn announce(&mut self, rule: RuleId, removal: Removal) {
        self.announced.entry(removal).or_insert(rule);
    }

    /// Keeps a change on which a rule failed.
    pub fn dead_letter(&mut self, letter: DeadLetter) {
        self.bytes += self.dead_letters.push(letter);
    }

    /// Counts that a rule removed more, or sent less, than it asked for, because something was
    /// above a limit.
    pub fn widen(&mut self, rule: RuleId) {
        *self.widened.entry(rule).or_default() += 1;
    }

    /// Adds one removal of any kind.
    pub fn remove(&mut self, rule: RuleId, removal: Removal) {
        match removal {
            Removal::Key(key) => self.delete(rule, key),
            Removal::Keys(glob) => self.pattern(rule, glob),
            Removal::Tag(set) => self.tag(rule, set),
            Removal::Tags(glob) => self.tags(rule, glob),
        }
    }
}

/// What changes a plan as a whole.
impl Plan {
    /// Adds what another plan asks for, after what this one asks for. A transaction that is open in
    /// either plan goes on.
    pub fn append(&mut self, other: Self) {
        let offset = self.transactions.append(&other.transactions);
        other.deletes.into_iter().for_each(|(key, rule)| self.delete(rule, key));
        other.sets.into_values().for_each(|(value, rule)| self.set(rule, value));
        self.bytes += self.sweeps.append(other.sweeps);
        self.bytes += self.bumps.append(other.bumps);
        for ((transaction, publish), rule) in other.publishes {
            self.add_publish(offset + transaction, rule, publish);
        }
        other.streams.into_iter().for_each(|(rule, entry)| self.stream(rule, entry));
        other.calls.into_iter().for_each(|(call, origin)| self.add_call(call, origin));
        self.repeats.extend(other.repeats);
        self.announced.extend(other.announced);
        self.bytes += self.dead_letters.append(other.dead_letters);
        for (rule, count) in other.widened {
            *self.widened.entry(rule).or_default() += count;
        }
    }

    /// Takes out slow work (lookups, patterns, sets), with the messages of the transactions that
    /// asked for it: a message may not be sent before the work is done. If `open`, an earlier part
    /// of the open transaction asked for slow work.
    pub fn split_slow(&mut self, open: bool) -> Option<Self> {
        let current = self.transactions.current;
        let goes_on = || self.publishes.keys().any(|(transaction, _)| open && *transaction == current);
        if !self.transactions.has_slow() && !goes_on() {
            return None;
        }
        let mut slow = Self {
            sweeps: std::mem::take(&mut self.sweeps),
            calls: std::mem::take(&mut self.calls),
            transactions: self.transactions.split_slow(),
            ..Self::default()
        };
        for ((transaction, publish), rule) in std::mem::take(&mut self.publishes) {
            let waits = slow.transactions.is_slow(transaction) || open && transaction == current;
            let publishes = if waits { &mut slow.publishes } else { &mut self.publishes };
            publishes.insert((transaction, publish), rule);
        }
        for ((after, removal), rule) in std::mem::take(&mut self.repeats) {
            let repeats = if matches!(removal, Removal::Key(_)) { &mut self.repeats } else { &mut slow.repeats };
            repeats.insert((after, removal), rule);
        }
        // A value that a pattern removes could be written after the search.
        for (key, (value, rule)) in std::mem::take(&mut self.sets) {
            if slow.sweeps.may_match(&key) {
                self.delete(rule, key);
            } else {
                self.sets.insert(key, (value, rule));
            }
        }
        slow.bytes = slow.slow_bytes();
        self.bytes = self.bytes.saturating_sub(slow.bytes);
        Some(slow)
    }

    /// The approximate size of slow work and messages, in bytes.
    fn slow_bytes(&self) -> usize {
        let calls = self.calls.iter().map(|(call, origin)| call.bytes() + origin.change.len());
        let messages = self.publishes.keys().map(|(_, publish)| publish.data.len());
        self.sweeps.bytes() + calls.chain(messages).sum::<usize>()
    }

    /// If a rule asks for too many patterns or sets, everything that it may ever have made takes
    /// their place; `removals_of` gives it in the order of the file.
    pub fn limit_sweeps(&mut self, removals_of: impl Fn(&BTreeSet<RuleId>) -> Vec<(RuleId, Removal)>) {
        let rules = self.sweeps.limit();
        if rules.is_empty() {
            return;
        }
        removals_of(&rules).into_iter().for_each(|(rule, removal)| self.remove(rule, removal));
        self.bytes = self.slow_bytes();
    }

    /// Replaces single keys and lookups by everything that their rules match, and drops messages:
    /// more is removed than was asked for, in little memory. Returns how many messages were
    /// dropped.
    pub fn collapse(&mut self, removals_of: impl Fn(&BTreeSet<RuleId>) -> Vec<(RuleId, Removal)>) -> usize {
        let collapsed = std::mem::take(self);
        let rules = collapsed.rules();
        self.transactions = collapsed.transactions.without_slow();
        for ((after, _), rule) in collapsed.repeats {
            let removals = removals_of(&BTreeSet::from([rule]));
            removals.into_iter().for_each(|(rule, removal)| self.repeat(rule, after, removal));
        }
        removals_of(&rules).into_iter().for_each(|(rule, removal)| self.remove(rule, removal));
        self.bytes += self.dead_letters.append(collapsed.dead_letters);
        self.widened = collapsed.widened;
        collapsed.publishes.len() + collapsed.streams.len()
    }

    /// The rules that asked for keys or lookups.
    fn rules(&self) -> BTreeSet<RuleId> {
        let deletes = self.deletes.values().copied();
        let sets = self.sets.values().map(|(_, rule)| *rule);
        let bumps = self.bumps.iter().map(|(_, _, rule)| rule);
        let calls = self.calls.keys().map(|call| call.rule);
        deletes.chain(sets).chain(self.sweeps.rules()).chain(bumps).chain(calls).collect()
    }

    /// Raises every version key of the plan to at least `lsn`.
    pub fn raise_bumps(&mut self, lsn: Lsn) {
        self.bumps.raise_all(lsn);
    }

    /// Replaces values of changes at or before `upto` by deletes: a newer value or a delete may
    /// have been applied before.
    pub fn sets_to_deletes(&mut self, upto: Lsn) {
        for (key, (value, rule)) in std::mem::take(&mut self.sets) {
            if value.lsn <= upto {
                self.delete(rule, key);
            } else {
                self.sets.insert(key, (value, rule));
            }
        }
    }

    /// Deletes a key instead of writing it. Returns the rule that asked for it.
    pub fn set_to_delete(&mut self, key: &CacheKey) -> Option<RuleId> {
        let (_, rule) = self.sets.shift_remove(key)?;
        self.delete(rule, key.clone());
        Some(rule)
    }

    /// Deletes a version key instead of raising it. Returns the rule that asked for it.
    pub fn bump_to_delete(&mut self, key: &CacheKey) -> Option<RuleId> {
        let rule = self.bumps.remove(key)?;
        self.delete(rule, key.clone());
        Some(rule)
    }

    /// Takes out a message, whichever transaction sends it. Returns the rule that asked for it.
    pub fn drop_publish(&mut self, publish: &Publish) -> Option<RuleId> {
        let mut dropped = None;
        self.publishes.retain(|(_, held), rule| {
            let is_other = held != publish;
            dropped = dropped.or_else(|| (!is_other).then_some(*rule));
            is_other
        });
        dropped
    }

    /// Takes out the stream entries.
    pub fn take_streams(&mut self) -> Vec<(RuleId, StreamAppend)> {
        std::mem::take(&mut self.streams)
    }

    /// Takes out the calls of lookups.
    pub fn take_calls(&mut self) -> Vec<(LookupCall, CallOrigin)> {
        std::mem::take(&mut self.calls).into_iter().collect()
    }

    /// Takes out what is removed once more.
    pub fn take_repeats(&mut self) -> Vec<(Duration, RuleId, Removal)> {
        std::mem::take(&mut self.repeats).into_iter().map(|((after, removal), rule)| (after, rule, removal)).collect()
    }

    /// Takes out the patterns and sets. Without calls, nothing slow is left in the plan.
    pub fn take_sweeps(&mut self) -> Vec<(RuleId, Removal)> {
        if self.calls.is_empty() {
            self.transactions.clear_slow();
        }
        std::mem::take(&mut self.sweeps).into_removals().collect()
    }
}

/// What a plan asks for.
impl Plan {
    /// The number of ops, of calls whose ops are not known yet, of announcements and dead letters.
    pub fn len(&self) -> usize {
        self.deletes.len()
            + self.sets.len()
            + self.sweeps.len()
            + self.bumps.len()
            + self.publishes.len()
            + self.streams.len()
            + self.calls.len()
            + self.announced.len()
            + self.dead_letters.kept().len()
    }

    /// The approximate size of names and messages, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.dead_letters.dropped().is_empty() && self.widened.is_empty()
    }

    /// The keys to remove.
    pub fn deletes(&self) -> impl ExactSizeIterator<Item = &CacheKey> {
        self.deletes.keys()
    }

    /// The values to write.
    pub fn sets(&self) -> impl ExactSizeIterator<Item = &SetValue> {
        self.sets.values().map(|(value, _)| value)
    }

    /// The patterns whose keys are removed.
    pub fn patterns(&self) -> impl ExactSizeIterator<Item = &Glob> {
        self.sweeps.patterns()
    }

    /// The version keys to raise, and how far.
    pub fn bumps(&self) -> impl ExactSizeIterator<Item = (&CacheKey, Lsn)> {
        self.bumps.iter().map(|(key, lsn, _)| (key, lsn))
    }

    /// The messages to send.
    pub fn publishes(&self) -> impl ExactSizeIterator<Item = &Publish> {
        self.publishes.keys().map(|(_, publish)| publish)
    }

    /// The lookups to call.
    pub fn calls(&self) -> impl ExactSizeIterator<Item = &LookupCall> {
        self.calls.keys()
    }

    /// The changes on which rules failed.
    pub fn dead_letters(&self) -> &[DeadLetter] {
        self.dead_letters.kept()
    }

    /// How many more dead letters there were than are kept, by rule.
    pub fn dead_letters_dropped(&self) -> &BTreeMap<RuleId, u64> {
        self.dead_letters.dropped()
    }

    /// How often each rule removed more, or sent less, than it asked for, because something was
    /// above a limit.
    pub fn widened(&self) -> &BTreeMap<RuleId, u64> {
        &self.widened
    }

    /// Every op with the rule that asked first, in the order of application: removals and values,
    /// then version keys, then messages.
    pub fn ops(&self) -> impl Iterator<Item = (RuleId, Op<'_>)> {
        let deletes = self.deletes.iter().map(|(key, &rule)| (rule, Op::Delete(key)));
        let sets = self.sets.values().map(|(value, rule)| (*rule, Op::Set(value)));
        let bumps = self.bumps.iter().map(|(key, lsn, rule)| (rule, Op::Bump(key, lsn)));
        let publishes = self.publishes.iter().map(|((_, publish), &rule)| (rule, Op::Publish(publish)));
        let streams = self.streams.iter().map(|(rule, entry)| (*rule, Op::Stream(entry)));
        deletes.chain(sets).chain(self.sweeps.ops()).chain(bumps).chain(publishes).chain(streams)
    }

    /// What was removed already and only has to be announced.
    pub fn announcements(&self) -> impl Iterator<Item = (RuleId, Op<'_>)> {
        self.announced.iter().map(|(removal, &rule)| (rule, removal.op()))
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

    /// Rows of a visible transaction arrive in `plan` while older transactions are appended to it.
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
