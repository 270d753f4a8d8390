//! The state machine of one session with the source.
//!
//! Owns the decisions: when to ask the primary, what to send, when to stop. It must not do I/O,
//! decode, plan or encode; [`super::driver`] waits for its events and performs its effects.
//! Synchronous; time is an argument. Invariants: nothing is sent before history is proven; the
//! reader stops when too much waits; an outcome that proves nothing ends the session.

use std::time::{Duration, Instant};

use super::batcher::Batcher;
use super::error::SessionError;
use super::feed::event::{FeedEvent, FeedStatus};
use super::held::GateQuestion;
use super::in_flight::{Resumed, SinkOutcome};
use super::slow_queue::{SlowEvent, SlowWork};
use super::watching::Watching;
use crate::backoff::Notices;
use crate::change::{Lsn, RelationId};
use crate::coherence::gate::Snapshot;
use crate::sink::Batch;
use crate::watch::Observation;

/// How often Redis is asked whether it is still the same dataset, and how often the heartbeat is
/// renewed.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// How long the reader waits when more is held than may be kept.
const STUCK_MAX: Duration = Duration::from_secs(1);

/// A lag of this length is logged.
const LAG_NOTABLE: Duration = Duration::from_secs(10);

/// What the session waits for.
pub(super) enum Event {
    /// The daemon is asked to stop.
    Stop,
    /// A tenth of a second has passed. Redis has accepted nothing for `redis_idle`.
    Tick { redis_idle: Duration },
    /// The moment that [`Session::wakeup`] named has come.
    Due,
    /// The sink is idle again.
    Sink(SinkOutcome),
    /// The primary's answer to [`Effect::Ask`].
    Visible(Snapshot, Option<Lsn>),
    /// Slow work has found ops, or has finished.
    Slow(SlowEvent),
    /// Something happened at the source.
    Feed(FeedEvent),
    /// The database was observed, after [`Effect::Observe`].
    Observed(Observation),
}

/// What the driver must do.
#[derive(Debug)]
pub(super) enum Effect {
    /// Asks the primary. [`Event::Visible`] follows.
    Ask(GateQuestion),
    /// Sends a batch to Redis. [`Event::Sink`] follows.
    Apply(Box<Batch>),
    /// Starts the worker. [`Event::Slow`] follows, once for each piece and once for the end.
    StartSlowWork(Box<SlowWork>),
    /// Asks how far the log is written. [`FeedEvent::LogWritten`] follows.
    Measure,
    /// Observes the database; the rules concern these tables so far. [`Event::Observed`] follows.
    Observe(Vec<RelationId>),
    /// Confirms what is in force to the source, and ends the session.
    Finish,
}

/// The limits of a session, from the settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionLimits {
    /// How long Redis may refuse everything before the session ends, so that PostgreSQL can shut
    /// down.
    pub(super) redis_down_max: Duration,
    /// How long to keep applying received changes before exit.
    pub(super) drain_max: Duration,
}

/// One session with the source. At its beginning the sink compares histories.
pub(super) struct Session {
    limits: SessionLimits,
    batcher: Batcher,
    watching: Watching,
    /// The position of the slot at the beginning; none if the source is an outbox.
    slot_from: Option<Lsn>,
    /// History is proven: what is read may be sent.
    is_resumed: bool,
    /// The daemon is asked to stop, and applies what it received until this moment.
    draining_until: Option<Instant>,
    /// The time to drain is over.
    is_over: bool,
    /// Since when the sink works; none while it is idle.
    sink_busy_since: Option<Instant>,
    is_asking: bool,
    is_slow_running: bool,
    /// A tick has passed: what could wait is recorded.
    is_urgent: bool,
    measure_due: bool,
    /// Since when more is held than may be kept.
    stuck_since: Option<Instant>,
    /// Everything committed before this moment is in force.
    current: Instant,
    lag_notices: Notices,
    probed_at: Instant,
}

impl Session {
    /// The state at the beginning, when the sink compares histories.
    pub(super) fn new(
        batcher: Batcher,
        watching: Watching,
        limits: SessionLimits,
        slot_from: Option<Lsn>,
        now: Instant,
    ) -> Self {
        Self {
            limits,
            batcher,
            watching,
            slot_from,
            is_resumed: false,
            draining_until: None,
            is_over: false,
            sink_busy_since: Some(now),
            is_asking: false,
            is_slow_running: false,
            is_urgent: false,
            measure_due: false,
            stuck_since: None,
            current: now,
            lag_notices: Notices::default(),
            probed_at: now,
        }
    }

