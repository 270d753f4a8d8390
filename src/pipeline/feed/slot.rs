//! The replication slot as a feed: what it sends goes to the batcher, and what is confirmed goes back to it.
//!
//! Owns opening the slot, making it anew when it is of no use any more, and the status that keeps it alive. It must not
//! know what becomes of a change. Invariants: the slot is told only what Redis recorded as applied; the status goes out
//! on a timer of its own, also while Redis blocks.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{Asking, FeedEvent, Source, arrival};
use crate::change::{Lsn, RelationId, SourceEvent, TableName, Xid};
use crate::coherence::gate::Snapshot;
use crate::coherence::history::{Origin, Present};
use crate::coherence::primary::{INSTANCE, Primary, SlotFacts};
use crate::config::Settings;
use crate::install;
use crate::pipeline::batcher::Batcher;
use crate::pipeline::error::SessionError;
use crate::postgres::catalog::{self, Ancestry};
use crate::postgres::{PREREQUISITE_STATE, UNDEFINED_OBJECT};
use crate::source::replication::assemble::Assembler;
use crate::source::replication::connection::{Connection, ConnectionError};
use crate::source::replication::pgoutput::{self, Message};
use crate::source::replication::stream::{Frame, Stream};

/// How often a status goes out in any case, far below any sensible `wal_sender_timeout`.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// After this much silence the server is asked for a sign of life.
const SILENCE_BEFORE_ASKING: Duration = Duration::from_secs(20);

/// After this much silence the connection counts as dead, though its socket may be open.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long one question to the catalog may take.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server may take to answer the few questions before it streams.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// How long a new slot may take: it waits for all transactions that are under way.
const RECREATE_MAX: Duration = Duration::from_secs(600);

/// What is known of the slot from earlier connections.
#[derive(Debug, Default)]
pub(in crate::pipeline) struct Condition {
    /// It was read before, so it was there.
    pub(in crate::pipeline) streamed: bool,
    /// Where it stood when it met log from before the publication existed: it cannot get past that.
    pub(in crate::pipeline) gap_at: Option<Lsn>,
}

/// A slot that is being read.
pub(in crate::pipeline) struct Slot {
    stream: Stream,
    /// Where it stood when this began.
    from: Lsn,
    primary: Arc<Primary>,
    assembler: Assembler,
    measuring: Option<Asking<Lsn>>,
    /// When it was asked how far the log is.
    measured: Instant,
    heard: Instant,
    reported: Instant,
    reported_lsn: Lsn,
}

/// Begins to read the slot, then looks at it: from then on nobody else can move it.
pub(in crate::pipeline) async fn open(
    settings: &Settings,
    with_messages: bool,
    condition: &mut Condition,
) -> Result<Source, SessionError> {
    let silent = |_| SessionError::Unanswered(OPEN_MAX);
    let (mut connection, instance) = tokio::time::timeout(OPEN_MAX, async {
        let mut connection = Connection::open(&settings.postgres).await?;
        let instance = one_text(connection.query(INSTANCE).await?);
        Ok::<_, SessionError>((connection, instance))
    })
    .await
    .map_err(silent)??;
    let primary = Arc::new(Primary::connect(&settings.postgres, &instance).await?);
    if let Some(gap_at) = condition.gap_at.take() {
        let facts = primary.facts(&settings.slot, &settings.publication).await?;
        // Further on, somebody else made it anew meanwhile.
        if facts.confirmed.is_some_and(|confirmed| confirmed <= gap_at) {
            condition.gap_at = Some(gap_at);
            recreate(settings, &primary).await?;
            condition.gap_at = None;
        }
    }
    let started = async {
        let identity = connection.query("IDENTIFY_SYSTEM").await?;
        Ok::<_, ConnectionError>((
            identity,
            Stream::start(connection, &settings.slot, &settings.publication, with_messages).await,
        ))
    };
    let (identity, started) = tokio::time::timeout(OPEN_MAX, started).await.map_err(silent)??;
    let stream = match started {
        Ok(stream) => stream,
        Err(ConnectionError::Server(error)) if [PREREQUISITE_STATE, UNDEFINED_OBJECT].contains(&&*error.sqlstate) => {
            let facts = primary.facts(&settings.slot, &settings.publication).await?;
            let gone = facts.confirmed.is_none() && condition.streamed;
            if !(facts.published && (facts.lost || gone)) {
                return Err(SessionError::SlotUnusable { slot: settings.slot.clone(), source: error });
            }
            recreate(settings, &primary).await?;
            return Err(ConnectionError::Server(error).into());
        }
        Err(error) => return Err(error.into()),
    };
    let facts = primary.facts(&settings.slot, &settings.publication).await?;
    if !facts.published {
        return Err(SessionError::NoPublication(settings.publication.clone()));
    }
    let SlotFacts { confirmed, recovered, end, .. } = facts;
    let mut columns = identity.into_iter().flatten().map(Option::unwrap_or_default);
    let (system, timeline) = (columns.next().unwrap_or_default(), columns.next().unwrap_or_default());
    let present = Present {
        origin: Origin { system, timeline, recovered, source: String::new() },
        slot: confirmed.unwrap_or(end),
        end,
        recorded: Lsn::ZERO,
        batches: None,
    };
    let slot = Slot::new(stream, Arc::clone(&primary), present.slot);
    Ok(Source { feed: super::Feed::Slot(Box::new(slot)), primary, present })
}

