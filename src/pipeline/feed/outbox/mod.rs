//! The outbox as a feed: entries are claimed, and their transaction is committed once everything they ask for is in force.
//!
//! Owns when to look, to claim and to commit, and the bell. It must not know what becomes of an
//! entry. Invariants: one claim at a time; a claim's transaction is committed only when all of it is in force and Redis
//! has counted that; whatever takes long in one transaction holds up no other, because a second one goes on meanwhile.

mod lane;

use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_postgres::Client;

use self::lane::{Counted, Lane, Task};
use super::slot::Condition;
use super::{Feed, FeedEvent, Source, arrival};
use crate::backoff::Notices;
use crate::causes::with_causes;
use crate::change::Lsn;
use crate::coherence::history::{Origin, Present};
use crate::coherence::horizon::{Floor, Horizon};
use crate::coherence::primary::Primary;
use crate::coherence::progress::Ticket;
use crate::config::Settings;
use crate::mutant::{self, Mutant};
use crate::pipeline::batcher::Batcher;
use crate::pipeline::error::SessionError;
use crate::postgres::StatementError;
use crate::rules::RuleSet;
use crate::sink::Sink;
use crate::source::outbox::claim::{Claim, Transaction};
use crate::source::outbox::entry::{EntryEvent, OutboxError};
use crate::source::outbox::survey::{self, Facts, Questions, Survey};
use crate::source::outbox::{CHANNEL, Consumer};

/// How often a quiet outbox is looked at, whether anybody rings or not.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// How soon it is looked at again after there was something: who wrote while nobody slept did not ring, and may have
/// committed only since. From there on half as often each time.
const POLL_SOON: Duration = Duration::from_millis(1);

/// A look that takes no longer costs nothing.
const QUICK: Duration = Duration::from_millis(5);

/// After one that took longer there is none for so many times as long: where dead entries cannot be removed, because a
/// transaction that writes is old, looking would be what PostgreSQL is busy with.
const REST: u32 = 4;

/// How long one step may take: much longer than a healthy server needs.
const STEP_MAX: Duration = Duration::from_secs(60);

/// How often Redis is told since when everything is in force.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// After so many entries the table is vacuumed: sooner than autovacuum, which comes once a minute, would.
const VACUUM_AFTER: usize = 20_000;

/// `skip_locked`: who has the table locked, or vacuums it, is not waited for. `truncate`: giving pages back to the
/// operating system would stop every writer for a moment.
const VACUUM: &str = "vacuum (skip_locked, truncate false) unstale.outbox";

/// The connection that vacuums, if there is one, and how that went.
type Vacuumed = (Option<Client>, Result<(), String>);

/// What came of a look.
struct Look {
    survey: Survey,
    /// Writers were asked to ring that had not been before.
    armed: bool,
    /// Where the log was after it was last moved on for nothing but that.
    sealed: Lsn,
}

type Step<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Who reads an outbox, and which.
pub(in crate::pipeline) struct Reader {
    pub(in crate::pipeline) consumer: Arc<Consumer>,
    file: u32,
}

impl Reader {
    /// What tells this outbox, as far as it went into this dataset in Redis, from any other source.
    pub(in crate::pipeline) fn source(&self, dataset: &str) -> String {
        source_of(self.file, dataset)
    }
}

fn source_of(file: u32, dataset: &str) -> String {
    format!("outbox {file} {dataset}")
}

