//! What the loop knows: changes planned and not yet sent, the batch in flight, the ledger.
//!
//! Owns the pipeline's state. Synchronous; knows no socket and no clock. Invariants: memory is bounded
//! whatever the size of a transaction (rows are planned as they arrive, and [`Batcher::is_full`] stops the
//! reader); at most one batch is in flight, so order holds; a transaction is done only when the batch
//! with its last row is in force.

use std::time::SystemTime;

use crate::change::{Begin, Lsn, SourceEvent, Xid};
use crate::coherence::progress::{Progress, Ticket};
use crate::plan::Plan;
use crate::rules::{PlanError, Planner};
use crate::sink::Batch;

/// The most ops that wait for the batch in flight.
const OPS_MAX: usize = 4096;

/// The most bytes of names and messages that wait.
const BYTES_MAX: usize = 4 << 20;

/// The most changes that wait: ops alone bound nothing when many rows ask for the same one.
const CHANGES_MAX: usize = 16_384;

/// The pipeline's state within one connection to the source.
#[derive(Debug)]
pub(super) struct Batcher {
    planner: Planner,
    progress: Progress,
    waiting: Waiting,
    in_flight: Option<Flight>,
    /// The transaction whose rows are arriving.
    open: Option<Begin>,
    /// What Redis was last told, or is being told, is applied.
    recording: Lsn,
    /// A transaction was put into force and is not recorded yet.
    record_due: bool,
}

/// What is planned for the next batch.
#[derive(Debug)]
struct Waiting {
    plan: Plan,
    tickets: Vec<Ticket>,
    changes: usize,
    started: Lsn,
    at: SystemTime,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { plan: Plan::default(), tickets: Vec::new(), changes: 0, started: Lsn::ZERO, at: SystemTime::UNIX_EPOCH }
    }
}

/// What becomes true when the batch in flight is in force.
#[derive(Debug)]
struct Flight {
    tickets: Vec<Ticket>,
    record: Option<Lsn>,
}

impl Batcher {
    /// The state at the beginning of a connection.
    pub(super) fn new(planner: Planner) -> Self {
        Self {
            planner,
            progress: Progress::default(),
            waiting: Waiting::default(),
            in_flight: None,
            open: None,
            recording: Lsn::ZERO,
            record_due: false,
        }
    }

    /// The planner, for the next connection.
    pub(super) fn into_planner(self) -> Planner {
        self.planner
    }

    pub(super) fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Takes in what the source says.
    pub(super) fn take(&mut self, event: SourceEvent) -> Result<(), PlanError> {
        match event {
            SourceEvent::Begin(begin) => {
                self.open = Some(begin);
                self.waiting.plan.begin_transaction();
            }
            SourceEvent::Change(change) => {
                // The end of the commit record is not known before the commit arrives. No record ends
                // between its start and its end, so this position orders the same.
                let lsn = self.open.map_or(Lsn::ZERO, |begin| begin.commit_lsn.just_after());
                self.waiting.changes += 1;
                self.waiting.started = self.waiting.started.max(lsn);
                self.waiting.at = self.open.map_or(self.waiting.at, |begin| begin.at);
                self.planner.plan(&change, lsn, &mut self.waiting.plan)?;
            }
            SourceEvent::Commit { end_lsn } => {
                self.waiting.plan.end_transaction(end_lsn);
                self.waiting.started = self.waiting.started.max(end_lsn);
                self.waiting.at = self.open.take().map_or(self.waiting.at, |begin| begin.at);
                self.waiting.tickets.push(self.progress.received(end_lsn));
            }
            SourceEvent::Progress { wal_end } => {
                if self.open.is_none() {
                    self.progress.reached(wal_end);
                }
            }
        }
        Ok(())
    }

    /// Whether the reader has to wait for the batch in flight.
    pub(super) fn is_full(&self) -> bool {
        let waiting = &self.waiting;
        waiting.plan.len() >= OPS_MAX
            || waiting.plan.bytes() >= BYTES_MAX
            || waiting.changes >= CHANGES_MAX
            || waiting.tickets.len() >= CHANGES_MAX
    }

    /// The next batch to send, if there is one and none is in flight. When only a quiet source moved on,
    /// recording that can wait until it is `urgent`.
    pub(super) fn next_batch(&mut self, urgent: bool) -> Option<Batch> {
        if self.in_flight.is_some() {
            return None;
        }
        let ready = !self.waiting.tickets.is_empty() || self.is_full();
        let mut waiting = if ready { std::mem::take(&mut self.waiting) } else { Waiting::default() };
        if waiting.plan.is_empty() {
            for ticket in waiting.tickets.drain(..) {
                self.progress.done(ticket);
                self.record_due = true;
            }
        }
        let applied = self.progress.applied();
        let record = (applied > self.recording).then_some(applied);
        let nothing_to_do = waiting.plan.is_empty() && !(record.is_some() && (urgent || self.record_due));
        if nothing_to_do {
            return None;
        }
        self.recording = self.recording.max(applied);
        self.record_due = false;
        self.in_flight = Some(Flight { tickets: waiting.tickets, record });
        Some(Batch { plan: waiting.plan, started: waiting.started, record, at: waiting.at })
    }

