//! One connection to the source and everything that lives as long.
//!
//! Owns the loop: one `select` gives a closed [`Event`], and the state changes synchronously. It must not
//! decode, plan or encode. Invariants: the slot is told only what Redis recorded as applied; the status goes
//! out on a timer of its own, also while Redis blocks; the reader stops when too much waits.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::batcher::{Batcher, Question};
use super::errand::Helper;
use super::resume::resume;
use super::{SessionError, Source, Trouble};
use crate::backoff::Notices;
use crate::change::{Lsn, Relation, RelationId, SourceEvent, TableName, Xid};
use crate::coherence::gate::Snapshot;
use crate::coherence::primary::{Primary, PrimaryError};
use crate::config::Settings;
use crate::plan::Plan;
use crate::rules::Planner;
use crate::sink::{Batch, Pulse, Sink, Unproven};
use crate::source::replication::assemble::Assembler;
use crate::source::replication::catalog::{self, Place};
use crate::source::replication::pgoutput::{self, Message};
use crate::source::replication::stream::{Frame, Stream};

/// How often what was confirmed is reported, if it moved.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// How often a status goes out in any case, far below any sensible `wal_sender_timeout`.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// How often Redis is asked whether it is still the same, and is told up to when everything is in force.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// After this much silence the server is asked for a sign of life.
const SILENCE_BEFORE_ASKING: Duration = Duration::from_secs(20);

/// After this much silence the connection counts as dead, though its socket may be open.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long one question to the catalog may take.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the reader waits when more is held back than may be kept.
const STUCK_MAX: Duration = Duration::from_secs(1);

/// A lag of this many seconds is worth a line in the log.
const LAG_NOTABLE: Duration = Duration::from_secs(10);

/// How far the slot is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lag {
    /// Bytes of log that are written and not confirmed.
    bytes: u64,
    /// How long ago everything was in force.
    time: Duration,
}

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
}

/// Somebody, on his way; comes back when the errand is done.
type Errand = Pin<Box<dyn Future<Output = (Box<Helper>, Result<(), Unproven>)> + Send>>;

/// An errand, under way.
struct Outing {
    done: Errand,
    pieces: mpsc::Receiver<Plan>,
}

/// A question to the primary, on its way.
type Asking<T> = Pin<Box<dyn Future<Output = Result<T, PrimaryError>> + Send>>;

/// What the loop waits for.
enum Event {
    Stop,
    Landed(Box<Sink>, Landing),
    Visible(Snapshot, Option<Lsn>),
    Flushed(Lsn),
    Piece(Box<Plan>),
    ErrandBack(Box<Helper>, Result<(), Unproven>),
    Repeat,
    MayAsk,
    Received,
    Tick,
}

/// One connection to the source and everything that lives as long.
pub(super) struct Session<'a> {
    settings: &'a Settings,
    stream: Stream,
    /// Where the slot stood when this began.
    from: Lsn,
    primary: Arc<Primary>,
    assembler: Assembler,
    batcher: Batcher,
    sink: Option<Box<Sink>>,
    flight: Option<Flight>,
    /// When the flight began.
    away_since: Instant,
    pulse: Pulse,
    /// Who does errands, if not out on one.
    helper: Option<Box<Helper>>,
    outing: Option<Outing>,
    /// History is proven: what is read may be sent.
    resumed: bool,
    asking: Option<Asking<(Snapshot, Option<Lsn>)>>,
    measuring: Option<Asking<Lsn>>,
    /// When it was asked how far the log is.
    measured: Instant,
    /// Since when more is held back than may be kept.
    stuck_since: Option<Instant>,
    /// Everything committed before this moment is in force.
    current: Instant,
    lag_notices: Notices,
    heard: Instant,
    looked: Instant,
    reported: Instant,
    reported_lsn: Lsn,
}

