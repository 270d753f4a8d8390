//! Reading the outbox.
//!
//! Owns when to survey, to claim and to commit, and the wakeup by writers. It must not know what
//! becomes of an entry. Invariants: one claim at a time; a claim's transaction is committed only
//! when all of it is in force and Redis has counted that; slow work of one transaction delays no
//! other, because a second one goes on meanwhile.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::lane::{Counted, Lane, Task};
use super::reader::OutboxReader;
use super::vacuum::Vacuum;
use crate::backoff::Notices;
use crate::change::Lsn;
use crate::coherence::horizon::{Floor, Horizon};
use crate::coherence::primary::Primary;
use crate::coherence::progress::Ticket;
use crate::mutant::{self, Mutant};
use crate::pipeline::batcher::Batcher;
use crate::pipeline::error::SessionError;
use crate::pipeline::feed::event::FeedEvent;
use crate::pipeline::running::Running;
use crate::sink::Sink;
use crate::source::outbox::claim::{Claim, ClaimedTransaction};
use crate::source::outbox::entry::{EntryEvent, OutboxError};
use crate::source::outbox::survey::{self, Survey, SurveyStatements};

/// How often a quiet outbox is surveyed, whether a writer sends a wakeup or not.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// How soon it is surveyed again after there was something: writers that wrote meanwhile sent no
/// wakeup, and may have committed only since. From there on half as often each time.
const POLL_SOON: Duration = Duration::from_millis(1);

/// A survey that takes no longer costs nothing.
const QUICK: Duration = Duration::from_millis(5);

/// After a slower survey there is none for this many times as long. Where dead entries cannot be
/// removed, because a transaction that writes is old, PostgreSQL would be busy with surveys.
const REST: u32 = 4;

/// How long one step may take: much longer than a healthy server needs.
const STEP_MAX: Duration = Duration::from_secs(60);

/// How often the heartbeat in Redis is renewed: since when everything is in force.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// The result of a survey.
struct Surveyed {
    survey: Survey,
    /// Writers were asked for a wakeup, and had not been before.
    armed: bool,
    /// The position after the log was last moved on for a survey.
    sealed: Lsn,
    /// How many holds are left, if that was asked.
    holds: Option<u64>,
}

/// An outbox that is being read.
pub(in crate::pipeline) struct OutboxFeed {
    primary: Arc<Primary>,
    statements: Arc<SurveyStatements>,
    reader: OutboxReader,
    lanes: [Lane; 2],
    /// Notified by writers, if that is wanted and possible.
    wakeup: Option<Arc<Notify>>,
    /// Entries up to this number may have been applied before, and something newer since.
    again_to: i64,
    horizon: Horizon,
    sealed: Lsn,
    /// No survey before this moment: the last one was slow.
    rest_until: Instant,
    floor: Floor,
    /// There may be holds in the outbox whose entries are gone.
    holds_due: bool,
    surveying: Running<Result<Surveyed, SessionError>>,
    /// When the survey under way began.
    asked: Instant,
    /// The last survey found nothing: the next writer may be asked for a wakeup.
    is_quiet: bool,
    /// The highest number of an entry when claiming was last due.
    tried_to: i64,
    claim_due: bool,
    survey_due: bool,
    poll_at: Instant,
    poll_after: Duration,
    /// A claim, and the lane in which it was made.
    arrived: Option<(usize, Claim)>,
    surveyed: Option<Surveyed>,
    /// The tickets of transactions that are committed.
    gone: Vec<RangeInclusive<Ticket>>,
    unknown_notices: Notices,
    counted: Counted,
    /// When the heartbeat was last renewed.
    beat: Instant,
    vacuum: Vacuum,
}

