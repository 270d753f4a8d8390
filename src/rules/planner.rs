//! From a change to ops: which rules it triggers and what their templates say.
//!
//! Owns the deciding code of every verb. It must not know where changes come from or what becomes of the
//! ops. Invariant: what is not known over-invalidates; two equal changes give equal ops.

use std::collections::HashMap;
use std::sync::Arc;

use super::compile::{Action, RuleSet};
use super::message::{Message, write_field};
use super::template::{Image, Rendered, Resolved, Template};
use crate::change::{Cell, Change, Lsn, Operation, Relation, RelationId, Row, TableName};
use crate::config::{Truncate, Unknown};
use crate::plan::{Plan, Publish, RuleId};

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

/// Plans changes by the rules of a set; remembers how each relation's columns lie.
#[derive(Debug)]
pub struct Planner {
    rules: Arc<RuleSet>,
    bound: HashMap<RelationId, Bound>,
}

/// The rules of one relation, their columns found.
#[derive(Debug)]
struct Bound {
    relation: Arc<Relation>,
    rules: Vec<BoundRule>,
}

#[derive(Debug)]
struct BoundRule {
    id: RuleId,
    changed: Vec<Option<usize>>,
    actions: Vec<BoundAction>,
}

#[derive(Debug)]
enum BoundAction {
    Delete(BoundTemplate),
    Bump(BoundTemplate),
    Publish { channel: BoundTemplate, data: Message<BoundTemplate> },
}

/// A template and where each of its references reads.
#[derive(Clone, Debug)]
struct BoundTemplate {
    template: Template,
    sources: Vec<Source>,
}

/// The image a reference reads and the column's position in the row.
#[derive(Clone, Copy, Debug)]
struct Source(Image, Option<usize>);

impl Planner {
    /// A planner for these rules.
    pub fn new(rules: Arc<RuleSet>) -> Self {
        Self { rules, bound: HashMap::new() }
    }

    /// The rules it plans by.
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// Whether any rule names this table.
    pub fn has_rules_for(&self, table: &TableName) -> bool {
        !self.rules.of_table(table).is_empty()
    }

    /// Adds the ops of one change to a plan; bumps rise to `lsn`.
    pub fn plan(&mut self, change: &Change, lsn: Lsn, plan: &mut Plan) -> Result<(), PlanError> {
        let id = change.relation.id;
        let fresh = |bound: &Bound| Arc::ptr_eq(&bound.relation, &change.relation);
        if !self.bound.get(&id).is_some_and(fresh) {
            self.bound.insert(id, bind(&self.rules, &change.relation));
        }
        let Some(bound) = self.bound.get(&id) else { return Ok(()) };
        for rule in &bound.rules {
            let Some(definition) = self.rules.rule(rule.id) else { continue };
            if !definition.triggers_on(change.operation) {
                continue;
            }
            match change.operation {
                Operation::Truncate => match self.rules.truncate {
                    Truncate::Pattern => plan_truncate(rule, plan),
                    Truncate::Ignore => {}
                    Truncate::Fail => {
                        let table = change.relation.name.clone();
                        return Err(PlanError::Truncated { table, rule: definition.name.clone() });
                    }
                },
                Operation::Update if !rule.changed.is_empty() => {
                    let verdict = any_changed(&rule.changed, change, self.rules.unknown);
                    let fires = verdict.map_err(|at| PlanError::Unknown {
                        table: change.relation.name.clone(),
                        column: definition.changed.get(at).map(|column| column.value.clone()).unwrap_or_default(),
                        rule: definition.name.clone(),
                    })?;
                    if fires {
                        plan_row(rule, change, lsn, plan);
                    }
                }
                Operation::Insert | Operation::Update | Operation::Delete => plan_row(rule, change, lsn, plan),
            }
        }
        Ok(())
    }
}

fn bind(rules: &RuleSet, relation: &Arc<Relation>) -> Bound {
    let position = |name: &str| relation.columns.iter().position(|column| column.name == name);
    let bind_template = |template: &Template| BoundTemplate {
        sources: template.references().map(|reference| Source(reference.image, position(&reference.column))).collect(),
        template: template.clone(),
    };
    let bind_action = |action: &Action| match action {
        Action::Delete(key) => BoundAction::Delete(bind_template(&key.value)),
        Action::Bump(key) => BoundAction::Bump(bind_template(&key.value)),
        Action::Publish { channel, data } => BoundAction::Publish {
            channel: bind_template(&channel.value),
            data: data.map(&mut |template| bind_template(&template.value)),
        },
    };
    let bind_rule = |id: RuleId| {
        let rule = rules.rule(id)?;
        Some(BoundRule {
            id,
            changed: rule.changed.iter().map(|column| position(&column.value)).collect(),
            actions: rule.actions.iter().map(bind_action).collect(),
        })
    };
    let rules = rules.of_table(&relation.name).into_iter().filter_map(bind_rule).collect();
    Bound { relation: Arc::clone(relation), rules }
}

