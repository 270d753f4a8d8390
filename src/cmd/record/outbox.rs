//! Records from the outbox: polls it, and removes nothing.
//!
//! Owns when to poll, and which entries are new. It must not know what becomes of a change.
//! Invariants: the entries of a late commit are recorded, however low their numbers are; the memory
//! between two polls does not grow with the outbox.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::ending::{RecordingEnd, StopCondition};
use super::writer::RecordWriter;
use crate::change::{Begin, Change, Lsn, Operation, Row, Xid};
use crate::cmd::display::printable;
use crate::cmd::failure::Failure;
use crate::cmd::outbox::unreadable_outbox;
use crate::source::outbox::entry::{Entry, EntryEvent};
use crate::source::outbox::pending::{Moment, Pending};
use crate::source::outbox::survey::daemons;

/// The time between two polls. A poll that takes longer is followed by a pause of the same length.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// How often what was written is flushed, and a running daemon is looked for.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Polls an outbox and writes what is new.
pub(super) struct OutboxRecorder {
    pending: Pending,
    /// The last poll. What was visible then is written.
    seen: Option<Moment>,
    synced: Instant,
    /// The warning about a running daemon was printed.
    warned_daemon: bool,
    /// The note about unknown changes was printed.
    noted_unknown: bool,
}

impl OutboxRecorder {
    /// Begins with the entries that are waiting now.
    pub(super) async fn open(client: Client) -> Result<Self, Failure> {
        if client.query_one("select pg_is_in_recovery()", &[]).await?.try_get(0)? {
            let message =
                "this server is a standby, which cannot tell which entries are new; name the primary in source.url";
            return Err(Failure::configuration(message));
        }
        let pending = Pending::new(client);
        let mut watch =
            Self { pending, seen: None, synced: Instant::now(), warned_daemon: false, noted_unknown: false };
        watch.warn_about_daemon().await?;
        Ok(watch)
    }

    /// Records until the end.
    pub(super) async fn run(&mut self, writer: &mut RecordWriter, stop: &StopCondition) -> Result<(), RecordingEnd> {
        loop {
            let began = Instant::now();
            tokio::select! {
                biased;
                () = stop.reached() => return Ok(()),
                polled = self.poll(writer) => polled?,
            }
            writer.flush_stdout()?;
            if self.synced.elapsed() >= SYNC_EVERY {
                writer.sync()?;
                self.warn_about_daemon().await?;
                self.synced = Instant::now();
            }
            tokio::select! {
                biased;
                () = stop.reached() => return Ok(()),
                () = tokio::time::sleep(POLL_EVERY.max(began.elapsed())) => {}
            }
        }
    }

    /// Writes the entries that were not visible before.
    async fn poll(&mut self, writer: &mut RecordWriter) -> Result<(), RecordingEnd> {
        let polled = self.pending.scan(self.seen.as_ref(), None).await.map_err(unreadable_outbox)?;
        let mut open = None;
        while let Some(entry) = self.pending.next().await.map_err(unreadable_outbox)? {
            if open != Some(entry.xid) {
                commit(writer, polled.end)?;
                writer.begin(begin(&entry, polled.end));
                open = Some(entry.xid);
            }
            match &entry.event {
                EntryEvent::Change(change) | EntryEvent::TooLong(change) => writer.add(change)?,
                EntryEvent::Events(changes) => changes.iter().try_for_each(|change| writer.add(change))?,
                // A recording has row changes.
                EntryEvent::Ddl => {}
                EntryEvent::Unknown(change) => {
                    self.note_unknown(change);
                    for possible in possibilities(change) {
                        writer.add(&possible)?;
                    }
                }
            }
        }
        commit(writer, polled.end)?;
        self.seen = Some(polled.moment);
        Ok(())
    }

    /// Warns, once, that a daemon is running.
    async fn warn_about_daemon(&mut self) -> Result<(), Failure> {
        if !self.warned_daemon && daemons(self.pending.client()).await? > 0 {
            self.warned_daemon = true;
            eprintln!(
                "warning: a daemon is at work on the outbox; entries that it removes between two polls will be missing"
            );
        }
        Ok(())
    }

    /// Explains, once, lines without values.
    fn note_unknown(&mut self, change: &Change) {
        if !std::mem::replace(&mut self.noted_unknown, true) {
            let table = printable(change.relation.name.to_string());
            eprintln!(
                "note: it is not known what changed in {table}, for example after `unstale setup`; one change of every \
                 kind is written, without values"
            );
        }
    }
}

/// Ends the open transaction, if there is one.
fn commit(writer: &mut RecordWriter, end: Lsn) -> Result<(), RecordingEnd> {
    writer.commit(end)?;
    match writer.is_full() {
        true => Err(RecordingEnd::Enough),
        false => Ok(()),
    }
}

/// The beginning of an entry's transaction. The outbox does not record its commit. The time is that
/// of the first entry, and the position is one at which the transaction was committed.
fn begin(entry: &Entry, end: Lsn) -> Begin {
    #[expect(clippy::cast_possible_truncation, reason = "the epoch is cut off on purpose")]
    let xid = Xid::new(entry.xid as u32);
    Begin { xid, commit_lsn: end, at: entry.at }
}

/// Every kind of change, for a row of which nothing is known.
fn possibilities(change: &Change) -> [Change; 4] {
    Operation::ALL.map(|operation| {
        let old = matches!(operation, Operation::Update | Operation::Delete).then(Row::default);
        let new = matches!(operation, Operation::Insert | Operation::Update).then(Row::default);
        Change { relation: Arc::clone(&change.relation), operation, old, new }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Column, ColumnKind, Commit, Relation, RelationId, TableName, json};
    use crate::source::recording::Recording;

    #[test]
    fn an_unknown_change_is_written_as_every_kind_of_change() {
        let columns = vec![Column { name: "id".to_owned(), kind: ColumnKind::Integer, in_identity: true }];
        let relation =
            Relation { id: RelationId::new(20_000), name: TableName::new("public", "t"), also: Vec::new(), columns };
        let unknown = Change { relation: Arc::new(relation), operation: Operation::Truncate, old: None, new: None };
        let lines = possibilities(&unknown).map(|change| {
            let line = change.to_line(&Commit::default(), None, json::plainly);
            Recording::new(line.as_slice()).next().unwrap().unwrap();
            String::from_utf8(line).unwrap()
        });
        let expected = [
            r#"{"table":"public.t","op":"insert","new":{}}"#,
            r#"{"table":"public.t","op":"update","old":{},"new":{}}"#,
            r#"{"table":"public.t","op":"delete","old":{}}"#,
            r#"{"table":"public.t","op":"truncate"}"#,
        ];
        assert_eq!(lines, expected);
    }
}