fn one_text(rows: Vec<Vec<Option<String>>>) -> String {
    rows.into_iter().flatten().flatten().next().unwrap_or_default()
}

/// Makes the slot anew. What it had not sent is lost, which the history will show: a new epoch follows.
async fn recreate(settings: &Settings, primary: &Primary) -> Result<(), SessionError> {
    let facts = primary.facts(&settings.slot, &settings.publication).await?;
    if !facts.published {
        return Err(SessionError::NoPublication(settings.publication.clone()));
    }
    let recreated = tokio::time::timeout(RECREATE_MAX, install::slot::recreate(primary.client(), &settings.slot)).await;
    recreated
        .map_err(|_| SessionError::Unanswered(RECREATE_MAX))?
        .map_err(|error| SessionError::RecreateSlot(error.into()))?;
    tracing::warn!(slot = settings.slot, "the slot was of no use any more and was made anew: changes were missed");
    Ok(())
}

impl Slot {
    fn new(stream: Stream, primary: Arc<Primary>, from: Lsn) -> Self {
        let now = Instant::now();
        Self {
            stream,
            from,
            primary,
            assembler: Assembler::default(),
            measuring: None,
            measured: now,
            heard: now,
            reported: now,
            reported_lsn: Lsn::ZERO,
        }
    }

    /// Where the slot stands: where it began, or what it was told or is about to be.
    pub(in crate::pipeline) fn confirmed(&self, batcher: &Batcher) -> Lsn {
        self.from.max(batcher.confirmed())
    }

    /// Takes in everything that is here, until too much waits; whether that was all.
    pub(super) async fn read(&mut self, batcher: &mut Batcher) -> Result<bool, SessionError> {
        while !batcher.is_full() {
            let event = match self.stream.next_frame()? {
                None => return Ok(true),
                Some(Frame::Skipped) => return Err(SessionError::PublicationGap),
                Some(Frame::Keepalive { wal_end }) => Some(SourceEvent::Progress { wal_end }),
                Some(Frame::Log(bytes)) => {
                    let message = pgoutput::decode(bytes)?;
                    let described = match &message {
                        Message::Relation(body) => {
                            self.find_root(body, batcher).await?;
                            Some(body.id)
                        }
                        _ => None,
                    };
                    self.assembler.take(message)?;
                    if let Some(relation) = described.and_then(|id| self.assembler.relation(id)) {
                        super::compare(batcher, relation);
                    }
                    None
                }
            };
            let now = Instant::now();
            for event in event.into_iter().chain(std::iter::from_fn(|| self.assembler.next_event())) {
                batcher.take(event, now)?;
            }
        }
        Ok(false)
    }