    /// The batcher, which the feed fills with what it has read. Everything else goes through
    /// [`Session::apply`].
    pub(super) fn batcher(&mut self) -> &mut Batcher {
        &mut self.batcher
    }

    pub(super) fn into_batcher(self) -> Batcher {
        self.batcher
    }

    /// The position of the slot, if one is read.
    pub(super) fn slot_at(&self) -> Option<Lsn> {
        self.slot_from.map(|from| from.max(self.batcher.confirmed()))
    }

    /// Whether the source may be asked for more.
    pub(super) fn may_read(&self) -> bool {
        self.is_resumed && !self.is_draining()
    }

    /// Whether changes are read from the source, so that its silence means something.
    pub(super) fn reads(&self) -> bool {
        self.is_resumed && !self.batcher.is_full()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining_until.is_some()
    }

    /// The next moment at which something is due, whether anything happens or not.
    pub(super) fn wakeup(&mut self, now: Instant) -> Option<Instant> {
        let ask_at = (!self.is_asking && self.batcher.question().is_some()).then(|| self.batcher.held().ask_at(now));
        let observe_at = self.watching.due().filter(|_| self.is_resumed);
        self.draining_until.into_iter().chain(ask_at).chain(observe_at).chain(self.batcher.next_repeat()).min()
    }

    /// Changes the state. [`Session::next_effect`] returns what follows. An error ends the session.
    pub(super) fn apply(&mut self, event: Event, now: Instant) -> Result<(), SessionError> {
        match event {
            Event::Stop => self.draining_until = Some(now + self.limits.drain_max),
            Event::Tick { redis_idle } => return self.on_tick(redis_idle, now),
            Event::Due => self.on_due(now),
            Event::Sink(outcome) => return self.on_sink(outcome, now),
            Event::Visible(snapshot, fresh) => {
                self.is_asking = false;
                self.batcher.learn(snapshot, fresh);
            }
            Event::Slow(SlowEvent::Found(piece)) => self.batcher.take_found(*piece),
            Event::Slow(SlowEvent::Finished { rest, result }) => {
                rest.into_iter().for_each(|piece| self.batcher.take_found(piece));
                self.is_slow_running = false;
                self.batcher.finish_slow_work(result?);
            }
            Event::Feed(FeedEvent::Arrived) => {}
            Event::Feed(FeedEvent::LogWritten(position, asked)) => {
                self.batcher.caught_up(position, asked);
                let bytes = position.offset().saturating_sub(self.slot_at().unwrap_or(position).offset());
                self.log_lag(Some(bytes), now);
            }
            Event::Feed(FeedEvent::Surveyed) => self.log_lag(None, now),
            Event::Observed(seen) => {
                let change = self.watching.observed(seen, now);
                self.batcher.catalog_changed(change);
            }
        }
        Ok(())
    }

    /// The next thing that the driver must do; none once the session only waits.
    pub(super) fn next_effect(&mut self, feed: FeedStatus, now: Instant) -> Option<Effect> {
        if self.is_over {
            return Some(Effect::Finish);
        }
        if let Some(question) = self.next_question(now) {
            return Some(Effect::Ask(question));
        }
        let is_urgent = std::mem::take(&mut self.is_urgent) || feed.is_urgent;
        if self.sink_busy_since.is_none()
            && let Some(batch) = self.batcher.next_batch(is_urgent)
        {
            self.sink_busy_since = Some(now);
            return Some(Effect::Apply(Box::new(batch)));
        }
        if let Some(work) = self.next_slow_work() {
            return Some(Effect::StartSlowWork(Box::new(work)));
        }
        if std::mem::take(&mut self.measure_due) {
            return Some(Effect::Measure);
        }
        if let Some(known) = self.next_observation(now) {
            return Some(Effect::Observe(known));
        }
        let is_drained = self.batcher.is_drained() && feed.is_drained;
        (self.is_draining() && (is_drained || !self.is_resumed)).then_some(Effect::Finish)
    }

