//! The protocol of DESIGN.md, section 3, as a finite model whose every reachable state is visited.
//!
//! Owns the steps around one cached key: two transactions that both change it, the daemon, two
//! fillers, a PostgreSQL replica, and a Redis that evicts, fails over once and loses its tail. What
//! tags and version keys add is modelled beside it, each with its own smaller state. It must not
//! know the code: it checks that the rules suffice and that none can be left out. Invariant: a step
//! is one atomic action on one server, and whatever may come between two steps does; two actions
//! are one step only where the comment says why that hides nothing.

#![allow(clippy::print_stdout)]

mod search;
mod tags;
mod versions;

use search::{Model, Next, Search, Step, Witness, listing};

/// A position in PostgreSQL's log, which also names the transaction that ends there; 0 is before
/// both. The writers differ in nothing, so the first to commit is called 1.
type Position = u8;

/// The last position. Two suffice for a transaction to overtake an earlier one.
const LAST: Position = 2;

/// Each reads once. A filler that reads again is equivalent to another one that starts later,
/// because tokens never repeat.
const FILLERS: u8 = 2;

/// A set of transactions as bits: what a snapshot saw, so what a cached value was derived from.
type Transactions = u8;

fn only(transaction: Position) -> Transactions {
    1 << (transaction - 1)
}

fn up_to(position: Position) -> Transactions {
    (1 << position) - 1
}

/// A rule that is removed from the protocol; the comment says what happens instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// The daemon applies a transaction as soon as it is streamed.
    Gate,
    /// A fill stores, whatever the key contains.
    Lease,
    /// A fill stores if the key contains a lease, even another filler's.
    LeaseTokenPerGrant,
    /// The statement on the primary uses a snapshot from before the grant.
    SnapshotAfterGrant,
    /// `started` is read before the grant.
    StartedReadAfterGrant,
    /// The delete precedes `started`.
    StartedBeforeDelete,
    /// A replica is read wherever it is in the log.
    ReplicaCheck,
    /// The replica returns its position and the value in one statement, so the snapshot is the
    /// older of the two.
    ReplicaCheckSeparate,
    /// The daemon confirms to the slot what it received.
    AckAfterRedis,
    /// A keepalive counts though transactions are in flight.
    KeepaliveOnlyWhenIdle,
    /// The daemon continues with whatever Redis contains.
    ProveHistory,
    /// After a failover that lost nothing recorded, ops that were answered but not recorded are not
    /// sent again.
    ResendAfterFailover,
    /// After such a failover the promise holds again at once, before those ops were sent again.
    SuspendUntilResent,
    /// A new epoch deletes without raising `started`.
    EpochRaisesStarted,
    /// A new epoch claims that all of the log is applied, since everything was deleted.
    EpochClaimsOnlyRecorded,
}

const RULES: [Rule; 15] = [
    Rule::Gate,
    Rule::Lease,
    Rule::LeaseTokenPerGrant,
    Rule::SnapshotAfterGrant,
    Rule::StartedReadAfterGrant,
    Rule::StartedBeforeDelete,
    Rule::ReplicaCheck,
    Rule::ReplicaCheckSeparate,
    Rule::AckAfterRedis,
    Rule::KeepaliveOnlyWhenIdle,
    Rule::ProveHistory,
    Rule::ResendAfterFailover,
    Rule::SuspendUntilResent,
    Rule::EpochRaisesStarted,
    Rule::EpochClaimsOnlyRecorded,
];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Key {
    #[default]
    Empty,
    /// Its token is the filler that it was granted to.
    Lease(u8),
    Value(Transactions),
}

/// What one Redis server contains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Dataset {
    key: Key,
    started: Position,
    applied: Position,
}

/// The Redis replica. It follows asynchronously. Only its position at the failover matters, so it
/// copies once, at any time, instead of often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum RedisReplica {
    #[default]
    Following,
    Stands(Dataset),
    Promoted,
}

