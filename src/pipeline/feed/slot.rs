//! The replication slot as a feed: what it sends goes to the batcher, and what is confirmed goes
//! back to it.
//!
//! Owns reading the log, and the status that keeps the slot alive. It must not know what becomes of
//! a change. Invariants: only what Redis recorded as applied is confirmed to the slot; the status
//! goes out on a timer of its own, also while Redis blocks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::event::FeedEvent;
use crate::change::{Lsn, Relation, RelationId, SourceEvent, TableName, Xid};
use crate::coherence::gate::Snapshot;
use crate::coherence::primary::{Primary, PrimaryError};
use crate::pipeline::batcher::Batcher;
use crate::pipeline::error::SessionError;
use crate::pipeline::running::Running;
use crate::postgres::ancestry::{Ancestry, ancestry};
use crate::source::replication::assemble::{Assembler, RelationContext};
use crate::source::replication::pgoutput::{self, Message, RelationBody};
use crate::source::replication::stream::{Frame, ReplicationStream};

/// How often a status goes out in any case, far below any sensible `wal_sender_timeout`.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// After this much silence the server is asked for a sign of life.
const SILENCE_BEFORE_ASKING: Duration = Duration::from_secs(20);

/// After this much silence the connection counts as dead, though its socket may be open.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How soon the server is asked again how far it has sent, if a transaction waits for that.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// How soon the catalog is asked again for what is not visible yet.
const CATALOG_AGAIN_AFTER: Duration = Duration::from_millis(1);

/// How long one question to the catalog may take.
const CATALOG_MAX: Duration = Duration::from_secs(10);

/// A slot that is being read.
pub(in crate::pipeline) struct SlotFeed {
    stream: ReplicationStream,
    primary: Arc<Primary>,
    assembler: Assembler,
    /// A relation's description that waits for what the catalog knows of the relation. Nothing is
    /// read meanwhile.
    describing: Running<Result<(RelationBody, Ancestry), SessionError>>,
    described: Option<(RelationBody, Ancestry)>,
    /// The type beneath each type that is not built in, as far as it was asked for.
    bases: HashMap<u32, u32>,
    measuring: Running<Result<Lsn, PrimaryError>>,
    /// When the question how far the log is written was asked.
    measured: Instant,
    /// When something was last received.
    heard: Instant,
    /// When the last status went out, and what it confirmed.
    reported: Instant,
    reported_lsn: Lsn,
    /// When the server was last asked how far it has sent, if a transaction waits for that.
    asked: Option<Instant>,
}

impl SlotFeed {
    pub(super) fn new(stream: ReplicationStream, assembler: Assembler, primary: Arc<Primary>) -> Self {
        let now = Instant::now();
        Self {
            stream,
            primary,
            assembler,
            describing: Running::default(),
            described: None,
            bases: HashMap::new(),
            measuring: Running::default(),
            measured: now,
            heard: now,
            reported: now,
            reported_lsn: Lsn::ZERO,
            asked: None,
        }
    }

