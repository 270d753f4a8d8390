//! Version keys: the number under one key is part of the names of others.
//!
//! Owns the steps around one version key and the values whose names contain its number: a
//! transaction that bumps it, the daemon, a `replay` beside it that raises `started`, two fillers,
//! and a Redis that evicts the version key. Invariant: a number that was part of a name before a
//! bump is never part of one after it.

use super::search::{Model, Next, Search, Step, Witness, listing};

/// A position of the log; the ends of records are multiples of four. In between are positions at
/// which no record ends.
type Position = u8;

const RECORD: Position = 4;

/// The transaction's end.
const END: Position = RECORD;

/// How far the log is written by others: it ends the search.
const LOG_MAX: Position = 3 * RECORD;

const VERSIONS: usize = 24;

/// A rule that is removed; the comment says what happens instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// A missing version begins at a constant.
    VersionFromStarted,
    /// The version is read after the database.
    VersionBeforeRead,
    /// The version rises before `started`.
    StartedBeforeBump,
    /// The version rises before the transaction is visible.
    Gate,
    /// A transaction whose position the daemon's own `started` has passed rises to that position.
    FreshWhenLate,
    /// So does one whose position another process's `started` has passed.
    BeyondForeignStarted,
    /// `replay` raises `started` to a position at which a record ends.
    ForeignBetweenRecords,
}

const RULES: [Rule; 7] = [
    Rule::VersionFromStarted,
    Rule::VersionBeforeRead,
    Rule::StartedBeforeBump,
    Rule::Gate,
    Rule::FreshWhenLate,
    Rule::BeyondForeignStarted,
    Rule::ForeignBetweenRecords,
];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Filler {
    #[default]
    Idle,
    /// The version that it read.
    Versioned(Position),
    /// What it read: whether the transaction was visible.
    Read(Position, bool),
    Done,
    /// Mutant: what was read before the version.
    EarlyRead(bool),
}

/// The daemon's progress with the transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Sent {
    #[default]
    Nothing,
    /// It is sent with this `started`; half of the batch is in force.
    Half(Position),
    /// In force.
    Whole(Position),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    log: Position,
    /// The transaction is visible.
    visible: bool,
    /// Another transaction, which the daemon has put in force, raised `started` to here.
    daemon_started: Position,
    started: Position,
    version: Option<Position>,
    /// A value under each version: whether it contains the transaction.
    values: [Option<bool>; VERSIONS],
    sent: Sent,
    has_replayed: bool,
    /// A delayed batch arrived a second time.
    has_repeated: bool,
    fillers: [Filler; 2],
}

struct Versions {
    removed: Option<Rule>,
}

impl Model for Versions {
    type State = State;

    fn next(&self, from: State, steps: &mut Vec<(Step, State)>) {
        let next = &mut Next { from, steps };
        self.servers(next);
        self.daemon(next);
        (0..2).for_each(|filler| self.filler(next, filler));
    }

    /// A reader finds, or makes, a number under which a value is that lacks what is in force.
    fn is_broken(&self, state: &State) -> bool {
        let version = state.version.unwrap_or_else(|| self.made(state));
        let is_in_force = matches!(state.sent, Sent::Whole(_)) && state.visible;
        is_in_force && state.values[usize::from(version)] == Some(false)
    }
}

impl Versions {
    fn has(&self, rule: Rule) -> bool {
        self.removed != Some(rule)
    }

    /// The version that a reader makes if there is none.
    fn made(&self, s: &State) -> Position {
        if self.has(Rule::VersionFromStarted) { s.started } else { 1 }
    }

    fn servers(&self, next: &mut Next<'_, State>) {
        let s = next.from;
        if s.log < LOG_MAX {
            next.may("the log reaches #", s.log + RECORD, |s| s.log += RECORD);
        }
        if s.log >= END && !s.visible {
            next.may("the transaction becomes visible", END, |s| s.visible = true);
        }
        if s.version.is_some() {
            next.may("Redis evicts the version", 0, |s| s.version = None);
        }
        // Whatever transaction ends there bumps other keys.
        if s.daemon_started < s.log && s.sent == Sent::Nothing {
            next.may("another transaction is in force up to #", s.log, |s| {
                s.daemon_started = s.log;
                s.started = s.started.max(s.log);
            });
        }
        if !s.has_replayed && s.log > 0 {
            let to = if self.has(Rule::ForeignBetweenRecords) { s.log + 1 } else { s.log };
            next.may("a replay raises started to #", to, |s| {
                s.started = s.started.max(to);
                s.has_replayed = true;
            });
        }
    }

