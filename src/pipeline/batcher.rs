//! What the loop knows: changes planned and not yet sent, the batch in flight, the ledger.
//!
//! Owns the pipeline's state. Synchronous; knows no socket and no clock. Invariants: nothing of a transaction is
//! sent before the gate sees it (what an outbox gives is visible already); memory is bounded whatever the size of a transaction (rows are planned as
//! they arrive, and [`Batcher::is_full`] stops the reader); at most one batch is in flight, so order holds; a
//! transaction is done only when the batch with its last row is in force.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::part::{Part, Size};
use super::repeats::{Bound, Hold, Repeats};
use super::slow_queue::{SlowQueue, SlowWork};
use super::streams::{BYTES_MAX, ENTRIES_MAX, Marked, Streams};
use crate::change::{self, Begin, Change, Lsn, SourceEvent, Xid};
use crate::coherence::gate::{Gate, Snapshot};
use crate::coherence::progress::{Progress, Ticket};
use crate::mutant::{self, Mutant};
use crate::plan::{Plan, Removal, RuleId};
use crate::rules::{PlanError, Planner};
use crate::sink::Batch;
use crate::source::outbox::claim::Transaction;
use crate::source::outbox::entry::EntryEvent;

/// How many times as much may be held back until it is visible: what is stuck behind a synchronous standby.
const HELD_FACTOR: usize = 4;

/// The pipeline's state within one connection to the source.
#[derive(Debug)]
pub(super) struct Batcher {
    planner: Planner,
    progress: Progress,
    gate: Gate,
    /// Visible, and waiting for the batch in flight.
    waiting: Part,
    /// The same, and next: its version keys were given a position that was fresh, and nothing may join it.
    refreshed: Option<Part>,
    /// Received whole and not known to be visible, in commit order.
    held: VecDeque<Held>,
    /// What [`Batcher::held`] and the open transaction's own part hold together.
    held_size: Size,
    /// What takes its time.
    slow: SlowQueue,
    /// What keeps the order of commits.
    streams: Streams,
    /// What is deleted twice.
    repeats: Repeats,
    in_flight: Option<Flight>,
    /// The transaction whose rows are arriving.
    open: Option<Open>,
    /// The furthest position that `started` in Redis may have reached.
    started: Lsn,
    /// Where it stood in the beginning: what is not after it may have been applied before.
    resumed_at: Lsn,
    /// The most ops of one transaction that are named one by one.
    max_keys: usize,
    /// What Redis was last told, or is being told, is applied.
    recording: Lsn,
    /// A transaction was put into force and is not recorded yet.
    record_due: bool,
    /// Redis is to say which dataset it is, and that it remembers what it was told, whether anything moves or not.
    probe_due: bool,
    /// Everything committed before the moment lies before the position.
    caught_up: Option<(Lsn, Instant)>,
    /// An outbox is read, which is told how many batches Redis counted.
    counts: bool,
}

/// A transaction, whole, that the gate has not seen yet; or several that were collapsed.
#[derive(Debug)]
struct Held {
    xids: Vec<Xid>,
    part: Part,
}

/// The transaction whose rows are arriving.
#[derive(Debug)]
struct Open {
    begin: Begin,
    /// Its rows are collected here until it is visible; after that they wait with the others.
    held: Option<Part>,
    /// The ops it has asked for so far.
    ops: usize,
    streams: Vec<Marked>,
    stream_bytes: usize,
    /// The messages and entries that were dropped since it asked for too much.
    is_collapsed: bool,
}

/// What becomes true when the batch in flight is in force.
#[derive(Debug)]
struct Flight {
    tickets: Vec<Ticket>,
    record: Option<Lsn>,
    heartbeat: Option<Instant>,
    again: Vec<(Duration, RuleId, Removal)>,
    holds: Vec<Hold>,
}

/// What must be asked of the primary before what is held can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// What is visible.
    Snapshot,
    /// That, and a position that was never used: a version key must rise, and its transaction's own position is
    /// one that readers may have seen.
    FreshPosition,
}

