//! Scenarios of a session, driven by made-up events, without servers.
//!
//! Owns the tests of [`Session`]: events go in, effects come out, and time is what the test says.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::batcher::Batcher;
use super::error::SessionError;
use super::feed::event::{FeedEvent, FeedStatus};
use super::held::GateQuestion;
use super::in_flight::{Resumed, SinkOutcome};
use super::lookup_horizons::LookupHorizon;
use super::session::{Effect, Event, Session, SessionLimits};
use super::slow_queue::SlowEvent;
use super::watching::Watching;
use crate::change::{
    Begin, Cell, Change, Column, ColumnKind, Lsn, Operation, Relation, RelationId, Row, SourceEvent, TableName, Xid,
};
use crate::coherence::gate::Snapshot;
use crate::config::Document;
use crate::plan::{Plan, Removal, RuleId};
use crate::rules::{Planner, RuleSet};
use crate::sink::{DueDelete, DueDeletes};
use crate::watch::{Carrier, Observation, Watched};

const RULES: &str = "version: 1
rules:
  user: {table: users, delete: 'user:{id}'}
  post: {table: posts, pattern: 'posts:*'}
  version: {table: pages, bump: 'page:{id}'}
  twice: {table: orders, delete: 'order:{id}', again_after: 2s}
";

const REDIS_DOWN_MAX: Duration = Duration::from_secs(30);
const DRAIN_MAX: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(100);

/// A session, and the world around it.
struct World {
    session: Session,
    now: Instant,
    feed: FeedStatus,
}

impl World {
    /// A session whose sink compares histories.
    fn new() -> Self {
        let document = Document::parse(RULES, &|_| None).unwrap();
        let rules = RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap();
        let batcher = Batcher::new(Planner::new(Arc::new(rules)), document.settings.max_keys, false);
        let limits = SessionLimits { redis_down_max: REDIS_DOWN_MAX, drain_max: DRAIN_MAX };
        let now = Instant::now();
        let watched =
            Arc::new(Watched { tables: Vec::new(), views: Vec::new(), carrier: Carrier::Publication(String::new()) });
        let watching = Watching::new(Arc::clone(batcher.planner().rules()), watched, None);
        let session = Session::new(batcher, watching, limits, Some(Lsn::ZERO), now);
        Self { session, now, feed: FeedStatus { is_urgent: false, is_drained: true } }
    }

    /// A session whose history is proven, in a database where all transactions below 100 are
    /// visible.
    fn streaming() -> Self {
        let mut world = Self::new();
        assert_eq!(world.on(Event::Sink(SinkOutcome::Resumed(Resumed::default()))), ["measure"]);
        world.session.batcher().learn(Snapshot::parse("100:100:").unwrap(), None);
        world
    }

    /// Applies an event that does not end the session. Returns the effects.
    fn on(&mut self, event: Event) -> Vec<String> {
        self.session.apply(event, self.now).unwrap();
        self.effects()
    }

    /// The effects that follow by now, up to the end of the session.
    fn effects(&mut self) -> Vec<String> {
        let mut effects = Vec::new();
        while let Some(effect) = self.session.next_effect(self.feed, self.now) {
            effects.push(describe(&effect));
            if let Effect::Finish = effect {
                break;
            }
        }
        effects
    }

    /// A transaction that inserts rows with these ids arrives.
    fn receive(&mut self, xid: u32, lsn: u64, table: &str, ids: impl IntoIterator<Item = u64>) -> Vec<String> {
        self.begin(xid, lsn);
        ids.into_iter().for_each(|id| self.insert(table, id));
        self.take(SourceEvent::Commit { end_lsn: Lsn::new(lsn) });
        self.effects()
    }

    fn begin(&mut self, xid: u32, lsn: u64) {
        let commit_lsn = Lsn::new(lsn - 10);
        self.take(SourceEvent::Begin(Begin { xid: Xid::new(xid), commit_lsn, at: SystemTime::UNIX_EPOCH }));
    }

    fn insert(&mut self, table: &str, id: u64) {
        let columns = vec![Column { name: "id".into(), kind: ColumnKind::Text, in_identity: true }];
        let relation = Arc::new(Relation {
            id: RelationId::new(1),
            name: TableName::new("public", table),
            also: Vec::new(),
            columns,
        });
        let new = Some(Row::new(vec![Cell::Value(id.to_string().into())]));
        self.take(SourceEvent::Change(Change { relation, operation: Operation::Insert, old: None, new }));
    }

