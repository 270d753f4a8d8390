//! Slow work: lookups, patterns, tags. They run in the background, and other invalidations do not
//! wait for them.
//!
//! Owns what waits for the worker, and what is sent and done when the worker has finished.
//! Synchronous; knows no socket. Invariants: one run of slow work goes on at a time, in the order
//! in which it was queued; a transaction's messages are sent, and the transaction is done, only
//! after its slow work.

use super::error::SessionError;
use super::lookup_horizons::LookupHorizon;
use super::part::{Part, Size};
use crate::change::Lsn;
use crate::coherence::progress::Ticket;
use crate::plan::{CallOrigin, LookupCall, Plan};
use crate::rules::RuleSet;

/// What the worker does in one run.
#[derive(Debug)]
pub(super) struct SlowWork {
    /// The lookups to ask.
    pub(super) calls: Vec<(LookupCall, CallOrigin)>,
    /// The keys to search for and remove.
    pub(super) sweeps: Plan,
    /// Invalidations up to this position may be in force once the work begins.
    pub(super) started: Lsn,
}

impl SlowWork {
    /// Whether only messages and tickets waited: then there is nothing for the worker to do.
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.sweeps.is_empty()
    }
}

/// What comes of slow work.
#[derive(Debug)]
pub(super) enum SlowEvent {
    /// Ops that it found.
    Found(Box<Plan>),
    /// It has finished.
    Finished {
        /// The ops that it found last.
        rest: Vec<Plan>,
        /// What its lookups may have seen, if it had any. An error if that is not known, or if
        /// Redis may not be the proven dataset any more.
        result: Result<Option<LookupHorizon>, SessionError>,
    },
}

/// The slow work that waits, and the work that runs.
#[derive(Debug, Default)]
pub(super) struct SlowQueue {
    waiting: Part,
    /// What is sent and done when the work that runs has finished.
    running: Option<Part>,
    /// The queue holds work of the transaction whose rows are still arriving: its ticket follows.
    has_open: bool,
}

impl SlowQueue {
    /// Adds the slow part of a batch; `open` if more of the same transaction may follow.
    pub(super) fn push(&mut self, rules: &RuleSet, part: Part, open: bool) {
        self.has_open |= open;
        self.waiting.append(part);
        self.waiting.plan.limit_sweeps(|asked| rules.removals_of(asked));
    }

    /// Whether the queue holds work of the transaction whose rows are still arriving.
    pub(super) fn has_open(&self) -> bool {
        self.has_open
    }

    /// That transaction is complete. Returns whether the queue held work of it; then its ticket
    /// must [`Self::join`].
    pub(super) fn take_open(&mut self) -> bool {
        std::mem::take(&mut self.has_open)
    }

    /// The transaction with this ticket is done only after the work that waits.
    pub(super) fn join(&mut self, ticket: Ticket) {
        self.waiting.tickets.push(ticket);
    }

    pub(super) fn size(&self) -> Size {
        self.waiting.size()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none() && self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.waiting.tickets.is_empty() && self.waiting.plan.is_empty()
    }

    /// The next work, if some waits and none runs.
    pub(super) fn next(&mut self, started: Lsn) -> Option<SlowWork> {
        if self.running.is_some() || self.is_empty() {
            return None;
        }
        let mut part = std::mem::take(&mut self.waiting);
        let calls = part.plan.take_calls();
        let mut sweeps = Plan::default();
        part.plan.take_sweeps().into_iter().for_each(|(rule, removal)| sweeps.remove(rule, removal));
        part.started = started.max(part.started);
        part.first_bump = calls.iter().map(|(_, asked)| asked.lsn).min();
        let work = SlowWork { calls, sweeps, started: part.started };
        self.running = Some(part);
        Some(work)
    }

    /// Ops that the running work found, ready to be applied with everything else.
    pub(super) fn found_part(&self, found: Plan) -> Part {
        let mut plan = Plan::default();
        plan.begin_transaction();
        plan.append(found);
        plan.end_transaction(Lsn::ZERO);
        let mut part = Part { plan, ..Part::default() };
        if let Some(running) = &self.running {
            (part.started, part.at) = (running.started, running.at);
            if part.plan.bumps().len() > 0 {
                part.first_bump = running.first_bump;
            }
        }
        part
    }

    /// The work has finished. Returns the messages that waited for it, and the tickets.
    pub(super) fn finish(&mut self) -> Option<Part> {
        let mut part = self.running.take()?;
        part.first_bump = None;
        Some(part)
    }
}
