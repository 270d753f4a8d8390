//! `unstale record`: changes as they come, written down.
//!
//! Owns when the slot is told that changes are safe. It must not know what a line looks like. Invariants: a transaction
//! is written whole or not at all; nothing is confirmed that is not on its way to the disk or the reader for good.

mod output;
mod scope;
mod slot;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use self::output::{Output, Rotation, size};
use self::scope::Scope;
use self::slot::unread;
use super::changes::printable;
use super::run::stop_on_signals;
use super::{Failure, Loaded, duration};
use crate::change::{Change, Lsn, SourceEvent, TableName};
use crate::postgres;
use crate::rules::Planner;
use crate::source::peek::find_root;
use crate::source::recording::write::Transaction;
use crate::source::replication::assemble::Assembler;
use crate::source::replication::catalog;
use crate::source::replication::connection::Connection;
use crate::source::replication::pgoutput::{self, Message};
use crate::source::replication::stream::{Frame, Stream};

/// How often what is written is made safe and confirmed.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// After this much silence the server is asked for a sign of life.
const SILENCE_BEFORE_ASKING: Duration = Duration::from_secs(20);

/// After this much silence the connection counts as dead.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The longest goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Read this replication slot, and consume what is written; without it, a temporary one, from now on
    #[arg(long, value_name = "NAME", value_parser = slot::name)]
    slot: Option<String>,
    /// The publication; by default the one that the file names
    #[arg(long, value_name = "NAME")]
    publication: Option<String>,
    /// Only these tables, and no events
    #[arg(long, value_delimiter = ',', value_name = "TABLE,…")]
    tables: Vec<String>,
    /// Write to this file, at its end; by default to standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Begin another file once one has this size: FILE.000001.ndjson, FILE.000002.ndjson, …
    #[arg(long, value_parser = size, value_name = "SIZE", requires = "output")]
    rotate_size: Option<u64>,
    /// Keep so many files and delete the oldest
    #[arg(long, value_name = "N", requires = "rotate_size", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Write a fingerprint instead of the values of these columns (not of what is inside JSON or events)
    #[arg(long, value_delimiter = ',', value_name = "TABLE.COLUMN,…")]
    redact: Vec<String>,
    /// Stop after this long
    #[arg(long = "for", value_parser = duration, value_name = "DURATION")]
    limit: Option<Duration>,
    /// Stop after the transaction that brings the number of changes to this
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub(super) async fn run(path: &Path, args: Args) -> Result<(), Failure> {
    let stop = stop_on_signals()?;
    let loaded = Loaded::read(path)?;
    let mut recorder = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        opened = Recorder::open(&loaded, &args) => opened?,
    };
    let ended = match recorder.run(&stop, args.limit).await {
        Ok(()) | Err(Halt::Enough) => recorder.finish().await,
        Err(halt) => Err(halt),
    };
    eprintln!("recorded {} changes of {} transactions", recorder.changes, recorder.transactions);
    match ended {
        Ok(()) | Err(Halt::Enough | Halt::ReaderLeft) => Ok(()),
        Err(Halt::Failed(failure)) => Err(failure),
    }
}

/// Why the recording ends.
enum Halt {
    /// There are as many changes as were asked for.
    Enough,
    /// Nobody reads the output any more.
    ReaderLeft,
    Failed(Failure),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<io::Error> for Halt {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderLeft,
            _ => Self::Failed(error.into()),
        }
    }
}

/// A slot that is being read, and what is written.
struct Recorder {
    stream: Stream,
    slot: String,
    /// For questions to the catalog.
    client: Client,
    assembler: Assembler,
    /// Knows which tables the rules name: a partition is recorded under the name by which rules know it.
    planner: Planner,
    scope: Scope,
    output: Output,
    transaction: Option<Transaction>,
    /// Everything up to here is written, or not to be written.
    written: Lsn,
    changes: u64,
    transactions: u64,
    count: Option<u64>,
    /// That a value could not be written exactly was said.
    said_inexact: bool,
    heard: Instant,
    ticked: Instant,
}

impl Recorder {
    async fn open(loaded: &Loaded, args: &Args) -> Result<Self, Failure> {
        let settings = &loaded.settings;
        if args.slot.as_ref() == Some(&settings.slot) {
            return Err(Failure::usage(format!(
                "the replication slot `{}` is the daemon's, which would miss what is recorded from it; \
                 leave --slot out to record from now on",
                settings.slot
            )));
        }
        let publication = args.publication.as_deref().unwrap_or(&settings.publication);
        let client = postgres::connect(&settings.postgres).await?;
        require_publication(&client, publication).await?;
        let scope = Scope::new(&args.tables, &args.redact, &catalog::read(&client).await?)?;
        let rotation = args.rotate_size.map(|bytes_max| Rotation { bytes_max, keep: args.keep });
        let output = Output::open(args.output.as_deref(), rotation)?;
        let mut connection = Connection::open(&settings.postgres).await?;
        let slot = match &args.slot {
            Some(slot) => slot.clone(),
            None => slot::create(&mut connection).await?,
        };
        let stream = Stream::start(connection, &slot, publication, true).await;
        let stream = stream.map_err(|error| unread(&slot, error))?;
        Ok(Self {
            stream,
            slot,
            client,
            assembler: Assembler::default(),
            planner: Planner::new(Arc::new(loaded.rules.clone())),
            scope,
            output,
            transaction: None,
            written: Lsn::ZERO,
            changes: 0,
            transactions: 0,
            count: args.count,
            said_inexact: false,
            heard: Instant::now(),
            ticked: Instant::now(),
        })
    }

