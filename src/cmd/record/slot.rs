//! Records from a replication slot: an existing one, or a temporary one.
//!
//! Owns the replication connection, when changes are confirmed to the slot, and the errors of
//! slots. It must not know what becomes of a change. Invariants: only what was flushed to the disk
//! or to the reader is confirmed; the name of a slot needs no escaping in a replication command.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;

use super::ending::{RecordingEnd, StopCondition};
use super::writer::RecordWriter;
use crate::change::{Lsn, SourceEvent, TableName};
use crate::cmd::config_file::ConfigFile;
use crate::cmd::display::printable;
use crate::cmd::failure::{Failure, with_causes};
use crate::postgres::{PREREQUISITE_STATE, UNDEFINED_OBJECT};
use crate::rules::Planner;
use crate::source::peek::ask_context;
use crate::source::replication::assemble::Assembler;
use crate::source::replication::connection::{Connection, ConnectionError};
use crate::source::replication::pgoutput::{self, Message};
use crate::source::replication::stream::{Frame, ReplicationStream};

/// SQLSTATE: another session reads the slot.
const IN_USE: &str = "55006";

/// How often what was written is flushed and confirmed.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// After this much silence, the server is asked for a reply.
const SILENCE_BEFORE_ASKING: Duration = Duration::from_secs(20);

/// After this much silence, the connection counts as dead.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long closing the connection may take.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Reads a slot and writes what it sends.
pub(super) struct SlotRecorder {
    stream: ReplicationStream,
    slot: String,
    /// For queries of the catalog.
    client: Client,
    assembler: Assembler,
    /// Knows which tables the rules name. A partition is recorded under the name that the rules
    /// use.
    planner: Planner,
    /// Everything up to this position is written, or need not be.
    written: Lsn,
    heard: Instant,
    ticked: Instant,
}

impl SlotRecorder {
    /// Starts to read a slot. Without a name, a temporary one is created, which begins now.
    pub(super) async fn open(
        file: &ConfigFile,
        client: Client,
        slot: Option<&str>,
        publication: &str,
    ) -> Result<Self, Failure> {
        let mut connection = Connection::open(&file.settings.postgres).await?;
        let slot = match slot {
            Some(slot) => slot.to_owned(),
            None => create(&mut connection).await?,
        };
        let stream = ReplicationStream::start(connection, &slot, publication, true).await;
        let stream = stream.map_err(|error| unreadable(&slot, error))?;
        Ok(Self {
            stream,
            slot,
            client,
            assembler: Assembler::default(),
            planner: Planner::new(Arc::new(file.rules.clone())),
            written: Lsn::ZERO,
            heard: Instant::now(),
            ticked: Instant::now(),
        })
    }

    /// Records until the end.
    pub(super) async fn run(&mut self, writer: &mut RecordWriter, stop: &StopCondition) -> Result<(), RecordingEnd> {
        let mut tick = tokio::time::interval(STATUS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(frame) = self.stream.next_frame().map_err(|error| unreadable(&self.slot, error))? {
                self.take(frame, writer).await?;
            }
            writer.flush_stdout()?;
            if self.stream.answer_due() {
                self.report(writer, false)?;
            }
            tokio::select! {
                biased;
                () = stop.reached() => return Ok(()),
                // Before the source, which may always have something.
                _ = tick.tick() => self.on_tick(writer)?,
                received = self.stream.exchange(true) => {
                    received.map_err(|error| unreadable(&self.slot, error))?;
                    self.heard = Instant::now();
                }
            }
        }
    }

    async fn take(&mut self, frame: Frame, writer: &mut RecordWriter) -> Result<(), RecordingEnd> {
        let bytes = match frame {
            Frame::Log(bytes) => bytes,
            Frame::Keepalive { wal_end } => {
                if !writer.is_inside_transaction() {
                    self.written = self.written.max(wal_end);
                }
                return Ok(());
            }
            Frame::Skipped => {
                let slot = &self.slot;
                let message = format!(
                    "the publication did not exist for all of slot `{slot}`, so changes are missing; record from another slot"
                );
                return Err(Failure::configuration(message).into());
            }
        };
        let undecodable = |error: &dyn std::error::Error| {
            Failure::findings(format!("cannot decode the replication stream: {}", with_causes(error)))
        };
        let message = pgoutput::decode(bytes).map_err(|error| undecodable(&error))?;
        if let Message::Relation(body) = &message {
            let has_rules_for = |table: &TableName| self.planner.has_rules_for(table);
            let context = ask_context(&self.client, body, &has_rules_for).await.map_err(Failure::from)?;
            self.assembler.set_context(body.id, context);
        }
        self.assembler.take(message).map_err(|error| undecodable(&error))?;
        while let Some(event) = self.assembler.next_event() {
            self.on_event(event, writer)?;
        }
        Ok(())
    }

    fn on_event(&mut self, event: SourceEvent, writer: &mut RecordWriter) -> Result<(), RecordingEnd> {
        match event {
            SourceEvent::Begin(begin) => writer.begin(begin),
            SourceEvent::Change(change) => writer.add(&change)?,
            // A recording has row changes.
            SourceEvent::Ddl => {}
            SourceEvent::Progress { wal_end } => self.written = self.written.max(wal_end),
            SourceEvent::Commit { end_lsn } => {
                writer.commit(end_lsn)?;
                self.written = self.written.max(end_lsn);
                if writer.is_full() {
                    return Err(RecordingEnd::Enough);
                }
            }
        }
        Ok(())
    }