impl OutboxFeed {
    /// `last` is the highest number that an entry had at the beginning.
    pub(super) fn new(
        primary: Arc<Primary>,
        statements: Arc<SurveyStatements>,
        reader: OutboxReader,
        lanes: [Lane; 2],
        wakeup: Option<Arc<Notify>>,
        last: i64,
    ) -> Self {
        let now = Instant::now();
        let counted = Counted { consumer: Arc::clone(&reader.consumer), dataset: String::new(), batches: 0 };
        Self {
            primary,
            statements,
            reader,
            lanes,
            wakeup,
            again_to: last,
            horizon: Horizon::default(),
            sealed: Lsn::ZERO,
            rest_until: now,
            floor: Floor::default(),
            // An earlier daemon may have left some.
            holds_due: true,
            surveying: Running::default(),
            asked: now,
            is_quiet: false,
            tried_to: 0,
            claim_due: true,
            survey_due: false,
            poll_at: now,
            poll_after: POLL_EVERY,
            arrived: None,
            surveyed: None,
            gone: Vec::new(),
            unknown_notices: Notices::default(),
            counted,
            beat: now,
            vacuum: Vacuum::default(),
        }
    }

    /// The outbox and its consumer.
    pub(in crate::pipeline) fn reader(&self) -> OutboxReader {
        self.reader.clone()
    }

    /// Notes what the sink knows when it is idle: everything known to be done is among the batches
    /// that it counted.
    pub(in crate::pipeline::feed) fn on_sink(&mut self, sink: &Sink) {
        self.counted.dataset = sink.dataset().unwrap_or_default();
        self.counted.batches = sink.counted();
    }

    /// Takes what has arrived.
    pub(in crate::pipeline::feed) fn read(&mut self, batcher: &mut Batcher) -> Result<(), SessionError> {
        self.gone.drain(..).for_each(|tickets| batcher.are_gone(&tickets));
        if let Some((lane, claim)) = self.arrived.take() {
            self.take_claim(lane, claim, batcher)?;
        }
        if let Some(Surveyed { survey, armed, sealed, holds }) = self.surveyed.take() {
            self.holds_due |= holds.is_some_and(|left| left > 0);
            self.sealed = sealed;
            if armed {
                // A writer that wrote a moment before did not know, and may commit in a moment.
                self.poll_soon();
            }
            self.take_survey(survey, batcher)?;
        }
        Ok(())
    }

    fn take_claim(&mut self, lane: usize, claim: Claim, batcher: &mut Batcher) -> Result<(), SessionError> {
        let Claim { transactions, position, taken_by, entries, is_full } = claim;
        let Some(lane) = self.lanes.get_mut(lane) else { return Ok(()) };
        if let Some(xid) = taken_by {
            self.floor.began(lane.given, xid);
        }
        for transaction in &transactions {
            warn_of_unknown(transaction, &mut self.unknown_notices);
            let ticket = batcher.take_entries(transaction, position, self.again_to)?;
            let first = lane.tickets.as_ref().map_or(ticket, |tickets| *tickets.start());
            lane.tickets = Some(first..=ticket);
            lane.first = lane.first.into_iter().chain([transaction.first]).min();
        }
        lane.entries += entries;
        self.claim_due |= is_full;
        self.survey_due |= !is_full;
        self.is_quiet &= entries == 0;
        // Another daemon may have left holds, which nothing else announces.
        self.holds_due |= entries == 0;
        Ok(())
    }

    fn take_survey(&mut self, survey: Survey, batcher: &mut Batcher) -> Result<(), SessionError> {
        let Survey { file, position, given, calm, oldest, entries } = survey;
        if file != Some(self.reader.file) || given < self.floor.given() {
            return Err(SessionError::OutboxReplaced);
        }
        self.floor.survey(given, oldest, entries.map(|(first, _)| first));
        if mutant::is(Mutant::EagerWatermark) {
            batcher.proven(position);
        }
        if let Some((proven, since)) = self.horizon.survey(position, self.asked, calm, entries) {
            batcher.proven(proven);
            if self.beat.elapsed() >= HEARTBEAT_EVERY {
                self.beat = Instant::now();
                batcher.caught_up(proven, since);
            }
        }
        match entries {
            None => {
                // Once more. Writers from then on send a wakeup.
                self.survey_due |= !self.is_quiet;
                self.is_quiet = true;
            }
            Some((_, last)) => {
                self.is_quiet = false;
                self.claim_due |= last > self.tried_to;
                self.tried_to = self.tried_to.max(last);
            }
        }
        Ok(())
    }

