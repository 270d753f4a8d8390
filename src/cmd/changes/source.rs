//! A source of changes, opened.
//!
//! Owns what differs between sources: how each is opened, where a transaction begins, what its
//! errors say. It must not plan. Invariant: reading a source changes nothing, in PostgreSQL or in
//! Redis.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek as _};
use std::path::PathBuf;

use tokio_postgres::error::SqlState;

use super::dead_letters::{DeadLetterEntry, DeadLetterReader};
use crate::catalog::Table;
use crate::change::{Begin, Change, Commit, Lsn, SourceEvent, TableName};
use crate::cmd::display::printable;
use crate::cmd::failure::{Failure, with_causes};
use crate::cmd::outbox::unreadable_outbox;
use crate::config::Settings;
use crate::postgres::{self, ServerError};
use crate::source::outbox::entry::EntryEvent;
use crate::source::outbox::pending::{Moment, Pending};
use crate::source::peek::{Peek, PeekError};
use crate::source::recording::Recording;
use crate::source::table::TableRows;

/// Which source is read.
pub(super) enum SourceSpec {
    File(PathBuf),
    /// Standard input, or a copy of it.
    Input(Option<File>),
    Table {
        table: Box<Table>,
        /// The root of the partition tree that the table belongs to.
        root: Option<TableName>,
        condition: Option<String>,
    },
    Slot,
    /// What was in the outbox at this moment.
    Outbox(Moment),
    DeadLetters,
}

/// One change, and how it is planned.
pub(super) struct InputChange {
    pub(super) change: Change,
    pub(super) commit: Commit,
    /// It belongs to the same transaction as the change before.
    pub(super) continues: bool,
    pub(super) planning: Planning,
}

/// How a change is planned.
pub(super) enum Planning {
    /// As the daemon plans it.
    AsDaemon,
    /// By every rule of its table.
    EveryRule,
    /// By every rule of its table, for all of its rows, because it is not known what changed.
    Resync,
    /// By one rule.
    OneRule(DeadLetterEntry),
}

/// An open source.
pub(super) enum ChangeSource {
    Lines { recording: Recording<Box<dyn BufRead>>, name: String },
    Rows { rows: TableRows, table: TableName, first: bool },
    Slot { peek: Box<Peek>, slot: String, begin: Option<Begin>, first: bool },
    Outbox { pending: Box<Pending>, transaction: Option<u64> },
    DeadLetters(DeadLetterReader),
}

impl ChangeSource {
    /// Opens a source at its beginning. With a limit, servers are asked for no more changes than
    /// that.
    pub(super) async fn open(spec: &SourceSpec, settings: &Settings, limit: Option<u32>) -> Result<Self, Failure> {
        let lines = |input: Box<dyn BufRead>, name: String| Self::Lines { recording: Recording::new(input), name };
        match spec {
            SourceSpec::File(path) => {
                let name = printable(path.display().to_string());
                let file = File::open(path).map_err(|error| Failure::usage(format!("cannot read {name}: {error}")))?;
                Ok(lines(Box::new(BufReader::new(file)), name))
            }
            SourceSpec::Input(None) => Ok(lines(Box::new(std::io::stdin().lock()), "-".to_owned())),
            SourceSpec::Input(Some(kept)) => {
                let mut file = kept.try_clone()?;
                file.rewind()?;
                Ok(lines(Box::new(BufReader::new(file)), "-".to_owned()))
            }
            SourceSpec::Table { table, root, condition } => {
                let client = postgres::connect(&settings.postgres).await?;
                let name = root.as_ref().unwrap_or(&table.name).clone();
                let rows = TableRows::open(client, table, name, condition.as_deref(), limit).await;
                let rows = rows.map_err(|error| unread(&table.name, error))?;
                Ok(Self::Rows { rows, table: table.name.clone(), first: true })
            }
            SourceSpec::Slot => {
                let client = postgres::connect(&settings.postgres).await?;
                let catalog = postgres::connect(&settings.postgres).await?;
                let slot = settings.slot.clone();
                let peek = Peek::open(client, catalog, &slot, &settings.publication, limit).await;
                let peek = peek.map_err(|error| unpeeked(&slot, error))?;
                Ok(Self::Slot { peek: Box::new(peek), slot, begin: None, first: true })
            }
            SourceSpec::Outbox(moment) => {
                let client = postgres::connect(&settings.postgres).await?;
                let mut pending = Pending::new(client);
                pending.scan(None, Some(moment)).await.map_err(unreadable_outbox)?;
                Ok(Self::Outbox { pending: Box::new(pending), transaction: None })
            }
            SourceSpec::DeadLetters => Ok(Self::DeadLetters(DeadLetterReader::open(settings).await?)),
        }
    }

