//! One connection to the source and everything that lives as long.
//!
//! Owns the loop: one `select` gives a closed [`Event`], and the state changes synchronously. It must not
//! decode, plan or encode. Invariants: nothing is sent before history is proven; the reader stops when too much waits.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::batcher::{Batcher, Question};
use super::error::SessionError;
use super::feed::{Asking, Feed, FeedEvent, Source, arrival};
use super::resume::resume;
use super::slow_worker::SlowWorker;
use crate::backoff::Notices;
use crate::change::Lsn;
use crate::coherence::gate::Snapshot;
use crate::coherence::primary::{Primary, PrimaryError};
use crate::config::{Mode, Settings};
use crate::plan::Plan;
use crate::rules::Planner;
use crate::sink::{Batch, Liveness, Sink, Unproven};
use crate::source::outbox::entry::OutboxError;

/// How often the loop looks after what no event tells.
const TICK_EVERY: Duration = Duration::from_millis(100);

/// How often Redis is asked whether it is still the same, and is told up to when everything is in force.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long the reader waits when more is held back than may be kept.
const STUCK_MAX: Duration = Duration::from_secs(1);

/// A lag of this many seconds is worth a line in the log.
const LAG_NOTABLE: Duration = Duration::from_secs(10);

/// The sink, on its way with something; comes back when that is done.
type Flight = Pin<Box<dyn Future<Output = (Box<Sink>, Landing)> + Send>>;

/// How a flight ended.
pub(super) enum Landing {
    /// History is proven or begun anew; `started` stands here.
    Resumed(Lsn),
    /// The batch is in force.
    Applied,
    /// It is not: Redis is not the one it was.
    Unproven,
    /// Nothing was begun: PostgreSQL did not answer.
    Unasked(PrimaryError),
    /// The same, where an outbox is read.
    Unread(OutboxError),
}

/// The worker, running; comes back when the work is done.
type SlowRun = Pin<Box<dyn Future<Output = (Box<SlowWorker>, Result<(), Unproven>)> + Send>>;

/// Slow work that runs.
struct RunningWork {
    done: SlowRun,
    pieces: mpsc::Receiver<Plan>,
}

/// What the loop waits for.
enum Event {
    Stop,
    Landed(Box<Sink>, Landing),
    Visible(Snapshot, Option<Lsn>),
    Piece(Box<Plan>),
    SlowWorkDone(Box<SlowWorker>, Result<(), Unproven>),
    Repeat,
    MayAsk,
    Feed(FeedEvent),
    Tick,
}

/// One connection to the source and everything that lives as long.
pub(super) struct Session<'a> {
    settings: &'a Settings,
    feed: Feed,
    primary: Arc<Primary>,
    batcher: Batcher,
    sink: Option<Box<Sink>>,
    flight: Option<Flight>,
    /// When the flight began.
    away_since: Instant,
    liveness: Liveness,
    /// The worker, unless it runs.
    worker: Option<Box<SlowWorker>>,
    running: Option<RunningWork>,
    /// History is proven: what is read may be sent.
    resumed: bool,
    asking: Option<Asking<(Snapshot, Option<Lsn>)>>,
    /// Since when more is held back than may be kept.
    stuck_since: Option<Instant>,
    /// Everything committed before this moment is in force.
    current: Instant,
    lag_notices: Notices,
    looked: Instant,
}

impl<'a> Session<'a> {
    /// Begins by comparing histories; nothing is sent to Redis before that is done.
    pub(super) fn new(settings: &'a Settings, source: Source, planner: Planner, sink: Box<Sink>) -> Self {
        let Source { feed, primary, present } = source;
        let now = Instant::now();
        let liveness = sink.liveness();
        let worker = SlowWorker::new(Arc::clone(planner.rules()), settings, Arc::clone(&primary), sink.sweeper());
        let reader = match &feed {
            Feed::Slot(_) => None,
            Feed::Outbox(outbox) => Some(outbox.reader()),
        };
        let flight: Flight = Box::pin(resume(sink, Arc::clone(&primary), reader, present));
        Self {
            settings,
            feed,
            primary,
            batcher: Batcher::new(planner, settings.max_keys, settings.mode == Mode::Outbox),
            worker: Some(Box::new(worker)),
            running: None,
            sink: None,
            flight: Some(flight),
            away_since: now,
            liveness,
            resumed: false,
            asking: None,
            stuck_since: None,
            current: now,
            lag_notices: Notices::default(),
            looked: now,
        }
    }

    /// Where the slot stands, if one is read.
    pub(super) fn slot_at(&self) -> Option<Lsn> {
        match &self.feed {
            Feed::Slot(slot) => Some(slot.confirmed(&self.batcher)),
            Feed::Outbox(_) => None,
        }
    }