    /// Starts what is due.
    pub(in crate::pipeline::feed) fn work(&mut self, batcher: &mut Batcher, may_read: bool) {
        let Self { lanes, floor, counted, .. } = self;
        for lane in lanes {
            if lane.is_free() && lane.is_silent() {
                lane.begin(Task::Stay, floor, counted);
            }
            if !lane.is_open() {
                continue;
            }
            match &lane.tickets {
                None => lane.begin(Task::Leave, floor, counted),
                Some(tickets) if batcher.progress().are_done(tickets.clone()) => {
                    lane.looked_to = batcher.looked_to(tickets);
                    lane.begin(Task::Commit, floor, counted);
                }
                Some(_) if lane.is_silent() => lane.begin(Task::Stay, floor, counted),
                Some(_) => {}
            }
        }
        if !may_read {
            return;
        }
        if self.claim_due && self.arrived.is_none() && !batcher.is_full() {
            self.claim();
        }
        let may_survey = !self.surveying.is_running() && self.surveyed.is_none() && Instant::now() >= self.rest_until;
        if self.survey_due && may_survey {
            self.survey();
        }
        self.vacuum.work(&self.primary);
    }

    /// Claims in a transaction of its own if there is a connection for it, otherwise in the younger
    /// of those that are open.
    fn claim(&mut self) {
        if self.is_busy_with(Task::Claim) {
            return;
        }
        let free = self.lanes.iter().position(Lane::is_free);
        let youngest = self.lanes.iter().enumerate().max_by_key(|(_, lane)| lane.tickets.as_ref().map(|t| *t.end()));
        let Some(lane) = free.or(youngest.map(|(at, _)| at)).and_then(|at| self.lanes.get_mut(at)) else { return };
        if lane.task().is_some() {
            return;
        }
        self.claim_due = false;
        lane.begin(Task::Claim, &self.floor, &self.counted);
    }

    fn poll_soon(&mut self) {
        (self.poll_at, self.poll_after) = (Instant::now() + POLL_SOON, 2 * POLL_SOON);
    }

    /// Whether no claim is under way.
    pub(in crate::pipeline::feed) fn is_drained(&self) -> bool {
        self.arrived.is_none() && !self.is_busy_with(Task::Claim)
    }

    fn is_busy_with(&self, task: Task) -> bool {
        self.lanes.iter().any(|lane| lane.task().is_some_and(|(busy, _)| busy == task))
    }

    /// Asks how far the outbox reaches. If it was quiet, asks writers for a wakeup first.
    fn survey(&mut self) {
        let (primary, arm) = (Arc::clone(&self.primary), self.is_quiet && self.wakeup.is_some());
        let (thorough, floor) = (self.is_quiet && self.horizon.wants_calm(), self.floor.at());
        self.survey_due = false;
        self.asked = Instant::now();
        let (statements, sealed) = (Arc::clone(&self.statements), self.sealed);
        let holds_due = std::mem::take(&mut self.holds_due);
        let survey = async move {
            let armed = arm && statements.arm(primary.client()).await?;
            let holds = match holds_due {
                true => Some(survey::release_holds(primary.client(), floor).await?),
                false => None,
            };
            let survey = statements.survey(primary.client(), floor, thorough).await?;
            // A transaction may be about to commit for long, and nothing else moves the log.
            let seal = thorough && !survey.calm && survey.position > sealed;
            let sealed = if seal { survey::seal(primary.client()).await? } else { sealed };
            Ok(Surveyed { survey, armed, sealed, holds })
        };
        self.surveying.start(async move {
            match tokio::time::timeout(STEP_MAX, survey).await {
                Ok(survey) => survey.map_err(|error: OutboxError| error.into()),
                Err(_) => Err(SessionError::Unanswered(STEP_MAX)),
            }
        });
    }

