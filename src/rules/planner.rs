//! From a change to ops: which rules it triggers and what their templates say.
//!
//! Owns the deciding code of every verb. It must not know where changes come from or what becomes of the
//! ops. Invariant: what is not known over-invalidates; two equal changes give equal ops.

use std::collections::HashMap;
use std::sync::Arc;

use super::bind::{Bound, BoundAction, BoundRule, BoundTemplate, Source};
use super::compile::RuleSet;
use super::condition::{ConditionError, Operand};
use super::message::{Message, write_field};
use super::rule::Rule;
use super::template::{Image, Rendered, Resolved};
use crate::change::{Cell, Change, Commit, Kind, Operation, Relation, RelationId, TableName, json};
use crate::config::{Truncate, Unknown};
use crate::key::Glob;
use crate::plan::{CallOrigin, DeadLetter, LookupCall, Plan, Publish, Removal, SetValue, StreamAppend};

/// Why a change cannot be planned: the file says to stop rather than go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// `truncate: fail`.
    #[error(
        "table {table} was truncated, and the file says `truncate: fail` (rule `{rule}`); flush what it caches, or choose `pattern`"
    )]
    Truncated {
        /// The table.
        table: TableName,
        /// The first rule of the table.
        rule: String,
    },
    /// `unknown: fail`.
    #[error(
        "rule `{rule}` needs the old value of {table}.{column}, which the log does not carry, and the file says `unknown: fail`; widen the replica identity, or choose `match`"
    )]
    Unknown {
        /// The table.
        table: TableName,
        /// The column.
        column: String,
        /// The rule.
        rule: String,
    },
}

/// What a rule makes of a change, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It acts.
    Fires,
    /// It acts, because a column that decides is not known.
    FiresUnknown,
    /// It acts, because its condition could not be evaluated, for this reason.
    FiresFailed(String),
    /// The operation does not trigger it.
    OtherOperation,
    /// None of the columns it watches changed.
    Unchanged,
    /// Its condition does not hold.
    ConditionFalse,
    /// The table was truncated, and the file says to ignore that.
    TruncateIgnored,
}

/// Plans changes by the rules of a set; remembers how each relation's columns lie.
#[derive(Debug)]
pub struct Planner {
    rules: Arc<RuleSet>,
    bound: HashMap<RelationId, Bound>,
}

impl Planner {
    /// A planner for these rules.
    pub fn new(rules: Arc<RuleSet>) -> Self {
        Self { rules, bound: HashMap::new() }
    }

    /// The rules it plans by.
    pub fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// Whether any rule names this table.
    pub fn has_rules_for(&self, table: &TableName) -> bool {
        !self.rules.of_table(table).is_empty()
    }

    /// What rules read of a table and it does not have, as `rule: column`: renamed or dropped since the start.
    pub fn missing(&self, relation: &Relation) -> Vec<String> {
        let exists = |name: &str| relation.columns.iter().any(|column| column.name == name);
        let mut missing = Vec::new();
        for (_, rule) in self.rules.of_table(&relation.name) {
            for column in rule.columns().into_iter().filter(|column| !exists(column)) {
                missing.push(format!("{}: {column}", rule.name));
            }
        }
        missing
    }

    /// Adds the ops of one change to a plan.
    pub fn plan(&mut self, change: &Change, commit: &Commit, plan: &mut Plan) -> Result<(), PlanError> {
        self.each_rule(change, |rules, rule, definition| {
            let decision = decide(rule, definition, change, commit, rules)?;
            match decision {
                Decision::Fires | Decision::FiresUnknown => {}
                Decision::FiresFailed(reason) => {
                    plan.dead_letter(DeadLetter { rule: rule.id, reason, change: line(rule, change, commit) });
                }
                Decision::OtherOperation
                | Decision::Unchanged
                | Decision::ConditionFalse
                | Decision::TruncateIgnored => return Ok(()),
            }
            act(rule, definition, change, commit, plan);
            Ok(())
        })
    }

    /// The same by one rule alone.
    pub fn plan_only(&mut self, only: &str, change: &Change, commit: &Commit, plan: &mut Plan) {
        let planned = self.each_rule(change, |_, rule, definition| {
            if definition.name == only {
                act(rule, definition, change, commit, plan);
            }
            Ok(())
        });
        planned.expect("a rule that is not asked cannot stop the plan");
    }