    /// The batch in flight is in force.
    pub(super) fn landed(&mut self) {
        let Some(flight) = self.in_flight.take() else { return };
        if let Some(applied) = flight.record {
            self.progress.recorded(applied);
        }
        for ticket in flight.tickets {
            self.progress.done(ticket);
            self.record_due = true;
        }
    }

    /// The transaction whose rows are arriving.
    pub(super) fn open_xid(&self) -> Option<Xid> {
        self.open.map(|begin| begin.xid)
    }

    /// What may be acknowledged to the slot.
    pub(super) fn confirmed(&self) -> Lsn {
        self.progress.confirmed()
    }

    /// Whether everything received whole is in force and recorded.
    pub(super) fn is_drained(&self) -> bool {
        self.in_flight.is_none() && self.waiting.tickets.is_empty() && self.progress.is_idle() && !self.record_due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::change::{Cell, Change, Column, Operation, Relation, RelationId, Row, TableName, Xid};
    use crate::config::Document;
    use crate::rules::RuleSet;

    fn batcher() -> Batcher {
        let text = "version: 1\nrules:\n  user: {table: users, delete: ['user:{id}'], bump: 'v:{id}'}\n";
        let document = Document::parse(text, &|_| None).unwrap();
        let rules = RuleSet::compile(document.rules, &document.settings).unwrap();
        Batcher::new(Planner::new(Arc::new(rules)))
    }

    fn begin(lsn: u64) -> SourceEvent {
        SourceEvent::Begin(Begin { xid: Xid::new(1), commit_lsn: Lsn::new(lsn), at: SystemTime::UNIX_EPOCH })
    }

    fn insert(id: usize) -> SourceEvent {
        let columns = vec![Column { name: "id".into(), in_identity: true }];
        let relation = Arc::new(Relation { id: RelationId::new(1), name: TableName::new("public", "users"), columns });
        let new = Some(Row::new(vec![Cell::Value(id.to_string().into())]));
        SourceEvent::Change(Change { relation, operation: Operation::Insert, old: None, new })
    }

    fn commit(lsn: u64) -> SourceEvent {
        SourceEvent::Commit { end_lsn: Lsn::new(lsn) }
    }

    #[test]
    fn nothing_is_confirmed_before_it_is_applied_and_recorded() {
        let mut batcher = batcher();
        for event in [begin(100), insert(1), commit(150)] {
            batcher.take(event).unwrap();
        }
        let batch = batcher.next_batch(false).unwrap();
        assert_eq!((batch.started, batch.record, batch.plan.len()), (Lsn::new(150), None, 2));
        assert!(batcher.next_batch(true).is_none(), "one batch at a time");
        assert_eq!(batcher.confirmed(), Lsn::ZERO);
        batcher.landed();
        assert_eq!(batcher.confirmed(), Lsn::ZERO, "in force, but Redis does not say so yet");
        let record = batcher.next_batch(false).unwrap();
        assert_eq!((record.record, record.plan.len()), (Some(Lsn::new(150)), 0));
        batcher.landed();
        assert_eq!(batcher.confirmed(), Lsn::new(150));
        assert!(batcher.is_drained() && batcher.next_batch(true).is_none());
    }

    #[test]
    fn a_large_transaction_is_sent_in_parts_and_done_with_the_last() {
        let mut batcher = batcher();
        batcher.take(begin(100)).unwrap();
        let mut id = 0;
        while !batcher.is_full() {
            batcher.take(insert(id)).unwrap();
            id += 1;
        }
        let part = batcher.next_batch(false).unwrap();
        assert_eq!((part.started, part.plan.len()), (Lsn::new(101), OPS_MAX));
        assert!(part.plan.bumps().all(|(_, lsn)| lsn == Lsn::new(101)));
        batcher.landed();
        assert!(batcher.next_batch(true).is_none(), "a part records nothing");
        for event in [insert(id), commit(150)] {
            batcher.take(event).unwrap();
        }
        let last = batcher.next_batch(false).unwrap();
        assert!(last.plan.bumps().all(|(_, lsn)| lsn == Lsn::new(150)));
        batcher.landed();
        assert_eq!(batcher.next_batch(false).unwrap().record, Some(Lsn::new(150)));
    }

    #[test]
    fn a_quiet_source_is_recorded_when_it_is_urgent() {
        let mut batcher = batcher();
        batcher.take(SourceEvent::Progress { wal_end: Lsn::new(70) }).unwrap();
        assert!(batcher.next_batch(false).is_none());
        assert_eq!(batcher.next_batch(true).unwrap().record, Some(Lsn::new(70)));
        batcher.landed();
        assert_eq!(batcher.confirmed(), Lsn::new(70));
    }

    #[test]
    fn a_keepalive_inside_of_a_transaction_confirms_nothing() {
        let mut batcher = batcher();
        batcher.take(begin(100)).unwrap();
        batcher.take(SourceEvent::Progress { wal_end: Lsn::new(500) }).unwrap();
        assert!(batcher.next_batch(true).is_none());
    }

    #[test]
    fn many_equal_ops_do_not_fill_memory() {
        let mut batcher = batcher();
        batcher.take(begin(100)).unwrap();
        for _ in 0..CHANGES_MAX {
            assert!(!batcher.is_full());
            batcher.take(insert(1)).unwrap();
        }
        assert!(batcher.is_full());
        assert_eq!(batcher.next_batch(false).unwrap().plan.len(), 2);
    }
}