impl Batcher {
    /// The state at the beginning of a connection.
    pub(super) fn new(planner: Planner, max_keys: usize, counts: bool) -> Self {
        Self {
            planner,
            progress: Progress::default(),
            gate: Gate::default(),
            waiting: Part::default(),
            refreshed: None,
            held: VecDeque::new(),
            held_size: Size::default(),
            slow: SlowQueue::default(),
            streams: Streams::default(),
            repeats: Repeats::default(),
            in_flight: None,
            open: None,
            started: Lsn::ZERO,
            resumed_at: Lsn::ZERO,
            max_keys,
            recording: Lsn::ZERO,
            record_due: false,
            probe_due: false,
            caught_up: None,
            counts,
        }
    }

    /// The planner, for the next connection.
    pub(super) fn into_planner(self) -> Planner {
        self.planner
    }

    pub(super) fn planner(&self) -> &Planner {
        &self.planner
    }

    /// When to ask what is visible, and when the next question may be asked.
    pub(super) fn gate(&mut self) -> &mut Gate {
        &mut self.gate
    }

    /// Redis remembers that invalidations up to here may be in force.
    pub(super) fn resume(&mut self, started: Lsn) {
        self.started = self.started.max(started);
        self.resumed_at = self.started;
    }

    /// Takes in what the source says.
    pub(super) fn take(&mut self, event: SourceEvent, now: Instant) -> Result<(), PlanError> {
        match event {
            SourceEvent::Begin(begin) => {
                let passes = self.gate.sees(begin.xid) || mutant::is(Mutant::NoGate);
                if !passes {
                    self.gate.wait(now);
                }
                self.begin(begin, (!passes).then(Part::default));
            }
            SourceEvent::Change(change) => self.take_change(&change, None)?,
            SourceEvent::Commit { end_lsn } => {
                self.take_commit(end_lsn, end_lsn);
            }
            SourceEvent::Progress { wal_end } => {
                if self.open.is_none() {
                    self.progress.reached(wal_end);
                }
            }
        }
        Ok(())
    }

    /// Takes in what a transaction wrote to an outbox, or a part of that. Everything in the claim was committed before
    /// `position`. What has no higher number than `again_to` may have been applied before, and something newer since.
    pub(super) fn take_entries(
        &mut self,
        transaction: &Transaction,
        position: Lsn,
        again_to: i64,
    ) -> Result<Ticket, PlanError> {
        #[expect(clippy::cast_possible_truncation, reason = "the epoch is cut off on purpose")]
        let xid = Xid::new(transaction.xid as u32);
        self.begin(Begin { xid, commit_lsn: position.just_before(), at: transaction.at }, None);
        for (id, event) in &transaction.events {
            match event {
                EntryEvent::Change(change) => self.take_change(change, Some(*id))?,
                EntryEvent::Unknown(change) => {
                    self.planner.resync(change, &mut self.waiting.plan);
                    self.waiting.first_bump.get_or_insert(position);
                }
            }
        }
        if transaction.first <= again_to {
            self.waiting.plan.sets_to_deletes(position);
        }
        // Its own position is not known, and none is proven by it.
        Ok(self.take_commit(position, Lsn::ZERO))
    }

    fn begin(&mut self, begin: Begin, held: Option<Part>) {
        self.open = Some(Open { begin, held, ops: 0, streams: Vec::new(), stream_bytes: 0, is_collapsed: false });
        self.open_part().plan.begin_transaction();
    }

