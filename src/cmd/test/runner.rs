//! Runs tests by the rules of a file.
//!
//! Owns what is expected of the two runs of a test. It must not print. Invariants: with the whole
//! old row, the ops are exactly the expected ones; with what the log carries of it, they remove at
//! least as much.

use std::collections::{BTreeMap, BTreeSet};

use super::case::{Answers, COMMIT, Case, old_columns};
use super::named_op::NamedOp;
use super::outcome::{Outcome, TestRun};
use super::rows::Carried;
use crate::change::{Cell, Change, Operation};
use crate::key::{Glob, TAG};
use crate::plan::{Op, Plan, RuleId};
use crate::rules::{Image, Planner, RuleSet};

/// Runs tests by the rules of one file.
#[derive(Debug)]
pub(super) struct CaseRunner {
    planner: Planner,
    namespace: String,
}

impl CaseRunner {
    pub(super) fn new(planner: Planner, namespace: &str) -> Self {
        Self { planner, namespace: namespace.to_owned() }
    }

    /// Runs a test with the whole old row, then with what the log carries of it.
    pub(super) fn run(&mut self, case: &Case<'_>) -> Outcome {
        // A test does not say whether a name is a glob: the text is compared.
        let expected: BTreeSet<_> =
            case.raw.expect.iter().map(|op| NamedOp::literal(op.kind, op.name.value.as_bytes())).collect();
        let (made, mut full) = self.plan(&case.full, &case.answers);
        full.compare(&expected, &made, |expected, made| expected.same(made));
        let mut outcome = Outcome { full, ..Outcome::default() };
        if !outcome.full.is_right(true) {
            let by_glob = outcome.full.beyond.iter().any(|op| op.is_glob);
            if by_glob && !case.is_table_known && case.full.operation != Operation::Truncate {
                outcome.unnamed = unnamed(self.planner.rules(), &case.full, made.values());
            }
            return outcome;
        }
        if let Some(carried) = &case.carried {
            let (less, mut run) = self.plan(&carried.change, &case.answers);
            run.compare(&made.keys().cloned().collect(), &less, |expected, made| made.covers(expected));
            let asked = made.iter().filter(|(op, _)| run.missing.contains(*op)).map(|(_, rule)| *rule);
            outcome.lacking = lacking(self.planner.rules(), carried, asked);
            outcome.carried = Some(run);
        }
        outcome
    }

    /// The ops of a change, each with the first rule that asks for it.
    fn plan(&mut self, change: &Change, answers: &Answers) -> (BTreeMap<NamedOp, RuleId>, TestRun) {
        let mut run = TestRun::default();
        let mut plan = Plan::default();
        if let Err(error) = self.planner.plan(change, &COMMIT, &mut plan) {
            run.stopped = Some(error);
            return (BTreeMap::new(), run);
        }
        answer(self.planner.rules(), answers, &mut plan);
        run.dead = plan.dead_letters().iter().map(|letter| (letter.rule, letter.reason.clone())).collect();
        let made = plan.ops().map(|(rule, op)| (self.named(op), rule)).collect();
        (made, run)
    }

    fn named(&self, op: Op<'_>) -> NamedOp {
        let is_glob = matches!(op, Op::Pattern(_) | Op::Tags(_));
        let mut prefix = self.namespace.clone().into_bytes();
        if matches!(op, Op::Tag(_) | Op::Tags(_)) {
            prefix.extend_from_slice(TAG.as_bytes());
        }
        if is_glob {
            let mut glob = Glob::new();
            glob.push_literal(&prefix);
            prefix = glob.as_bytes().to_vec();
        }
        let name = op.name();
        NamedOp { kind: op.kind(), name: name.strip_prefix(&*prefix).unwrap_or(name).to_vec(), is_glob }
    }
}

/// The columns that the log does not carry and whose old value these rules read.
fn lacking(rules: &RuleSet, carried: &Carried, asked: impl Iterator<Item = RuleId>) -> Vec<String> {
    let read: BTreeSet<_> = asked.flat_map(|rule| read_before(rules, rule)).collect();
    carried.lacking.iter().filter(|column| read.contains(*column)).cloned().collect()
}

/// The columns whose old value decides whether a rule acts, or is part of its names.
fn read_before(rules: &RuleSet, rule: RuleId) -> BTreeSet<String> {
    let Some(rule) = rules.rule(rule) else { return BTreeSet::new() };
    let watched = rule.changed.iter().map(|column| column.value.clone());
    let conditions = rule.condition.iter().flat_map(|condition| condition.value.columns());
    let of_condition = conditions.filter(|used| used.image == Image::Old).map(|used| used.column.clone());
    old_columns(rule).chain(watched).chain(of_condition).collect()
}

/// The columns that the names of these rules need and the change does not have.
fn unnamed<'r>(rules: &RuleSet, change: &Change, asked: impl Iterator<Item = &'r RuleId>) -> Vec<String> {
    let columns = &change.relation.columns;
    let is_unknown = |name: &String| match columns.iter().position(|column| column.name == *name) {
        Some(at) => change.old.as_ref().is_some_and(|row| *row.cell(at) == Cell::Absent),
        None => true,
    };
    let read: BTreeSet<_> = asked.filter_map(|rule| rules.rule(*rule)).flat_map(old_columns).collect();
    read.into_iter().filter(is_unknown).collect()
}

/// Answers the lookups of a plan with the rows of a test.
pub(super) fn answer(rules: &RuleSet, answers: &Answers, plan: &mut Plan) {
    for (call, asked) in plan.take_calls() {
        let for_each = rules.rule(call.rule).and_then(|rule| rule.for_each.as_ref());
        let rows = for_each.and_then(|for_each| answers.get(&for_each.lookup));
        for row in rows.into_iter().flatten() {
            let find = |name: &str| row.iter().find(|(column, _)| column == name).map(|(_, cell)| cell);
            rules.expand(&call, asked.lsn, &find, plan);
        }
    }
}
