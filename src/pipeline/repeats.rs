//! Second deletes, for applications that store without a lease: `again_after`.
//!
//! Owns when each is due. Synchronous; time is an argument. Invariant: a change is confirmed to the
//! source only after its second delete, so that a crash repeats all of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::change::Lsn;
use crate::coherence::progress::Ticket;
use crate::plan::{Plan, Removal, RuleId};
use crate::rules::RuleSet;

/// The most keys that wait by name for their second delete.
const KEYS_MAX: usize = 100_000;

/// Deletes that are due within this time of one another run together.
const TOGETHER: Duration = Duration::from_millis(10);

/// A second delete that waits or is in flight, and that limits what may be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RepeatId(u64);

/// What may be confirmed while a second delete waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConfirmLimit {
    /// To a slot: at most this position.
    pub(super) confirmed: Lsn,
    /// To an outbox: only transactions before this one.
    pub(super) since: Ticket,
}

/// The second deletes that wait or are in flight.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    due: BTreeMap<(Instant, RepeatId), Plan>,
    limits: BTreeMap<RepeatId, ConfirmLimit>,
    next: u64,
    keys: usize,
}

impl Repeats {
    /// Schedules the second delete of what was removed at `now`. Until it is done, `limit` holds.
    pub(super) fn schedule(
        &mut self,
        removed: Vec<(Duration, RuleId, Removal)>,
        now: Instant,
        limit: ConfirmLimit,
        rules: &RuleSet,
    ) {
        let mut by_delay: BTreeMap<Duration, Plan> = BTreeMap::new();
        for (after, rule, removal) in removed {
            by_delay.entry(after).or_default().remove(rule, removal);
        }
        for (after, mut plan) in by_delay {
            if self.keys + plan.len() > KEYS_MAX {
                plan.collapse(|asked| rules.removals_of(asked));
            }
            let at = now + after;
            if let Some((&(_, id), near)) =
                self.due.range_mut((at, RepeatId(0))..=(at + TOGETHER, RepeatId(u64::MAX))).next()
            {
                self.keys -= near.len();
                near.append(plan);
                self.keys += near.len();
                self.limits.entry(id).and_modify(|held| {
                    held.confirmed = held.confirmed.min(limit.confirmed);
                    held.since = held.since.min(limit.since);
                });
                continue;
            }
            self.keys += plan.len();
            let id = RepeatId(self.next);
            self.next += 1;
            self.limits.insert(id, limit);
            self.due.insert((at + TOGETHER, id), plan);
        }
    }

    /// When the next delete is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.keys().next().map(|(due, _)| *due)
    }

    /// Takes out a delete that is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(RepeatId, Plan)> {
        let (&key, _) = self.due.first_key_value().filter(|((due, _), _)| *due <= now)?;
        let plan = self.due.remove(&key)?;
        self.keys -= plan.len();
        Some((key.1, plan))
    }

    /// A second delete is in force.
    pub(super) fn done(&mut self, id: RepeatId) {
        self.limits.remove(&id);
    }

    /// The furthest position that may be confirmed; none if there is no limit.
    pub(super) fn limit(&self) -> Option<Lsn> {
        self.limits.values().map(|limit| limit.confirmed).min()
    }

    /// Whether a second delete of this transaction, or of one before it, may wait.
    pub(super) fn hold_up(&self, ticket: Ticket) -> bool {
        self.limits.values().any(|limit| limit.since <= ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_confirmed_before_its_second_delete() {
        let document =
            crate::config::Document::parse("version: 1\nrules: {r: {table: t, delete: k}}", &|_| None).unwrap();
        let rules = RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap();
        let now = Instant::now();
        let mut repeats = Repeats::default();
        let limit = |lsn| ConfirmLimit { confirmed: Lsn::new(lsn), since: Ticket::default() };
        let key = |name: &str| Removal::Key(name.into());
        let second = Duration::from_secs(1);
        let removed = vec![(second, RuleId::of("r"), key("a")), (2 * second, RuleId::of("r"), key("b"))];
        repeats.schedule(removed, now, limit(7), &rules);
        let close = now + Duration::from_millis(1);
        repeats.schedule(vec![(second, RuleId::of("r"), key("c"))], close, limit(9), &rules);
        repeats.schedule(vec![(second, RuleId::of("r"), key("d"))], now + second / 2, limit(9), &rules);
        assert_eq!((repeats.limit(), repeats.next_due()), (Some(Lsn::new(7)), Some(now + second + TOGETHER)));
        assert!(repeats.take_due(now + second).is_none());
        let (id, plan) = repeats.take_due(now + second + TOGETHER).unwrap();
        assert_eq!(plan.deletes().map(ToString::to_string).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(repeats.limit(), Some(Lsn::new(7)), "in flight");
        assert!(repeats.hold_up(Ticket::default()));
        repeats.done(id);
        let end = now + 3 * second;
        let rest: Vec<_> = std::iter::from_fn(|| repeats.take_due(end)).collect();
        let names = rest.iter().flat_map(|(_, plan)| plan.deletes()).map(ToString::to_string);
        assert_eq!(names.collect::<Vec<_>>(), ["d", "b"]);
        rest.into_iter().for_each(|(id, _)| repeats.done(id));
        assert_eq!((repeats.limit(), repeats.next_due(), repeats.keys), (None, None, 0));
        assert!(!repeats.hold_up(Ticket::default()));
    }
}