/// The daemon's progress with one transaction. A command and its reply are one step: a slow reply
/// delays the daemon, which may be slow anyway; a lost one breaks the connection, and everything is
/// sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Sent {
    #[default]
    Nothing,
    Half,
    Whole,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Phase {
    #[default]
    Running,
    /// Its process or the connection to Redis is new: it has not checked what Redis contains.
    Resuming,
    EpochStarted,
    EpochDeleted,
}

/// The daemon's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Daemon {
    phase: Phase,
    sent: [Sent; LAST as usize],
    /// What Redis acknowledged to have recorded as applied.
    recorded: Position,
    /// After a failover: what may have been in force before, and is not again yet.
    owed: Transactions,
}

impl Daemon {
    /// The daemon as it resumes from a position: everything up to there is in force, the rest will
    /// be sent.
    fn from(position: Position, recorded: Position, phase: Phase) -> Self {
        let mut sent = [Sent::Nothing; LAST as usize];
        sent[..usize::from(position)].fill(Sent::Whole);
        Self { phase, sent, recorded, owed: 0 }
    }

    fn done(&self) -> Transactions {
        (1..=LAST).zip(self.sent).filter(|&(_, sent)| sent == Sent::Whole).map(|(n, _)| only(n)).sum()
    }

    /// The position up to which everything is done, without a gap.
    fn applied(&self) -> Position {
        self.done().trailing_ones() as Position
    }
}

/// The state of a filler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Filler {
    #[default]
    Idle,
    Leased,
    /// The lease, and `started` as read under it.
    Started(Position),
    /// The replica had replayed enough; it can only advance.
    ReplicaChecked,
    Read(Transactions),
    Done,
    /// Mutants: what was read before the grant.
    EarlyStarted(Position),
    EarlySnapshot(Transactions),
    /// Mutant: the replica's snapshot, before its position is queried.
    Unchecked(Position, Transactions),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    /// The end of PostgreSQL's log. The daemon has received everything before it.
    log: Position,
    visible: Transactions,
    /// The position that the PostgreSQL replica has replayed, which may include invisible commits.
    replayed: Position,
    /// The position that the slot has; it survives the daemon.
    confirmed: Position,
    redis: Dataset,
    redis_replica: RedisReplica,
    daemon: Daemon,
    crashed: bool,
    fillers: [Filler; FILLERS as usize],
    /// What the daemon ever put in force, also on a Redis that was lost. No actor can read it.
    acknowledged: Transactions,
    /// A failover happened, and the daemon has not confirmed the new primary: readers see that the
    /// heartbeat is missing, and nothing is promised.
    suspended: bool,
}

impl State {
    /// Against the promise: the value lacks a transaction that is visible and was acknowledged, by
    /// the daemon or by `applied`.
    fn is_stale(&self) -> bool {
        let acknowledged = self.acknowledged | up_to(self.redis.applied);
        !self.suspended && self.misses(acknowledged & self.visible)
    }

    /// Whether there is a value and it is older than one of these transactions.
    fn misses(&self, wanted: Transactions) -> bool {
        matches!(self.redis.key, Key::Value(seen) if wanted & !seen != 0)
    }

    /// Nothing is in flight and everything is confirmed.
    fn is_quiet(&self) -> bool {
        let all = up_to(self.log);
        let done = self.daemon.phase == Phase::Running && !self.suspended && self.daemon.done() == all;
        done && self.visible == all && self.confirmed == self.log
    }

    fn note_sent(&mut self, transaction: Position, sent: Sent) {
        self.daemon.sent[usize::from(transaction) - 1] = sent;
        if sent == Sent::Whole {
            self.acknowledged |= only(transaction);
            self.daemon.owed &= !only(transaction);
            self.suspended &= self.daemon.owed != 0;
        }
    }
}

