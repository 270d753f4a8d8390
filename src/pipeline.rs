//! The owner loop: joins source, rules, ledger and sink, which do not know one another.
//!
//! Owns what happens when: one `select` gives a closed [`Event`], and the state changes synchronously. It
//! must not decode, plan or encode. Invariants: the slot is told only what Redis recorded as applied; the
//! status goes out on a timer of its own, also while Redis blocks; the reader stops when too much waits.

mod batcher;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, Notices};
use crate::change::{Lsn, RelationId, SourceEvent, TableName, Xid};
use crate::coherence::gate::Snapshot;
use crate::config::Settings;
use crate::postgres::{self, ConnectError, ServerError};
use crate::rules::{PlanError, Planner, RuleSet};
use crate::sink::{Batch, Sink};
use crate::source::replication::assemble::Assembler;
use crate::source::replication::catalog;
use crate::source::replication::connection::{Connection, ConnectionError};
use crate::source::replication::pgoutput::{self, Message};
use crate::source::replication::stream::{Frame, Stream};
use batcher::Batcher;

/// How often what was confirmed is reported, if it moved.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// How often a status goes out in any case, far below any sensible `wal_sender_timeout`.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// After this much silence the server is asked for a sign of life.
const SILENCE_BEFORE_ASKING: Duration = Duration::from_secs(20);

/// After this much silence the connection counts as dead, though its socket may be open.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long one question to the catalog may take.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the daemon stopped though nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file says to stop at such a change.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// PostgreSQL refused the first connection, and would refuse the next.
    #[error(transparent)]
    Refused(ConnectError),
    /// The slot or the publication cannot be used; waiting would not help.
    #[error("the replication slot `{slot}` cannot be used: {error}")]
    Slot {
        /// Its name.
        slot: String,
        /// What the server said.
        error: ServerError,
    },
}

