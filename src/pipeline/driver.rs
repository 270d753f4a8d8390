//! Drives one session: waits for its events and performs its effects.
//!
//! Owns the I/O of a session: the source, the sink, the worker, the questions to the primary. It
//! must not decide; [`Session`] does. Invariant: the timer comes before the source, which may
//! always have something.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::batcher::Batcher;
use super::error::SessionError;
use super::feed::Feed;
use super::feed::opened::OpenSource;
use super::held::GateQuestion;
use super::in_flight::SinkOutcome;
use super::resume::resume;
use super::running::Running;
use super::session::{Effect, Event, Session, SessionLimits};
use super::slow_worker::{SlowRun, SlowWorker};
use super::watching::Watching;
use crate::change::{Lsn, RelationId};
use crate::coherence::gate::Snapshot;
use crate::coherence::primary::{Primary, PrimaryError};
use crate::config::{Mode, Settings};
use crate::rules::Planner;
use crate::sink::{Batch, Liveness, OwnerRecord, Sink, Unproven};
use crate::watch::{Observation, Observer};

/// How often the session looks after what no event announces.
const TICK_EVERY: Duration = Duration::from_millis(100);

/// How long at least values are taken as the database has them, before they are converted again.
const AS_STORED_FOR: Duration = Duration::from_secs(10);

/// One session and its I/O.
pub(super) struct Driver<'a> {
    settings: &'a Settings,
    session: Session,
    feed: Feed,
    primary: Arc<Primary>,
    /// The sink, unless it works.
    sink: Option<Box<Sink>>,
    sinking: Running<(Box<Sink>, SinkOutcome)>,
    /// How long Redis has accepted nothing.
    liveness: Liveness,
    asking: Running<Result<(Snapshot, Option<Lsn>), PrimaryError>>,
    observer: Arc<Observer>,
    observing: Running<Result<Observation, SessionError>>,
    slow: SlowRun,
    /// When values are to be converted again, if they are not.
    converts_at: Option<Instant>,
}

impl<'a> Driver<'a> {
    /// Begins by comparing histories.
    pub(super) fn new(
        settings: &'a Settings,
        source: OpenSource<Feed>,
        observer: Observer,
        watching: Watching,
        planner: Planner,
        sink: Box<Sink>,
        drain_max: Duration,
    ) -> Self {
        let OpenSource { feed, primary, present, as_stored } = source;
        let liveness = sink.liveness();
        let worker = SlowWorker::new(Arc::clone(planner.rules()), settings, Arc::clone(&primary), sink.sweeper());
        let (slot_from, reader) = match &feed {
            Feed::Slot(_) => (Some(present.slot), None),
            Feed::Outbox(outbox) => (None, Some(outbox.reader())),
        };
        let mut batcher = Batcher::new(planner, settings.max_keys, settings.mode == Mode::Outbox);
        if as_stored {
            batcher.count_as_stored();
        }
        let limits = SessionLimits { redis_down_max: settings.redis_down_max, drain_max };
        let mut sinking = Running::default();
        let (system, mode) = (&present.origin.system, settings.mode.word());
        let owner = OwnerRecord::of_this_process(system, mode, settings.postgres.to_string());
        let resuming = resume(sink, owner, Arc::clone(&primary), reader, present);
        sinking.start(async move {
            let (sink, resumed) = resuming.await;
            (sink, resumed.map_or_else(SinkOutcome::Failed, SinkOutcome::Resumed))
        });
        Self {
            settings,
            session: Session::new(batcher, watching, limits, slot_from, Instant::now()),
            feed,
            primary,
            sink: None,
            sinking,
            liveness,
            asking: Running::default(),
            observer: Arc::new(observer),
            observing: Running::default(),
            slow: SlowRun::new(worker),
            converts_at: as_stored.then(|| Instant::now() + AS_STORED_FOR),
        }
    }

    /// The position of the slot, if one is read.
    pub(super) fn slot_at(&self) -> Option<Lsn> {
        self.session.slot_at()
    }

    /// The planner and the sink, once the batch in flight has an outcome: what the next session
    /// sends must not overtake it. No sink if `stop` is cancelled meanwhile.
    pub(super) async fn into_parts(mut self, stop: &CancellationToken) -> (Planner, Option<Box<Sink>>) {
        drop(self.feed);
        // Also the connection of what is in flight: a daemon that stands by may wait for its locks.
        self.primary.close();
        if self.sinking.is_running() {
            self.sink = tokio::select! {
                biased;
                (sink, _) = self.sinking.finished() => Some(sink),
                () = stop.cancelled() => None,
            };
        }
        (self.session.into_batcher().into_planner(), self.sink)
    }