impl Next<'_, State> {
    /// A commit is in the log, and received by the daemon, before it is visible: long before, if it
    /// waits for a synchronous standby.
    fn postgres(&mut self) {
        let State { log, visible, replayed, .. } = self.from;
        if log < LAST {
            self.may("# is in the log and streamed", log + 1, |s| s.log += 1);
        }
        for transaction in (1..=log).filter(|&transaction| visible & only(transaction) == 0) {
            self.may("# becomes visible on the primary", transaction, |s| s.visible |= only(transaction));
        }
        if replayed < log {
            self.may("the replica replays #", replayed + 1, |s| s.replayed += 1);
        }
    }

    fn redis(&mut self) {
        if self.from.redis.key != Key::Empty {
            self.may("Redis evicts the key", 0, |s| s.redis.key = Key::Empty);
        }
        match self.from.redis_replica {
            RedisReplica::Following => self.may("the Redis replica falls behind from here on", 0, |s| {
                s.redis_replica = RedisReplica::Stands(s.redis);
            }),
            // The daemon's connection breaks at the same time, so nothing reaches the new primary
            // before a resume.
            RedisReplica::Stands(copy) => self.may("Redis fails over to its replica", 0, |s| {
                s.redis = copy;
                s.redis_replica = RedisReplica::Promoted;
                s.daemon.phase = Phase::Resuming;
                s.suspended = true;
            }),
            RedisReplica::Promoted => {}
        }
    }

    /// The GET before it is not a step: its result may have changed, and `NX` checks again. A
    /// filler that finds the key taken serves the value or waits, and changes nothing.
    fn grant(&mut self, filler: u8, then: Filler) {
        if self.from.redis.key == Key::Empty {
            self.may("filler # is granted the lease", filler, |s| {
                s.redis.key = Key::Lease(filler);
                s.fillers[usize::from(filler)] = then;
            });
        }
    }
}

/// The protocol, whole or with one rule removed.
struct Protocol {
    removed: Option<Rule>,
}

impl Model for Protocol {
    type State = State;

    fn next(&self, from: State, steps: &mut Vec<(Step, State)>) {
        let next = &mut Next { from, steps };
        next.postgres();
        next.redis();
        self.daemon(next);
        (0..FILLERS).for_each(|filler| self.filler(next, filler));
    }

    fn is_broken(&self, state: &State) -> bool {
        state.is_stale() || (state.is_quiet() && state.misses(up_to(state.confirmed)))
    }
}

impl Protocol {
    fn has(&self, rule: Rule) -> bool {
        self.removed != Some(rule)
    }

    fn daemon(&self, next: &mut Next<'_, State>) {
        let s = next.from;
        if !s.crashed {
            next.may("the daemon crashes and starts again", 0, |s| {
                s.crashed = true;
                s.daemon = Daemon::from(s.confirmed, s.confirmed, Phase::Resuming);
            });
        }
        // This goes to PostgreSQL, so it can also happen after Redis has failed over.
        let may_confirm = if self.has(Rule::AckAfterRedis) { s.daemon.recorded } else { s.log };
        if s.confirmed < may_confirm {
            next.may("the daemon confirms # to the slot", may_confirm, |s| s.confirmed = may_confirm);
        }
        let known = s.daemon.recorded.max(s.confirmed);
        match s.daemon.phase {
            Phase::Running => self.invalidate(next),
            Phase::Resuming if s.redis.applied >= known || !self.has(Rule::ProveHistory) => self.resume(next, known),
            Phase::Resuming => next.may("resume: history is lost, a new epoch raises started to #", s.log, |s| {
                s.redis.started = if self.has(Rule::EpochRaisesStarted) { s.log } else { s.redis.started };
                s.daemon.phase = Phase::EpochStarted;
            }),
            Phase::EpochStarted => next.may("the new epoch deletes the key", 0, |s| {
                s.redis.key = Key::Empty;
                s.daemon.phase = Phase::EpochDeleted;
            }),
            // Everything recorded was visible before the delete. The rest of the log may not have
            // been: it stays in flight.
            Phase::EpochDeleted => {
                let applied = if self.has(Rule::EpochClaimsOnlyRecorded) { known } else { s.log };
                next.may("the new epoch sets applied to #", applied, |s| {
                    s.redis.applied = applied;
                    s.daemon = Daemon::from(known, applied, Phase::Running);
                    s.suspended = false;
                });
            }
        }
    }

