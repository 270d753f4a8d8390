//! The outbox as what is recorded: looked at again and again, and never emptied.
//!
//! Owns when to look and what tells a new entry from one that was seen. It must not know what becomes of a change.
//! Invariants: what commits late is seen, however low its entries' numbers are; what is remembered between two looks
//! does not grow with the outbox.

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

/// The time between two looks. One that takes longer is followed by as long a pause.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How often what is written is made safe, and a daemon is looked for.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// An outbox that is watched.
pub(super) struct OutboxRecorder {
    pending: Pending,
    /// The last look: what could be seen then is written.
    seen: Option<Moment>,
    settled: Instant,
    /// That a daemon takes entries away was said.
    said_daemon: bool,
    /// That nobody knows what happened to a table was said.
    said_unknown: bool,
}

impl OutboxRecorder {
    /// Begins with what waits now.
    pub(super) async fn open(client: Client) -> Result<Self, Failure> {
        if client.query_one("select pg_is_in_recovery()", &[]).await?.try_get(0)? {
            let message =
                "this server is a standby, where nobody can tell which entries are new; name the primary in source.url";
            return Err(Failure::configuration(message));
        }
        let pending = Pending::new(client);
        let mut watch = Self { pending, seen: None, settled: Instant::now(), said_daemon: false, said_unknown: false };
        watch.mention_daemon().await?;
        Ok(watch)
    }

    /// Records until the end.
    pub(super) async fn run(&mut self, writer: &mut RecordWriter, stop: &StopCondition) -> Result<(), RecordingEnd> {
        loop {
            let began = Instant::now();
            tokio::select! {
                biased;
                () = stop.reached() => return Ok(()),
                looked = self.look(writer) => looked?,
            }
            writer.flush_stdout()?;
            if self.settled.elapsed() >= SETTLE_EVERY {
                writer.sync()?;
                self.mention_daemon().await?;
                self.settled = Instant::now();
            }
            tokio::select! {
                biased;
                () = stop.reached() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY.max(began.elapsed())) => {}
            }
        }
    }

    /// Writes what could not be seen before.
    async fn look(&mut self, writer: &mut RecordWriter) -> Result<(), RecordingEnd> {
        let sight = self.pending.look(self.seen.as_ref(), None).await.map_err(unreadable_outbox)?;
        let mut open = None;
        while let Some(entry) = self.pending.next().await.map_err(unreadable_outbox)? {
            if open != Some(entry.xid) {
                commit(writer, sight.end)?;
                writer.begin(begin(&entry, sight.end));
                open = Some(entry.xid);
            }
            match &entry.event {
                EntryEvent::Change(change) => writer.add(change)?,
                EntryEvent::Unknown(change) => {
                    self.mention_unknown(change);
                    for possible in possibilities(change) {
                        writer.add(&possible)?;
                    }
                }
            }
        }
        commit(writer, sight.end)?;
        self.seen = Some(sight.moment);
        Ok(())
    }

    /// Says, once, that a daemon is at work.
    async fn mention_daemon(&mut self) -> Result<(), Failure> {
        if !self.said_daemon && daemons(self.pending.client()).await? > 0 {
            self.said_daemon = true;
            eprintln!(
                "warning: a daemon is at work on the outbox: what it takes away before it is seen here will be missing"
            );
        }
        Ok(())
    }

    /// Says, once, what lines without values mean.
    fn mention_unknown(&mut self, change: &Change) {
        if !std::mem::replace(&mut self.said_unknown, true) {
            let table = printable(change.relation.name.to_string());
            eprintln!(
                "note: nobody knows what happened to {table}, as after its set-up: it is written as a change of every \
                 kind, without values"
            );
        }
    }
}

/// Ends the transaction that has begun, if one has.
fn commit(writer: &mut RecordWriter, end: Lsn) -> Result<(), RecordingEnd> {
    writer.commit(end)?;
    match writer.is_full() {
        true => Err(RecordingEnd::Enough),
        false => Ok(()),
    }
}

/// The beginning of an entry's transaction. When and where it was committed, the outbox does not say: the time is that
/// of its first entry, and the position one by which it was.
fn begin(entry: &Entry, end: Lsn) -> Begin {
    #[expect(clippy::cast_possible_truncation, reason = "the epoch is cut off on purpose")]
    let xid = Xid::new(entry.xid as u32);
    Begin { xid, commit_lsn: end, at: entry.at }
}

/// Everything that may have happened, of a row of which nothing is known.
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
    use crate::change::{Column, Commit, Kind, Relation, RelationId, TableName, json};
    use crate::source::recording::Recording;

    #[test]
    fn what_nobody_knows_is_written_as_every_change_there_is() {
        let columns = vec![Column { name: "id".to_owned(), kind: Kind::Integer, in_identity: true }];
        let relation = Relation { id: RelationId::new(20_000), name: TableName::new("public", "t"), columns };
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
