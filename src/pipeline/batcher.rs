//! The next batch, and the ledger of what is in force.
//!
//! Owns the pipeline's state: what is visible and waits for the batch in flight, what is in flight,
//! how far everything is in force. Synchronous; knows no socket and no clock. Invariants: no op is
//! sent before the gate sees its transaction (an outbox shows only visible ones); memory is
//! bounded, because rows are planned as they arrive and [`Batcher::is_full`] stops the reader; at
//! most one batch is in flight, so order holds; a transaction is done only when the batch with its
//! last row is in force.

use std::ops::RangeInclusive;
use std::time::Instant;

use super::catalog_checks::CatalogChecks;
use super::held::{GateQuestion, Held};
use super::in_flight::InFlight;
use super::intake::{ArrivedTransaction, Intake};
use super::lookup_horizons::{LookupHorizon, LookupHorizons};
use super::part::Part;
use super::repeats::Repeats;
use super::slow_queue::{SlowQueue, SlowWork};
use super::streams::Streams;
use super::watching::CatalogChange;
use crate::change::{Begin, Lsn, SourceEvent, Xid};
use crate::coherence::gate::Snapshot;
use crate::coherence::marks::Marks;
use crate::coherence::progress::{Progress, Ticket};
use crate::mutant::{self, Mutant};
use crate::plan::{Plan, RuleId};
use crate::rules::{PlanError, Planner};
use crate::sink::{Batch, DueDeletes};
use crate::source::outbox::claim::ClaimedTransaction;
use crate::source::outbox::entry::EntryEvent;

/// How many times as much may be held until it is visible: what waits for a synchronous standby.
const HELD_FACTOR: usize = 4;

/// The pipeline's state within one session.
#[derive(Debug)]
pub(super) struct Batcher {
    intake: Intake,
    held: Held,
    /// Visible, and waiting for the batch in flight.
    waiting: Part,
    /// The next batch. Its version keys have a fresh position, so nothing may join it.
    refreshed: Option<Part>,
    slow: SlowQueue,
    /// Stream entries, which keep the order of commits.
    streams: Streams,
    repeats: Repeats,
    progress: Progress,
    horizons: LookupHorizons,
    in_flight: Option<InFlight>,
    /// The furthest position that `started` in Redis may have reached.
    started: Lsn,
    /// `started` at the beginning of the session. What is not after it may have been applied
    /// before.
    resumed_at: Lsn,
    /// The furthest position that a batch asked Redis to record as applied.
    recording: Lsn,
    /// A transaction is in force and not recorded yet.
    record_due: bool,
    /// The next batch asks Redis which dataset it is, and records `applied` whether it moved or
    /// not.
    probe_due: bool,
    /// Everything committed before the moment lies before the position.
    caught_up: Marks<Lsn, Instant>,
    /// The source is an outbox, which must know how many batches Redis counted.
    counts: bool,
    catalog: CatalogChecks,
}

impl Batcher {
    /// The state at the beginning of a session.
    pub(super) fn new(planner: Planner, max_keys: usize, counts: bool) -> Self {
        Self {
            intake: Intake::new(planner, max_keys),
            held: Held::default(),
            waiting: Part::default(),
            refreshed: None,
            slow: SlowQueue::default(),
            streams: Streams::default(),
            repeats: Repeats::default(),
            progress: Progress::default(),
            horizons: LookupHorizons::default(),
            in_flight: None,
            started: Lsn::ZERO,
            resumed_at: Lsn::ZERO,
            recording: Lsn::ZERO,
            record_due: false,
            probe_due: false,
            caught_up: Marks::default(),
            counts,
            catalog: CatalogChecks::default(),
        }
    }

    /// The planner, for the next session.
    pub(super) fn into_planner(self) -> Planner {
        self.intake.into_planner()
    }

    pub(super) fn planner(&self) -> &Planner {
        self.intake.planner()
    }

    /// What waits for the gate, for the times at which to ask.
    pub(super) fn held(&mut self) -> &mut Held {
        &mut self.held
    }

    /// Redis remembers that invalidations up to this position may be in force.
    pub(super) fn resume(&mut self, started: Lsn) {
        self.started = self.started.max(started);
        self.resumed_at = self.started;
    }

