//! `unstale record`: changes as they come, written down.
//!
//! Owns the arguments, and which source is read until when. It must not know what a line looks like. Invariant: no change
//! is taken from the daemon.

mod journal;
mod outbox;
mod output;
mod scope;
mod slot;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use self::journal::Journal;
use self::outbox::Watch;
use self::output::{Output, Rotation, size};
use self::scope::Scope;
use self::slot::Tap;
use super::changes::require_outbox;
use super::run::stop_on_signals;
use super::{Failure, Loaded, duration};
use crate::config::{Mode, Settings};
use crate::postgres;
use crate::postgres::catalog;

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
    let (mut source, mut journal) = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        opened = open(&loaded, &args) => opened?,
    };
    let deadline = args.limit.and_then(|limit| tokio::time::Instant::now().checked_add(limit));
    let ended = source.run(&mut journal, &Ending { stop, deadline }).await;
    eprintln!("{}", journal.summary());
    match ended {
        Ok(()) | Err(Halt::Enough | Halt::ReaderLeft) => Ok(()),
        Err(Halt::Failed(failure)) => Err(failure),
    }
}

async fn open(loaded: &Loaded, args: &Args) -> Result<(Source, Journal), Failure> {
    let settings = &loaded.settings;
    args.require_fit(settings)?;
    let client = postgres::connect(&settings.postgres).await?;
    match settings.mode {
        Mode::Slot => {
            let publication = args.publication.as_deref().unwrap_or(&settings.publication);
            slot::require_publication(&client, publication).await?;
            let journal = args.journal(&client).await?;
            let tap = Tap::open(loaded, client, args.slot.as_deref(), publication).await?;
            Ok((Source::Slot(Box::new(tap)), journal))
        }
        Mode::Outbox => {
            require_outbox(&client, settings).await?;
            let journal = args.journal(&client).await?;
            Ok((Source::Outbox(Box::new(Watch::open(client).await?)), journal))
        }
    }
}

impl Args {
    /// Fails if what is named is the daemon's, or is not there in this mode.
    fn require_fit(&self, settings: &Settings) -> Result<(), Failure> {
        match settings.mode {
            Mode::Slot if self.slot.as_ref() == Some(&settings.slot) => Err(Failure::usage(format!(
                "the replication slot `{}` is the daemon's, which would miss what is recorded from it; \
                 leave --slot out to record from now on",
                settings.slot
            ))),
            Mode::Outbox if self.slot.is_some() => Err(Failure::usage(
                "--slot names a replication slot, and with `mode: outbox` none is read; \
                 leave it out to record what is in the outbox and what comes",
            )),
            Mode::Outbox if self.publication.is_some() => Err(Failure::usage(
                "--publication chooses what a replication slot sends, and with `mode: outbox` none is read; \
                 choose among the tables of the rules with --tables",
            )),
            Mode::Slot | Mode::Outbox => Ok(()),
        }
    }

    /// Opens what is written to.
    async fn journal(&self, client: &Client) -> Result<Journal, Failure> {
        let scope = Scope::new(&self.tables, &self.redact, &catalog::read(client).await?)?;
        let rotation = self.rotate_size.map(|bytes_max| Rotation { bytes_max, keep: self.keep });
        let output = Output::open(self.output.as_deref(), rotation)?;
        Ok(Journal::new(scope, output, self.count))
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

/// When the recording ends if nothing else ends it.
struct Ending {
    stop: CancellationToken,
    deadline: Option<tokio::time::Instant>,
}

impl Ending {
    /// Until somebody says so, or the time is over.
    async fn reached(&self) {
        let time_is_over = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = time_is_over => {}
        }
    }
}

/// What is recorded.
enum Source {
    Slot(Box<Tap>),
    Outbox(Box<Watch>),
}

impl Source {
    /// Records to the end, and makes safe what was written.
    async fn run(&mut self, journal: &mut Journal, ending: &Ending) -> Result<(), Halt> {
        let recorded = match self {
            Self::Slot(tap) => tap.run(journal, ending).await,
            Self::Outbox(watch) => watch.run(journal, ending).await,
        };
        match recorded {
            Ok(()) | Err(Halt::Enough) => {}
            Err(halt) => return Err(halt),
        }
        match self {
            Self::Slot(tap) => tap.finish(journal).await,
            Self::Outbox(_) => Ok(journal.settle()?),
        }
    }
}