impl<'a> Session<'a> {
    /// Begins by comparing histories; nothing is sent to Redis before that is done.
    pub(super) fn new(settings: &'a Settings, source: Source, planner: Planner, sink: Option<Box<Sink>>) -> Self {
        let Source { stream, primary, present } = source;
        let now = Instant::now();
        let from = present.slot;
        let pulse = sink.as_deref().map(Sink::pulse).unwrap_or_default();
        let helper = sink.as_deref().map(|sink| {
            Box::new(Helper::new(Arc::clone(planner.rules()), settings, Arc::clone(&primary), sink.sweeper()))
        });
        let flight = sink.map(|sink| -> Flight { Box::pin(resume(sink, Arc::clone(&primary), present)) });
        Self {
            settings,
            stream,
            from,
            primary,
            assembler: Assembler::default(),
            batcher: Batcher::new(planner, settings.max_keys),
            helper,
            outing: None,
            sink: None,
            flight,
            away_since: now,
            pulse,
            resumed: false,
            asking: None,
            measuring: None,
            measured: now,
            stuck_since: None,
            current: now,
            lag_notices: Notices::default(),
            heard: now,
            looked: now,
            reported: now,
            reported_lsn: Lsn::ZERO,
        }
    }

    /// Where the slot stands: where it began, or what it was told or is about to be.
    pub(super) fn confirmed(&self) -> Lsn {
        self.from.max(self.batcher.confirmed())
    }

    /// The planner and the sink, once what is in flight has landed: it may not be overtaken by what the
    /// next connection sends. Without the sink if told to stop meanwhile.
    pub(super) async fn into_parts(self, stop: &CancellationToken) -> (Planner, Option<Box<Sink>>) {
        drop(self.stream);
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
        let mut tick = tokio::time::interval(REPORT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining_until: Option<tokio::time::Instant> = None;
        loop {
            let may_read = draining_until.is_none() && self.resumed;
            let drained = !may_read || self.read().await?;
            let asked = self.ask();
            self.send_off(self.stream.answer_due());
            self.send_on_errand();
            if self.stream.answer_due() {
                self.report(false);
            }
            if draining_until.is_some() && (self.batcher.is_drained() || !self.resumed) {
                return self.finish().await;
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
                    return self.finish().await;
                }
                // Before the source, which may always have something: the timer may not starve.
                _ = tick.tick() => Event::Tick,
                (sink, landing) = arrival(&mut self.flight) => Event::Landed(sink, landing),
                visible = arrival(&mut self.asking) => {
                    let (snapshot, fresh) = visible?;
                    Event::Visible(snapshot, fresh)
                }
                flushed = arrival(&mut self.measuring) => Event::Flushed(flushed?),
                () = until(asked) => Event::MayAsk,
                news = news(&mut self.outing, self.batcher.has_room()) => news,
                () = until(self.batcher.next_repeat().map(Into::into)) => Event::Repeat,
                received = self.stream.exchange(may_read) => {
                    received?;
                    Event::Received
                }
            };
            match event {
                Event::Stop => draining_until = Some(tokio::time::Instant::now() + drain_max),
                Event::Landed(sink, landing) => self.on_landed(sink, landing)?,
                Event::Visible(snapshot, fresh) => {
                    self.asking = None;
                    self.batcher.learn(snapshot, fresh);
                }
                Event::Flushed(position) => self.on_flushed(position),
                Event::Piece(piece) => self.batcher.take_piece(*piece),
                Event::ErrandBack(helper, done) => self.on_errand_back(helper, done)?,
                Event::Repeat => self.batcher.repeat(Instant::now()),
                Event::MayAsk => {}
                Event::Received => self.heard = Instant::now(),
                Event::Tick => self.on_tick()?,
            }
        }
    }