    /// Adds the ops of every rule of the row's table, whatever its operations and filters say: for a row of which
    /// nobody knows how it came to be.
    pub fn plan_row_whatever(&mut self, change: &Change, commit: &Commit, plan: &mut Plan) {
        let planned = self.each_rule(change, |_, rule, definition| {
            act(rule, definition, change, commit, plan);
            Ok(())
        });
        planned.expect("a rule that is not asked cannot stop the plan");
    }

    /// Instead of the ops of a change, everything that they could touch: for a transaction that is too large to name
    /// each key.
    pub fn collapse(&mut self, change: &Change, plan: &mut Plan) {
        let planned = self.each_rule(change, |_, _, definition| {
            if definition.triggers_on(change.operation) {
                definition.remove_all(plan);
            }
            Ok(())
        });
        planned.expect("a rule that is not asked cannot stop the plan");
    }

    /// Something happened to the change's table, and nobody knows what: every rule of the table removes everything it may
    /// ever have made.
    pub fn resync(&mut self, change: &Change, plan: &mut Plan) {
        let planned = self.each_rule(change, |_, _, definition| {
            definition.remove_all(plan);
            Ok(())
        });
        planned.expect("a rule that is not asked cannot stop the plan");
    }

    fn each_rule(
        &mut self,
        change: &Change,
        mut f: impl FnMut(&RuleSet, &BoundRule, &Rule) -> Result<(), PlanError>,
    ) -> Result<(), PlanError> {
        let id = change.relation.id;
        let fresh = |bound: &Bound| Arc::ptr_eq(&bound.relation, &change.relation);
        if !self.bound.get(&id).is_some_and(fresh) {
            self.bound.insert(id, Bound::new(&self.rules, &change.relation, change.operation));
        }
        let Some(bound) = self.bound.get(&id) else { return Ok(()) };
        for rule in &bound.rules {
            if let Some(definition) = self.rules.rules().get(rule.position) {
                f(&self.rules, rule, definition)?;
            }
        }
        Ok(())
    }
}

/// Whether a rule acts on a change. The only place that decides it.
pub(super) fn decide(
    rule: &BoundRule,
    definition: &Rule,
    change: &Change,
    commit: &Commit,
    rules: &RuleSet,
) -> Result<Decision, PlanError> {
    if !definition.triggers_on(change.operation) {
        return Ok(Decision::OtherOperation);
    }
    let unknown = |column: &str| PlanError::Unknown {
        table: change.relation.name.clone(),
        column: column.to_owned(),
        rule: definition.name.clone(),
    };
    let mut decision = Decision::Fires;
    match change.operation {
        Operation::Truncate => match rules.truncate {
            Truncate::Pattern => {}
            Truncate::Ignore => return Ok(Decision::TruncateIgnored),
            Truncate::Fail => {
                let table = change.relation.name.clone();
                return Err(PlanError::Truncated { table, rule: definition.name.clone() });
            }
        },
        Operation::Update if !rule.changed.is_empty() => match any_changed(&rule.changed, change, rules.unknown) {
            Ok(Changed::Yes) => {}
            Ok(Changed::Unknown) => decision = Decision::FiresUnknown,
            Ok(Changed::No) => return Ok(Decision::Unchanged),
            Err(at) => return Err(unknown(definition.changed.get(at).map_or("", |column| &column.value))),
        },
        Operation::Insert | Operation::Update | Operation::Delete | Operation::Event => {}
    }
    let Some(condition) = definition.condition.as_ref().map(|condition| &condition.value) else { return Ok(decision) };
    if change.operation == Operation::Truncate && !condition.columns().is_empty() {
        // There is no row to look at, and all of them went.
        return Ok(decision);
    }
    let operand = |at: usize| rule.operand(at, change);
    let table = change.relation.name.to_string();
    match condition.evaluate(operand, change.operation.word(), &table, commit.at) {
        Ok(true) => Ok(decision),
        Ok(false) => Ok(Decision::ConditionFalse),
        Err(ConditionError::Failed(reason)) => Ok(Decision::FiresFailed(reason)),
        Err(ConditionError::Unknown) => match rules.unknown {
            Unknown::Match => Ok(Decision::FiresUnknown),
            Unknown::Skip => Ok(Decision::ConditionFalse),
            Unknown::Fail => {
                let uses = condition.columns().iter().enumerate();
                let mut absent = uses.filter(|(at, _)| matches!(operand(*at), Operand::Absent));
                Err(unknown(absent.next().map_or("", |(_, column)| &column.column)))
            }
        },
    }
}