    /// Streams until `stop` is cancelled and the session is drained, or until an error ends the
    /// session.
    pub(super) async fn run(&mut self, stop: &CancellationToken) -> Result<(), SessionError> {
        let mut tick = tokio::time::interval(TICK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let may_read = self.session.may_read();
            let all_read = self.feed.read(self.session.batcher(), may_read)?;
            while let Some(effect) = self.session.next_effect(self.feed.status(), Instant::now()) {
                match effect {
                    Effect::Ask(question) => self.ask(question),
                    Effect::Apply(batch) => self.send(*batch),
                    Effect::StartSlowWork(work) => self.slow.start(*work),
                    Effect::Measure => self.feed.measure(),
                    Effect::Observe(known) => self.observe(known),
                    Effect::Finish => {
                        self.feed.finish(self.session.batcher()).await;
                        return Ok(());
                    }
                }
            }
            self.feed.work(self.session.batcher(), may_read);
            if !all_read && !self.session.batcher().is_full() {
                // A batch was sent, so there is room for what has arrived. The socket is read only
                // after that.
                continue;
            }
            let event = self.next_event(stop, &mut tick, may_read && all_read).await?;
            let is_tick = matches!(event, Event::Tick { .. });
            self.session.apply(event, Instant::now())?;
            if is_tick {
                if self.converts_at.is_some_and(|at| at <= Instant::now()) && self.session.batcher().is_drained() {
                    return Err(SessionError::Converts);
                }
                let reads = self.session.reads();
                self.feed.on_tick(self.session.batcher(), reads)?;
            }
        }
    }

    async fn next_event(
        &mut self,
        stop: &CancellationToken,
        tick: &mut Interval,
        may_read: bool,
    ) -> Result<Event, SessionError> {
        let wakeup = self.session.wakeup(Instant::now());
        let has_room = self.session.batcher().has_room();
        Ok(tokio::select! {
            biased;
            () = stop.cancelled(), if !self.session.is_draining() => Event::Stop,
            _ = tick.tick() => Event::Tick { redis_idle: self.liveness.idle() },
            (sink, outcome) = self.sinking.finished() => self.on_sink(sink, outcome),
            answer = self.asking.finished() => {
                let (snapshot, fresh) = answer?;
                Event::Visible(snapshot, fresh)
            }
            seen = self.observing.finished() => Event::Observed(seen?),
            () = until(wakeup) => Event::Due,
            event = self.slow.event(has_room) => Event::Slow(event),
            event = self.feed.wait(may_read) => Event::Feed(event?),
        })
    }

    fn on_sink(&mut self, sink: Box<Sink>, outcome: SinkOutcome) -> Event {
        self.feed.on_sink(&sink);
        if let SinkOutcome::Resumed(_) = outcome {
            let Settings { postgres, slot, .. } = self.settings;
            tracing::info!(%postgres, slot, redis = sink.address(), "streaming");
        }
        self.sink = Some(sink);
        Event::Sink(outcome)
    }

    fn ask(&mut self, question: GateQuestion) {
        let primary = Arc::clone(&self.primary);
        self.asking.start(async move {
            match question {
                GateQuestion::Snapshot => Ok((primary.snapshot().await?, None)),
                GateQuestion::FreshPosition => {
                    primary.fresh_position().await.map(|(snapshot, lsn)| (snapshot, Some(lsn)))
                }
            }
        });
    }

    fn observe(&mut self, known: Vec<RelationId>) {
        let observer = Arc::clone(&self.observer);
        self.observing.start(async move { observe(&observer, &known).await });
    }

    fn send(&mut self, batch: Batch) {
        let Some(mut sink) = self.sink.take() else { return };
        self.sinking.start(async move {
            match sink.apply(batch).await {
                Ok(due) => (sink, SinkOutcome::Applied(due)),
                Err(Unproven) => (sink, SinkOutcome::Failed(SessionError::Unproven)),
            }
        });
    }
}

/// Observes the database, which takes much less time than the limit on a healthy server.
pub(super) async fn observe(observer: &Observer, known: &[RelationId]) -> Result<Observation, SessionError> {
    const OBSERVE_MAX: Duration = Duration::from_secs(60);
    match tokio::time::timeout(OBSERVE_MAX, observer.observe(known)).await {
        Ok(seen) => seen.map_err(|error| SessionError::Catalog(error.into())),
        Err(_) => Err(SessionError::Unanswered(OBSERVE_MAX)),
    }
}

/// Waits until a moment, and for ever if there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