    /// Takes in everything that is here, until too much waits; whether that was all.
    async fn read(&mut self) -> Result<bool, SessionError> {
        while !self.batcher.is_full() {
            let event = match self.stream.next_frame()? {
                None => return Ok(true),
                Some(Frame::Skipped) => return Err(Trouble::Skipped.into()),
                Some(Frame::Keepalive { wal_end }) => Some(SourceEvent::Progress { wal_end }),
                Some(Frame::Log(bytes)) => {
                    let message = pgoutput::decode(bytes)?;
                    let described = match &message {
                        Message::Relation(body) => {
                            self.find_root(body).await?;
                            Some(body.id)
                        }
                        _ => None,
                    };
                    self.assembler.take(message)?;
                    if let Some(relation) = described.and_then(|id| self.assembler.relation(id)) {
                        self.compare(relation);
                    }
                    None
                }
            };
            let now = Instant::now();
            for event in event.into_iter().chain(std::iter::from_fn(|| self.assembler.next_event())) {
                self.batcher.take(event, now)?;
            }
        }
        Ok(false)
    }

    /// Says what rules read of a table and it does not have any more.
    fn compare(&self, relation: &Relation) {
        let missing = self.batcher.planner().missing(relation);
        if !missing.is_empty() {
            tracing::warn!(
                table = %relation.name,
                missing = missing.join(", "),
                "rules read columns that the table does not have any more, so every change of it deletes by pattern; \
                 correct the rules and restart"
            );
        }
    }