    /// The planner and the sink, once what is in flight has landed: it may not be overtaken by what the
    /// next connection sends. Without the sink if told to stop meanwhile.
    pub(super) async fn into_parts(self, stop: &CancellationToken) -> (Planner, Option<Box<Sink>>) {
        drop(self.feed);
        // Also from what is in flight: whoever stands by may have its locks.
        self.primary.close();
        let sink = match self.flight {
            None => self.sink,
            Some(flight) => tokio::select! {
                biased;
                (sink, _) = flight => Some(sink),
                () = stop.cancelled() => None,
            },
        };
        (self.batcher.into_planner(), sink)
    }

    /// Streams until told to stop, or until the connection is of no use any more.
    pub(super) async fn run(&mut self, stop: &CancellationToken, drain_max: Duration) -> Result<(), SessionError> {
        let mut tick = tokio::time::interval(TICK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining_until: Option<tokio::time::Instant> = None;
        loop {
            let may_read = draining_until.is_none() && self.resumed;
            let drained = self.feed.read(&mut self.batcher, may_read).await?;
            let asked = self.ask();
            self.send_off(self.feed.is_urgent());
            self.start_slow_work();
            self.feed.work(&mut self.batcher, may_read);
            let is_drained = self.batcher.is_drained() && self.feed.is_drained();
            if draining_until.is_some() && (is_drained || !self.resumed) {
                self.feed.finish(&mut self.batcher).await;
                return Ok(());
            }
            if !drained && !self.batcher.is_full() {
                // What filled it is on its way: there is room for what is here. The socket is read only when nothing is.
                continue;
            }
            let may_read = may_read && drained;
            let event = tokio::select! {
                biased;
                () = stop.cancelled(), if draining_until.is_none() => Event::Stop,
                () = until(draining_until) => {
                    tracing::warn!(seconds = drain_max.as_secs_f64(), "stopped before everything received was in force; it will be sent again");
                    self.feed.finish(&mut self.batcher).await;
                    return Ok(());
                }
                // Before the source, which may always have something: the timer may not starve.
                _ = tick.tick() => Event::Tick,
                (sink, landing) = arrival(&mut self.flight) => Event::Landed(sink, landing),
                visible = arrival(&mut self.asking) => {
                    let (snapshot, fresh) = visible?;
                    Event::Visible(snapshot, fresh)
                }
                () = until(asked) => Event::MayAsk,
                event = running(&mut self.running, self.batcher.has_room()) => event,
                () = until(self.batcher.next_repeat().map(Into::into)) => Event::Repeat,
                event = self.feed.wait(may_read) => Event::Feed(event?),
            };
            match event {
                Event::Stop => draining_until = Some(tokio::time::Instant::now() + drain_max),
                Event::Landed(sink, landing) => self.on_landed(sink, landing)?,
                Event::Visible(snapshot, fresh) => {
                    self.asking = None;
                    self.batcher.learn(snapshot, fresh);
                }
                Event::Piece(piece) => self.batcher.take_piece(*piece),
                Event::SlowWorkDone(worker, done) => self.on_slow_work_done(worker, done)?,
                Event::Repeat => self.batcher.repeat(Instant::now()),
                Event::MayAsk => {}
                Event::Feed(FeedEvent::Arrived) => {}
                Event::Feed(FeedEvent::LogWritten(position, asked)) => self.on_log_written(position, asked),
                Event::Feed(FeedEvent::Surveyed) => self.say_lag(None),
                Event::Tick => self.on_tick()?,
            }
        }
    }

    /// Asks the primary what the gate has to know, if anything waits; when to ask again if that is too early.
    fn ask(&mut self) -> Option<tokio::time::Instant> {
        if self.asking.is_some() {
            return None;
        }
        let question = self.batcher.question()?;
        let now = Instant::now();
        let at = self.batcher.gate().ask_at(now);
        if at > now {
            return Some(at.into());
        }
        self.batcher.gate().asked(now);
        let primary = Arc::clone(&self.primary);
        self.asking = Some(Box::pin(async move {
            match question {
                Question::Snapshot => Ok((primary.snapshot().await?, None)),
                Question::FreshPosition => primary.fresh_position().await.map(|(snapshot, lsn)| (snapshot, Some(lsn))),
            }
        }));
        None
    }

    /// Sends the next batch, if there is one and the sink is free.
    fn send_off(&mut self, urgent: bool) {
        if self.sink.is_none() {
            return;
        }
        if let Some(batch) = self.batcher.next_batch(urgent)
            && let Some(sink) = self.sink.take()
        {
            self.away_since = Instant::now();
            self.flight = Some(Box::pin(apply(sink, batch)));
        }
    }

    /// Starts the next slow work, if there is some.
    fn start_slow_work(&mut self) {
        if self.resumed
            && self.worker.is_some()
            && let Some(work) = self.batcher.next_slow_work()
        {
            if work.is_empty() {
                // What it was to do is done already: only messages and tickets are left.
                return self.batcher.finish_slow_work();
            }
            let Some(worker) = self.worker.take() else { return };
            tracing::debug!(calls = work.calls.len(), sweeps = work.sweeps.len(), "slow work begins");
            let (sender, pieces) = mpsc::channel(1);
            self.running = Some(RunningWork { done: Box::pin(worker.run(work, sender)), pieces });
        }
    }

    fn on_slow_work_done(&mut self, worker: Box<SlowWorker>, done: Result<(), Unproven>) -> Result<(), SessionError> {
        if let Some(mut running) = self.running.take() {
            while let Ok(piece) = running.pieces.try_recv() {
                self.batcher.take_piece(piece);
            }
        }
        tracing::debug!(?done, "slow work has finished");
        self.worker = Some(worker);
        if done.is_err() {
            return Err(SessionError::Unproven);
        }
        self.batcher.finish_slow_work();
        Ok(())
    }

    fn on_landed(&mut self, sink: Box<Sink>, landing: Landing) -> Result<(), SessionError> {
        self.flight = None;
        self.feed.on_landed(&sink);
        match landing {
            Landing::Resumed(started) => {
                let postgres = &self.settings.postgres;
                tracing::info!(%postgres, slot = self.settings.slot, redis = sink.address(), "streaming");
                self.batcher.resume(started);
                self.resumed = true;
                self.current = Instant::now();
                self.feed.measure();
            }
            Landing::Applied => {
                if let Some(moment) = self.batcher.landed(Instant::now()) {
                    self.current = moment;
                    if self.lag_notices.any() {
                        tracing::info!("caught up with PostgreSQL");
                        self.lag_notices.reset();
                    }
                }
            }
            Landing::Unproven => {
                self.sink = Some(sink);
                return Err(SessionError::Unproven);
            }
            Landing::Unasked(error) => {
                self.sink = Some(sink);
                return Err(error.into());
            }
            Landing::Unread(error) => {
                self.sink = Some(sink);
                return Err(error.into());
            }
        }
        self.sink = Some(sink);
        Ok(())
    }

    /// The log was written up to here: what is applied up to here was current when that was asked.
    fn on_log_written(&mut self, position: Lsn, asked: Instant) {
        self.batcher.caught_up(position, asked);
        let bytes = position.offset().saturating_sub(self.slot_at().unwrap_or(position).offset());
        self.say_lag(Some(bytes));
    }

    /// Says how far we are behind, if that is notable: for how long not everything was in force, and how many bytes of
    /// log are written and not confirmed to a slot.
    fn say_lag(&mut self, bytes: Option<u64>) {
        let behind = self.current.elapsed();
        if behind >= LAG_NOTABLE && self.lag_notices.due() {
            let seconds = behind.as_secs();
            match self.batcher.stuck() {
                None => tracing::warn!(bytes, seconds, "invalidations lag behind PostgreSQL"),
                Some(xid) => tracing::warn!(
                    bytes,
                    seconds,
                    xid = xid.number(),
                    "invalidations lag behind PostgreSQL: this transaction is committed and not yet visible, \
                     probably for want of a standby that synchronous_standby_names asks for"
                ),
            }
        }
    }

    /// What is stuck may not hold up what is behind it, whatever its size.
    fn make_room(&mut self) {
        if !self.batcher.holds_too_much() {
            self.stuck_since = None;
            return;
        }
        if self.stuck_since.get_or_insert_with(Instant::now).elapsed() > STUCK_MAX {
            let messages_dropped = self.batcher.collapse();
            tracing::warn!(
                messages_dropped,
                "too much is committed and not yet visible, probably for want of a synchronous standby: \
                 everything its rules match will be deleted instead of single keys"
            );
            self.stuck_since = None;
        }
    }

    fn on_tick(&mut self) -> Result<(), SessionError> {
        self.make_room();
        self.send_off(true);
        let down_max = self.settings.redis_down_max;
        if self.flight.is_some() && self.away_since.elapsed().min(self.liveness.idle()) > down_max {
            return Err(SessionError::RedisAway(down_max));
        }
        self.feed.on_tick(&self.batcher, self.resumed && !self.batcher.is_full())?;
        if self.resumed && self.looked.elapsed() >= LOOK_EVERY {
            self.look_around();
        }
        Ok(())
    }

    /// What has to be asked from time to time, whether anything happens or not.
    fn look_around(&mut self) {
        self.looked = Instant::now();
        self.batcher.probe();
        if self.batcher.question().is_none() {
            self.batcher.gate().forget();
        }
        self.feed.measure();
    }
}

/// The next piece of the slow work that runs, if it may be taken, or its end.
async fn running(running: &mut Option<RunningWork>, may_take: bool) -> Event {
    let Some(RunningWork { done, pieces }) = running else { return std::future::pending().await };
    tokio::select! {
        biased;
        Some(piece) = pieces.recv(), if may_take => Event::Piece(Box::new(piece)),
        (worker, done) = done => Event::SlowWorkDone(worker, done),
    }
}

/// Until a moment, if there is one.
async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn apply(mut sink: Box<Sink>, batch: Batch) -> (Box<Sink>, Landing) {
    let landing = match sink.apply(batch).await {
        Ok(()) => Landing::Applied,
        Err(Unproven) => Landing::Unproven,
    };
    (sink, landing)
}