    /// Records until told to stop, for so long at most.
    async fn run(&mut self, stop: &CancellationToken, limit: Option<Duration>) -> Result<(), Halt> {
        let deadline = limit.and_then(|limit| tokio::time::Instant::now().checked_add(limit));
        let mut tick = tokio::time::interval(STATUS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(frame) = self.stream.next_frame().map_err(|error| unread(&self.slot, error))? {
                self.take(frame).await?;
            }
            self.output.pass_on()?;
            if self.stream.answer_due() {
                self.report(false)?;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = until(deadline) => return Ok(()),
                // Before the source, which may always have something.
                _ = tick.tick() => self.on_tick()?,
                received = self.stream.exchange(true) => {
                    received.map_err(|error| unread(&self.slot, error))?;
                    self.heard = Instant::now();
                }
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), Halt> {
        let bytes = match frame {
            Frame::Log(bytes) => bytes,
            Frame::Keepalive { wal_end } => {
                if self.transaction.is_none() {
                    self.written = self.written.max(wal_end);
                }
                return Ok(());
            }
            Frame::Skipped => {
                let slot = &self.slot;
                let message = format!("the publication is not there for all of slot `{slot}`: changes are missing");
                return Err(Failure::configuration(message).into());
            }
        };
        let unreadable = |error: &dyn std::fmt::Display| Failure::findings(format!("the log cannot be read: {error}"));
        let message = pgoutput::decode(bytes).map_err(|error| unreadable(&error))?;
        if let Message::Relation(body) = &message {
            let root = match self.planner.has_rules_for(&TableName::new(&body.schema, &body.table)) {
                true => None,
                false => find_root(&self.client, body.id).await.map_err(Failure::from)?,
            };
            self.assembler.set_root(body.id, root);
        }
        self.assembler.take(message).map_err(|error| unreadable(&error))?;
        while let Some(event) = self.assembler.next_event() {
            self.on_event(event)?;
        }
        Ok(())
    }

    fn on_event(&mut self, event: SourceEvent) -> Result<(), Halt> {
        match event {
            SourceEvent::Begin(begin) => self.transaction = Some(Transaction::new(begin)),
            SourceEvent::Change(change) => self.on_change(&change)?,
            SourceEvent::Progress { wal_end } => self.written = self.written.max(wal_end),
            SourceEvent::Commit { end_lsn } => {
                if let Some(transaction) = self.transaction.take()
                    && transaction.lines() > 0
                {
                    self.changes += transaction.lines();
                    self.transactions += 1;
                    self.output.write(transaction, end_lsn)?;
                }
                self.written = self.written.max(end_lsn);
                if self.count.is_some_and(|count| self.changes >= count) {
                    return Err(Halt::Enough);
                }
            }
        }
        Ok(())
    }

    fn on_change(&mut self, change: &Change) -> Result<(), Halt> {
        let Some(transaction) = &mut self.transaction else { return Ok(()) };
        if !self.scope.includes(change) {
            return Ok(());
        }
        let exact = transaction.push(change, &self.scope.redaction)?;
        if !exact && !self.said_inexact {
            self.said_inexact = true;
            let table = printable(&change.relation.name.to_string());
            eprintln!("warning: a value of {table} is not UTF-8; bytes that are no text are written as U+FFFD");
        }
        Ok(())
    }

    fn on_tick(&mut self) -> Result<(), Halt> {
        if self.ticked.elapsed() > SILENCE_BEFORE_ASKING {
            // Whoever takes the output made us wait: the silence is our own.
            self.heard = Instant::now();
        }
        self.ticked = Instant::now();
        let silence = self.heard.elapsed();
        if silence > SILENCE_MAX {
            let seconds = SILENCE_MAX.as_secs();
            return Err(Failure::unavailable(format!("PostgreSQL has been silent for {seconds} seconds")).into());
        }
        self.report(silence > SILENCE_BEFORE_ASKING)
    }

    /// Makes safe what is written, then tells the slot.
    fn report(&mut self, ask: bool) -> Result<(), Halt> {
        self.output.settle()?;
        self.stream.report(self.written, SystemTime::now(), ask);
        Ok(())
    }

    /// Makes everything safe, tells the slot and leaves. A transaction of which only a part came is not written.
    async fn finish(&mut self) -> Result<(), Halt> {
        self.report(false)?;
        if let Err(error) = self.stream.close(GOODBYE_MAX).await {
            tracing::debug!(%error, "the goodbye to PostgreSQL was not heard");
        }
        Ok(())
    }
}

/// Fails if there is no such publication.
async fn require_publication(client: &Client, publication: &str) -> Result<(), Failure> {
    const PUBLISHED: &str = "select exists (select from pg_publication where pubname = $1)";
    if client.query_one(PUBLISHED, &[&publication]).await?.try_get::<_, bool>(0)? {
        return Ok(());
    }
    Err(Failure::configuration(format!(
        "there is no publication `{}`: run `unstale setup`, or name another with --publication",
        printable(publication)
    )))
}

/// Until a moment, if there is one.
async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
