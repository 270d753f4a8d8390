//! From changes to plans, chunk by chunk.
//!
//! Owns which changes make one plan. It must not know sources or lookups. Invariant: the changes of
//! a transaction make one plan, or several of bounded size.

use super::resolver::Resolver;
use super::source::{ChangeSource, InputChange, Planning};
use super::unmatched::Unmatched;
use crate::change::Lsn;
use crate::cmd::failure::Failure;
use crate::plan::Plan;

/// The plans of several changes of one transaction, one for each of the rule sets.
pub(in crate::cmd) struct PlanChunk<const N: usize> {
    pub(in crate::cmd) plans: [Plan; N],
    /// It begins a transaction. Otherwise it continues one that was too large.
    pub(in crate::cmd) begins: bool,
    /// The number of its first change, from 1.
    pub(in crate::cmd) change: u64,
    /// The position of its transaction, or zero if it is not known.
    pub(in crate::cmd) lsn: Lsn,
    /// The stream id of the dead letter that it was made from.
    pub(in crate::cmd) dead_letter: Option<String>,
}

/// The plans of the changes of a source.
pub(in crate::cmd) struct PlanChunks<const N: usize> {
    source: ChangeSource,
    resolvers: [Resolver; N],
    unmatched: Unmatched,
    /// Read already, and part of the next chunk.
    ahead: Option<InputChange>,
    ended: bool,
    changes: u64,
    limit: Option<u64>,
    ops_max: usize,
}

impl<const N: usize> PlanChunks<N> {
    /// Reads at most `limit` changes. A plan that reaches `ops_max` ops ends its chunk.
    pub(super) fn new(source: ChangeSource, resolvers: [Resolver; N], limit: Option<u64>, ops_max: usize) -> Self {
        let unmatched = Unmatched::default();
        Self { source, resolvers, unmatched, ahead: None, ended: false, changes: 0, limit, ops_max }
    }

    /// The next plans, which may be empty.
    pub(in crate::cmd) async fn next(&mut self) -> Result<Option<PlanChunk<N>>, Failure> {
        let first = match self.ahead.take() {
            Some(change) => Some(change),
            None => self.next_change().await?,
        };
        let Some(mut input) = first else { return Ok(None) };
        let mut chunk = PlanChunk {
            plans: std::array::from_fn(|_| Plan::default()),
            begins: !input.continues,
            change: self.changes,
            lsn: input.commit.lsn,
            dead_letter: None,
        };
        loop {
            self.plan(&input, &mut chunk)?;
            match self.next_change().await? {
                Some(next) if next.continues && chunk.plans.iter().all(|plan| plan.len() < self.ops_max) => {
                    input = next;
                }
                next => {
                    self.ahead = next;
                    break;
                }
            }
        }
        for (resolver, plan) in self.resolvers.iter_mut().zip(&mut chunk.plans) {
            resolver.resolve(plan).await?;
        }
        Ok(Some(chunk))
    }

    /// How many changes were read.
    pub(in crate::cmd) fn changes(&self) -> u64 {
        self.changes
    }

    /// A note about the changes that no rule matches, if there were any.
    pub(in crate::cmd) fn note(&self) -> Option<String> {
        self.unmatched.note()
    }

    fn plan(&mut self, input: &InputChange, chunk: &mut PlanChunk<N>) -> Result<(), Failure> {
        let matched = self.resolvers.iter().any(|resolver| resolver.matches(input));
        if !matched {
            self.unmatched.count(input);
        }
        for (resolver, plan) in self.resolvers.iter_mut().zip(&mut chunk.plans) {
            resolver.plan(input, plan)?;
        }
        if let (Planning::OneRule(entry), true) = (&input.planning, matched) {
            chunk.dead_letter = Some(entry.id.clone());
        }
        Ok(())
    }

    async fn next_change(&mut self) -> Result<Option<InputChange>, Failure> {
        if self.ended || self.limit.is_some_and(|limit| self.changes >= limit) {
            return Ok(None);
        }
        let resolvers = &self.resolvers;
        let has_rules_for = |table: &_| resolvers.iter().any(|resolver| resolver.has_rules_for(table));
        let change = self.source.next(&has_rules_for).await?;
        self.ended = change.is_none();
        self.changes += u64::from(change.is_some());
        Ok(change)
    }
}