    fn next_question(&mut self, now: Instant) -> Option<GateQuestion> {
        if self.is_asking {
            return None;
        }
        let question = self.batcher.question()?;
        if self.batcher.held().ask_at(now) > now {
            return None;
        }
        self.batcher.held().asked(now);
        self.is_asking = true;
        Some(question)
    }

    fn next_observation(&mut self, now: Instant) -> Option<Vec<RelationId>> {
        if !self.is_resumed {
            return None;
        }
        if self.batcher.catalog().take_due() {
            self.watching.hint(now);
        }
        let known = self.watching.take_due(now)?;
        let truncated = self.batcher.catalog().begin();
        self.watching.truncated(truncated);
        Some(known)
    }

    fn next_slow_work(&mut self) -> Option<SlowWork> {
        if !self.is_resumed || self.is_slow_running {
            return None;
        }
        let work = self.batcher.next_slow_work()?;
        if work.is_empty() {
            // Only messages and tickets waited.
            self.batcher.finish_slow_work(None);
            return None;
        }
        self.is_slow_running = true;
        Some(work)
    }

    fn on_sink(&mut self, outcome: SinkOutcome, now: Instant) -> Result<(), SessionError> {
        self.sink_busy_since = None;
        match outcome {
            SinkOutcome::Resumed(Resumed { started, catalog }) => {
                self.batcher.resume(started);
                if let Some(change) = self.watching.begin(catalog.as_ref(), now) {
                    self.batcher.catalog_changed(change);
                }
                self.is_resumed = true;
                self.current = now;
                self.measure_due = true;
            }
            SinkOutcome::Applied(due) => {
                if let Some(moment) = self.batcher.applied(due, now) {
                    self.current = moment;
                    if self.lag_notices.any() {
                        tracing::info!("caught up with PostgreSQL");
                        self.lag_notices.reset();
                    }
                }
            }
            SinkOutcome::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn on_due(&mut self, now: Instant) {
        if self.draining_until.is_some_and(|until| until <= now) {
            tracing::warn!(
                seconds = self.limits.drain_max.as_secs_f64(),
                "stopped before everything received was in force; it will be sent again"
            );
            self.is_over = true;
        }
        self.batcher.wake(now);
    }

    fn on_tick(&mut self, redis_idle: Duration, now: Instant) -> Result<(), SessionError> {
        self.make_room(now);
        self.is_urgent = true;
        let down_max = self.limits.redis_down_max;
        if self.sink_busy_since.is_some_and(|since| (now - since).min(redis_idle) > down_max) {
            return Err(SessionError::RedisAway(down_max));
        }
        if self.is_resumed && now - self.probed_at >= PROBE_EVERY {
            self.probed_at = now;
            self.batcher.probe();
            if self.batcher.question().is_none() {
                self.batcher.held().forget_snapshot();
            }
            self.measure_due = true;
        }
        Ok(())
    }

    /// Transactions that are stuck must not hold up those behind them, whatever their size.
    fn make_room(&mut self, now: Instant) {
        if !self.batcher.holds_too_much() {
            self.stuck_since = None;
            return;
        }
        if now - *self.stuck_since.get_or_insert(now) > STUCK_MAX {
            let messages_dropped = self.batcher.collapse();
            tracing::warn!(
                messages_dropped,
                "too much is committed and not yet visible, probably because a synchronous standby is missing: \
                 everything its rules match will be deleted instead of single keys"
            );
            self.stuck_since = None;
        }
    }

    /// Logs a lag that is notable: for how long not everything was in force, and how many bytes of
    /// log are written and not confirmed to a slot.
    fn log_lag(&mut self, bytes: Option<u64>, now: Instant) {
        let behind = now.saturating_duration_since(self.current);
        if behind < LAG_NOTABLE || !self.lag_notices.due(now) {
            return;
        }
        let seconds = behind.as_secs();
        match self.batcher.stuck() {
            None => tracing::warn!(bytes, seconds, "invalidations lag behind PostgreSQL"),
            Some(xid) => tracing::warn!(
                bytes,
                seconds,
                xid = xid.number(),
                "invalidations lag behind PostgreSQL: this transaction is committed and not yet visible, \
                 probably because a standby of synchronous_standby_names is missing"
            ),
        }
    }
}