    /// Takes everything that has arrived, until too much waits. Returns whether that was all that
    /// can be taken now.
    pub(super) fn read(&mut self, batcher: &mut Batcher) -> Result<bool, SessionError> {
        if let Some((body, Ancestry { ancestors, bases, .. })) = self.described.take() {
            let types = body.custom_types().into_iter();
            self.bases.extend(types.map(|oid| (oid, *bases.get(&oid).unwrap_or(&oid))));
            self.describe(body, ancestors, batcher)?;
        }
        while !batcher.is_full() {
            if self.describing.is_running() {
                return Ok(true);
            }
            let event = match self.stream.next_frame()? {
                None => return Ok(true),
                Some(Frame::Skipped) => return Err(SessionError::PublicationGap),
                Some(Frame::Keepalive { wal_end }) => Some(SourceEvent::Progress { wal_end }),
                Some(Frame::Log(bytes)) => {
                    match pgoutput::decode(bytes)? {
                        Message::Relation(body) => self.describe_or_ask(body, batcher)?,
                        message => self.assembler.take(message)?,
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

    /// A table that no rule names may be a partition of a table that a rule names, or inherit from
    /// it; and a type that is not built in may be a domain.
    fn describe_or_ask(&mut self, body: RelationBody, batcher: &mut Batcher) -> Result<(), SessionError> {
        let types = body.custom_types();
        let knows_types = types.iter().all(|oid| self.bases.contains_key(oid));
        let names = batcher.catalog().names(body.id).filter(|_| knows_types).map(<[_]>::to_vec);
        if let Some(names) = names {
            return self.describe(body, names, batcher);
        }
        let (primary, xid) = (Arc::clone(&self.primary), batcher.open_xid());
        self.describing.start(async move {
            let asked = tokio::time::timeout(CATALOG_MAX, ask_ancestors(&primary, body.id, &types, xid)).await;
            Ok((body, asked.unwrap_or(Err(SessionError::Unanswered(CATALOG_MAX)))?))
        });
        Ok(())
    }

    /// Takes a relation's description; `names` are the other names by which rules may mean it.
    fn describe(
        &mut self,
        body: RelationBody,
        names: Vec<TableName>,
        batcher: &mut Batcher,
    ) -> Result<(), SessionError> {
        let (id, own) = (body.id, TableName::new(&body.schema, &body.table));
        let mut names = names;
        names.extend(batcher.catalog().names(id).into_iter().flatten().cloned());
        let has_rules_for = |table: &TableName| batcher.planner().has_rules_for(table);
        self.assembler.set_context(id, RelationContext::of(&own, names, &has_rules_for, self.bases.clone()));
        self.assembler.take(Message::Relation(body))?;
        batcher.catalog().hint();
        if let Some(relation) = self.assembler.relation(id) {
            warn_of_missing_columns(relation, batcher);
        }
        Ok(())
    }

    /// Waits until something has happened. Cancel-safe.
    pub(super) async fn wait(&mut self, may_read: bool) -> Result<FeedEvent, SessionError> {
        let ask_again_at = self.ask_again_at();
        let may_read = may_read && !self.describing.is_running() && self.described.is_none();
        tokio::select! {
            biased;
            flushed = self.measuring.finished() => Ok(FeedEvent::LogWritten(flushed?, self.measured)),
            described = self.describing.finished() => {
                self.described = Some(described?);
                Ok(FeedEvent::Arrived)
            }
            () = until(ask_again_at) => Ok(FeedEvent::Arrived),
            received = self.stream.exchange(may_read) => {
                received?;
                self.heard = Instant::now();
                Ok(FeedEvent::Arrived)
            }
        }
    }

    /// Answers the server if it asked for a sign of life, and asks it how far it has sent if a
    /// transaction waits for that: on a quiet source nothing else says it soon.
    pub(super) fn work(&mut self, batcher: &Batcher) {
        let now = Instant::now();
        let is_due = self.asked.is_none() || self.ask_again_at().is_some_and(|at| at <= now);
        let asks = batcher.progress().awaits_source() && is_due;
        if asks || self.stream.answer_due() {
            self.report(batcher.confirmed(), asks);
        }
        self.asked = self.asked.filter(|_| batcher.progress().awaits_source());
        if asks {
            self.asked = Some(now);
        }
    }

    /// When the server is asked again how far it has sent; none before it has answered.
    fn ask_again_at(&self) -> Option<Instant> {
        self.asked.filter(|asked| self.heard > *asked).map(|asked| asked + ASK_AGAIN_AFTER)
    }

    /// Whether the server asked for a sign of life.
    pub(super) fn answer_due(&self) -> bool {
        self.stream.answer_due()
    }

    /// Keeps the connection alive, and notices when it is not. If `reads` is not set, silence means
    /// nothing.
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

    /// Asks how far the log is written.
    pub(super) fn measure(&mut self) {
        if self.measuring.is_running() {
            return;
        }
        let primary = Arc::clone(&self.primary);
        self.measured = Instant::now();
        self.measuring.start(async move { primary.flushed().await });
    }

    /// Queues a status. With `ask`, the server is to answer it.
    pub(super) fn report(&mut self, confirmed: Lsn, ask: bool) {
        self.reported = Instant::now();
        self.reported_lsn = confirmed;
        self.stream.report(confirmed, SystemTime::now(), ask);
    }

    /// Sends the last status, and closes the connection.
    pub(super) async fn finish(&mut self, confirmed: Lsn) {
        const GOODBYE_MAX: Duration = Duration::from_secs(2);
        self.report(confirmed, false);
        if let Err(error) = self.stream.close(GOODBYE_MAX).await {
            tracing::debug!(%error, "the last status did not reach PostgreSQL");
        }
    }
}

/// Waits until a moment, and for ever if there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Asks until the answer includes what the transaction being received did to the table's ancestors,
/// if it did anything: PostgreSQL sends commits before they are visible.
async fn ask_ancestors(
    primary: &Primary,
    relation: RelationId,
    types: &[u32],
    xid: Option<Xid>,
) -> Result<Ancestry, SessionError> {
    loop {
        let answer = ancestry(primary.client(), relation, types).await;
        let answer = answer.map_err(|error| SessionError::Catalog(error.into()))?;
        let snapshot = Snapshot::parse(&answer.snapshot);
        let snapshot = snapshot.ok_or_else(|| SessionError::CatalogUnreadable(answer.snapshot.clone()))?;
        if answer.is_settled || xid.is_none_or(|xid| snapshot.sees(xid)) {
            return Ok(answer);
        }
        tokio::time::sleep(CATALOG_AGAIN_AFTER).await;
    }
}

fn warn_of_missing_columns(relation: &Relation, batcher: &Batcher) {
    let missing = batcher.planner().missing(relation);
    if !missing.is_empty() {
        tracing::warn!(
            table = %relation.name,
            missing = missing.join(", "),
            "rules read columns that the table does not have any more, so every change of it deletes by pattern; \
             correct the rules and restart"
        );
    }
}