    /// A change; with the number of its entry, if it comes from an outbox.
    fn take_change(&mut self, change: &Change, entry: Option<i64>) -> Result<(), PlanError> {
        let Self { open: Some(open), waiting, planner, held_size, max_keys, .. } = self else { return Ok(()) };
        // The end of the commit record is not known before the commit arrives. No record ends
        // between its start and its end, so this position orders the same.
        let lsn = open.begin.commit_lsn.just_after();
        let is_held = open.held.is_some();
        let part = open.held.as_mut().unwrap_or(waiting);
        let before = (part.plan.len(), part.plan.bytes());
        part.changes += 1;
        part.started = part.started.max(lsn);
        part.at = open.begin.at;
        if open.ops > *max_keys || open.streams.len() > ENTRIES_MAX || open.stream_bytes > BYTES_MAX {
            if !open.is_collapsed {
                let xid = open.begin.xid.number();
                tracing::warn!(
                    xid,
                    max_keys,
                    "a transaction asks for more than `max_keys`: for the rest of it everything that its rules match \
                     is deleted instead of single keys, and no messages are sent"
                );
                open.is_collapsed = true;
            }
            planner.collapse(change, &mut part.plan);
        } else {
            let commit = change::Commit { lsn, at: Some(open.begin.at) };
            planner.plan(change, &commit, &mut part.plan)?;
            let streams = part.plan.take_streams();
            open.stream_bytes += streams.iter().map(|(_, entry)| entry.data.len()).sum::<usize>();
            let rules = planner.rules();
            let mark = |rule: RuleId, number: usize| {
                let name = rules.rule(rule).map(|rule| rule.name.as_str()).unwrap_or_default();
                entry.map(|entry| format!("{entry}-{number}-{name}"))
            };
            let marked = streams.into_iter().enumerate().map(|(at, (rule, entry))| (rule, entry, mark(rule, at)));
            open.streams.extend(marked);
        }
        // What a lookup finds out may be that a version key has to go.
        if part.plan.bumps().len() + part.plan.patterns().len() + part.plan.calls().len() > 0 {
            part.first_bump = Some(part.first_bump.map_or(lsn, |first| first.min(lsn)));
        }
        let ops = part.plan.len().saturating_sub(before.0);
        open.ops += ops;
        if is_held {
            let bytes = part.plan.bytes().saturating_sub(before.1);
            held_size.add(Size { ops, bytes, changes: 1 });
        }
        Ok(())
    }

    /// The open transaction is whole. Once it and all before are in force, so is everything up to `proven`.
    fn take_commit(&mut self, end_lsn: Lsn, proven: Lsn) -> Ticket {
        let ticket = self.progress.received(proven);
        let part = self.open_part();
        part.changes += 1;
        part.plan.end_transaction(end_lsn);
        part.started = part.started.max(end_lsn);
        part.tickets.push(ticket);
        let Some(Open { begin, held, streams, .. }) = self.open.take() else { return ticket };
        if !streams.is_empty() {
            self.progress.split(ticket);
            self.streams.push(ticket, end_lsn, begin.at, streams);
        }
        if self.slow.take_open() {
            self.progress.split(ticket);
            self.slow.join(ticket);
        }
        match held {
            Some(mut part) => {
                part.at = begin.at;
                self.held.push_back(Held { xids: vec![begin.xid], part });
                self.release();
            }
            None => self.waiting.at = begin.at,
        }
        ticket
    }

    /// An outbox proves that everything up to here is in force.
    pub(super) fn proven(&mut self, position: Lsn) {
        self.progress.proven(position);
    }

    /// Whether these transactions of an outbox are in force, and whatever has to be done for them twice.
    pub(super) fn are_settled(&self, tickets: &RangeInclusive<Ticket>) -> bool {
        self.progress.are_done(tickets.clone()) && !self.repeats.hold_up(*tickets.end())
    }

    /// The entries of these transactions are gone from the outbox.
    pub(super) fn are_gone(&mut self, tickets: &RangeInclusive<Ticket>) {
        self.streams.are_gone(tickets);
    }

    /// Where the rows of the open transaction are collected.
    fn open_part(&mut self) -> &mut Part {
        self.open.as_mut().and_then(|open| open.held.as_mut()).unwrap_or(&mut self.waiting)
    }

    /// What must be asked, if anything waits for an answer.
    pub(super) fn question(&self) -> Option<Question> {
        let holds = !self.held.is_empty() || self.open.as_ref().is_some_and(|open| open.held.is_some());
        match self.waiting.is_late(self.started) && self.refreshed.is_none() {
            true => Some(Question::FreshPosition),
            false => holds.then_some(Question::Snapshot),
        }
    }

    /// The primary's answer.
    pub(super) fn learn(&mut self, snapshot: Snapshot, fresh: Option<Lsn>) {
        if let Some(position) = fresh
            && position > self.started
            && self.refreshed.is_none()
        {
            let mut part = std::mem::take(&mut self.waiting);
            part.refresh(position);
            self.refreshed = Some(part);
        }
        self.gate.learn(snapshot);
        self.release();
    }