    /// Redis contains everything that it once reported to contain.
    fn resume(&self, next: &mut Next<'_, State>, known: Position) {
        next.may("resume: the daemon goes on after #", known, |s| {
            let before = s.daemon.sent;
            s.daemon = Daemon::from(known, s.daemon.recorded, Phase::Running);
            for (sent, before) in s.daemon.sent.iter_mut().zip(before) {
                if before == Sent::Whole && !self.has(Rule::ResendAfterFailover) {
                    *sent = before;
                }
            }
            // A daemon that crashed does not know what was in force; but only visible commits were.
            if s.suspended && self.has(Rule::SuspendUntilResent) {
                s.daemon.owed = s.visible & !s.daemon.done();
            }
            s.suspended &= s.daemon.owed != 0;
        });
    }

    /// Each transaction once it is visible, in any order.
    fn invalidate(&self, next: &mut Next<'_, State>) {
        let s = next.from;
        for (transaction, sent) in (1..=s.log).zip(s.daemon.sent) {
            let sent = match sent {
                // The gate is not a step of its own: what was visible once still is.
                Sent::Nothing if s.visible & only(transaction) != 0 || !self.has(Rule::Gate) => Sent::Half,
                Sent::Half => Sent::Whole,
                Sent::Nothing | Sent::Whole => continue,
            };
            if (sent == Sent::Half) == self.has(Rule::StartedBeforeDelete) {
                next.may("the daemon raises started to #", transaction, |s| {
                    s.redis.started = s.redis.started.max(transaction);
                    s.note_sent(transaction, sent);
                });
            } else {
                next.may("the daemon deletes the key for #", transaction, |s| {
                    s.redis.key = Key::Empty;
                    s.note_sent(transaction, sent);
                });
            }
        }
        let mut raise = |words, to: Position| {
            if s.daemon.recorded < to {
                next.may(words, to, |s| {
                    s.redis.applied = s.redis.applied.max(to);
                    s.daemon.recorded = to;
                });
            }
        };
        raise("the daemon raises applied to #", s.daemon.applied());
        if s.daemon.applied() == s.log || !self.has(Rule::KeepaliveOnlyWhenIdle) {
            raise("after a keepalive the daemon raises applied to #", s.log);
        }
    }

    fn filler(&self, next: &mut Next<'_, State>, filler: u8) {
        let (s, at) = (next.from, usize::from(filler));
        let mut may = |words, then| next.may(words, filler, |s| s.fillers[at] = then);
        match s.fillers[at] {
            // They are alike, so the first to begin may be called 0.
            Filler::Idle if at > 0 && s.fillers[at - 1] == Filler::Idle => {}
            Filler::Idle if !self.has(Rule::StartedReadAfterGrant) => {
                may("filler # reads started", Filler::EarlyStarted(s.redis.started));
            }
            Filler::Idle if !self.has(Rule::SnapshotAfterGrant) => {
                may("filler # takes a snapshot of the primary", Filler::EarlySnapshot(s.visible));
            }
            Filler::Idle => next.grant(filler, Filler::Leased),
            Filler::EarlyStarted(started) => next.grant(filler, Filler::Started(started)),
            Filler::EarlySnapshot(seen) => next.grant(filler, Filler::Read(seen)),
            Filler::Leased => may("filler # reads started", Filler::Started(s.redis.started)),
            Filler::Started(started) => {
                may("filler # reads the primary", Filler::Read(s.visible));
                if !self.has(Rule::ReplicaCheckSeparate) {
                    may("filler # takes a snapshot of the replica", Filler::Unchecked(started, up_to(s.replayed)));
                } else if s.replayed >= started || !self.has(Rule::ReplicaCheck) {
                    may("filler # turns to the replica", Filler::ReplicaChecked);
                }
            }
            Filler::ReplicaChecked => may("filler # reads the replica", Filler::Read(up_to(s.replayed))),
            Filler::Unchecked(started, seen) if s.replayed >= started => {
                may("filler # finds the replica far enough", Filler::Read(seen));
            }
            Filler::Read(seen) => self.fill(next, filler, seen),
            Filler::Unchecked(..) | Filler::Done => {}
        }
    }