/// Runs until `stop` says so, or until something happens that waiting does not mend. What was received
/// whole is then put into force first, within `drain_max`.
pub async fn run(
    settings: &Settings,
    rules: Arc<RuleSet>,
    sink: Sink,
    stop: &CancellationToken,
    drain_max: Duration,
) -> Result<(), RunError> {
    let mut idle_sink = Some(Box::new(sink));
    let mut planner = Planner::new(rules);
    let mut backoff = Backoff::default();
    let mut notices = Notices::default();
    let mut streamed = false;
    loop {
        let connected = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            connected = connect(settings) => connected,
        };
        let trouble = match connected {
            Ok(stream) => {
                streamed = true;
                tracing::info!(
                    postgres = %settings.postgres, slot = settings.slot, redis = idle_sink.as_ref().map(|sink| sink.address()), "streaming"
                );
                let began = Instant::now();
                let mut session = Session::new(settings, stream, planner, idle_sink.take());
                let ended = session.run(stop, drain_max).await;
                let (rest, sink) = session.into_parts(stop).await;
                (planner, idle_sink) = (rest, sink);
                if began.elapsed() > STATUS_EVERY {
                    backoff.reset();
                    notices.reset();
                }
                match ended {
                    Ok(()) => return Ok(()),
                    Err(SessionError::Fatal(error)) => return Err(error),
                    Err(SessionError::Broken(error)) => error.to_string(),
                }
            }
            Err(SessionError::Fatal(error)) => return Err(error),
            Err(SessionError::Broken(Trouble::Connect(error))) if !streamed && !error.is_transient() => {
                return Err(RunError::Refused(error));
            }
            Err(SessionError::Broken(error)) => error.to_string(),
        };
        if idle_sink.is_none() {
            // Told to stop while Redis did not answer.
            return Ok(());
        }
        if notices.due() {
            tracing::warn!(postgres = %settings.postgres, "no replication: {trouble}; trying again");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

/// Why one connection to the source ended.
#[derive(Debug)]
enum SessionError {
    /// Another connection may go on.
    Broken(Trouble),
    /// It would not.
    Fatal(RunError),
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Decode(#[from] pgoutput::DecodeError),
    #[error(transparent)]
    Assemble(#[from] crate::source::replication::assemble::AssembleError),
    #[error("the catalog did not answer: {0}")]
    Catalog(String),
    #[error("PostgreSQL has been silent for {} seconds", SILENCE_MAX.as_secs())]
    Silent,
}

impl<E: Into<Trouble>> From<E> for SessionError {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

impl From<PlanError> for SessionError {
    fn from(error: PlanError) -> Self {
        Self::Fatal(error.into())
    }
}

async fn connect(settings: &Settings) -> Result<Stream, SessionError> {
    let connection = Connection::open(&settings.postgres).await?;
    match Stream::start(connection, &settings.slot, &settings.publication).await {
        Ok(stream) => Ok(stream),
        // Object not in prerequisite state (the slot is lost), undefined object (there is none).
        Err(ConnectionError::Server(error)) if ["55000", "42704"].contains(&error.sqlstate.as_str()) => {
            Err(SessionError::Fatal(RunError::Slot { slot: settings.slot.clone(), error }))
        }
        Err(error) => Err(error.into()),
    }
}

/// A batch on its way; comes back with the sink when it is in force.
type Flight = Pin<Box<dyn Future<Output = Box<Sink>> + Send>>;

/// What the loop waits for.
enum Event {
    Stop,
    Landed(Box<Sink>),
    Received,
    Tick,
}

/// One connection to the source and everything that lives as long.
struct Session<'a> {
    settings: &'a Settings,
    stream: Stream,
    assembler: Assembler,
    batcher: Batcher,
    sink: Option<Box<Sink>>,
    flight: Option<Flight>,
    /// For questions to the catalog, opened when there is one.
    client: Option<Client>,
    heard: Instant,
    reported: Instant,
    reported_lsn: Lsn,
}

impl<'a> Session<'a> {
    fn new(settings: &'a Settings, stream: Stream, planner: Planner, sink: Option<Box<Sink>>) -> Self {
        Self {
            settings,
            stream,
            assembler: Assembler::default(),
            batcher: Batcher::new(planner),
            sink,
            flight: None,
            client: None,
            heard: Instant::now(),
            reported: Instant::now(),
            reported_lsn: Lsn::ZERO,
        }
    }

    /// The planner and the sink, once the batch in flight is in force: it may not be overtaken by what the
    /// next connection sends. Without the sink if told to stop meanwhile.
    async fn into_parts(self, stop: &CancellationToken) -> (Planner, Option<Box<Sink>>) {
        let sink = match self.flight {
            None => self.sink,
            Some(flight) => tokio::select! {
                biased;
                sink = flight => Some(sink),
                () = stop.cancelled() => None,
            },
        };
        (self.batcher.into_planner(), sink)
    }

    async fn run(&mut self, stop: &CancellationToken, drain_max: Duration) -> Result<(), SessionError> {
        let mut tick = tokio::time::interval(REPORT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining_until: Option<tokio::time::Instant> = None;
        loop {
            if draining_until.is_none() {
                self.read().await?;
            }
            self.send_off(self.stream.answer_due());
            if self.stream.answer_due() {
                self.report(false);
            }
            if draining_until.is_some() && self.batcher.is_drained() {
                return self.finish().await;
            }
            let may_read = draining_until.is_none() && !self.batcher.is_full();
            let deadline = async {
                match draining_until {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let flight = async {
                match &mut self.flight {
                    Some(flight) => flight.await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                () = stop.cancelled(), if draining_until.is_none() => Event::Stop,
                () = deadline => {
                    tracing::warn!(seconds = drain_max.as_secs_f64(), "stopped before everything received was in force; it will be sent again");
                    return self.finish().await;
                }
                // Before the source, which may always have something: the timer may not starve.
                _ = tick.tick() => Event::Tick,
                sink = flight => Event::Landed(sink),
                received = self.stream.exchange(may_read) => {
                    received?;
                    Event::Received
                }
            };
            match event {
                Event::Stop => draining_until = Some(tokio::time::Instant::now() + drain_max),
                Event::Landed(sink) => {
                    self.flight = None;
                    self.sink = Some(sink);
                    self.batcher.landed();
                }
                Event::Received => self.heard = Instant::now(),
                Event::Tick => self.on_tick()?,
            }
        }
    }

    /// Takes in everything that is here, until too much waits.
    async fn read(&mut self) -> Result<(), SessionError> {
        while !self.batcher.is_full() {
            match self.stream.next_frame()? {
                None => return Ok(()),
                Some(Frame::Keepalive { wal_end }) => self.batcher.take(SourceEvent::Progress { wal_end })?,
                Some(Frame::Log(bytes)) => {
                    let message = pgoutput::decode(bytes)?;
                    if let Message::Relation(body) = &message {
                        self.find_root(body).await?;
                    }
                    self.assembler.take(message)?;
                    while let Some(event) = self.assembler.next_event() {
                        self.batcher.take(event)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A table that no rule names may be a partition of one that a rule does.
    async fn find_root(&mut self, body: &pgoutput::RelationBody) -> Result<(), SessionError> {
        if self.batcher.planner().has_rules_for(&TableName::new(&body.schema, &body.table)) {
            self.assembler.set_root(body.id, None);
            return Ok(());
        }
        let asked = tokio::time::timeout(
            CATALOG_TIMEOUT,
            ask_root(&mut self.client, self.settings, body.id, self.batcher.open_xid()),
        );
        let root = asked.await.unwrap_or_else(|_| Err(Trouble::Catalog("no answer in time".to_owned())))?;
        self.assembler.set_root(body.id, root);
        Ok(())
    }

    /// Sends the next batch, if there is one and the sink is free.
    fn send_off(&mut self, urgent: bool) {
        if self.sink.is_none() {
            return;
        }
        if let Some(batch) = self.batcher.next_batch(urgent)
            && let Some(sink) = self.sink.take()
        {
            self.flight = Some(Box::pin(apply(sink, batch)));
        }
    }

    fn on_tick(&mut self) -> Result<(), SessionError> {
        self.send_off(true);
        let silence = self.heard.elapsed();
        // While we do not read, silence is our own.
        if silence > SILENCE_MAX && !self.batcher.is_full() {
            return Err(Trouble::Silent.into());
        }
        let moved = self.batcher.confirmed() > self.reported_lsn;
        if moved || self.reported.elapsed() >= STATUS_EVERY {
            self.report(silence > SILENCE_BEFORE_ASKING);
        }
        Ok(())
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

/// Asks until the answer includes what the transaction being received did: it may have attached the
/// partition, and PostgreSQL sends commits before they are visible.
async fn ask_root(
    client: &mut Option<Client>,
    settings: &Settings,
    relation: RelationId,
    xid: Option<Xid>,
) -> Result<Option<TableName>, Trouble> {
    const ASK_AGAIN_AFTER: Duration = Duration::from_millis(1);
    let client = match client.take_if(|client| !client.is_closed()) {
        Some(open) => client.insert(open),
        None => client.insert(postgres::connect(&settings.postgres).await?),
    };
    loop {
        let answer = catalog::root_of(client, relation).await;
        let (root, snapshot) = answer.map_err(|error| Trouble::Catalog(error.to_string()))?;
        let snapshot =
            Snapshot::parse(&snapshot).ok_or_else(|| Trouble::Catalog(format!("the snapshot {snapshot:?}")))?;
        if xid.is_none_or(|xid| snapshot.sees(xid)) {
            return Ok(root);
        }
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
}

async fn apply(mut sink: Box<Sink>, batch: Batch) -> Box<Sink> {
    sink.apply(&batch).await;
    sink
}