    /// A table that no rule names may be a partition of one that a rule does, or inherit from it.
    async fn find_root(&mut self, body: &pgoutput::RelationBody, batcher: &Batcher) -> Result<(), SessionError> {
        if batcher.planner().has_rules_for(&TableName::new(&body.schema, &body.table)) {
            self.assembler.set_root(body.id, None);
            return Ok(());
        }
        let asked = tokio::time::timeout(CATALOG_TIMEOUT, ask_place(&self.primary, body.id, batcher.open_xid()));
        let ancestors = asked.await.unwrap_or(Err(SessionError::Unanswered(CATALOG_TIMEOUT)))?;
        let named = ancestors.iter().find(|table| batcher.planner().has_rules_for(table));
        let root = named.or(ancestors.last()).cloned();
        self.assembler.set_root(body.id, root);
        Ok(())
    }

    /// Waits until something has happened. Cancel-safe.
    pub(super) async fn wait(&mut self, may_read: bool) -> Result<FeedEvent, SessionError> {
        tokio::select! {
            biased;
            flushed = arrival(&mut self.measuring) => {
                self.measuring = None;
                Ok(FeedEvent::LogWritten(flushed?, self.measured))
            }
            received = self.stream.exchange(may_read) => {
                received?;
                self.heard = Instant::now();
                Ok(FeedEvent::Arrived)
            }
        }
    }

    /// Whether the server asked for a sign of life.
    pub(super) fn answer_due(&self) -> bool {
        self.stream.answer_due()
    }

    /// Keeps the connection alive, and notices when it is not. If `reads` is not set, the silence is our own.
    pub(super) fn on_tick(&mut self, confirmed: Lsn, reads: bool) -> Result<(), SessionError> {
        if !reads {
            self.heard = Instant::now();
        }
        let silence = self.heard.elapsed();
        if silence > SILENCE_MAX {
            return Err(SessionError::Silent(SILENCE_MAX));
        }
        if confirmed > self.reported_lsn || self.reported.elapsed() >= STATUS_EVERY {
            self.report(confirmed, silence > SILENCE_BEFORE_ASKING);
        }
        Ok(())
    }

    /// Asks how far the log is.
    pub(super) fn measure(&mut self) {
        if self.measuring.is_some() {
            return;
        }
        let primary = Arc::clone(&self.primary);
        self.measured = Instant::now();
        self.measuring = Some(Box::pin(async move { primary.flushed().await }));
    }

    pub(super) fn report(&mut self, confirmed: Lsn, ask: bool) {
        self.reported = Instant::now();
        self.reported_lsn = confirmed;
        self.stream.report(confirmed, SystemTime::now(), ask);
    }

    /// Tells the slot what is confirmed and leaves.
    pub(super) async fn finish(&mut self, confirmed: Lsn) {
        const GOODBYE_MAX: Duration = Duration::from_secs(2);
        self.report(confirmed, false);
        if let Err(error) = self.stream.close(GOODBYE_MAX).await {
            tracing::debug!(%error, "the goodbye to PostgreSQL was not heard");
        }
    }
}

/// Asks until the answer includes what the transaction being received did, if it did anything to the table's place:
/// PostgreSQL sends commits before they are visible.
async fn ask_place(primary: &Primary, relation: RelationId, xid: Option<Xid>) -> Result<Vec<TableName>, SessionError> {
    const ASK_AGAIN_AFTER: Duration = Duration::from_millis(1);
    loop {
        let answer = catalog::ancestry(primary.client(), relation).await;
        let Ancestry { ancestors, is_settled, snapshot } =
            answer.map_err(|error| SessionError::Catalog(error.into()))?;
        let snapshot = Snapshot::parse(&snapshot).ok_or_else(|| SessionError::CatalogUnreadable(snapshot.clone()))?;
        if is_settled || xid.is_none_or(|xid| snapshot.sees(xid)) {
            return Ok(ancestors);
        }
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
}
