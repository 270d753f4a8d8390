//! A test held against the rules: what was expected, what came of it, and where they differ.
//!
//! Owns the comparison. It must not print. Invariants: with the whole row before, the ops are exactly the expected
//! ones; with what the log carries of it, they cover at least these.

use std::collections::{BTreeMap, BTreeSet};

use super::case::{Answers, COMMIT, Carried, Case, old_columns};
use crate::change::{Cell, Change, Operation};
use crate::key::{Glob, TAG};
use crate::plan::{ActionKind, Op, Plan, RuleId};
use crate::rules::{Image, PlanError, Planner, RuleSet};

/// An op as tests write it: its kind, and what it names without the namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Named {
    pub(super) kind: ActionKind,
    pub(super) name: Vec<u8>,
    /// Whether it names all that a glob matches.
    is_glob: bool,
}

/// How a test went.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// With the whole row before.
    pub(super) full: Run,
    /// With what the log carries of it, if that is less and the first run went well.
    pub(super) carried: Option<Run>,
    /// The columns whose old value the log lacks, and for want of which something is not covered.
    pub(super) lacking: Vec<String>,
    /// The columns that the rules read and the test does not name, if that may be why it fails.
    pub(super) unnamed: Vec<String>,
}

/// One run of a test.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// Expected, and there.
    pub(super) met: BTreeSet<Named>,
    /// Expected, and neither there nor covered.
    pub(super) missing: BTreeSet<Named>,
    /// There, and not expected.
    pub(super) beyond: BTreeSet<Named>,
    /// Why a rule could not be held against the change.
    pub(super) dead: Vec<(RuleId, String)>,
    /// Why nothing was planned.
    pub(super) stopped: Option<PlanError>,
}

impl Run {
    /// Whether all that was expected is there; with `exactly`, and nothing else.
    fn is_right(&self, exactly: bool) -> bool {
        let right = self.missing.is_empty() && self.dead.is_empty() && self.stopped.is_none();
        right && (!exactly || self.beyond.is_empty())
    }
}

impl Outcome {
    /// Whether the test passed.
    pub(super) fn passed(&self) -> bool {
        self.full.is_right(true) && self.carried.as_ref().is_none_or(|run| run.is_right(false))
    }
}

/// Runs tests by the rules of one file.
#[derive(Debug)]
pub(super) struct Judge {
    planner: Planner,
    namespace: String,
}

impl Judge {
    pub(super) fn new(planner: Planner, namespace: &str) -> Self {
        Self { planner, namespace: namespace.to_owned() }
    }

    /// Runs a test with the whole row before, then with what the log carries of it.
    pub(super) fn judge(&mut self, case: &Case<'_>) -> Outcome {
        // Whether a name is a glob is not written: the same text is expected either way.
        let expected: BTreeSet<_> =
            case.raw.expect.iter().map(|op| Named::literal(op.kind, op.name.value.as_bytes())).collect();
        let (made, mut full) = self.run(&case.full, &case.answers);
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
            let (less, mut run) = self.run(&carried.change, &case.answers);
            run.compare(&made.keys().cloned().collect(), &less, |expected, made| made.covers(expected));
            let asked = made.iter().filter(|(op, _)| run.missing.contains(*op)).map(|(_, rule)| *rule);
            outcome.lacking = lacking(self.planner.rules(), carried, asked);
            outcome.carried = Some(run);
        }
        outcome
    }

    /// What a change makes, each with the rule that asked first.
    fn run(&mut self, change: &Change, answers: &Answers) -> (BTreeMap<Named, RuleId>, Run) {
        let mut run = Run::default();
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

    fn named(&self, op: Op<'_>) -> Named {
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
        Named { kind: op.kind(), name: name.strip_prefix(&*prefix).unwrap_or(name).to_vec(), is_glob }
    }
}

/// Puts the rows of a test in the place of what lookups would return.
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

impl Run {
    /// Holds what was made against what was expected; `is_met` says whether the one answers for the other.
    fn compare(
        &mut self,
        expected: &BTreeSet<Named>,
        made: &BTreeMap<Named, RuleId>,
        is_met: impl Fn(&Named, &Named) -> bool,
    ) {
        for op in expected {
            let met = made.keys().any(|made| is_met(op, made));
            let side = if met { &mut self.met } else { &mut self.missing };
            side.insert(op.clone());
        }
        self.beyond = made.keys().filter(|made| !expected.iter().any(|op| op.same(made))).cloned().collect();
    }
}

/// The columns that the log lacks and that these rules read of the row before.
fn lacking(rules: &RuleSet, carried: &Carried, asked: impl Iterator<Item = RuleId>) -> Vec<String> {
    let read: BTreeSet<_> = asked.flat_map(|rule| read_before(rules, rule)).collect();
    carried.lacking.iter().filter(|column| read.contains(*column)).cloned().collect()
}

/// The columns of the row before that decide whether a rule acts, and what it names.
fn read_before(rules: &RuleSet, rule: RuleId) -> BTreeSet<String> {
    let Some(rule) = rules.rule(rule) else { return BTreeSet::new() };
    let watched = rule.changed.iter().map(|column| column.value.clone());
    let conditions = rule.condition.iter().flat_map(|condition| condition.value.columns());
    let of_condition = conditions.filter(|used| used.image == Image::Old).map(|used| used.column.clone());
    old_columns(rule).chain(watched).chain(of_condition).collect()
}