    /// Lets everything go on that is visible, in commit order; what is stuck holds up nothing behind it.
    fn release(&mut self) {
        let Self { held, gate, waiting, .. } = self;
        for Held { xids, part } in std::mem::take(held) {
            if xids.iter().all(|&xid| gate.sees(xid)) {
                waiting.append(part);
            } else {
                held.push_back(Held { xids, part });
            }
        }
        if let Some(open) = &mut self.open
            && gate.sees(open.begin.xid)
            && let Some(part) = open.held.take()
        {
            waiting.append(part);
        }
        self.measure_held();
    }

    fn measure_held(&mut self) {
        let mut size = Size::default();
        let open = self.open.as_ref().and_then(|open| open.held.as_ref());
        self.held.iter().map(|held| &held.part).chain(open).for_each(|part| size.add(part.size()));
        self.held_size = size;
    }

    /// Whether more is held than may be kept.
    pub(super) fn holds_too_much(&self) -> bool {
        self.held_size.reaches(HELD_FACTOR) || self.streams.is_full() && !self.held.is_empty()
    }

    /// Makes room for what is behind: instead of its own keys, what is held deletes everything that its rules
    /// match, once it is visible. How many messages were dropped.
    pub(super) fn collapse(&mut self) -> usize {
        let mut all = Held { xids: Vec::new(), part: Part::default() };
        for Held { xids, part } in std::mem::take(&mut self.held) {
            all.xids.extend(xids);
            all.part.append(part);
        }
        let rules = self.planner.rules();
        let (tickets, mut dropped) = self.streams.clear();
        tickets.into_iter().for_each(|ticket| self.progress.done(ticket));
        let open = self.open.as_mut().and_then(|open| open.held.as_mut());
        for part in std::iter::once(&mut all.part).chain(open) {
            dropped += part.plan.collapse(|asked| rules.removals_of(asked));
            part.changes = 0;
        }
        if !all.xids.is_empty() {
            self.held.push_back(all);
        }
        self.measure_held();
        dropped
    }

