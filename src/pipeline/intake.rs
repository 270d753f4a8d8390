//! What is arriving: the transaction whose rows the source is sending.
//!
//! Owns the way from its changes to ops. Synchronous; knows no socket and no clock. Invariants:
//! rows are planned as they arrive, so no transaction is kept as rows; ops of a transaction that
//! the gate has not seen stay apart; above `max_keys` the rest of a transaction is collapsed.

use super::held::Held;
use super::part::{Part, Size};
use super::streams::{BYTES_MAX, ENTRIES_MAX, Marked};
use crate::change::{self, Begin, Change, Lsn, Xid};
use crate::coherence::progress::Ticket;
use crate::plan::RuleId;
use crate::rules::{PlanError, Planner};

/// Plans the changes of one transaction at a time.
#[derive(Debug)]
pub(super) struct Intake {
    planner: Planner,
    /// The most ops of one transaction that are named one by one.
    max_keys: usize,
    open: Option<ArrivingTransaction>,
}

/// The transaction whose rows are arriving.
#[derive(Debug)]
struct ArrivingTransaction {
    begin: Begin,
    /// Its ops are collected here until it is visible. After that they join those that wait for the
    /// next batch.
    held: Option<Part>,
    /// The ops it has asked for so far.
    ops: usize,
    streams: Vec<Marked>,
    stream_bytes: usize,
    /// It asked for too much: messages and stream entries are dropped.
    is_collapsed: bool,
    /// It changed the definition of something.
    has_ddl: bool,
}

/// A transaction that has arrived completely.
pub(super) struct ArrivedTransaction {
    pub(super) begin: Begin,
    /// Its ops, unless it is visible and they wait for the next batch already.
    pub(super) held: Option<Part>,
    pub(super) streams: Vec<Marked>,
    /// It changed the definition of something.
    pub(super) has_ddl: bool,
}

impl Intake {
    pub(super) fn new(planner: Planner, max_keys: usize) -> Self {
        Self { planner, max_keys, open: None }
    }

    pub(super) fn into_planner(self) -> Planner {
        self.planner
    }

    pub(super) fn planner(&self) -> &Planner {
        &self.planner
    }

    /// A transaction begins. If it is visible, its ops join `waiting`.
    pub(super) fn begin(&mut self, begin: Begin, is_visible: bool, waiting: &mut Part) {
        let held = (!is_visible).then(Part::default);
        let mut open = ArrivingTransaction {
            begin,
            held,
            ops: 0,
            streams: Vec::new(),
            stream_bytes: 0,
            is_collapsed: false,
            has_ddl: false,
        };
        open.part(waiting).plan.begin_transaction();
        self.open = Some(open);
    }

    /// Plans a change; `entry` is its number in the outbox, if it comes from one.
    pub(super) fn change(&mut self, change: &Change, entry: Option<i64>, waiting: &mut Part) -> Result<(), PlanError> {
        let Self { open: Some(open), planner, max_keys } = self else { return Ok(()) };
        // The end of the commit record is not known before the commit arrives. No record ends
        // between its start and its end, so this position orders the same.
        let lsn = open.begin.commit_lsn.just_after();
        let is_too_large = open.ops > *max_keys || open.streams.len() > ENTRIES_MAX || open.stream_bytes > BYTES_MAX;
        let part = open.held.as_mut().unwrap_or(waiting);
        let ops_before = part.plan.len();
        part.changes += 1;
        part.started = part.started.max(lsn);
        part.at = open.begin.at;
        if is_too_large {
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
        // A lookup may find that a version key has to go.
        if part.plan.bumps().len() + part.plan.patterns().len() + part.plan.calls().len() > 0 {
            part.first_bump = Some(part.first_bump.map_or(lsn, |first| first.min(lsn)));
        }
        open.ops += part.plan.len().saturating_sub(ops_before);
        Ok(())
    }

    /// The transaction changed the definition of something.
    pub(super) fn ddl(&mut self) {
        self.open.iter_mut().for_each(|open| open.has_ddl = true);
    }

    /// Something happened to a table, and only its relation is known: plans the removal of all that
    /// its rules match.
    pub(super) fn unknown_change(&mut self, change: &Change, position: Lsn, waiting: &mut Part) {
        self.planner.resync(change, &mut waiting.plan);
        waiting.first_bump.get_or_insert(position);
    }

    /// The transaction has arrived completely, and has this ticket.
    pub(super) fn commit(&mut self, end_lsn: Lsn, ticket: Ticket, waiting: &mut Part) -> Option<ArrivedTransaction> {
        let mut open = self.open.take();
        let part = match &mut open {
            Some(open) => open.part(&mut *waiting),
            None => &mut *waiting,
        };
        part.changes += 1;
        part.plan.end_transaction(end_lsn);
        part.started = part.started.max(end_lsn);
        part.tickets.push(ticket);
        let has_ddl = open.as_ref().is_some_and(|open| open.has_ddl);
        let ArrivingTransaction { begin, mut held, streams, .. } = open?;
        held.as_mut().unwrap_or(waiting).at = begin.at;
        Some(ArrivedTransaction { begin, held, streams, has_ddl })
    }

    /// Moves the ops of the transaction to `waiting` once the gate sees it.
    pub(super) fn release(&mut self, gate: &Held, waiting: &mut Part) {
        if let Some(open) = &mut self.open
            && gate.sees(open.begin.xid)
            && let Some(part) = open.held.take()
        {
            waiting.append(part);
        }
    }

    /// As [`Held::collapse`], for the ops that wait for the gate.
    pub(super) fn collapse(&mut self) -> usize {
        let Self { open, planner, .. } = self;
        open.as_mut().and_then(|open| open.held.as_mut()).map_or(0, |part| part.collapse(planner.rules()))
    }

    /// The transaction that is arriving.
    pub(super) fn xid(&self) -> Option<Xid> {
        self.open.as_ref().map(|open| open.begin.xid)
    }

    /// How much of it waits for the gate.
    pub(super) fn held_size(&self) -> Size {
        self.open.as_ref().and_then(|open| open.held.as_ref()).map(Part::size).unwrap_or_default()
    }

    /// Whether it waits for the gate.
    pub(super) fn is_held(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.held.is_some())
    }

    /// Whether a visible transaction is arriving: a part of it may be in the next batch.
    pub(super) fn is_visible(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.held.is_none())
    }
}

impl ArrivingTransaction {
    /// Where its ops are collected.
    fn part<'a>(&'a mut self, waiting: &'a mut Part) -> &'a mut Part {
        self.held.as_mut().unwrap_or(waiting)
    }
}
