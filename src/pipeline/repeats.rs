//! Second deletes, for applications that store without a lease: `again_after`.
//!
//! Owns when Redis is asked which are due. They wait in Redis, so that no source has to remember
//! them, and whatever daemon is at work carries them out. Synchronous; time is an argument.
//! Invariants: Redis is asked when the next one is due, and at each probe, because another daemon
//! may have stored some; it is not asked again before those that it named are in force.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::plan::{Plan, RuleId};
use crate::rules::RuleSet;
use crate::sink::{Again, DueDelete, DueDeletes, Repeat};

/// Deletes that are due within this time of one another run together.
const TOGETHER: Duration = Duration::from_millis(10);

/// The state of second deletes within one session.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    /// When Redis is to be asked.
    ask_at: Option<Instant>,
    /// The next batch asks.
    ask_due: bool,
    state: RepeatState,
}

/// What goes on with second deletes that are due.
#[derive(Debug, Default, PartialEq, Eq)]
enum RepeatState {
    #[default]
    Idle,
    /// A batch that asks is in flight.
    Asking,
    /// So many that were named are not in force yet.
    Running(usize),
}

impl Repeats {
    /// When Redis is to be asked next, if no batch asks already.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.ask_at.filter(|_| !self.ask_due && self.state == RepeatState::Idle)
    }

    /// Lets the next batch ask if something is due by now.
    pub(super) fn wake(&mut self, now: Instant) {
        self.ask_due |= self.ask_at.is_some_and(|at| at <= now);
    }

    /// Lets the next batch ask.
    pub(super) fn probe(&mut self) {
        self.ask_due = true;
    }

    /// Whether the next batch asks.
    pub(super) fn must_ask(&self) -> bool {
        self.ask_due && self.state == RepeatState::Idle
    }

    /// What the next batch does: stores `add`, removes what is `done`, and asks if that is due.
    pub(super) fn take(&mut self, add: Vec<Repeat>, done: Vec<DueDelete>, rules: &RuleSet) -> Again {
        let ask = self.must_ask();
        if ask {
            (self.ask_due, self.state) = (false, RepeatState::Asking);
        }
        Again { instead: instead(&add, rules), add, done, ask }
    }

    /// A batch is in force, which stored second deletes with these delays, and removed so many.
    pub(super) fn applied(&mut self, delays: &BTreeSet<Duration>, done: usize, now: Instant) {
        if let Some(delay) = delays.first() {
            self.ask_by(now + *delay + TOGETHER);
        }
        if let RepeatState::Running(left) = self.state
            && done > 0
        {
            let left = left.saturating_sub(done);
            self.state = if left == 0 { RepeatState::Idle } else { RepeatState::Running(left) };
        }
    }

    /// Redis named those that are due. Returns what is to be removed.
    pub(super) fn learn(&mut self, answer: DueDeletes, now: Instant) -> (Plan, Vec<DueDelete>) {
        if self.state != RepeatState::Asking {
            return (Plan::default(), Vec::new());
        }
        self.ask_at = None;
        if let Some(wait) = answer.next {
            self.ask_by(now + wait + TOGETHER);
        }
        self.state = if answer.due.is_empty() { RepeatState::Idle } else { RepeatState::Running(answer.due.len()) };
        let mut plan = Plan::default();
        for (rule, removal) in answer.due.iter().filter_map(|due| due.removal.clone()) {
            plan.remove(rule, removal);
        }
        (plan, answer.due)
    }

    fn ask_by(&mut self, at: Instant) {
        self.ask_at = Some(self.ask_at.map_or(at, |held| held.min(at)));
    }
}

/// Everything that the same rules match, each with its longest delay.
fn instead(add: &[Repeat], rules: &RuleSet) -> Vec<Repeat> {
    if add.is_empty() {
        return Vec::new();
    }
    let mut delays: BTreeMap<RuleId, Duration> = BTreeMap::new();
    for (after, rule, _) in add {
        delays.entry(*rule).and_modify(|longest| *longest = (*longest).max(*after)).or_insert(*after);
    }
    let removals = rules.removals_of(&delays.keys().copied().collect());
    let repeat = |(rule, removal)| delays.get(&rule).map(|after| (*after, rule, removal));
    removals.into_iter().filter_map(repeat).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;
    use crate::plan::Removal;

    fn rules() -> RuleSet {
        let document = Document::parse("version: 1\nrules: {r: {table: t, delete: 'k:{id}'}}", &|_| None).unwrap();
        RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn redis_is_asked_when_the_first_of_them_is_due() {
        let (mut repeats, rules, now) = (Repeats::default(), rules(), Instant::now());
        let add = || vec![(2 * SECOND, RuleId::of("r"), Removal::Key("k:1".into()))];
        let again = repeats.take(add(), Vec::new(), &rules);
        assert_eq!((again.ask, again.add.len(), again.instead.len()), (false, 1, 1));
        repeats.applied(&BTreeSet::from([2 * SECOND, 3 * SECOND]), 0, now);
        repeats.applied(&BTreeSet::from([2 * SECOND]), 0, now + SECOND);
        assert_eq!(repeats.next_due(), Some(now + 2 * SECOND + TOGETHER));
        repeats.wake(now + 2 * SECOND);
        assert!(!repeats.take(Vec::new(), Vec::new(), &rules).ask, "not yet");
        repeats.wake(now + 3 * SECOND);
        assert!(repeats.take(Vec::new(), Vec::new(), &rules).ask);
        assert_eq!(repeats.next_due(), None, "it is being asked");
    }

    #[test]
    fn redis_is_asked_again_only_when_what_it_named_is_in_force() {
        let (mut repeats, rules, now) = (Repeats::default(), rules(), Instant::now());
        repeats.probe();
        assert!(repeats.take(Vec::new(), Vec::new(), &rules).ask);
        let answer = DueDeletes { due: Vec::new(), next: Some(SECOND) };
        assert!(repeats.learn(answer, now).0.is_empty());
        assert_eq!(repeats.next_due(), Some(now + SECOND + TOGETHER));
        repeats.probe();
        assert!(repeats.take(Vec::new(), Vec::new(), &rules).ask);
        let due = DueDelete::of(RuleId::of("r"), Removal::Key("k:1".into()));
        let answer = DueDeletes { due: vec![due.clone(), due], next: Some(Duration::ZERO) };
        let (plan, due) = repeats.learn(answer, now);
        assert_eq!((plan.len(), due.len(), repeats.next_due()), (1, 2, None));
        repeats.probe();
        assert!(!repeats.take(Vec::new(), due, &rules).ask);
        repeats.applied(&BTreeSet::new(), 0, now);
        repeats.applied(&BTreeSet::new(), 2, now);
        assert!(repeats.take(Vec::new(), Vec::new(), &rules).ask);
    }
}
