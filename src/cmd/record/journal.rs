//! What is written down: transactions as lines, and how many there were.
//!
//! Owns what is recorded of a transaction and when there is enough. It must not know where changes come from.
//! Invariant: a transaction is written whole or not at all.

use std::io;

use super::output::Output;
use super::scope::Scope;
use crate::change::{Begin, Change, Lsn};
use crate::cmd::changes::printable;
use crate::source::recording::write::Transaction;

/// The lines that are written.
pub(super) struct Journal {
    scope: Scope,
    output: Output,
    /// The one that has begun, and not ended.
    transaction: Option<Transaction>,
    changes: u64,
    transactions: u64,
    /// How many changes are enough; none for no end.
    count: Option<u64>,
    /// That a value could not be written exactly was said.
    said_inexact: bool,
}

impl Journal {
    /// Writes what is in this scope.
    pub(super) fn new(scope: Scope, output: Output, count: Option<u64>) -> Self {
        Self { scope, output, transaction: None, changes: 0, transactions: 0, count, said_inexact: false }
    }

    /// A transaction begins.
    pub(super) fn begin(&mut self, begin: Begin) {
        self.transaction = Some(Transaction::new(begin));
    }

    /// One of its changes.
    pub(super) fn add(&mut self, change: &Change) -> io::Result<()> {
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

    /// It ends here, and is written if there is something to write.
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

    /// Whether there are as many changes as were asked for.
    pub(super) fn is_full(&self) -> bool {
        self.count.is_some_and(|count| self.changes >= count)
    }

    /// Lets a reader of standard output have what was written.
    pub(super) fn pass_on(&mut self) -> io::Result<()> {
        self.output.pass_on()
    }

    /// Makes safe what was written.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        self.output.settle()
    }

    /// What there is to say at the end.
    pub(super) fn summary(&self) -> String {
        format!("recorded {} changes of {} transactions", self.changes, self.transactions)
    }
}
