//! What takes its time: rows that must be looked up, patterns, tags.
//!
//! Owns what waits for the errand that does it, and what has to be told when it is back. Synchronous; knows no socket.
//! Invariants: one errand at a time, in the order in which it was asked for; a transaction's messages are not sent
//! before its errand is back, nor is it done before; other invalidations wait for neither.

use super::part::{Part, Size};
use crate::change::Lsn;
use crate::plan::{Asked, Call, Plan};
use crate::rules::{Rule, RuleSet};

/// What somebody has to go and do.
#[derive(Debug)]
pub(super) struct Errand {
    /// What the database has to be asked.
    pub(super) calls: Vec<(Call, Asked)>,
    /// What has to be searched for and removed.
    pub(super) sweeps: Plan,
    /// Some invalidation up to here is about to be in force.
    pub(super) started: Lsn,
}

/// What takes its time.
#[derive(Debug, Default)]
pub(super) struct Aside {
    waiting: Part,
    /// What is to be told and done when the errand is back.
    out: Option<Part>,
    /// A part of the transaction whose rows are still arriving is here: its ticket will follow.
    owes: bool,
}

impl Aside {
    /// Adds what was split off; `open` if more of the same transaction may follow.
    pub(super) fn push(&mut self, rules: &RuleSet, part: Part, open: bool) {
        self.owes |= open;
        self.waiting.append(part);
        self.waiting.plan.limit_sweeps(|rule| rules.rule(rule).map(Rule::removals).unwrap_or_default());
    }

    /// The transaction whose rows were arriving is whole; whether something of it is here and it has to wait.
    pub(super) fn take_debt(&mut self) -> bool {
        std::mem::take(&mut self.owes)
    }

    pub(super) fn owes(&self) -> bool {
        self.owes
    }

    /// That transaction's ticket.
    pub(super) fn join(&mut self, ticket: crate::coherence::progress::Ticket) {
        self.waiting.tickets.push(ticket);
    }

    pub(super) fn size(&self) -> Size {
        self.waiting.size()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.out.is_none() && self.waiting.tickets.is_empty() && self.waiting.plan.is_empty()
    }

    /// The next errand, if there is one and none is under way.
    pub(super) fn next(&mut self, started: Lsn) -> Option<Errand> {
        if self.out.is_some() || (self.waiting.tickets.is_empty() && self.waiting.plan.is_empty()) {
            return None;
        }
        let mut part = std::mem::take(&mut self.waiting);
        let calls = part.plan.take_calls();
        let mut sweeps = Plan::default();
        part.plan.take_sweeps().into_iter().for_each(|(rule, removal)| sweeps.remove(rule, removal));
        part.started = started.max(part.started);
        part.first_bump = calls.iter().map(|(_, asked)| asked.lsn).min();
        let errand = Errand { calls, sweeps, started: part.started };
        self.out = Some(part);
        Some(errand)
    }

    /// A piece of what came of the errand under way, ready to be applied with everything else.
    pub(super) fn piece(&self, piece: Plan) -> Part {
        let mut plan = Plan::default();
        plan.begin_transaction();
        plan.append(piece);
        plan.end_transaction(Lsn::ZERO);
        let mut part = Part { plan, ..Part::default() };
        if let Some(out) = &self.out {
            (part.started, part.at) = (out.started, out.at);
            if part.plan.bumps().len() > 0 {
                part.first_bump = out.first_bump;
            }
        }
        part
    }

    /// The errand is back: what is to be sent now, and the tickets of those who waited for it.
    pub(super) fn back(&mut self) -> Option<Part> {
        let mut part = self.out.take()?;
        part.first_bump = None;
        Some(part)
    }
}