enum Changed {
    Yes,
    No,
    Unknown,
}

/// Whether one of the columns differs between the images; the index of one that cannot be told is the
/// error, if the file says so.
fn any_changed(columns: &[Option<usize>], change: &Change, unknown: Unknown) -> Result<Changed, usize> {
    let mut unsure = false;
    for (at, column) in columns.iter().enumerate() {
        let cell = |row: &Option<crate::change::Row>| match (row, column) {
            (Some(row), Some(position)) => row.cell(*position).clone(),
            _ => Cell::Absent,
        };
        match (cell(&change.old), cell(&change.new)) {
            (Cell::Absent, _) | (_, Cell::Absent) => match unknown {
                Unknown::Match => unsure = true,
                Unknown::Skip => {}
                Unknown::Fail => return Err(at),
            },
            (old, new) if old != new => return Ok(Changed::Yes),
            _ => {}
        }
    }
    Ok(if unsure { Changed::Unknown } else { Changed::No })
}

/// Adds what a rule that fires does.
pub(super) fn act(rule: &BoundRule, definition: &Rule, change: &Change, commit: &Commit, plan: &mut Plan) {
    if change.operation == Operation::Truncate {
        return act_on_truncate(rule, definition, plan);
    }
    if let Some(arguments) = &rule.arguments {
        return ask(rule, definition, arguments, change, commit, plan);
    }
    for action in &rule.actions {
        match action {
            BoundAction::Set { key, columns, ttl } => {
                for image in key.images(change) {
                    let name = key.render(change, image);
                    match (image, name) {
                        (Image::New, Rendered::Key(key)) => match body(columns, change) {
                            Some(body) => plan.set(rule.id, SetValue { key, body, ttl: *ttl, lsn: commit.lsn }),
                            None => plan.delete(rule.id, key),
                        },
                        // Two values may make one key, as two spellings under `lower` do.
                        (Image::Old, old) if change.new.is_some() && old == key.render(change, Image::New) => {}
                        (_, name) => remove(rule, definition, name, plan),
                    }
                }
            }
            BoundAction::Delete(key) => {
                for image in key.images(change) {
                    remove(rule, definition, key.render(change, image), plan);
                }
            }
            BoundAction::Pattern(pattern) => {
                for image in pattern.images(change) {
                    if let Some(glob) = as_glob(pattern.render(change, image)) {
                        if let Some(after) = definition.again_after {
                            plan.repeat(rule.id, after, Removal::Keys(glob.clone()));
                        }
                        plan.pattern(rule.id, glob);
                    }
                }
            }
            BoundAction::Tag(tag) => {
                for image in tag.images(change) {
                    match tag.render(change, image) {
                        Rendered::Key(tag) => plan.tag(rule.id, tag),
                        Rendered::Glob(glob) => plan.tags(rule.id, glob),
                        Rendered::Nothing => {}
                    }
                }
            }
            BoundAction::Bump(key) => {
                for image in key.images(change) {
                    match key.render(change, image) {
                        Rendered::Key(key) => plan.bump(rule.id, key, commit.lsn),
                        Rendered::Glob(glob) => plan.pattern(rule.id, glob),
                        Rendered::Nothing => {}
                    }
                }
            }
            BoundAction::Publish { channel, data } => {
                for image in channel.images(change) {
                    if let Some((channel, data)) = message(channel, data, &mut |source| source.resolve(change, image)) {
                        plan.publish(rule.id, Publish { channel, data });
                    }
                }
            }
            BoundAction::Stream { name, data, maxlen } => {
                for image in name.images(change) {
                    if let Some((stream, data)) = message(name, data, &mut |source| source.resolve(change, image)) {
                        plan.stream(rule.id, StreamAppend { stream, data, maxlen: *maxlen });
                    }
                }
            }
        }
    }
}