    /// Counts a session that takes values as the database has them.
    pub(super) fn count_as_stored(&mut self) {
        self.waiting.plan.widen(RuleId::NONE);
    }

    /// Takes an event of the slot.
    pub(super) fn take(&mut self, event: SourceEvent, now: Instant) -> Result<(), PlanError> {
        match event {
            SourceEvent::Begin(begin) => {
                let is_visible = self.held.admit(begin.xid, now);
                self.intake.begin(begin, is_visible, &mut self.waiting);
            }
            SourceEvent::Change(change) => {
                self.catalog.note_truncate(&change);
                self.intake.change(&change, None, &mut self.waiting)?;
            }
            SourceEvent::Ddl => self.intake.ddl(),
            SourceEvent::Commit { end_lsn } => _ = self.commit(end_lsn, end_lsn),
            SourceEvent::Progress { wal_end } if self.intake.xid().is_none() => {
                self.record_due |= self.progress.reached(wal_end);
            }
            SourceEvent::Progress { .. } => {}
        }
        Ok(())
    }

    /// Takes the entries of a transaction in an outbox, or some of them. Everything in the claim
    /// was committed before `position`. Entries up to the number `again_to` may have been applied
    /// before, and something newer since.
    pub(super) fn take_entries(
        &mut self,
        transaction: &ClaimedTransaction,
        position: Lsn,
        again_to: i64,
    ) -> Result<Ticket, PlanError> {
        #[expect(clippy::cast_possible_truncation, reason = "the epoch is cut off on purpose")]
        let xid = Xid::new(transaction.xid as u32);
        let begin = Begin { xid, commit_lsn: position.just_before(), at: transaction.at };
        self.intake.begin(begin, true, &mut self.waiting);
        for (id, event) in &transaction.events {
            for change in event.changes() {
                self.catalog.note_truncate(change);
                self.intake.change(change, Some(*id), &mut self.waiting)?;
            }
            match event {
                EntryEvent::TooLong(_) => self.waiting.plan.widen(RuleId::NONE),
                EntryEvent::Unknown(change) => self.intake.unknown_change(change, position, &mut self.waiting),
                EntryEvent::Ddl => self.intake.ddl(),
                EntryEvent::Change(_) | EntryEvent::Events(_) => {}
            }
        }
        if transaction.first <= again_to {
            self.waiting.plan.sets_to_deletes(position);
        }
        // Its own position is not known, so it proves none.
        Ok(self.commit(position, Lsn::ZERO))
    }

    /// The open transaction is complete. Once it and all before it are in force, so is everything
    /// up to `proven`.
    fn commit(&mut self, end_lsn: Lsn, proven: Lsn) -> Ticket {
        let ticket = self.progress.received(proven);
        let arrived = self.intake.commit(end_lsn, ticket, &mut self.waiting);
        let Some(ArrivedTransaction { begin, mut held, streams, has_ddl }) = arrived else { return ticket };
        if has_ddl && !mutant::is(Mutant::NoWatch) {
            self.progress.split(ticket);
            held.as_mut().unwrap_or(&mut self.waiting).checks.push(ticket);
        }
        if !streams.is_empty() {
            self.progress.split(ticket);
            self.streams.push(ticket, end_lsn, begin.at, streams);
        }
        if self.slow.take_open() {
            self.progress.split(ticket);
            self.slow.join(ticket);
            self.horizons.completed(ticket, &mut self.progress);
        }
        if let Some(part) = held {
            self.held.push(begin.xid, part);
            self.release();
        }
        ticket
    }

    /// An outbox proves that everything up to this position is in force.
    pub(super) fn proven(&mut self, position: Lsn) {
        self.progress.proven(position);
    }

    /// The ledger.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The highest entry that the lookups of these transactions may have seen.
    pub(super) fn looked_to(&self, tickets: &RangeInclusive<Ticket>) -> Option<i64> {
        self.horizons.entry(tickets)
    }

    /// The entries of these transactions are gone from the outbox.
    pub(super) fn are_gone(&mut self, tickets: &RangeInclusive<Ticket>) {
        self.streams.are_gone(tickets);
        self.horizons.are_gone(tickets);
    }

    /// What is known of the database's catalog, and what waits for an observation.
    pub(super) fn catalog(&mut self) -> &mut CatalogChecks {
        self.catalog.wait(&mut self.waiting.checks);
        &mut self.catalog
    }

