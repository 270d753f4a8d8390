//! Transactions, written as lines and counted.
//!
//! Owns which changes of a transaction are recorded, and when `--count` is reached. It must not
//! know where changes come from. Invariant: a transaction is written whole or not at all.

use std::io;

use super::filter::RecordFilter;
use super::output::Output;
use crate::change::{Begin, Change, Lsn};
use crate::cmd::display::printable;
use crate::source::recording::write::RecordedTransaction;

/// Writes transactions to an output.
pub(super) struct RecordWriter {
    filter: RecordFilter,
    output: Output,
    /// The transaction that has begun and not ended.
    transaction: Option<RecordedTransaction>,
    changes: u64,
    transactions: u64,
    /// How many changes are recorded before the end.
    count: Option<u64>,
    /// The warning about a value that cannot be written exactly was printed.
    warned_inexact: bool,
}

impl RecordWriter {
    /// Writes what the filter includes. After `count` changes it is full.
    pub(super) fn new(filter: RecordFilter, output: Output, count: Option<u64>) -> Self {
        Self { filter, output, transaction: None, changes: 0, transactions: 0, count, warned_inexact: false }
    }

    /// Begins a transaction.
    pub(super) fn begin(&mut self, begin: Begin) {
        self.transaction = Some(RecordedTransaction::new(begin));
    }

    /// Adds a change to the transaction.
    pub(super) fn add(&mut self, change: &Change) -> io::Result<()> {
        let Some(transaction) = &mut self.transaction else { return Ok(()) };
        if !self.filter.includes(change) {
            return Ok(());
        }
        let exact = transaction.push(change, &self.filter.redaction)?;
        if !exact && !self.warned_inexact {
            self.warned_inexact = true;
            let table = printable(change.relation.name.to_string());
            eprintln!("warning: a value of {table} is not UTF-8; invalid bytes are written as U+FFFD");
        }
        Ok(())
    }

    /// Ends the transaction, and writes it if it has any lines.
    pub(super) fn commit(&mut self, end_lsn: Lsn) -> io::Result<()> {
        let Some(transaction) = self.transaction.take().filter(|transaction| transaction.lines() > 0) else {
            return Ok(());
        };
        self.changes += transaction.lines();
        self.transactions += 1;
        self.output.write(transaction, end_lsn)
    }

    /// Whether a transaction has begun and not ended.
    pub(super) fn is_inside_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Whether as many changes were recorded as `--count` asks for.
    pub(super) fn is_full(&self) -> bool {
        self.count.is_some_and(|count| self.changes >= count)
    }

    /// Flushes standard output, for its reader.
    pub(super) fn flush_stdout(&mut self) -> io::Result<()> {
        self.output.flush_stdout()
    }

    /// Flushes what was written to disk.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.output.sync()
    }

    /// How much was recorded.
    pub(super) fn summary(&self) -> String {
        format!("recorded {} changes of {} transactions", self.changes, self.transactions)
    }
}