/// An outbox that is being read.
pub(in crate::pipeline) struct Outbox {
    primary: Arc<Primary>,
    questions: Arc<Questions>,
    settings: Settings,
    /// Which file of which table it is.
    file: u32,
    lanes: [Lane; 2],
    /// Rung by writers, where that is wanted and possible.
    bell: Option<Arc<Notify>>,
    /// Entries up to this number may have been applied before, and something newer since.
    again_to: i64,
    horizon: Horizon,
    sealed: Lsn,
    /// No look before this moment: the last one took its time.
    rest_until: Instant,
    floor: Floor,
    surveying: Option<Step<Result<Look, SessionError>>>,
    /// When the survey under way began.
    asked: Instant,
    /// The last survey found nothing: whoever writes next may be asked to ring.
    is_quiet: bool,
    /// The highest number of an entry when it was last tried to claim.
    tried_to: i64,
    claim_due: bool,
    survey_due: bool,
    poll_at: Instant,
    poll_after: Duration,
    arrived: Option<(usize, Claim)>,
    surveyed: Option<Look>,
    /// What was in transactions that are committed.
    gone: Vec<RangeInclusive<Ticket>>,
    unknown_notices: Notices,
    counted: Counted,
    beat: Instant,
    /// Entries deleted since the last vacuum.
    emptied: usize,
    keeper: Option<Client>,
    vacuuming: Option<Step<Vacuumed>>,
}

/// Begins to read the outbox: the right to do so, then the connections that claim.
pub(in crate::pipeline) async fn open(
    settings: &Settings,
    rules: &RuleSet,
    condition: &Condition,
) -> Result<Source, SessionError> {
    tokio::time::timeout(STEP_MAX, try_open(settings, rules, condition))
        .await
        .map_err(|_| SessionError::Unanswered(STEP_MAX))?
}

async fn try_open(settings: &Settings, rules: &RuleSet, condition: &Condition) -> Result<Source, SessionError> {
    let consumer = Arc::new(consumer(settings, rules));
    let (primary, bell) = Primary::first(&settings.postgres).await?;
    let primary = Arc::new(primary);
    if !survey::enter(primary.client(), rules.needs_order()).await? {
        return Err(SessionError::OutboxTaken);
    }
    let facts = survey::facts(primary.client(), &settings.slot).await?;
    let Some(facts) = facts else { return Err(SessionError::NoOutbox(settings.slot.clone())) };
    let Facts { file, last, system, timeline, recovered } = facts;
    // Whoever began last knows better; but one that comes back does not take over from him.
    if condition.streamed && survey::is_superseded(primary.client(), &consumer).await? {
        return Err(SessionError::Superseded);
    }
    // A transaction that notifies cannot be prepared, so where some may be nobody is asked to ring.
    let rings = settings.notify && !survey::prepares(primary.client()).await?;
    if rings {
        let listened = primary.client().batch_execute(&format!("listen {CHANNEL}")).await;
        listened.map_err(OutboxError::from)?;
    }
    let questions = Arc::new(Questions::prepare(primary.client()).await?);
    let lanes = [Lane::open(settings, &primary).await?, Lane::open(settings, &primary).await?];
    let origin = Origin { system, timeline, recovered, source: source_of(file, "") };
    // Nothing is proven yet: the first survey does that. The rest is asked when it is this daemon's turn.
    let present = Present { origin, slot: Lsn::ZERO, end: Lsn::ZERO, recorded: Lsn::ZERO, batches: Some(0) };
    let now = Instant::now();
    let outbox = Outbox {
        primary: Arc::clone(&primary),
        questions,
        settings: settings.clone(),
        file,
        lanes,
        bell: rings.then_some(bell),
        again_to: last,
        horizon: Horizon::default(),
        sealed: Lsn::ZERO,
        rest_until: now,
        floor: Floor::default(),
        surveying: None,
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
        counted: Counted { consumer, dataset: String::new(), batches: 0 },
        beat: now,
        emptied: 0,
        keeper: None,
        vacuuming: None,
    };
    Ok(Source { feed: Feed::Outbox(Box::new(outbox)), primary, present })
}

impl Outbox {
    /// Who reads it, and what of its table.
    pub(in crate::pipeline) fn reader(&self) -> Reader {
        Reader { consumer: Arc::clone(&self.counted.consumer), file: self.file }
    }

    /// What the sink knows when it lands: everything that is known to be done is among the batches that were counted.
    pub(super) fn on_landed(&mut self, sink: &Sink) {
        self.counted.dataset = sink.dataset().unwrap_or_default();
        self.counted.batches = sink.counted();
    }

