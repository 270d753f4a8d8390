//! `unstale record`: writes changes as they happen.
//!
//! Owns the flags, and which source is read until when. It must not know what a line looks like.
//! Invariant: no change is taken from the daemon.

mod ending;
mod filter;
mod outbox;
mod output;
mod slot;
mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::Client;

use self::ending::{RecordingEnd, StopCondition};
use self::filter::RecordFilter;
use self::outbox::OutboxRecorder;
use self::output::{Output, Rotation};
use self::slot::SlotRecorder;
use self::writer::RecordWriter;
use super::arguments::{byte_size, duration};
use super::config_file::ConfigFile;
use super::failure::Failure;
use super::outbox::require_outbox;
use super::signals::stop_on_signals;
use crate::config::{Mode, Settings};
use crate::postgres;
use crate::postgres::catalog;

#[derive(Debug, clap::Args)]
pub(super) struct RecordArgs {
    /// Read this replication slot, and consume what is written; the default is a temporary slot,
    /// from now on
    #[arg(long, value_name = "NAME", value_parser = slot::name)]
    slot: Option<String>,
    /// The publication, instead of that of the file
    #[arg(long, value_name = "NAME")]
    publication: Option<String>,
    /// Only these tables, and no events
    #[arg(long, value_delimiter = ',', value_name = "TABLE,…")]
    tables: Vec<String>,
    /// Append to this file; the default is standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Begin a new file at this size: FILE.000001.ndjson, FILE.000002.ndjson, …
    #[arg(long, value_parser = byte_size, value_name = "SIZE", requires = "output")]
    rotate_size: Option<u64>,
    /// Keep so many files and delete the oldest
    #[arg(long, value_name = "N", requires = "rotate_size", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Write a fingerprint instead of the values of these columns, but not of values inside JSON
    /// and events
    #[arg(long, value_delimiter = ',', value_name = "TABLE.COLUMN,…")]
    redact: Vec<String>,
    /// Stop after this long
    #[arg(long = "for", value_parser = duration, value_name = "DURATION")]
    limit: Option<Duration>,
    /// Stop after the transaction that brings the number of changes to this
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub(super) async fn run(config: &Path, args: RecordArgs) -> Result<(), Failure> {
    let stop = stop_on_signals()?;
    let file = ConfigFile::read(config)?;
    let (mut recorder, mut writer) = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        opened = open(&file, &args) => opened?,
    };
    let deadline = args.limit.and_then(|limit| tokio::time::Instant::now().checked_add(limit));
    let ended = recorder.run(&mut writer, &StopCondition { stop, deadline }).await;
    eprintln!("{}", writer.summary());
    match ended {
        Ok(()) | Err(RecordingEnd::Enough | RecordingEnd::ReaderLeft) => Ok(()),
        Err(RecordingEnd::Failed(failure)) => Err(failure),
    }
}

async fn open(file: &ConfigFile, args: &RecordArgs) -> Result<(Recorder, RecordWriter), Failure> {
    let settings = &file.settings;
    args.require_fit(settings)?;
    let client = postgres::connect(&settings.postgres).await?;
    match settings.mode {
        Mode::Slot => {
            let publication = args.publication.as_deref().unwrap_or(&settings.publication);
            slot::require_publication(&client, publication).await?;
            let writer = args.writer(&client).await?;
            let recorder = SlotRecorder::open(file, client, args.slot.as_deref(), publication).await?;
            Ok((Recorder::Slot(Box::new(recorder)), writer))
        }
        Mode::Outbox => {
            require_outbox(&client, settings).await?;
            let writer = args.writer(&client).await?;
            Ok((Recorder::Outbox(Box::new(OutboxRecorder::open(client).await?)), writer))
        }
    }
}

impl RecordArgs {
    /// Fails if a flag names what belongs to the daemon, or what does not exist in this mode.
    fn require_fit(&self, settings: &Settings) -> Result<(), Failure> {
        match settings.mode {
            Mode::Slot if self.slot.as_ref() == Some(&settings.slot) => Err(Failure::usage(format!(
                "the replication slot `{}` belongs to the daemon, which would miss what is recorded from it; \
                 omit --slot to record from now on",
                settings.slot
            ))),
            Mode::Outbox if self.slot.is_some() => Err(Failure::usage(
                "--slot names a replication slot, and with `mode: outbox` none is read; \
                 omit it to record what is in the outbox and what will be added",
            )),
            Mode::Outbox if self.publication.is_some() => Err(Failure::usage(
                "--publication selects what a replication slot sends, and with `mode: outbox` none is read; \
                 select tables of the rules with --tables",
            )),
            Mode::Slot | Mode::Outbox => Ok(()),
        }
    }

    /// Opens the output.
    async fn writer(&self, client: &Client) -> Result<RecordWriter, Failure> {
        let filter = RecordFilter::new(&self.tables, &self.redact, &catalog::read(client).await?)?;
        let rotation = self.rotate_size.map(|bytes_max| Rotation { bytes_max, keep: self.keep });
        let output = Output::open(self.output.as_deref(), rotation)?;
        Ok(RecordWriter::new(filter, output, self.count))
    }
}

/// A recorder for either mode.
enum Recorder {
    Slot(Box<SlotRecorder>),
    Outbox(Box<OutboxRecorder>),
}

impl Recorder {
    /// Records until the end, then flushes what was written to disk.
    async fn run(&mut self, writer: &mut RecordWriter, stop: &StopCondition) -> Result<(), RecordingEnd> {
        let recorded = match self {
            Self::Slot(recorder) => recorder.run(writer, stop).await,
            Self::Outbox(recorder) => recorder.run(writer, stop).await,
        };
        match recorded {
            Ok(()) | Err(RecordingEnd::Enough) => {}
            Err(end) => return Err(end),
        }
        match self {
            Self::Slot(recorder) => recorder.finish(writer).await,
            Self::Outbox(_) => Ok(writer.sync()?),
        }
    }
}