    fn daemon(&self, next: &mut Next<'_, State>) {
        let s = next.from;
        let is_ready = s.log >= END && (s.visible || !self.has(Rule::Gate));
        match s.sent {
            Sent::Nothing if is_ready => {
                let is_late = s.daemon_started >= END;
                // A position that was never used is after everything, so it is a record of its own.
                let own = if is_late && self.has(Rule::FreshWhenLate) { s.log + RECORD } else { END };
                self.half(next, own.max(s.daemon_started), Sent::Half);
            }
            Sent::Half(started) => self.half(next, started, Sent::Whole),
            Sent::Whole(started) if !s.has_repeated => {
                next.may("the batch arrives again", 0, |s| {
                    s.started = s.started.max(started);
                    self.bump(s, started);
                    s.has_repeated = true;
                });
            }
            Sent::Nothing | Sent::Whole(_) => {}
        }
    }

    fn half(&self, next: &mut Next<'_, State>, started: Position, then: impl Fn(Position) -> Sent) {
        let is_first = next.from.sent == Sent::Nothing;
        if is_first == self.has(Rule::StartedBeforeBump) {
            next.may("the daemon raises started to #", started, |s| {
                s.log = s.log.max(started);
                s.started = s.started.max(started);
                s.daemon_started = s.daemon_started.max(started);
                s.sent = then(started);
            });
        } else {
            next.may("the daemon bumps the version to #", started, |s| {
                s.log = s.log.max(started);
                self.bump(s, started);
                s.sent = then(started);
            });
        }
    }

    /// The script, which is atomic. `started` is the batch's own.
    fn bump(&self, s: &mut State, started: Position) {
        if s.started > started && self.has(Rule::BeyondForeignStarted) {
            s.started += if (s.started + 1).is_multiple_of(RECORD) { 2 } else { 1 };
            s.version = Some(s.started);
        } else {
            s.version = Some(s.version.map_or(started, |held| held.max(started)));
        }
    }

    fn filler(&self, next: &mut Next<'_, State>, filler: u8) {
        let (s, at) = (next.from, usize::from(filler));
        match s.fillers[at] {
            // They are alike, so the first to begin may be called 0.
            Filler::Idle if at > 0 && s.fillers[at - 1] == Filler::Idle => {}
            Filler::Idle if self.has(Rule::VersionBeforeRead) => self.version(next, filler, Filler::Versioned),
            Filler::Idle => next.may("filler # reads the primary", filler, |s| {
                s.fillers[at] = Filler::EarlyRead(s.visible);
            }),
            Filler::EarlyRead(seen) => self.version(next, filler, |version| Filler::Read(version, seen)),
            Filler::Versioned(version) => next.may("filler # reads the primary", filler, |s| {
                s.fillers[at] = Filler::Read(version, s.visible);
            }),
            Filler::Read(version, seen) => next.may("filler # stores what it read", filler, |s| {
                s.values[usize::from(version)].get_or_insert(seen);
                s.fillers[at] = Filler::Done;
            }),
            Filler::Done => {}
        }
    }

    fn version(&self, next: &mut Next<'_, State>, filler: u8, then: impl Fn(Position) -> Filler) {
        next.may("filler # reads the version", filler, |s| {
            let version = s.version.unwrap_or_else(|| self.made(s));
            s.version = Some(version);
            s.fillers[usize::from(filler)] = then(version);
        });
    }
}

const WITNESSES: [Witness<State>; 3] = [
    ("a new value under a version that a reader made", |_, to| {
        to.version == Some(to.started) && to.values[usize::from(to.started)] == Some(true)
    }),
    ("the version rises beyond what another process raised", |from, to| {
        from.version == Some(from.started) && to.version > from.version && !(to.started).is_multiple_of(RECORD)
    }),
    ("a late transaction has a fresh position", |from, to| {
        from.sent == Sent::Nothing && matches!(to.sent, Sent::Half(started) if started > END)
    }),
];

#[test]
fn a_number_of_before_a_bump_is_never_used_after_it() {
    let mut search = Search::new();
    let mut missing: Vec<Witness<State>> = WITNESSES.into();
    let broken = search.run(&Versions { removed: None }, |from, to| {
        to.iter().for_each(|to| missing.retain(|(_, reached)| !reached(from, to)));
    });
    println!("{} states, {} transitions", search.found.len(), search.transitions);
    if let Some(path) = broken {
        panic!("stale after {} steps:\n{}", path.len(), listing(&path));
    }
    assert!(missing.is_empty(), "never reached: {:?}", missing.iter().map(|(words, _)| words).collect::<Vec<_>>());
}

#[test]
fn every_rule_of_version_keys_is_needed() {
    for rule in RULES {
        let mut search = Search::new();
        let broken = search.run(&Versions { removed: Some(rule) }, |_, _| ());
        let path = broken.unwrap_or_else(|| panic!("nothing becomes stale without {rule:?}"));
        println!("without {rule:?}, after {} of {} states, stale:", path.len(), search.found.len());
        println!("{}", listing(&path));
    }
}