/// The columns that the names of these rules are made of and the change does not have.
fn unnamed<'r>(rules: &RuleSet, change: &Change, asked: impl Iterator<Item = &'r RuleId>) -> Vec<String> {
    let columns = &change.relation.columns;
    let is_unknown = |name: &String| match columns.iter().position(|column| column.name == *name) {
        Some(at) => change.old.as_ref().is_some_and(|row| *row.cell(at) == Cell::Absent),
        None => true,
    };
    let read: BTreeSet<_> = asked.filter_map(|rule| rules.rule(*rule)).flat_map(old_columns).collect();
    read.into_iter().filter(is_unknown).collect()
}

impl Named {
    pub(super) fn literal(kind: ActionKind, name: &[u8]) -> Self {
        Self { kind, name: name.to_vec(), is_glob: false }
    }

    /// Whether both read the same in a test.
    fn same(&self, other: &Self) -> bool {
        self.kind == other.kind && self.name == other.name
    }

    /// Whether this takes away at least as much as the other would.
    fn covers(&self, other: &Self) -> bool {
        let removes = match other.kind {
            // A value that is not written is at least not stale once its key is gone.
            ActionKind::Set => matches!(self.kind, ActionKind::Delete | ActionKind::Pattern),
            ActionKind::Delete | ActionKind::Bump | ActionKind::Pattern => self.kind == ActionKind::Pattern,
            ActionKind::Tag => self.kind == ActionKind::Tag,
            ActionKind::Publish | ActionKind::Stream => false,
        };
        if self.same(other) && self.is_glob == other.is_glob {
            return true;
        }
        removes && covers(&self.tokens(), &other.tokens())
    }

    fn tokens(&self) -> Vec<Token> {
        if self.is_glob { tokens(&self.name) } else { self.name.iter().copied().map(Token::Byte).collect() }
    }
}

/// A piece of a glob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Byte(u8),
    Any,
}

/// The pieces of a glob, as it is written.
pub(super) fn tokens(glob: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(glob.len());
    let mut bytes = glob.iter().copied();
    while let Some(byte) = bytes.next() {
        tokens.push(match byte {
            b'*' => Token::Any,
            b'\\' => Token::Byte(bytes.next().unwrap_or(byte)),
            _ => Token::Byte(byte),
        });
    }
    tokens
}

/// Whether everything that `narrow` matches `wide` matches too: a star is covered by a star only.
pub(super) fn covers(wide: &[Token], narrow: &[Token]) -> bool {
    let (mut pattern, mut rest) = (wide, narrow);
    // Where to go on when what follows the last star does not fit: one piece further.
    let mut retry: Option<(&[Token], &[Token])> = None;
    loop {
        match (pattern, rest) {
            ([Token::Any, after @ ..], _) => {
                retry = Some((after, rest));
                pattern = after;
                continue;
            }
            ([], []) => return true,
            ([expected, after @ ..], [found, further @ ..]) if expected == found => {
                (pattern, rest) = (after, further);
                continue;
            }
            _ => {}
        }
        match retry {
            Some((after, [_, further @ ..])) => {
                retry = Some((after, further));
                (pattern, rest) = (after, further);
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_covers_what_it_matches_and_narrower_globs() {
        let check = |wide: &str, narrow: &str, expected: bool| {
            assert_eq!(covers(&tokens(wide.as_bytes()), &tokens(narrow.as_bytes())), expected, "{wide} {narrow}");
        };
        check("user:*", "user:7", true);
        check("user:*", "users:7", false);
        check("user:*", "user:*", true);
        check("user:*", "*", false);
        check("search:*:*", "search:7:*", true);
        check("search:7:*", "search:*:*", false);
        check("a*z", "a*b*z", true);
        check("a*z", "a*b", false);
        check(r"a\*", "a*", false);
        check("a*", r"a\*", true);
        check("", "", true);
        check("", "a", false);
    }

    #[test]
    fn an_op_covers_what_it_takes_away() {
        use ActionKind::{Bump, Delete, Pattern, Publish, Set, Tag};
        let check = |made: (ActionKind, &str, bool), expected: (ActionKind, &str), covered: bool| {
            let made = Named { kind: made.0, name: made.1.into(), is_glob: made.2 };
            assert_eq!(
                made.covers(&Named::literal(expected.0, expected.1.as_bytes())),
                covered,
                "{made:?} {expected:?}"
            );
        };
        check((Delete, "a", false), (Delete, "a"), true);
        check((Delete, "a", false), (Delete, "b"), false);
        check((Pattern, "a*", true), (Delete, "ab"), true);
        check((Pattern, "a*", true), (Bump, "ab"), true);
        check((Pattern, "a*", true), (Set, "ab"), true);
        check((Delete, "ab", false), (Set, "ab"), true);
        check((Bump, "a", false), (Delete, "a"), false);
        check((Tag, "a*", true), (Tag, "ab"), true);
        check((Pattern, "a*", true), (Tag, "ab"), false);
        check((Pattern, "a*", true), (Publish, "ab"), false);
        check((Publish, "a", false), (Publish, "a"), true);
    }
}