/// Every row went: what a rule may ever have made of one goes too.
fn act_on_truncate(rule: &BoundRule, definition: &Rule, plan: &mut Plan) {
    definition.remove_all(plan);
    // Which channels and streams a template with columns meant, nobody can tell any more.
    for action in rule.actions.iter().filter(|_| rule.arguments.is_none()) {
        let mut resolve = |_: Source| Resolved::Unknown;
        match action {
            BoundAction::Publish { channel, data } if channel.sources.is_empty() => {
                if let Some((channel, data)) = message(channel, data, &mut resolve) {
                    plan.publish(rule.id, Publish { channel, data });
                }
            }
            BoundAction::Stream { name, data, maxlen } if name.sources.is_empty() => {
                if let Some((stream, data)) = message(name, data, &mut resolve) {
                    plan.stream(rule.id, StreamAppend { stream, data, maxlen: *maxlen });
                }
            }
            _ => {}
        }
    }
}

/// Asks the lookup of a rule for the rows its actions are about, for both images where they say different things.
fn ask(
    rule: &BoundRule,
    definition: &Rule,
    arguments: &[BoundTemplate],
    change: &Change,
    commit: &Commit,
    plan: &mut Plan,
) {
    let sources: Vec<_> =
        arguments.iter().flat_map(|argument| &argument.sources).chain(&rule.naming).copied().collect();
    'image: for image in super::bind::images(&sources, change) {
        let mut values = Vec::with_capacity(arguments.len());
        for argument in arguments {
            match argument.render(change, image) {
                Rendered::Key(value) => values.push(value.as_bytes().to_vec()),
                Rendered::Nothing => continue 'image,
                Rendered::Glob(_) => {
                    // What to ask is not known.
                    definition.remove_all(plan);
                    continue 'image;
                }
            }
        }
        let cells = rule.references.iter().map(|source| source.cell(change, image)).collect();
        let asked = CallOrigin { lsn: commit.lsn, change: line(rule, change, commit) };
        plan.call(LookupCall { rule: rule.id, arguments: values, cells }, asked);
    }
}

/// The change as a recording has it, with the columns that the rule reads: all that it takes to plan it again.
fn line(rule: &BoundRule, change: &Change, commit: &Commit) -> String {
    let line =
        change.to_line(commit, None, |relation, at, cell, out| rule.uses(at) && json::plainly(relation, at, cell, out));
    String::from_utf8_lossy(&line).into_owned()
}

fn remove(rule: &BoundRule, definition: &Rule, name: Rendered, plan: &mut Plan) {
    let removal = match name {
        Rendered::Key(key) => Removal::Key(key),
        Rendered::Glob(glob) => Removal::Keys(glob),
        Rendered::Nothing => return,
    };
    if let Some(after) = definition.again_after {
        plan.repeat(rule.id, after, removal.clone());
    }
    plan.remove(rule.id, removal);
}

/// A pattern, also where it turned out to have no wildcard.
pub(super) fn as_glob(name: Rendered) -> Option<Glob> {
    match name {
        Rendered::Glob(glob) => Some(glob),
        Rendered::Key(key) => {
            let mut glob = Glob::new();
            glob.push_literal(key.as_bytes());
            Some(glob)
        }
        Rendered::Nothing => None,
    }
}

/// The chosen columns of the new row as a JSON object; nothing if one of them is not known.
fn body(columns: &[(String, Option<usize>, Kind)], change: &Change) -> Option<Vec<u8>> {
    let row = change.new.as_ref()?;
    let mut body = vec![b'{'];
    for (at, (name, position, kind)) in columns.iter().enumerate() {
        let cell = row.cell((*position)?);
        if *cell == Cell::Absent {
            return None;
        }
        if at > 0 {
            body.push(b',');
        }
        json::write_text(name, &mut body);
        body.push(b':');
        json::write_value(cell, *kind, &mut body);
    }
    body.push(b'}');
    Some(body)
}