    fn on_tick(&mut self, writer: &mut RecordWriter) -> Result<(), RecordingEnd> {
        if self.ticked.elapsed() > SILENCE_BEFORE_ASKING {
            // The reader of the output blocked this loop, so the silence says nothing about the
            // server.
            self.heard = Instant::now();
        }
        self.ticked = Instant::now();
        let silence = self.heard.elapsed();
        if silence > SILENCE_MAX {
            let seconds = SILENCE_MAX.as_secs();
            return Err(Failure::unavailable(format!(
                "PostgreSQL has not replied for {seconds} seconds; record again when it is available"
            ))
            .into());
        }
        self.report(writer, silence > SILENCE_BEFORE_ASKING)
    }

    /// Flushes what was written, then confirms it to the slot.
    fn report(&mut self, writer: &mut RecordWriter, ask: bool) -> Result<(), RecordingEnd> {
        writer.sync()?;
        self.stream.report(self.written, SystemTime::now(), ask);
        Ok(())
    }

    /// Flushes and confirms what was written, then closes the connection. An incomplete transaction
    /// is not written.
    pub(super) async fn finish(&mut self, writer: &mut RecordWriter) -> Result<(), RecordingEnd> {
        self.report(writer, false)?;
        if let Err(error) = self.stream.close(CLOSE_MAX).await {
            tracing::debug!(%error, "the connection to PostgreSQL was not closed in order");
        }
        Ok(())
    }
}

/// Fails if the publication does not exist.
pub(super) async fn require_publication(client: &Client, publication: &str) -> Result<(), Failure> {
    const PUBLISHED: &str = "select exists (select from pg_publication where pubname = $1)";
    if client.query_one(PUBLISHED, &[&publication]).await?.try_get::<_, bool>(0)? {
        return Ok(());
    }
    Err(Failure::configuration(format!(
        "there is no publication `{}`: run `unstale setup`, or name another with --publication",
        printable(publication)
    )))
}

/// Creates a temporary slot, which ends with the connection. It begins after what was committed
/// before.
async fn create(connection: &mut Connection) -> Result<String, Failure> {
    /// Creating a slot waits until the running transactions have ended.
    const NOTE_AFTER: Duration = Duration::from_secs(2);
    let slot = format!("unstale_record_{:08x}", rand::random::<u32>());
    let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT");
    let created = connection.query(&command);
    tokio::pin!(created);
    let created = tokio::select! {
        biased;
        created = &mut created => created,
        () = tokio::time::sleep(NOTE_AFTER) => {
            eprintln!("note: waiting for running transactions to end");
            created.await
        }
    };
    created.map_err(|error| unreadable(&slot, error))?;
    Ok(slot)
}

/// The failure to read a slot.
fn unreadable(slot: &str, error: ConnectionError) -> Failure {
    let ConnectionError::Server(refusal) = &error else { return Failure::unavailable(with_causes(&error)) };
    let refused = printable(refusal.to_string());
    match refusal.sqlstate.as_str() {
        IN_USE => Failure::unavailable(format!(
            "another session reads the replication slot `{slot}`; omit --slot to record from a temporary slot"
        )),
        UNDEFINED_OBJECT | PREREQUISITE_STATE => {
            Failure::configuration(format!("cannot read the replication slot `{slot}`: {refused}"))
        }
        _ => Failure::unavailable(format!("cannot read the replication slot `{slot}`: {refused}")),
    }
}

/// Parses the name of a slot, as PostgreSQL allows it.
pub(super) fn name(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    match plain && (1..=63).contains(&text.len()) {
        true => Ok(text.to_owned()),
        false => Err("expected 1 to 63 lower-case letters, digits and `_`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::failure::Exit;
    use crate::postgres::ServerError;

    #[test]
    fn a_name_is_safe_in_quotes() {
        let long = "x".repeat(63);
        for text in ["mine", "a_1", long.as_str()] {
            assert_eq!(name(text), Ok(text.to_owned()));
        }
        let long = "x".repeat(64);
        for text in ["", "Mine", "a\"b", "a b", "ü", long.as_str()] {
            assert!(name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_has_the_code_of_its_cause() {
        let check = |sqlstate: &str, exit: Exit, word: &str| {
            let error = ServerError { sqlstate: sqlstate.to_owned(), message: "no\u{1b}".to_owned(), detail: None };
            let failure = unreadable("mine", ConnectionError::Server(error));
            assert!(failure.exit == exit && failure.message.contains(word), "{failure:?}");
            assert!(!failure.message.contains('\u{1b}'), "{failure:?}");
        };
        check("55006", Exit::Unavailable, "omit --slot");
        check("42704", Exit::Configuration, "`mine`");
        check("55000", Exit::Configuration, "`mine`");
        check("53400", Exit::Unavailable, "`mine`");
        assert_eq!(unreadable("mine", ConnectionError::Protocol("x".to_owned())).exit, Exit::Unavailable);
    }
}