    /// What follows from an observation of the database. What it removes waits until everything is
    /// visible that is held now. While changes of some table do not arrive, nothing that is
    /// received from now on counts as in force before the next observation.
    pub(super) fn catalog_changed(&mut self, mut change: CatalogChange) {
        self.catalog.tables = std::mem::take(&mut change.tables);
        let sweeps = !change.sweep.is_empty();
        let mut tickets = self.catalog.end();
        if tickets.is_empty() && sweeps {
            tickets.push(self.progress.received(Lsn::ZERO));
        }
        self.catalog.blind = change.is_blind.then(|| self.progress.received(Lsn::ZERO));
        let part = Part::of_catalog(change, tickets);
        let arriving = self.intake.xid().filter(|_| self.intake.is_held());
        let part = if sweeps { self.held.push_after_all(part, arriving) } else { Some(part) };
        part.into_iter().for_each(|part| self.waiting.append(part));
    }

    /// The question that the primary must answer, if anything waits for an answer.
    pub(super) fn question(&self) -> Option<GateQuestion> {
        if self.waiting.is_late(self.started) && self.refreshed.is_none() {
            return Some(GateQuestion::FreshPosition);
        }
        (!self.held.is_empty() || self.intake.is_held()).then_some(GateQuestion::Snapshot)
    }

    /// The primary's answer.
    pub(super) fn learn(&mut self, snapshot: Snapshot, fresh: Option<Lsn>) {
        if let Some(position) = fresh.filter(|position| *position > self.started && self.refreshed.is_none()) {
            let mut part = std::mem::take(&mut self.waiting);
            part.refresh(position);
            self.refreshed = Some(part);
        }
        self.held.learn(snapshot);
        self.release();
    }

    fn release(&mut self) {
        self.held.release(&mut self.waiting);
        self.intake.release(&self.held, &mut self.waiting);
    }

    /// Whether more waits for the gate than may be kept.
    pub(super) fn holds_too_much(&self) -> bool {
        let mut size = self.held.size();
        size.add(self.intake.held_size());
        size.reaches(HELD_FACTOR) || self.streams.is_full() && !self.held.is_empty()
    }

    /// Makes room for what is behind the held transactions: once these are visible, they delete
    /// everything that their rules match instead of their own keys. Returns how many messages were
    /// dropped.
    pub(super) fn collapse(&mut self) -> usize {
        let (tickets, entries) = self.streams.clear();
        tickets.into_iter().for_each(|ticket| self.progress.done(ticket));
        entries + self.held.collapse(self.intake.planner().rules()) + self.intake.collapse()
    }