    /// The next change. A table for which `has_rules_for` is false may be a partition of one for
    /// which it is true.
    pub(super) async fn next(
        &mut self,
        has_rules_for: &dyn Fn(&TableName) -> bool,
    ) -> Result<Option<InputChange>, Failure> {
        match self {
            Self::Lines { recording, name } => {
                let Some(recorded) = recording.next() else { return Ok(None) };
                let recorded = recorded.map_err(|error| Failure::recording(name, error))?;
                let commit = Commit { lsn: recorded.lsn.unwrap_or_default(), at: recorded.at };
                let (change, continues) = (recorded.change, recorded.continues);
                Ok(Some(InputChange { change, commit, continues, planning: Planning::AsDaemon }))
            }
            Self::Rows { rows, table, first } => {
                let Some(change) = rows.next().await.map_err(|error| unread(table, error))? else { return Ok(None) };
                // As if one transaction had changed every row: an op that rows have in common is
                // planned once.
                let continues = !std::mem::replace(first, false);
                Ok(Some(InputChange { change, commit: Commit::default(), continues, planning: Planning::EveryRule }))
            }
            Self::Slot { peek, slot, begin, first } => loop {
                match peek.next_event(has_rules_for).await.map_err(|error| unpeeked(slot, error))? {
                    None => return Ok(None),
                    Some(SourceEvent::Begin(began)) => (*begin, *first) = (Some(began), true),
                    Some(SourceEvent::Change(change)) => {
                        let commit =
                            begin.map(|begin| Commit { lsn: begin.commit_lsn.just_after(), at: Some(begin.at) });
                        let continues = !std::mem::replace(first, false);
                        let commit = commit.unwrap_or_default();
                        return Ok(Some(InputChange { change, commit, continues, planning: Planning::AsDaemon }));
                    }
                    Some(SourceEvent::Commit { .. } | SourceEvent::Progress { .. } | SourceEvent::Ddl) => {}
                }
            },
            Self::Outbox { pending, transaction } => loop {
                let Some(entry) = pending.next().await.map_err(unreadable_outbox)? else { return Ok(None) };
                let continues = transaction.replace(entry.xid) == Some(entry.xid);
                let commit = Commit { lsn: Lsn::ZERO, at: Some(entry.at) };
                let planning = match entry.event {
                    EntryEvent::Unknown(_) => Planning::Resync,
                    _ => Planning::AsDaemon,
                };
                let Some(change) = entry.event.into_change() else { continue };
                return Ok(Some(InputChange { change, commit, continues, planning }));
            },
            Self::DeadLetters(reader) => loop {
                let Some((entry, text)) = reader.next().await? else { return Ok(None) };
                match Recording::new(text.as_slice()).next() {
                    Some(Ok(recorded)) => {
                        let commit = Commit { lsn: recorded.lsn.unwrap_or_default(), at: recorded.at };
                        let change = recorded.change;
                        return Ok(Some(InputChange {
                            change,
                            commit,
                            continues: false,
                            planning: Planning::OneRule(entry),
                        }));
                    }
                    Some(Err(error)) => {
                        eprintln!(
                            "note: dead letter {} is not a valid change and is skipped: {}",
                            entry.id,
                            printable(with_causes(&error))
                        );
                    }
                    None => eprintln!("note: dead letter {} has no change and is skipped", entry.id),
                }
            },
        }
    }
}

/// The failure to read the rows of a table. The most likely reason is a condition that does not fit
/// the table.
fn unread(table: &TableName, error: tokio_postgres::Error) -> Failure {
    match error.as_db_error() {
        Some(refusal) => {
            let (table, refusal) = (printable(table.to_string()), printable(ServerError::from(refusal).to_string()));
            Failure::usage(format!(
                "PostgreSQL cannot return the rows of {table}: {refusal}; correct --where, or grant the role SELECT on the table"
            ))
        }
        None => error.into(),
    }
}

/// The failure to read what is pending in a slot.
fn unpeeked(slot: &str, error: PeekError) -> Failure {
    match error {
        PeekError::Refused(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => Failure::unavailable(format!(
            "the replication slot `{slot}` is being read, most likely by the daemon, which applies what is pending; stop \
             the daemon to see what is pending, or record new changes with `unstale record`"
        )),
        PeekError::Refused(error) => match error.as_db_error() {
            Some(refusal) => {
                let refusal = printable(ServerError::from(refusal).to_string());
                Failure::configuration(format!(
                    "cannot read what is pending in the replication slot `{slot}`: {refusal}; run `unstale check`"
                ))
            }
            None => error.into(),
        },
        PeekError::Decode(_) | PeekError::Assemble(_) => Failure::findings(format!(
            "cannot read what is pending in the replication slot `{slot}`: {}",
            with_causes(&error)
        )),
    }
}