/// Whether one of the columns differs between the images; the index of one that cannot be told is the
/// error, if the file says so.
fn any_changed(columns: &[Option<usize>], change: &Change, unknown: Unknown) -> Result<bool, usize> {
    for (at, column) in columns.iter().enumerate() {
        let cell = |row: &Option<Row>| match (row, column) {
            (Some(row), Some(position)) => row.cell(*position).clone(),
            _ => Cell::Absent,
        };
        match (cell(&change.old), cell(&change.new)) {
            (Cell::Absent, _) | (_, Cell::Absent) => match unknown {
                Unknown::Match => return Ok(true),
                Unknown::Skip => {}
                Unknown::Fail => return Err(at),
            },
            (old, new) if old != new => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

fn plan_truncate(rule: &BoundRule, plan: &mut Plan) {
    for action in &rule.actions {
        match action {
            BoundAction::Delete(key) | BoundAction::Bump(key) => plan.pattern(rule.id, key.template.glob()),
            BoundAction::Publish { channel, data } => {
                // Which channels a template with columns meant, nobody can tell any more.
                if channel.sources.is_empty() {
                    publish(rule.id, channel, data, &mut |_| Resolved::Unknown, plan);
                }
            }
        }
    }
}

fn plan_row(rule: &BoundRule, change: &Change, lsn: Lsn, plan: &mut Plan) {
    for action in &rule.actions {
        match action {
            BoundAction::Delete(key) => {
                for image in key.images(change) {
                    match key.render(change, image) {
                        Rendered::Key(key) => plan.delete(rule.id, key),
                        Rendered::Glob(glob) => plan.pattern(rule.id, glob),
                        Rendered::Nothing => {}
                    }
                }
            }
            BoundAction::Bump(key) => {
                for image in key.images(change) {
                    match key.render(change, image) {
                        Rendered::Key(key) => plan.bump(rule.id, key, lsn),
                        Rendered::Glob(glob) => plan.pattern(rule.id, glob),
                        Rendered::Nothing => {}
                    }
                }
            }
            BoundAction::Publish { channel, data } => {
                for image in channel.images(change) {
                    publish(rule.id, channel, data, &mut |source| source.resolve(change, image), plan);
                }
            }
        }
    }
}

impl Source {
    fn resolve(self, change: &Change, rendering: Image) -> Resolved<'_> {
        let image = if self.0 == Image::Either { rendering } else { self.0 };
        let row = if image == Image::Old { &change.old } else { &change.new };
        let Some(row) = row else { return Resolved::Nothing };
        // A column the relation does not have was dropped or renamed: its values are not known.
        match self.1.map_or(&Cell::Absent, |position| row.cell(position)) {
            Cell::Value(value) => Resolved::Value(value),
            Cell::Null => Resolved::Nothing,
            Cell::Absent => Resolved::Unknown,
        }
    }
}

impl BoundTemplate {
    fn source(&self, at: usize) -> Source {
        self.sources.get(at).copied().unwrap_or(Source(Image::Either, None))
    }

    /// The images to render for: the new one first, and the old one where it may say something else.
    fn images(&self, change: &Change) -> impl Iterator<Item = Image> + use<> {
        let new = change.new.is_some().then_some(Image::New);
        let differs = |&Source(image, position): &Source| match (&change.old, &change.new, position) {
            _ if image != Image::Either => false,
            (Some(old), Some(new), Some(position)) => old.cell(position) != new.cell(position),
            _ => true,
        };
        let old = change.old.is_some() && (new.is_none() || self.sources.iter().any(differs));
        new.into_iter().chain(old.then_some(Image::Old))
    }

    fn render(&self, change: &Change, image: Image) -> Rendered {
        self.template.render(|at| self.source(at).resolve(change, image))
    }
}

fn publish<'a>(
    rule: RuleId,
    channel: &BoundTemplate,
    data: &Message<BoundTemplate>,
    resolve: &mut impl FnMut(Source) -> Resolved<'a>,
    plan: &mut Plan,
) {
    // A channel whose name is not known cannot be told anything; the start-up check refuses the rule.
    let Rendered::Key(name) = channel.template.render(|at| resolve(channel.source(at))) else { return };
    let mut message = Vec::with_capacity(64);
    data.write(&mut message, &mut |field, out| {
        write_field(out, &field.template, |at| resolve(field.source(at)));
    });
    plan.publish(rule, Publish { channel: name, data: message });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Column;
    use crate::config::Document;
    use proptest::prelude::*;

    fn planner(rules: &str) -> Planner {
        let document = Document::parse(&format!("version: 1\nrules:\n{rules}"), &|_| None).unwrap();
        Planner::new(Arc::new(RuleSet::compile(document.rules, &document.settings).unwrap()))
    }

    fn relation(table: &str) -> Arc<Relation> {
        let column = |name: &str| Column { name: name.into(), in_identity: true };
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
        planner.plan(&change("t7", None, Some([Cell::of("1"), Cell::Null])), Lsn::ZERO, &mut plan).unwrap();
        assert_eq!(plan.len(), 10);
        assert_eq!(planner.bound[&RelationId::new(1)].rules.len(), 10, "the rules that a change is held against");
    }

    #[test]
    fn a_table_described_again_is_bound_again() {
        let mut planner = planner("  r: {table: t, delete: 'k:{a}'}\n");
        let mut plan = Plan::default();
        planner.plan(&change("t", None, Some([Cell::of("1"), Cell::of("2")])), Lsn::ZERO, &mut plan).unwrap();
        let mut swapped = change("t", None, Some([Cell::of("1"), Cell::of("2")]));
        let mut relation = (*swapped.relation).clone();
        relation.columns.reverse();
        swapped.relation = Arc::new(relation);
        planner.plan(&swapped, Lsn::ZERO, &mut plan).unwrap();
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
            planner.plan(&change("t", Some(old.clone()), Some(new.clone())), Lsn::ZERO, &mut full).unwrap();
            let (mut less_old, mut less_new) = (old, new);
            let row = if hide < 2 { &mut less_old } else { &mut less_new };
            row[hide % 2] = Cell::Absent;
            planner.plan(&change("t", Some(less_old), Some(less_new)), Lsn::ZERO, &mut poor).unwrap();
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