    /// Whether the reader has to wait: for the batch in flight, for slow work, or until something
    /// is visible.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.size().reaches(1) || self.holds_too_much() || self.slow.size().reaches(1) || self.streams.is_full()
    }

    /// Whether ops that slow work found may be taken. Other limits do not count: what fills them
    /// may wait for that work.
    pub(super) fn has_room(&self) -> bool {
        !self.waiting.size().reaches(1)
    }

    /// Everything committed before `moment` lies before `position`.
    pub(super) fn caught_up(&mut self, position: Lsn, moment: Instant) {
        self.caught_up.set(position, moment);
    }

    /// The next batch asks Redis whether it is still the same dataset.
    pub(super) fn probe(&mut self) {
        self.probe_due = true;
        if self.intake.planner().rules().repeats() {
            self.repeats.probe();
        }
    }

    /// The next batch, if there is one and none is in flight. If only the position of a quiet
    /// source moved, recording it waits until it is `urgent`.
    pub(super) fn next_batch(&mut self, urgent: bool) -> Option<Batch> {
        if self.in_flight.is_some() {
            return None;
        }
        let mut part = self.next_part();
        self.catalog.wait(&mut part.checks);
        self.split_slow(&mut part);
        part.plan.sets_to_deletes(self.resumed_at);
        let repeats = part.plan.take_repeats();
        // An outbox may only forget what was counted afterwards, and what is deleted a second time.
        let must_send = self.counts && !part.tickets.is_empty() || !repeats.is_empty();
        if part.plan.is_empty() && !must_send {
            for ticket in part.tickets.drain(..) {
                self.progress.done(ticket);
                self.record_due = true;
            }
        }
        let (tickets, streams) = self.streams.take(&self.progress);
        part.tickets.extend(tickets);
        let applied = self.progress.applied();
        let heartbeat = self.caught_up.take(&applied);
        let probe = self.probe_due || heartbeat.is_some();
        let record = (applied > self.recording || probe).then_some(applied);
        let is_still = part.plan.is_empty() && streams.is_empty() && !must_send && part.repeated.is_empty();
        let is_still = is_still && part.catalog.is_empty();
        let is_still = is_still && !self.repeats.must_ask();
        if is_still && !probe && !(record.is_some() && (urgent || self.record_due)) {
            self.record_due &= record.is_some();
            return None;
        }
        let (delays, repeated) = (repeats.iter().map(|(after, ..)| *after).collect(), part.repeated.len());
        let again = self.repeats.take(repeats, part.repeated, self.intake.planner().rules());
        self.started = self.started.max(part.started);
        self.recording = self.recording.max(applied);
        (self.record_due, self.probe_due) = (false, false);
        self.in_flight = Some(InFlight { tickets: part.tickets, record, heartbeat, delays, repeated });
        Some(Batch {
            plan: part.plan,
            streams,
            // The furthest ever, not the batch's own: `started` may have been evicted, and must not
            // come back lower.
            started: self.started,
            record,
            at: part.at,
            heartbeat,
            probe,
            counts: self.counts,
            forget: self.streams.take_forgotten(),
            again,
            catalog: part.catalog,
        })
    }

    /// What the next batch is made of; empty if nothing is ready.
    fn next_part(&mut self) -> Part {
        let is_ready = !self.waiting.tickets.is_empty()
            || !self.waiting.repeated.is_empty()
            || !self.waiting.catalog.is_empty()
            || self.waiting.size().reaches(1)
            || !self.slow.is_idle() && !self.waiting.plan.is_empty();
        match self.refreshed.take() {
            Some(refreshed) => refreshed,
            None if is_ready && !self.waiting.is_late(self.started) => std::mem::take(&mut self.waiting),
            None => Part::default(),
        }
    }

    /// Moves the slow part to its queue. Its transactions are done only after it.
    fn split_slow(&mut self, part: &mut Part) {
        let Some(slow) = part.plan.split_slow(self.slow.has_open()) else { return };
        self.started = self.started.max(part.started);
        let tickets = part.tickets.clone();
        tickets.iter().for_each(|ticket| self.progress.split(*ticket));
        let part = Part {
            plan: slow,
            changes: tickets.len(),
            tickets,
            started: part.started,
            at: part.at,
            repeated: std::mem::take(&mut part.repeated),
            catalog: std::mem::take(&mut part.catalog),
            ..Part::default()
        };
        self.slow.push(self.intake.planner().rules(), part, self.intake.is_visible());
    }

    /// The next slow work, if some waits and none runs.
    pub(super) fn next_slow_work(&mut self) -> Option<SlowWork> {
        self.slow.next(self.started)
    }

    /// Ops that the running slow work found.
    pub(super) fn take_found(&mut self, found: Plan) {
        let part = self.slow.found_part(found);
        self.waiting.append(part);
    }

    /// The slow work has finished, and all of its pieces were taken.
    /// What it found follows from the state of the database that `horizon` bounds.
    pub(super) fn finish_slow_work(&mut self, horizon: Option<LookupHorizon>) {
        let Some(part) = self.slow.finish() else { return };
        self.horizons.answered(&part.tickets, horizon, &mut self.progress);
        self.waiting.append(part);
    }

    /// When Redis is to be asked which second deletes are due.
    pub(super) fn next_repeat(&self) -> Option<Instant> {
        self.repeats.next_due()
    }

    /// Asks Redis for second deletes if some are due by now.
    pub(super) fn wake(&mut self, now: Instant) {
        self.repeats.wake(now);
    }

    /// The batch in flight is in force, and Redis named these second deletes. Returns since when
    /// everything is in force, if that is known.
    pub(super) fn applied(&mut self, due: DueDeletes, now: Instant) -> Option<Instant> {
        let InFlight { tickets, record, heartbeat, delays, repeated } = self.in_flight.take()?;
        self.repeats.applied(&delays, repeated, now);
        let (plan, repeated) = self.repeats.learn(due, now);
        if !repeated.is_empty() {
            let part = self.slow.found_part(plan);
            self.waiting.append(Part { repeated, started: self.started, ..part });
        }
        if let Some(applied) = record {
            self.progress.recorded(applied);
        }
        for ticket in tickets {
            self.progress.done(ticket);
            self.record_due = true;
        }
        heartbeat
    }

    /// The first transaction that was received completely and is not visible.
    pub(super) fn stuck(&self) -> Option<Xid> {
        self.held.first()
    }

    /// The transaction whose rows are arriving.
    pub(super) fn open_xid(&self) -> Option<Xid> {
        self.intake.xid()
    }

    /// The position that may be acknowledged to the slot.
    pub(super) fn confirmed(&self) -> Lsn {
        self.progress.confirmed()
    }

    /// Whether everything received completely is in force and recorded.
    pub(super) fn is_drained(&self) -> bool {
        self.in_flight.is_none()
            && self.waiting.tickets.is_empty()
            && self.refreshed.is_none()
            && self.slow.is_idle()
            && self.streams.is_empty()
            && self.progress.is_drained_but_for(self.catalog.blind)
            && !self.record_due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::super::part::{CHANGES_MAX, OPS_MAX};
    use super::*;
    use crate::change::{Cell, Change, Column, ColumnKind, Operation, Relation, RelationId, Row, TableName, Xid};
    use crate::config::Document;
    use crate::key::Glob;
    use crate::plan::Removal;
    use crate::rules::RuleSet;

    fn batcher() -> Batcher {
        let text = "version: 1\nrules:\n  user: {table: users, delete: ['user:{id}'], bump: 'v:{id}'}\n";
        let document = Document::parse(text, &|_| None).unwrap();
        let rules = RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap();
        Batcher::new(Planner::new(Arc::new(rules)), document.settings.max_keys, false)
    }

    /// One that knows every transaction below 100 to be visible, which is what most of the tests
    /// are not about.
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
        let columns = vec![Column { name: "id".into(), kind: ColumnKind::Text, in_identity: true }];
        let relation = Arc::new(Relation {
            id: RelationId::new(1),
            name: TableName::new("public", "users"),
            also: Vec::new(),
            columns,
        });
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
        batcher.applied(DueDeletes::default(), Instant::now());
        assert_eq!(batcher.confirmed(), Lsn::ZERO, "in force, but Redis does not say so yet");
        let record = batcher.next_batch(false).unwrap();
        assert_eq!((record.record, record.plan.len()), (Some(Lsn::new(150)), 0));
        batcher.applied(DueDeletes::default(), Instant::now());
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
        batcher.applied(DueDeletes::default(), Instant::now());
        assert!(batcher.next_batch(true).is_none(), "a part records nothing");
        batcher.takes([insert(id), commit(150)]);
        let last = batcher.next_batch(false).unwrap();
        assert!(last.plan.bumps().all(|(_, lsn)| lsn == Lsn::new(150)));
        batcher.applied(DueDeletes::default(), Instant::now());
        assert_eq!(batcher.next_batch(false).unwrap().record, Some(Lsn::new(150)));
    }

    #[test]
    fn a_quiet_source_is_recorded_when_it_is_urgent() {
        let mut batcher = open_batcher();
        batcher.takes([SourceEvent::Progress { wal_end: Lsn::new(70) }]);
        assert!(batcher.next_batch(false).is_none());
        assert_eq!(batcher.next_batch(true).unwrap().record, Some(Lsn::new(70)));
        batcher.applied(DueDeletes::default(), Instant::now());
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
        assert_eq!(batcher.question(), Some(GateQuestion::Snapshot), "asked for as soon as it begins");
        batcher.takes([commit(150)]);
        assert!(batcher.next_batch(true).is_none());
        batcher.learns("7:9:7", None);
        assert!(batcher.next_batch(true).is_none(), "committed, and still in progress for every reader");
        assert_eq!(batcher.question(), Some(GateQuestion::Snapshot));
        batcher.learns("9:9:", None);
        assert_eq!(batcher.question(), None);
        assert_eq!(keys(&batcher.next_batch(false).unwrap()), ["user:1"]);
    }

    #[test]
    fn what_is_stuck_delays_no_other_and_is_not_passed_by_the_watermark() {
        let mut batcher = batcher();
        batcher.takes([begin_as(7, 100), insert(1), commit(150), begin_as(8, 200), insert(2), commit(250)]);
        batcher.learns("7:9:7", None);
        assert_eq!(keys(&batcher.next_batch(false).unwrap()), ["user:2"]);
        batcher.applied(DueDeletes::default(), Instant::now());
        batcher.takes([SourceEvent::Progress { wal_end: Lsn::new(300) }]);
        assert!(batcher.next_batch(true).is_none() && !batcher.is_drained());
        assert_eq!(batcher.confirmed(), Lsn::ZERO);
        batcher.learns("9:9:", None);
        batcher.learns("9:9:", Some(260));
        batcher.next_batch(false).unwrap();
        batcher.applied(DueDeletes::default(), Instant::now());
        assert_eq!(batcher.next_batch(false).unwrap().record, Some(Lsn::new(250)));
    }

    /// A reader that found the version key missing made it from `started`, which had passed the
    /// stuck commit.
    #[test]
    fn a_version_key_of_what_was_stuck_rises_beyond_what_readers_may_have_made_it() {
        let mut batcher = batcher();
        batcher.takes([begin_as(7, 100), insert(1), commit(150), begin_as(8, 200), insert(1), commit(250)]);
        batcher.learns("7:9:7", None);
        let first = batcher.next_batch(false).unwrap();
        assert_eq!((first.started, first.plan.bumps().next().unwrap().1), (Lsn::new(250), Lsn::new(250)));
        batcher.applied(DueDeletes::default(), Instant::now());
        batcher.learns("9:9:", None);
        assert!(batcher.next_batch(true).is_none_or(|batch| batch.plan.is_empty()));
        batcher.applied(DueDeletes::default(), Instant::now());
        assert_eq!(batcher.question(), Some(GateQuestion::FreshPosition));
        batcher.learns("9:9:", Some(260));
        let late = batcher.next_batch(false).unwrap();
        assert_eq!((late.started, late.plan.bumps().next().unwrap().1), (Lsn::new(260), Lsn::new(260)));
    }

    #[test]
    fn what_redis_had_begun_before_is_late() {
        let mut batcher = open_batcher();
        batcher.resume(Lsn::new(150));
        batcher.takes([begin(100), insert(1), commit(150)]);
        assert_eq!(batcher.question(), Some(GateQuestion::FreshPosition));
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
        batcher.finish_slow_work(None);
        assert_eq!(batcher.next_batch(false).unwrap().record, Some(Lsn::new(250)));
    }

    #[test]
    fn redis_hears_that_all_is_current_when_the_position_is_applied() {
        let mut batcher = open_batcher();
        let moment = Instant::now();
        batcher.takes([begin(100), insert(1), commit(150)]);
        batcher.caught_up(Lsn::new(150), moment);
        assert_eq!(batcher.next_batch(false).unwrap().heartbeat, None);
        assert_eq!(batcher.applied(DueDeletes::default(), Instant::now()), None);
        let beat = batcher.next_batch(false).unwrap();
        assert_eq!((beat.heartbeat, beat.record), (Some(moment), Some(Lsn::new(150))));
        assert_eq!(batcher.applied(DueDeletes::default(), Instant::now()), Some(moment));
    }

    #[test]
    fn with_a_steady_lag_redis_hears_how_far_everything_is_current() {
        let mut batcher = open_batcher();
        let start = Instant::now();
        let moments = [1, 2, 3].map(|second| start + std::time::Duration::from_secs(second));
        for (lsn, moment) in [100, 200, 300].into_iter().zip(moments) {
            batcher.takes([begin(lsn), insert(1), commit(lsn + 50)]);
            batcher.caught_up(Lsn::new(lsn + 50), moment);
            batcher.next_batch(false);
        }
        batcher.applied(DueDeletes::default(), start);
        let beat = batcher.next_batch(false).unwrap();
        assert_eq!((beat.heartbeat, beat.record), (Some(moments[0]), Some(Lsn::new(150))));
        batcher.applied(DueDeletes::default(), start);
        let beat = batcher.next_batch(false).unwrap();
        assert_eq!((beat.heartbeat, beat.record), (Some(moments[2]), Some(Lsn::new(350))));
    }
}