    /// Takes in what is here.
    pub(super) fn read(&mut self, batcher: &mut Batcher) -> Result<(), SessionError> {
        self.gone.drain(..).for_each(|tickets| batcher.are_gone(&tickets));
        if let Some((lane, claim)) = self.arrived.take() {
            self.take_claim(lane, claim, batcher)?;
        }
        if let Some(Look { survey, armed, sealed }) = self.surveyed.take() {
            self.sealed = sealed;
            if armed {
                // Who wrote a moment before did not know, and may commit in a moment.
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
            say_unknown(transaction, &mut self.unknown_notices);
            let ticket = batcher.take_entries(transaction, position, self.again_to)?;
            let first = lane.tickets.as_ref().map_or(ticket, |tickets| *tickets.start());
            lane.tickets = Some(first..=ticket);
        }
        lane.entries += entries;
        self.claim_due |= is_full;
        self.survey_due |= !is_full;
        self.is_quiet &= entries == 0;
        Ok(())
    }

    fn take_survey(&mut self, survey: Survey, batcher: &mut Batcher) -> Result<(), SessionError> {
        let Survey { file, position, given, calm, oldest, entries } = survey;
        if file != Some(self.file) || given < self.floor.given() {
            return Err(SessionError::OutboxReplaced);
        }
        self.floor.survey(given, oldest, entries.map(|(first, _)| first));
        if mutant::is(Mutant::EagerWatermark) {
            batcher.proven(position);
        }
        if let Some((proven, since)) = self.horizon.survey(position, self.asked, calm, entries) {
            batcher.proven(proven);
            if self.beat.elapsed() >= BEAT_EVERY {
                self.beat = Instant::now();
                batcher.caught_up(proven, since);
            }
        }
        match entries {
            None => {
                // Once more, and whoever writes from then on rings.
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

    /// Begins what is due.
    pub(super) fn work(&mut self, batcher: &mut Batcher, may_read: bool) {
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
                Some(tickets) if batcher.are_settled(tickets) => lane.begin(Task::Commit, floor, counted),
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
        let may_look = self.surveying.is_none() && self.surveyed.is_none() && Instant::now() >= self.rest_until;
        if self.survey_due && may_look {
            self.look();
        }
        if self.emptied >= VACUUM_AFTER && self.vacuuming.is_none() {
            self.vacuum();
        }
    }

    /// Claims in a transaction of its own if there is a connection for it, otherwise in the younger of those that are open.
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
    pub(super) fn is_drained(&self) -> bool {
        self.arrived.is_none() && !self.is_busy_with(Task::Claim)
    }

    fn is_busy_with(&self, task: Task) -> bool {
        self.lanes.iter().any(|lane| lane.task().is_some_and(|(busy, _)| busy == task))
    }

    /// Looks how far the outbox reaches; where it was quiet, asks to be rung first.
    fn look(&mut self) {
        let (primary, arm) = (Arc::clone(&self.primary), self.is_quiet && self.bell.is_some());
        let (thorough, floor) = (self.is_quiet && self.horizon.wants_calm(), self.floor.at());
        self.survey_due = false;
        self.asked = Instant::now();
        let (questions, sealed) = (Arc::clone(&self.questions), self.sealed);
        let look = async move {
            let armed = arm && questions.arm(primary.client()).await?;
            let survey = questions.survey(primary.client(), floor, thorough).await?;
            // Somebody may be about to commit for long, and nothing else moves the log.
            let seal = thorough && !survey.calm && survey.position > sealed;
            let sealed = if seal { survey::seal(primary.client()).await? } else { sealed };
            Ok(Look { survey, armed, sealed })
        };
        self.surveying = Some(Box::pin(async move {
            match tokio::time::timeout(STEP_MAX, look).await {
                Ok(survey) => survey.map_err(SessionError::Outbox),
                Err(_) => Err(SessionError::Unanswered(STEP_MAX)),
            }
        }));
    }

    /// Makes the room of deleted entries free for new ones.
    fn vacuum(&mut self) {
        self.emptied = 0;
        let (primary, settings, keeper) = (Arc::clone(&self.primary), self.settings.clone(), self.keeper.take());
        self.vacuuming = Some(Box::pin(async move {
            let keeper = match keeper.filter(|keeper| !keeper.is_closed()) {
                Some(keeper) => keeper,
                None => match primary.another(&settings.postgres).await {
                    Ok(another) => another.into_client(),
                    Err(error) => return (None, Err(with_causes(&error))),
                },
            };
            let vacuumed =
                keeper.batch_execute(VACUUM).await.map_err(|error| with_causes(&StatementError::from(error)));
            (Some(keeper), vacuumed)
        }));
    }

    /// Waits until something has happened. Cancel-safe.
    pub(super) async fn wait(&mut self) -> Result<FeedEvent, SessionError> {
        let Self { lanes: [one, other], surveying, bell, vacuuming, poll_at, .. } = self;
        let (at, done) = tokio::select! {
            biased;
            done = one.done() => (0, done),
            done = other.done() => (1, done),
            survey = arrival(surveying) => {
                self.surveying = None;
                self.surveyed = Some(survey?);
                let took = self.asked.elapsed();
                if took > QUICK {
                    self.rest_until = Instant::now() + took * REST;
                }
                return Ok(FeedEvent::Surveyed);
            }
            () = rung(bell.as_deref()) => {
                (self.claim_due, self.is_quiet) = (true, false);
                return Ok(FeedEvent::Arrived);
            }
            (keeper, vacuumed) = arrival(vacuuming) => {
                (self.vacuuming, self.keeper) = (None, keeper);
                if let Err(error) = vacuumed {
                    tracing::debug!(error, "the outbox could not be vacuumed; autovacuum will do it");
                }
                return Ok(FeedEvent::Arrived);
            }
            () = tokio::time::sleep_until((*poll_at).into()) => {
                self.poll_at = Instant::now() + self.poll_after;
                self.poll_after = (self.poll_after * 2).min(POLL_EVERY);
                // What somebody else had may have come back.
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
            self.emptied += std::mem::take(&mut lane.entries);
            self.gone.extend(lane.tickets.take());
            self.survey_due = true;
            self.poll_soon();
        }
        self.arrived = claim.map(|claim| (at, claim)).or(self.arrived.take());
    }

    /// Notices when the server does not answer.
    pub(super) fn on_tick(&self) -> Result<(), SessionError> {
        let is_stuck = |lane: &Lane| lane.task().is_some_and(|(_, since)| since > STEP_MAX);
        match self.lanes.iter().any(is_stuck) {
            true => Err(SessionError::Unanswered(STEP_MAX)),
            false => Ok(()),
        }
    }

    /// Commits what is in force, and leaves.
    pub(super) async fn finish(&mut self, batcher: &mut Batcher) {
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
            tracing::debug!("the outbox could not be told what is in force; it will be applied again");
        }
    }
}

/// Who reads the outbox: the name, the rules, and where to.
fn consumer(settings: &Settings, rules: &RuleSet) -> Consumer {
    let mut versions = rules.versions();
    let (redis, db) = (settings.redis.addr(), settings.redis.redis_settings().db());
    versions.insert("redis".to_owned(), format!("{redis}/{db} {}", settings.namespace));
    let rules = serde_json::to_string(&versions).expect("texts always serialize");
    Consumer { name: settings.slot.clone(), rules }
}

/// Says that something happened to a table that its trigger could not tell, at growing intervals.
fn say_unknown(transaction: &Transaction, notices: &mut Notices) {
    let unknown = transaction.events.iter().find_map(|(_, event)| match event {
        EntryEvent::Unknown(change) => Some(&change.relation.name),
        EntryEvent::Change(_) => None,
    });
    if let Some(table) = unknown
        && notices.due()
    {
        tracing::warn!(
            %table,
            "a table's triggers are new, or could not tell what changed: everything that the rules of the table match is \
             deleted; if its columns changed, correct the rules and run `unstale setup`"
        );
    }
}

/// Until the bell rings, if there is one.
async fn rung(bell: Option<&Notify>) {
    match bell {
        Some(bell) => bell.notified().await,
        None => std::future::pending().await,
    }
}