    /// Whether the reader has to wait for the batch in flight, or until something is visible.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.size().reaches(1) || self.holds_too_much() || self.slow.size().reaches(1) || self.streams.is_full()
    }

    /// Whether ops that slow work found may be taken. Other limits do not count: what fills them may wait for that work.
    pub(super) fn has_room(&self) -> bool {
        !self.waiting.size().reaches(1)
    }

    /// Everything committed before `moment` lies before `position`.
    pub(super) fn caught_up(&mut self, position: Lsn, moment: Instant) {
        self.caught_up = Some((position, moment));
    }

    /// The next batch asks Redis whether it is still the one it was.
    pub(super) fn probe(&mut self) {
        self.probe_due = true;
    }

    /// The next batch to send, if there is one and none is in flight. When only a quiet source moved on,
    /// recording that can wait until it is `urgent`.
    pub(super) fn next_batch(&mut self, urgent: bool) -> Option<Batch> {
        if self.in_flight.is_some() {
            return None;
        }
        let ready = !self.waiting.tickets.is_empty()
            || !self.waiting.holds.is_empty()
            || self.waiting.size().reaches(1)
            || !self.slow.is_idle() && !self.waiting.plan.is_empty();
        let mut waiting = match self.refreshed.take() {
            Some(refreshed) => refreshed,
            None if ready && !self.waiting.is_late(self.started) => std::mem::take(&mut self.waiting),
            None => Part::default(),
        };
        self.split_slow(&mut waiting);
        waiting.plan.sets_to_deletes(self.resumed_at);
        let again = waiting.plan.take_repeats();
        // An outbox may only forget what was counted afterwards.
        let must_count = self.counts && !(waiting.tickets.is_empty() && waiting.holds.is_empty());
        if waiting.plan.is_empty() && !must_count {
            for ticket in waiting.tickets.drain(..) {
                self.progress.done(ticket);
                self.record_due = true;
            }
            waiting.holds.drain(..).for_each(|hold| self.repeats.done(hold));
        }
        let (tickets, streams) = self.streams.take(&self.progress);
        waiting.tickets.extend(tickets);
        let applied = self.progress.applied();
        let heartbeat = self.caught_up.take_if(|(position, _)| applied >= *position).map(|(_, moment)| moment);
        let probe = self.probe_due || heartbeat.is_some();
        let record = (applied > self.recording || probe).then_some(applied);
        let is_still = waiting.plan.is_empty() && streams.is_empty() && !must_count;
        if is_still && again.is_empty() && !probe && !(record.is_some() && (urgent || self.record_due)) {
            self.record_due &= record.is_some();
            return None;
        }
        self.started = self.started.max(waiting.started);
        self.recording = self.recording.max(applied);
        (self.record_due, self.probe_due) = (false, false);
        self.in_flight = Some(Flight { tickets: waiting.tickets, record, heartbeat, again, holds: waiting.holds });
        // The furthest ever, not the batch's own: `started` may have been evicted, and must not come back lower.
        Some(Batch {
            plan: waiting.plan,
            streams,
            started: self.started,
            record,
            at: waiting.at,
            heartbeat,
            probe,
            counts: self.counts,
            forget: self.streams.take_forgotten(),
        })
    }

    /// Splits off what takes its time; its transactions are not done without it.
    fn split_slow(&mut self, part: &mut Part) {
        let Some(slow) = part.plan.split_slow(self.slow.has_open()) else { return };
        self.started = self.started.max(part.started);
        let tickets = part.tickets.clone();
        tickets.iter().for_each(|ticket| self.progress.split(*ticket));
        let open = self.open.as_ref().is_some_and(|open| open.held.is_none());
        let part = Part {
            plan: slow,
            changes: tickets.len(),
            tickets,
            started: part.started,
            at: part.at,
            holds: std::mem::take(&mut part.holds),
            ..Part::default()
        };
        self.slow.push(self.planner.rules(), part, open);
    }

    /// The next slow work, if some waits and none runs.
    pub(super) fn next_slow_work(&mut self) -> Option<SlowWork> {
        self.slow.next(self.started)
    }

    /// Ops that the running slow work found.
    pub(super) fn take_piece(&mut self, piece: Plan) {
        let part = self.slow.piece(piece);
        self.waiting.append(part);
    }

    /// The slow work has finished, and all of its pieces were taken.
    pub(super) fn finish_slow_work(&mut self) {
        if let Some(part) = self.slow.finish() {
            self.waiting.append(part);
        }
    }

    /// When the next second delete is due.
    pub(super) fn next_repeat(&self) -> Option<Instant> {
        self.repeats.next_due()
    }

    /// Takes up the second deletes that are due.
    pub(super) fn repeat(&mut self, now: Instant) {
        while let Some((hold, plan)) = self.repeats.take_due(now) {
            let part = self.slow.piece(plan);
            self.waiting.append(Part { holds: vec![hold], started: self.started, ..part });
        }
    }

    /// The batch in flight is in force; since when everything is, if that is known.
    pub(super) fn landed(&mut self, now: Instant) -> Option<Instant> {
        let flight = self.in_flight.take()?;
        if !flight.again.is_empty() {
            // Not one of their transactions is done at this moment.
            let since = self.progress.first_open().unwrap_or_default();
            let bound = Bound { confirmed: self.progress.confirmed(), since };
            self.repeats.schedule(flight.again, now, bound, self.planner.rules());
        }
        flight.holds.into_iter().for_each(|hold| self.repeats.done(hold));
        if let Some(applied) = flight.record {
            self.progress.recorded(applied);
        }
        for ticket in flight.tickets {
            self.progress.done(ticket);
            self.record_due = true;
        }
        flight.heartbeat
    }

    /// The first transaction that was received whole and is not visible.
    pub(super) fn stuck(&self) -> Option<Xid> {
        self.held.front().and_then(|held| held.xids.first()).copied()
    }

    /// The transaction whose rows are arriving.
    pub(super) fn open_xid(&self) -> Option<Xid> {
        self.open.as_ref().map(|open| open.begin.xid)
    }

    /// What may be acknowledged to the slot.
    pub(super) fn confirmed(&self) -> Lsn {
        let confirmed = self.progress.confirmed();
        self.repeats.limit().map_or(confirmed, |limit| limit.min(confirmed))
    }

    /// Whether everything received whole is in force and recorded.
    pub(super) fn is_drained(&self) -> bool {
        self.in_flight.is_none()
            && self.waiting.tickets.is_empty()
            && self.refreshed.is_none()
            && self.slow.is_idle()
            && self.streams.is_empty()
            && self.progress.is_idle()
            && !self.record_due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::super::part::{CHANGES_MAX, OPS_MAX};
    use super::*;
    use crate::change::{Cell, Change, Column, Kind, Operation, Relation, RelationId, Row, TableName, Xid};
    use crate::config::Document;
    use crate::key::Glob;
    use crate::rules::RuleSet;

    fn batcher() -> Batcher {
        let text = "version: 1\nrules:\n  user: {table: users, delete: ['user:{id}'], bump: 'v:{id}'}\n";
        let document = Document::parse(text, &|_| None).unwrap();
        let rules = RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap();
        Batcher::new(Planner::new(Arc::new(rules)), document.settings.max_keys, false)
    }

    /// One that knows every transaction below 100 to be visible, which is what most of the tests are not about.
    fn open_batcher() -> Batcher {
        let mut batcher = batcher();
        batcher.learn(Snapshot::parse("100:100:").unwrap(), None);
        batcher
    }

    fn begin(lsn: u64) -> SourceEvent {
        begin_as(1, lsn)
    }

    fn begin_as(xid: u32, lsn: u64) -> SourceEvent {
        SourceEvent::Begin(Begin { xid: Xid::new(xid), commit_lsn: Lsn::new(lsn), at: SystemTime::UNIX_EPOCH })
    }

    impl Batcher {
        fn takes(&mut self, events: impl IntoIterator<Item = SourceEvent>) {
            for event in events {
                self.take(event, Instant::now()).unwrap();
            }
        }

        /// Learns what `pg_current_snapshot` says.
        fn learns(&mut self, snapshot: &str, fresh: Option<u64>) {
            self.learn(Snapshot::parse(snapshot).unwrap(), fresh.map(Lsn::new));
        }
    }

    fn keys(batch: &Batch) -> Vec<String> {
        batch.plan.deletes().map(ToString::to_string).collect()
    }

    fn insert(id: usize) -> SourceEvent {
        let columns = vec![Column { name: "id".into(), kind: Kind::Text, in_identity: true }];
        let relation = Arc::new(Relation { id: RelationId::new(1), name: TableName::new("public", "users"), columns });
        let new = Some(Row::new(vec![Cell::Value(id.to_string().into())]));
        SourceEvent::Change(Change { relation, operation: Operation::Insert, old: None, new })
    }

    fn commit(lsn: u64) -> SourceEvent {
        SourceEvent::Commit { end_lsn: Lsn::new(lsn) }
    }

    #[test]
    fn nothing_is_confirmed_before_it_is_applied_and_recorded() {
        let mut batcher = open_batcher();
        batcher.takes([begin(100), insert(1), commit(150)]);
        let batch = batcher.next_batch(false).unwrap();
        assert_eq!((batch.started, batch.record, batch.plan.len()), (Lsn::new(150), None, 2));
        assert!(batcher.next_batch(true).is_none(), "one batch at a time");
        assert_eq!(batcher.confirmed(), Lsn::ZERO);
        batcher.landed(Instant::now());
        assert_eq!(batcher.confirmed(), Lsn::ZERO, "in force, but Redis does not say so yet");
        let record = batcher.next_batch(false).unwrap();
        assert_eq!((record.record, record.plan.len()), (Some(Lsn::new(150)), 0));
        batcher.landed(Instant::now());
        assert_eq!(batcher.confirmed(), Lsn::new(150));
        assert!(batcher.is_drained() && batcher.next_batch(true).is_none());
    }

    #[test]
    fn a_large_transaction_is_sent_in_parts_and_done_with_the_last() {
        let mut batcher = open_batcher();
        batcher.takes([begin(100)]);
        let mut id = 0;
        while !batcher.is_full() {
            batcher.takes([insert(id)]);
            id += 1;
        }
        let part = batcher.next_batch(false).unwrap();
        assert_eq!((part.started, part.plan.len()), (Lsn::new(101), OPS_MAX));
        assert!(part.plan.bumps().all(|(_, lsn)| lsn == Lsn::new(101)));
        batcher.landed(Instant::now());
        assert!(batcher.next_batch(true).is_none(), "a part records nothing");
        batcher.takes([insert(id), commit(150)]);
        let last = batcher.next_batch(false).unwrap();
        assert!(last.plan.bumps().all(|(_, lsn)| lsn == Lsn::new(150)));
        batcher.landed(Instant::now());
        assert_eq!(batcher.next_batch(false).unwrap().record, Some(Lsn::new(150)));
    }

    #[test]
    fn a_quiet_source_is_recorded_when_it_is_urgent() {
        let mut batcher = open_batcher();
        batcher.takes([SourceEvent::Progress { wal_end: Lsn::new(70) }]);
        assert!(batcher.next_batch(false).is_none());
        assert_eq!(batcher.next_batch(true).unwrap().record, Some(Lsn::new(70)));
        batcher.landed(Instant::now());
        assert_eq!(batcher.confirmed(), Lsn::new(70));
    }

    #[test]
    fn a_keepalive_inside_of_a_transaction_confirms_nothing() {
        let mut batcher = open_batcher();
        batcher.takes([begin(100)]);
        batcher.takes([SourceEvent::Progress { wal_end: Lsn::new(500) }]);
        assert!(batcher.next_batch(true).is_none());
    }

    #[test]
    fn many_equal_ops_do_not_fill_memory() {
        let mut batcher = open_batcher();
        batcher.takes([begin(100)]);
        for _ in 0..CHANGES_MAX {
            assert!(!batcher.is_full());
            batcher.takes([insert(1)]);
        }
        assert!(batcher.is_full());
        assert_eq!(batcher.next_batch(false).unwrap().plan.len(), 2);
    }

    #[test]
    fn nothing_is_sent_before_it_is_visible() {
        let mut batcher = batcher();
        assert_eq!(batcher.question(), None);
        batcher.takes([begin_as(7, 100), insert(1)]);
        assert_eq!(batcher.question(), Some(Question::Snapshot), "asked for as soon as it begins");
        batcher.takes([commit(150)]);
        assert!(batcher.next_batch(true).is_none());
        batcher.learns("7:9:7", None);
        assert!(batcher.next_batch(true).is_none(), "committed, and still in progress for every reader");
        assert_eq!(batcher.question(), Some(Question::Snapshot));
        batcher.learns("9:9:", None);
        assert_eq!(batcher.question(), None);
        assert_eq!(keys(&batcher.next_batch(false).unwrap()), ["user:1"]);
    }

    #[test]
    fn what_is_stuck_holds_up_nobody_and_is_not_passed_by_the_watermark() {
        let mut batcher = batcher();
        batcher.takes([begin_as(7, 100), insert(1), commit(150), begin_as(8, 200), insert(2), commit(250)]);
        batcher.learns("7:9:7", None);
        assert_eq!(keys(&batcher.next_batch(false).unwrap()), ["user:2"]);
        batcher.landed(Instant::now());
        batcher.takes([SourceEvent::Progress { wal_end: Lsn::new(300) }]);
        assert!(batcher.next_batch(true).is_none() && !batcher.is_drained());
        assert_eq!(batcher.confirmed(), Lsn::ZERO);
        batcher.learns("9:9:", None);
        batcher.learns("9:9:", Some(260));
        batcher.next_batch(false).unwrap();
        batcher.landed(Instant::now());
        assert_eq!(batcher.next_batch(false).unwrap().record, Some(Lsn::new(250)));
    }

    /// A reader that found the version key missing made it from `started`, which had passed the stuck commit.
    #[test]
    fn a_version_key_of_what_was_stuck_rises_beyond_what_readers_may_have_made_it() {
        let mut batcher = batcher();
        batcher.takes([begin_as(7, 100), insert(1), commit(150), begin_as(8, 200), insert(1), commit(250)]);
        batcher.learns("7:9:7", None);
        let first = batcher.next_batch(false).unwrap();
        assert_eq!((first.started, first.plan.bumps().next().unwrap().1), (Lsn::new(250), Lsn::new(250)));
        batcher.landed(Instant::now());
        batcher.learns("9:9:", None);
        assert!(batcher.next_batch(true).is_none_or(|batch| batch.plan.is_empty()));
        batcher.landed(Instant::now());
        assert_eq!(batcher.question(), Some(Question::FreshPosition));
        batcher.learns("9:9:", Some(260));
        let late = batcher.next_batch(false).unwrap();
        assert_eq!((late.started, late.plan.bumps().next().unwrap().1), (Lsn::new(260), Lsn::new(260)));
    }

    #[test]
    fn what_redis_had_begun_before_is_late() {
        let mut batcher = open_batcher();
        batcher.resume(Lsn::new(150));
        batcher.takes([begin(100), insert(1), commit(150)]);
        assert_eq!(batcher.question(), Some(Question::FreshPosition));
        batcher.learns("100:100:", Some(170));
        assert_eq!(batcher.next_batch(false).unwrap().plan.bumps().next().unwrap().1, Lsn::new(170));
    }

    #[test]
    fn a_large_transaction_is_let_through_in_parts_once_it_is_visible() {
        let mut batcher = batcher();
        batcher.takes([begin_as(7, 100), insert(1), insert(2)]);
        batcher.learns("9:9:", None);
        batcher.takes([insert(3), commit(150)]);
        let batch = batcher.next_batch(false).unwrap();
        assert_eq!(keys(&batch), ["user:1", "user:2", "user:3"]);
        assert!(batch.plan.bumps().all(|(_, lsn)| lsn == Lsn::new(150)));
    }

    #[test]
    fn what_is_stuck_does_not_fill_memory() {
        let mut batcher = batcher();
        batcher.takes([begin_as(7, 100)]);
        let mut id = 0;
        while !batcher.is_full() {
            batcher.takes([insert(id)]);
            id += 1;
        }
        assert_eq!(id, OPS_MAX * HELD_FACTOR / 2);
        batcher.collapse();
        assert!(!batcher.is_full());
        batcher.takes([insert(id), commit(150), begin_as(8, 200), insert(1), commit(250)]);
        batcher.collapse();
        batcher.learns("8:9:8", None);
        assert!(batcher.next_batch(true).is_none(), "collapsed with one that is not visible");
        batcher.learns("9:9:", None);
        assert!(batcher.next_batch(true).is_none());
        let work = batcher.next_slow_work().unwrap();
        let mut sweeps = work.sweeps;
        let globs: Vec<_> = sweeps.take_sweeps().into_iter().map(|(_, removal)| removal).collect();
        let glob = |prefix: &[u8]| {
            let mut glob = Glob::new();
            glob.push_literal(prefix);
            glob.push_any();
            Removal::Keys(glob)
        };
        assert_eq!(globs, [glob(b"user:"), glob(b"v:")]);
        assert!(batcher.next_batch(true).is_none() && !batcher.is_drained(), "not before it is back");
        batcher.finish_slow_work();
        assert_eq!(batcher.next_batch(false).unwrap().record, Some(Lsn::new(250)));
    }

    #[test]
    fn redis_hears_that_all_is_current_when_the_position_is_applied() {
        let mut batcher = open_batcher();
        let moment = Instant::now();
        batcher.takes([begin(100), insert(1), commit(150)]);
        batcher.caught_up(Lsn::new(150), moment);
        assert_eq!(batcher.next_batch(false).unwrap().heartbeat, None);
        assert_eq!(batcher.landed(Instant::now()), None);
        let beat = batcher.next_batch(false).unwrap();
        assert_eq!((beat.heartbeat, beat.record), (Some(moment), Some(Lsn::new(150))));
        assert_eq!(batcher.landed(Instant::now()), Some(moment));
    }
}