    fn take(&mut self, event: SourceEvent) {
        self.session.batcher().take(event, self.now).unwrap();
    }

    fn tick(&mut self) -> Result<Vec<String>, SessionError> {
        self.tick_with(Duration::ZERO)
    }

    /// A tick, when Redis has accepted nothing for this time.
    fn tick_with(&mut self, redis_idle: Duration) -> Result<Vec<String>, SessionError> {
        self.now += TICK;
        self.session.apply(Event::Tick { redis_idle }, self.now)?;
        Ok(self.effects())
    }

    fn applied(&mut self) -> Vec<String> {
        self.on(Event::Sink(SinkOutcome::Applied(DueDeletes::default())))
    }

    fn visible(&mut self, snapshot: &str) -> Vec<String> {
        self.on(Event::Visible(Snapshot::parse(snapshot).unwrap(), None))
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
    }
}

/// An effect in words: of a batch, its keys and what it says of the watermarks.
fn describe(effect: &Effect) -> String {
    match effect {
        Effect::Ask(GateQuestion::Snapshot) => "ask for a snapshot".to_owned(),
        Effect::Ask(GateQuestion::FreshPosition) => "ask for a fresh position".to_owned(),
        Effect::Apply(batch) => {
            let mut words = vec!["apply".to_owned()];
            words.extend(batch.plan.deletes().map(ToString::to_string));
            words.extend(batch.plan.bumps().map(|(key, lsn)| format!("{key}={}", lsn.offset())));
            let again = batch.again.add.iter().filter_map(|(_, _, removal)| match removal {
                Removal::Key(key) => Some(format!("again={key}")),
                _ => None,
            });
            words.extend(again);
            words.extend((!batch.again.done.is_empty()).then(|| format!("done={}", batch.again.done.len())));
            words.extend(batch.again.ask.then(|| "ask".to_owned()));
            words.extend(batch.record.map(|lsn| format!("record={}", lsn.offset())));
            words.extend(batch.probe.then(|| "probe".to_owned()));
            words.extend(batch.heartbeat.map(|_| "heartbeat".to_owned()));
            words.join(" ")
        }
        Effect::StartSlowWork(_) => "start slow work".to_owned(),
        Effect::Measure => "measure".to_owned(),
        Effect::Observe(_) => "observe".to_owned(),
        Effect::Finish => "finish".to_owned(),
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn nothing_is_sent_before_history_is_proven() {
    let mut world = World::new();
    assert!(!world.session.may_read());
    assert_eq!(world.receive(7, 20, "users", [1]), ["ask for a snapshot"]);
    assert_eq!(world.visible("100:100:"), NOTHING);
    assert_eq!(world.tick().unwrap(), NOTHING);
    assert_eq!(world.on(Event::Sink(SinkOutcome::Resumed(Resumed::default()))), ["apply user:1", "measure"]);
    assert!(world.session.may_read());
}

#[test]
fn an_outcome_that_proves_nothing_ends_the_session() {
    let mut world = World::new();
    let failed = Event::Sink(SinkOutcome::Failed(SessionError::Unproven));
    assert!(matches!(world.session.apply(failed, world.now), Err(SessionError::Unproven)));
    let mut world = World::streaming();
    assert_eq!(world.receive(7, 20, "users", [1]), ["apply user:1"]);
    let failed = Event::Sink(SinkOutcome::Failed(SessionError::Unproven));
    assert!(matches!(world.session.apply(failed, world.now), Err(SessionError::Unproven)));
    assert_eq!(world.session.slot_at(), Some(Lsn::ZERO), "nothing is confirmed");
}

#[test]
fn one_batch_is_in_flight_and_only_what_redis_recorded_is_confirmed() {
    let mut world = World::streaming();
    assert_eq!(world.receive(7, 20, "users", [1]), ["apply user:1"]);
    assert_eq!(world.receive(8, 30, "users", [2, 3]), NOTHING);
    assert_eq!(world.receive(9, 40, "users", [2]), NOTHING);
    assert_eq!(world.applied(), ["apply user:2 user:3 record=20"]);
    assert_eq!(world.session.slot_at(), Some(Lsn::ZERO));
    assert_eq!(world.applied(), ["apply record=40"]);
    assert_eq!(world.session.slot_at(), Some(Lsn::new(20)));
    assert_eq!(world.applied(), NOTHING);
    assert_eq!(world.session.slot_at(), Some(Lsn::new(40)));
}

#[test]
fn a_transaction_with_ddl_counts_as_applied_once_the_database_was_observed_after_it() {
    let mut world = World::streaming();
    assert_eq!(world.receive(7, 20, "users", [1]), ["apply user:1"]);
    world.begin(8, 30);
    world.insert("users", 2);
    world.take(SourceEvent::Ddl);
    world.take(SourceEvent::Commit { end_lsn: Lsn::new(30) });
    // The batch begins before the observation, and must not forget what waits for that.
    assert_eq!(world.applied(), ["apply user:2 record=20", "observe"]);
    assert_eq!(world.applied(), NOTHING);
    assert_eq!(world.receive(9, 40, "users", [3]), ["apply user:3"]);
    let (at, took) = (SystemTime::UNIX_EPOCH, Duration::ZERO);
    let seen = Observation { at, took, tables: Vec::new(), members: Vec::new(), views: Vec::new() };
    assert_eq!(world.on(Event::Observed(seen)), NOTHING);
    assert_eq!(world.applied(), ["apply record=40"]);
}

#[test]
fn the_reader_stops_when_too_much_waits() {
    let mut world = World::streaming();
    assert_eq!(world.receive(7, 20, "users", [1]), ["apply user:1"]);
    world.begin(8, 30);
    let mut id = 0;
    while world.session.reads() {
        world.insert("users", id);
        id += 1;
    }
    assert_eq!(id, 4096);
    assert_eq!(world.effects(), NOTHING, "the first batch is still in flight");
    assert_eq!(world.applied().len(), 1);
    assert!(world.session.reads(), "what filled it is in flight");
}

#[test]
fn what_is_stuck_too_long_makes_room() {
    let mut world = World::streaming();
    world.begin(200, 20);
    let mut id = 0;
    while world.session.reads() {
        world.insert("users", id);
        id += 1;
    }
    assert_eq!(world.effects(), ["ask for a snapshot"]);
    for _ in 0..11 {
        world.tick().unwrap();
        assert!(!world.session.reads());
    }
    world.tick().unwrap();
    assert!(world.session.reads(), "held transactions were collapsed");
}

#[test]
fn the_gate_releases_by_visibility() {
    let mut world = World::streaming();
    assert_eq!(world.receive(207, 20, "users", [1]), ["ask for a snapshot"]);
    assert_eq!(world.receive(208, 30, "users", [2]), NOTHING, "one question at a time");
    assert_eq!(world.visible("207:209:207"), ["apply user:2"], "207 is still in progress for every reader");
    assert_eq!(world.applied(), NOTHING);
    assert_eq!(world.session.slot_at(), Some(Lsn::ZERO), "the watermark does not pass what is stuck");
    let wakeup = world.session.wakeup(world.now).unwrap();
    assert!(wakeup > world.now, "not asked again at once");
    world.now = wakeup;
    assert_eq!(world.on(Event::Due), ["ask for a snapshot"]);
    assert_eq!(world.session.wakeup(world.now), None, "a question is under way");
    assert_eq!(world.visible("209:209:"), ["apply user:1"]);
    assert_eq!(world.applied(), ["apply record=30"]);
}

#[test]
fn a_late_version_key_waits_for_a_fresh_position() {
    let mut world = World::streaming();
    assert_eq!(world.receive(207, 20, "pages", [1]), ["ask for a snapshot"]);
    assert_eq!(world.receive(208, 30, "users", [2]), NOTHING);
    assert_eq!(world.visible("207:209:207"), ["apply user:2"]);
    assert_eq!(world.applied(), NOTHING);
    world.wait(Duration::from_secs(1));
    assert_eq!(world.on(Event::Due), ["ask for a snapshot"]);
    world.wait(Duration::from_secs(1));
    assert_eq!(world.visible("209:209:"), ["ask for a fresh position"], "readers may have made it from 30");
    let snapshot = Snapshot::parse("209:209:").unwrap();
    assert_eq!(world.on(Event::Visible(snapshot, Some(Lsn::new(50)))), ["apply page:1=50"]);
}

#[test]
fn slow_work_delays_only_what_it_belongs_to() {
    let mut world = World::streaming();
    assert_eq!(world.receive(7, 20, "posts", [1]), ["start slow work"]);
    assert_eq!(world.receive(8, 30, "users", [1]), ["apply user:1"]);
    assert_eq!(world.applied(), NOTHING, "20 is not in force");
    assert_eq!(world.receive(9, 40, "posts", [2]), NOTHING, "one at a time");
    let finished = || Event::Slow(SlowEvent::Finished { rest: Vec::new(), result: Ok(None) });
    assert_eq!(world.on(finished()), ["apply record=30", "start slow work"]);
    assert_eq!(world.applied(), NOTHING);
    assert_eq!(world.on(finished()), ["apply record=40"]);
    assert_eq!(world.applied(), NOTHING);
    assert_eq!(world.session.slot_at(), Some(Lsn::new(40)));
}

#[test]
fn what_saw_a_later_commit_is_recorded_only_when_that_is_in_force() {
    let mut world = World::streaming();
    assert_eq!(world.receive(7, 20, "posts", [1]), ["start slow work"]);
    let horizon = Some(LookupHorizon::Log(Lsn::new(35)));
    let finished = SlowEvent::Finished { rest: Vec::new(), result: Ok(horizon) };
    assert_eq!(world.on(Event::Slow(finished)), NOTHING);
    assert!(world.session.batcher().progress().awaits_source());
    assert_eq!(world.receive(8, 30, "users", [1]), ["apply user:1"]);
    world.take(SourceEvent::Progress { wal_end: Lsn::new(40) });
    assert!(!world.session.batcher().progress().awaits_source());
    assert_eq!(world.effects(), NOTHING, "what it saw is in flight");
    assert_eq!(world.applied(), ["apply record=30"]);
    // Nothing else is received up to there.
    assert_eq!(world.receive(9, 50, "posts", [2]), NOTHING);
    assert_eq!(world.applied(), ["start slow work"]);
    let horizon = Some(LookupHorizon::Log(Lsn::new(55)));
    let finished = SlowEvent::Finished { rest: Vec::new(), result: Ok(horizon) };
    assert_eq!(world.on(Event::Slow(finished)), NOTHING);
    world.take(SourceEvent::Progress { wal_end: Lsn::new(60) });
    assert_eq!(world.effects(), ["apply record=60"], "at once");
}

#[test]
fn what_slow_work_finds_is_sent_before_its_transaction_is_done() {
    let mut world = World::streaming();
    assert_eq!(world.receive(7, 20, "posts", [1]), ["start slow work"]);
    let piece = |key: &str| {
        let mut plan = Plan::default();
        plan.delete(RuleId::of("post"), key.into());
        plan
    };
    assert_eq!(world.on(Event::Slow(SlowEvent::Found(Box::new(piece("posts:1"))))), ["apply posts:1"]);
    let finished = SlowEvent::Finished { rest: vec![piece("posts:2")], result: Ok(None) };
    assert_eq!(world.on(Event::Slow(finished)), NOTHING);
    assert_eq!(world.applied(), ["apply posts:2"]);
    assert_eq!(world.applied(), ["apply record=20"]);
}

#[test]
fn slow_work_in_another_dataset_ends_the_session() {
    let mut world = World::streaming();
    assert_eq!(world.receive(7, 20, "posts", [1]), ["start slow work"]);
    let finished = Event::Slow(SlowEvent::Finished { rest: Vec::new(), result: Err(SessionError::Unproven) });
    assert!(matches!(world.session.apply(finished, world.now), Err(SessionError::Unproven)));
}

#[test]
fn a_second_delete_waits_in_redis_and_holds_nothing_back() {
    let mut world = World::streaming();
    assert_eq!(world.receive(7, 20, "orders", [1]), ["apply order:1 again=order:1"]);
    assert_eq!(world.applied(), ["apply record=20"]);
    assert_eq!(world.applied(), NOTHING);
    assert_eq!(world.session.slot_at(), Some(Lsn::new(20)), "Redis has it");
    let due = world.session.wakeup(world.now).unwrap();
    assert!(due >= world.now + Duration::from_secs(2));
    world.now = due;
    assert_eq!(world.on(Event::Due), ["apply ask"]);
    let delete = DueDelete::of(RuleId::of("twice"), Removal::Key("order:1".into()));
    let answer = DueDeletes { due: vec![delete], next: None };
    assert_eq!(world.on(Event::Sink(SinkOutcome::Applied(answer))), ["apply order:1 done=1"]);
    assert_eq!(world.applied(), NOTHING);
    assert_eq!(world.session.wakeup(world.now), None);
}

#[test]
fn stop_drains() {
    let mut world = World::streaming();
    assert_eq!(world.receive(7, 20, "users", [1]), ["apply user:1"]);
    assert_eq!(world.receive(8, 30, "users", [2]), NOTHING);
    assert_eq!(world.on(Event::Stop), NOTHING);
    assert!(!world.session.may_read() && world.session.is_draining());
    assert_eq!(world.applied(), ["apply user:2 record=20"]);
    assert_eq!(world.applied(), ["apply record=30"]);
    assert_eq!(world.applied(), ["finish"]);
    assert_eq!(world.session.slot_at(), Some(Lsn::new(30)));
}

#[test]
fn stop_waits_for_the_feed_and_not_for_history() {
    let mut world = World::streaming();
    world.feed.is_drained = false;
    assert_eq!(world.on(Event::Stop), NOTHING, "a claim is under way");
    world.feed.is_drained = true;
    assert_eq!(world.on(Event::Feed(FeedEvent::Arrived)), ["finish"]);
    let mut world = World::new();
    assert_eq!(world.on(Event::Stop), ["finish"], "nothing was received");
}

#[test]
fn stop_waits_no_longer_than_it_may() {
    let mut world = World::streaming();
    assert_eq!(world.receive(7, 20, "users", [1]), ["apply user:1"]);
    assert_eq!(world.on(Event::Stop), NOTHING);
    let until = world.session.wakeup(world.now).unwrap();
    assert_eq!(until, world.now + DRAIN_MAX);
    world.wait(DRAIN_MAX / 2);
    assert_eq!(world.on(Event::Due), NOTHING);
    world.now = until;
    assert_eq!(world.on(Event::Due), ["finish"]);
    assert_eq!(world.session.slot_at(), Some(Lsn::ZERO));
}

#[test]
fn redis_that_is_away_for_too_long_ends_the_session() {
    let away = REDIS_DOWN_MAX + TICK;
    let mut world = World::streaming();
    assert!(world.tick_with(away).is_ok(), "nothing is in flight");
    assert_eq!(world.receive(7, 20, "users", [1]), ["apply user:1"]);
    world.now += away;
    assert!(world.tick_with(Duration::ZERO).is_ok(), "Redis has accepted something since");
    assert!(matches!(world.tick_with(away), Err(SessionError::RedisAway(REDIS_DOWN_MAX))));
}

#[test]
fn redis_that_does_not_answer_at_the_beginning_ends_the_session() {
    let mut world = World::new();
    assert!(world.tick_with(REDIS_DOWN_MAX * 2).is_ok(), "the session is young");
    world.wait(REDIS_DOWN_MAX);
    assert!(matches!(world.tick_with(REDIS_DOWN_MAX * 2), Err(SessionError::RedisAway(_))));
}

#[test]
fn a_quiet_session_probes_redis_each_second() {
    let mut world = World::streaming();
    let mut probes = Vec::new();
    for tick in 1..=30 {
        let effects = world.tick().unwrap();
        if !effects.is_empty() {
            assert_eq!(effects, ["apply ask record=0 probe", "measure"]);
            probes.push(tick);
            assert_eq!(world.applied(), NOTHING);
        }
    }
    assert_eq!(probes, [10, 20, 30]);
}

#[test]
fn redis_hears_that_all_is_current_once_the_written_log_is_applied() {
    let mut world = World::streaming();
    assert_eq!(world.receive(7, 20, "users", [1]), ["apply user:1"]);
    assert_eq!(world.on(Event::Feed(FeedEvent::LogWritten(Lsn::new(20), world.now))), NOTHING);
    assert_eq!(world.applied(), ["apply record=20 probe heartbeat"]);
    assert_eq!(world.applied(), NOTHING);
}

#[test]
fn a_keepalive_counts_only_while_nothing_is_open() {
    let mut world = World::streaming();
    let keepalive = |wal_end| SourceEvent::Progress { wal_end: Lsn::new(wal_end) };
    world.begin(7, 20);
    world.insert("users", 1);
    world.take(keepalive(90));
    assert_eq!(world.tick().unwrap(), NOTHING);
    world.take(SourceEvent::Commit { end_lsn: Lsn::new(20) });
    assert_eq!(world.effects(), ["apply user:1"]);
    world.take(keepalive(90));
    assert_eq!(world.applied(), ["apply record=20"]);
    assert_eq!(world.applied(), NOTHING);
    world.take(keepalive(95));
    assert_eq!(world.effects(), NOTHING, "it can wait");
    assert_eq!(world.tick().unwrap(), ["apply record=95"], "until the next tick");
    world.applied();
    world.take(keepalive(99));
    world.feed.is_urgent = true;
    assert_eq!(world.effects(), ["apply record=99"], "or until the server asks");
}