    /// A table that no rule names may be a partition of one that a rule does, or inherit from it.
    async fn find_root(&mut self, body: &pgoutput::RelationBody) -> Result<(), SessionError> {
        if self.batcher.planner().has_rules_for(&TableName::new(&body.schema, &body.table)) {
            self.assembler.set_root(body.id, None);
            return Ok(());
        }
        let asked = tokio::time::timeout(CATALOG_TIMEOUT, ask_place(&self.primary, body.id, self.batcher.open_xid()));
        let ancestors = asked.await.unwrap_or_else(|_| Err(Trouble::Catalog("no answer in time".to_owned())))?;
        let named = ancestors.iter().find(|table| self.batcher.planner().has_rules_for(table));
        let root = named.or(ancestors.last()).cloned();
        self.assembler.set_root(body.id, root);
        Ok(())
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

    /// Sends somebody on the next errand, if there is one.
    fn send_on_errand(&mut self) {
        if self.resumed
            && self.helper.is_some()
            && let Some(errand) = self.batcher.next_errand()
        {
            if errand.calls.is_empty() && errand.sweeps.is_empty() {
                // What it was to do is done already: only messages and tickets are left.
                return self.batcher.errand_back();
            }
            let Some(helper) = self.helper.take() else { return };
            tracing::debug!(calls = errand.calls.len(), sweeps = errand.sweeps.len(), "an errand begins");
            let (sender, pieces) = mpsc::channel(1);
            self.outing = Some(Outing { done: Box::pin(helper.run(errand, sender)), pieces });
        }
    }

    fn on_errand_back(&mut self, helper: Box<Helper>, done: Result<(), Unproven>) -> Result<(), SessionError> {
        if let Some(mut outing) = self.outing.take() {
            while let Ok(piece) = outing.pieces.try_recv() {
                self.batcher.take_piece(piece);
            }
        }
        tracing::debug!(?done, "an errand is back");
        self.helper = Some(helper);
        if done.is_err() {
            return Err(Trouble::Unproven.into());
        }
        self.batcher.errand_back();
        Ok(())
    }

    fn on_landed(&mut self, sink: Box<Sink>, landing: Landing) -> Result<(), SessionError> {
        self.flight = None;
        match landing {
            Landing::Resumed(started) => {
                let postgres = &self.settings.postgres;
                tracing::info!(%postgres, slot = self.settings.slot, redis = sink.address(), "streaming");
                self.batcher.resume(started);
                self.resumed = true;
                self.current = Instant::now();
                self.measure();
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
                return Err(Trouble::Unproven.into());
            }
            Landing::Unasked(error) => {
                self.sink = Some(sink);
                return Err(error.into());
            }
        }
        self.sink = Some(sink);
        Ok(())
    }

    /// The log is written up to here: what is applied up to here was current when that was asked.
    fn on_flushed(&mut self, position: Lsn) {
        self.measuring = None;
        self.batcher.caught_up(position, self.measured);
        let bytes = position.offset().saturating_sub(self.confirmed().offset());
        let lag = Lag { bytes, time: self.current.elapsed() };
        if lag.time >= LAG_NOTABLE && self.lag_notices.due() {
            let (bytes, seconds) = (lag.bytes, lag.time.as_secs());
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
        if self.batcher.is_full() || !self.resumed {
            // We do not read: the silence is our own.
            self.heard = Instant::now();
        }
        let silence = self.heard.elapsed();
        if silence > SILENCE_MAX {
            return Err(Trouble::Silent.into());
        }
        let down_max = self.settings.redis_down_max;
        if self.flight.is_some() && self.away_since.elapsed().min(self.pulse.silence()) > down_max {
            return Err(Trouble::RedisAway(down_max).into());
        }
        if self.batcher.confirmed() > self.reported_lsn || self.reported.elapsed() >= STATUS_EVERY {
            self.report(silence > SILENCE_BEFORE_ASKING);
        }
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
        if self.measuring.is_none() {
            self.measure();
        }
    }

    /// Asks how far the log is.
    fn measure(&mut self) {
        let primary = Arc::clone(&self.primary);
        self.measured = Instant::now();
        self.measuring = Some(Box::pin(async move { primary.flushed().await }));
    }

    fn report(&mut self, ask: bool) {
        self.reported = Instant::now();
        self.reported_lsn = self.batcher.confirmed();
        self.stream.report(self.reported_lsn, SystemTime::now(), ask);
    }

    /// Tells the slot what is confirmed and leaves.
    async fn finish(&mut self) -> Result<(), SessionError> {
        const GOODBYE_MAX: Duration = Duration::from_secs(2);
        self.report(false);
        if let Err(error) = self.stream.close(GOODBYE_MAX).await {
            tracing::debug!(%error, "the goodbye to PostgreSQL was not heard");
        }
        Ok(())
    }
}

/// What a future gives, if there is one.
async fn arrival<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// What there is to say of an errand, if one is under way: its next piece, if that may be taken, or its end.
async fn news(outing: &mut Option<Outing>, may_take: bool) -> Event {
    let Some(Outing { done, pieces }) = outing else { return std::future::pending().await };
    tokio::select! {
        biased;
        Some(piece) = pieces.recv(), if may_take => Event::Piece(Box::new(piece)),
        (helper, done) = done => Event::ErrandBack(helper, done),
    }
}

/// Until a moment, if there is one.
async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Asks until the answer includes what the transaction being received did, if it did anything to the table's place:
/// PostgreSQL sends commits before they are visible.
async fn ask_place(primary: &Primary, relation: RelationId, xid: Option<Xid>) -> Result<Vec<TableName>, Trouble> {
    const ASK_AGAIN_AFTER: Duration = Duration::from_millis(1);
    loop {
        let answer = catalog::place_of(primary.client(), relation).await;
        let Place { ancestors, settled, snapshot } = answer.map_err(|error| Trouble::Catalog(error.to_string()))?;
        let snapshot =
            Snapshot::parse(&snapshot).ok_or_else(|| Trouble::Catalog(format!("the snapshot {snapshot:?}")))?;
        if settled || xid.is_none_or(|xid| snapshot.sees(xid)) {
            return Ok(ancestors);
        }
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
}

async fn apply(mut sink: Box<Sink>, batch: Batch) -> (Box<Sink>, Landing) {
    let landing = match sink.apply(batch).await {
        Ok(()) => Landing::Applied,
        Err(Unproven) => Landing::Unproven,
    };
    (sink, landing)
}