/// A channel or stream and what is sent there. One whose name is not known cannot be told anything; the start-up
/// check refuses the rule.
fn message<'a>(
    name: &BoundTemplate,
    data: &Message<BoundTemplate>,
    resolve: &mut impl FnMut(Source) -> Resolved<'a>,
) -> Option<(crate::key::CacheKey, Vec<u8>)> {
    let Rendered::Key(key) = name.template.render(|at| resolve(name.source(at))) else { return None };
    let mut message = Vec::with_capacity(64);
    data.write(&mut message, &mut |field, out| {
        write_field(out, &field.template, |at| resolve(field.source(at)));
    });
    Some((key, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Column, Row};
    use crate::config::Document;
    use proptest::prelude::*;

    fn planner(rules: &str) -> Planner {
        let document = Document::parse(&format!("version: 1\nrules:\n{rules}"), &|_| None).unwrap();
        Planner::new(Arc::new(RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap()))
    }

    fn relation(table: &str) -> Arc<Relation> {
        let column = |name: &str| Column { name: name.into(), kind: Kind::Text, in_identity: true };
        let columns = vec![column("id"), column("a")];
        Arc::new(Relation { id: RelationId::new(1), name: TableName::new("public", table), columns })
    }

    fn change(table: &str, old: Option<[Cell; 2]>, new: Option<[Cell; 2]>) -> Change {
        let operation = match (&old, &new) {
            (None, _) => Operation::Insert,
            (_, None) => Operation::Delete,
            _ => Operation::Update,
        };
        let row = |cells: [Cell; 2]| Row::new(cells.into());
        Change { relation: relation(table), operation, old: old.map(row), new: new.map(row) }
    }

    #[test]
    fn a_change_costs_no_more_than_the_rules_of_its_own_table() {
        let rules: String =
            (0..1000).map(|n| format!("  r{n}: {{table: t{}, delete: 'k{n}:{{id}}'}}\n", n % 100)).collect();
        let mut planner = planner(&rules);
        let mut plan = Plan::default();
        planner.plan(&change("t7", None, Some([Cell::of("1"), Cell::Null])), &Commit::default(), &mut plan).unwrap();
        assert_eq!(plan.len(), 10);
        assert_eq!(planner.bound[&RelationId::new(1)].rules.len(), 10, "the rules that a change is held against");
    }

    #[test]
    fn a_table_described_again_is_bound_again() {
        let mut planner = planner("  r: {table: t, delete: 'k:{a}'}\n");
        let mut plan = Plan::default();
        planner.plan(&change("t", None, Some([Cell::of("1"), Cell::of("2")])), &Commit::default(), &mut plan).unwrap();
        let mut swapped = change("t", None, Some([Cell::of("1"), Cell::of("2")]));
        let mut relation = (*swapped.relation).clone();
        relation.columns.reverse();
        swapped.relation = Arc::new(relation);
        planner.plan(&swapped, &Commit::default(), &mut plan).unwrap();
        let keys: Vec<_> = plan.deletes().map(ToString::to_string).collect();
        assert_eq!(keys, ["k:2", "k:1"]);
    }

    fn any_cell() -> impl Strategy<Value = Cell> {
        prop_oneof![
            Just(Cell::Null),
            Just(Cell::Absent),
            proptest::collection::vec(any::<u8>(), 0..6).prop_map(|bytes| Cell::Value(bytes.into())),
        ]
    }

    proptest! {
        /// Whatever a fuller image would delete by name, a poorer one deletes by name or by glob.
        #[test]
        fn knowing_less_deletes_no_less(old in [any_cell(), any_cell()], new in [any_cell(), any_cell()], hide in 0..4_usize) {
            let rules = "  r: {table: t, changed: [a], delete: ['k:{id}:{a|lower}', 'o:{old.a}', 'n:{new.a}:{id}']}\n";
            let mut planner = planner(rules);
            let (mut full, mut poor) = (Plan::default(), Plan::default());
            planner.plan(&change("t", Some(old.clone()), Some(new.clone())), &Commit::default(), &mut full).unwrap();
            let (mut less_old, mut less_new) = (old, new);
            let row = if hide < 2 { &mut less_old } else { &mut less_new };
            row[hide % 2] = Cell::Absent;
            planner.plan(&change("t", Some(less_old), Some(less_new)), &Commit::default(), &mut poor).unwrap();
            for key in full.deletes() {
                let by_name = poor.deletes().any(|other| other == key);
                let by_glob = poor.patterns().any(|glob| matches_glob(glob.as_bytes(), key.as_bytes()));
                prop_assert!(by_name || by_glob, "{key} is not covered by {:?}", poor);
            }
        }
    }

    /// Redis's own matching, as far as our globs use it.
    fn matches_glob(glob: &[u8], key: &[u8]) -> bool {
        match (glob, key) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => (0..=key.len()).any(|skip| matches_glob(rest, &key[skip..])),
            ([b'\\', literal, rest @ ..], [byte, key @ ..]) => literal == byte && matches_glob(rest, key),
            ([literal, rest @ ..], [byte, key @ ..]) => literal == byte && matches_glob(rest, key),
            _ => false,
        }
    }
}