    /// Waits until something has happened. Cancel-safe.
    pub(in crate::pipeline::feed) async fn wait(&mut self) -> Result<FeedEvent, SessionError> {
        let Self { lanes: [one, other], surveying, wakeup, vacuum, poll_at, .. } = self;
        let (at, done) = tokio::select! {
            biased;
            done = one.done() => (0, done),
            done = other.done() => (1, done),
            survey = surveying.finished() => {
                self.surveyed = Some(survey?);
                let took = self.asked.elapsed();
                if took > QUICK {
                    self.rest_until = Instant::now() + took * REST;
                }
                return Ok(FeedEvent::Surveyed);
            }
            () = notified(wakeup.as_deref()) => {
                (self.claim_due, self.is_quiet) = (true, false);
                return Ok(FeedEvent::Arrived);
            }
            () = vacuum.finished() => return Ok(FeedEvent::Arrived),
            () = tokio::time::sleep_until((*poll_at).into()) => {
                self.poll_at = Instant::now() + self.poll_after;
                self.poll_after = (self.poll_after * 2).min(POLL_EVERY);
                // Entries that another daemon had claimed may have come back.
                (self.survey_due, self.tried_to) = (true, 0);
                return Ok(FeedEvent::Arrived);
            }
        };
        let (task, claim) = done?;
        self.on_done(at, task, claim);
        Ok(FeedEvent::Arrived)
    }

    fn on_done(&mut self, at: usize, task: Task, claim: Option<Claim>) {
        if task == Task::Commit
            && let Some(lane) = self.lanes.get_mut(at)
        {
            self.vacuum.count(std::mem::take(&mut lane.entries));
            self.gone.extend(lane.tickets.take());
            self.holds_due |= lane.looked_to.take().is_some();
            lane.first = None;
            self.survey_due = true;
            self.poll_soon();
        }
        self.arrived = claim.map(|claim| (at, claim)).or(self.arrived.take());
    }

    /// Notices when the server does not answer.
    pub(in crate::pipeline::feed) fn on_tick(&self) -> Result<(), SessionError> {
        let is_stuck = |lane: &Lane| lane.task().is_some_and(|(_, since)| since > STEP_MAX);
        match self.lanes.iter().any(is_stuck) {
            true => Err(SessionError::Unanswered(STEP_MAX)),
            false => Ok(()),
        }
    }

    /// Commits what is in force, and closes.
    pub(in crate::pipeline::feed) async fn finish(&mut self, batcher: &mut Batcher) {
        const GOODBYE_MAX: Duration = Duration::from_secs(2);
        let goodbye = async {
            loop {
                self.read(batcher)?;
                self.work(batcher, false);
                if !self.is_busy_with(Task::Commit) {
                    return Ok::<_, SessionError>(());
                }
                self.wait().await?;
            }
        };
        if !matches!(tokio::time::timeout(GOODBYE_MAX, goodbye).await, Ok(Ok(()))) {
            tracing::debug!("what is in force could not be committed in the outbox; it will be applied again");
        }
    }
}

/// Logs, at growing intervals, that a trigger does not know what happened to its table.
fn warn_of_unknown(transaction: &ClaimedTransaction, notices: &mut Notices) {
    let unknown = transaction.events.iter().find_map(|(_, event)| match event {
        EntryEvent::Unknown(change) => Some(&change.relation.name),
        EntryEvent::Change(_) | EntryEvent::TooLong(_) | EntryEvent::Events(_) | EntryEvent::Ddl => None,
    });
    if let Some(table) = unknown
        && notices.due(Instant::now())
    {
        tracing::warn!(
            %table,
            "a table's triggers are new, or do not know what changed: everything that the rules of the table match is \
             deleted; if its columns changed, correct the rules and run `unstale setup`"
        );
    }
}

/// Waits for a wakeup, and for ever if there is none.
async fn notified(wakeup: Option<&Notify>) {
    match wakeup {
        Some(wakeup) => wakeup.notified().await,
        None => std::future::pending().await,
    }
}