    fn fill(&self, next: &mut Next<'_, State>, filler: u8, seen: Transactions) {
        let stores = match next.from.redis.key {
            Key::Lease(_) if !self.has(Rule::LeaseTokenPerGrant) => true,
            key => key == Key::Lease(filler) || !self.has(Rule::Lease),
        };
        let words = if stores { "filler # stores what it read" } else { "filler # finds its lease gone" };
        next.may(words, filler, |s| {
            s.redis.key = if stores { Key::Value(seen) } else { s.redis.key };
            s.fillers[usize::from(filler)] = Filler::Done;
        });
    }
}

const WITNESSES: [Witness<State>; 8] = [
    ("a value with both transactions, all confirmed", |_, to| {
        to.is_quiet() && to.redis.key == Key::Value(up_to(LAST)) && to.log == LAST
    }),
    (
        "a value from a replica that is ahead of the primary",
        |_, to| matches!(to.redis.key, Key::Value(seen) if seen & !to.visible != 0),
    ),
    ("a value with the second transaction, not the first", |_, to| to.redis.key == Key::Value(only(2))),
    ("the second transaction in force before the first", |_, to| to.acknowledged == only(2)),
    ("a fill refused because another one got the lease", |from, to| {
        matches!(from.redis.key, Key::Lease(1)) && from.fillers[0] != to.fillers[0] && to.fillers[0] == Filler::Done
    }),
    ("a value stored after a crash and a failover", |from, to| {
        let stored = matches!((from.redis.key, to.redis.key), (Key::Lease(_), Key::Value(_)));
        stored && to.crashed && to.redis_replica == RedisReplica::Promoted && !to.suspended
    }),
    ("a failover that lost only what was not recorded, and that was sent again", |from, to| {
        from.daemon.owed != 0 && from.suspended && !to.suspended
    }),
    ("a lease granted during a new epoch", |from, to| {
        from.daemon.phase == Phase::EpochDeleted
            && matches!((from.redis.key, to.redis.key), (Key::Empty, Key::Lease(_)))
    }),
];

#[test]
fn the_full_protocol_is_safe() {
    let mut search = Search::new();
    let mut missing: Vec<Witness<State>> = WITNESSES.into();
    let mut ends = 0;
    let broken = search.run(&Protocol { removed: None }, |from, to| match to {
        Some(to) => missing.retain(|(_, reached)| !reached(from, to)),
        None => {
            assert!(from.is_quiet() && from.confirmed == LAST, "stuck in {from:?}");
            ends += 1;
        }
    });
    println!("{} states, {} transitions", search.found.len(), search.transitions);
    // The number that docs/guarantees.md names.
    assert!(broken.is_some() || (search.found.len(), search.transitions) == (1_465_780, 8_030_615));
    if let Some(path) = broken {
        panic!("stale after {} steps:\n{}", path.len(), listing(&path));
    }
    // No step can be undone, so every run ends; and every end is at rest, with everything
    // confirmed.
    assert!(ends > 0);
    assert!(missing.is_empty(), "never reached: {:?}", missing.iter().map(|(words, _)| words).collect::<Vec<_>>());
}

#[test]
fn every_rule_is_needed() {
    for rule in RULES {
        let mut search = Search::new();
        let broken = search.run(&Protocol { removed: Some(rule) }, |_, _| ());
        let path = broken.unwrap_or_else(|| panic!("nothing becomes stale without {rule:?}"));
        println!("without {rule:?}, after {} of {} states, stale:", path.len(), search.found.len());
        println!("{}", listing(&path));
    }
}
