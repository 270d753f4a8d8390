//! What each rule does on one change, and why, for `explain` and coverage.
//!
//! Owns the account. It must not decide anything: it calls the functions with which the planner
//! decides. Invariant: a verdict says that a rule acts exactly if the planner lets it act, with the
//! same ops.

use std::ops::Range;

use super::act::act;
use super::bind::{BoundAction, BoundRules, BoundTemplate};
use super::decide::{Decision, PlanError, decide};
use super::rule::Rule;
use super::rule_set::RuleSet;
use super::template::{Image, Reference, Rendered};
use crate::change::{Cell, Change, Commit, Operation, Row};
use crate::limits::NAME_BYTES_MAX;
use crate::plan::{ActionKind, Plan, RuleId};

/// What one rule does on a change.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The rule.
    pub rule: RuleId,
    /// Whether it acts. An error stops the daemon, as the file says.
    pub decision: Result<Decision, PlanError>,
    /// The columns of `changed`, before and after.
    pub changed: Vec<ComparedColumn>,
    /// The columns that `when` reads.
    pub read: Vec<ReadColumn>,
    /// What each action's name renders to, if the rule acts and calls no lookup.
    pub named: Vec<RenderedAction>,
    /// What it adds to a plan, as if it were the only rule.
    pub plan: Plan,
}

impl Verdict {
    /// Whether it acts.
    pub fn acts(&self) -> bool {
        matches!(self.decision, Ok(Decision::Fires | Decision::FiresUnknown | Decision::FiresFailed(_)))
    }
}

/// A column in both images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparedColumn {
    /// Its name.
    pub column: String,
    /// Before.
    pub old: Cell,
    /// After.
    pub new: Cell,
}

/// A column in one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadColumn {
    /// Which image.
    pub image: Image,
    /// Its name.
    pub column: String,
    /// Its value there; NULL also if the image does not exist.
    pub cell: Cell,
}

/// What the name of one action renders to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedAction {
    /// The kind of the action.
    pub kind: ActionKind,
    /// Where the file has the template.
    pub span: Range<usize>,
    /// The result for each image whose columns differ, the new one first.
    pub made: Vec<RenderedName>,
}

/// What a template renders to for one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedName {
    /// The image; `None` for a truncate, which has no rows.
    pub image: Option<Image>,
    /// The name.
    pub name: Rendered,
    /// The columns that made it a glob, or nothing.
    pub because: Vec<String>,
}

/// The verdict of each rule of the change's table or event, in the order of the file.
pub fn trace(rules: &RuleSet, change: &Change, commit: &Commit) -> Vec<Verdict> {
    let bound = BoundRules::new(rules, &change.relation, change.operation);
    let verdicts = bound.with_definitions(rules).map(|(bound, rule)| {
        let decision = decide(bound, rule, change, commit, rules);
        let mut verdict = Verdict {
            rule: rule.id,
            decision,
            changed: compared(rule, change),
            read: read(rule, change),
            named: Vec::new(),
            plan: Plan::default(),
        };
        if verdict.acts() {
            act(bound, rule, change, commit, &mut verdict.plan);
            let templates = bound.actions.iter().map(BoundAction::name);
            let named = templates.zip(rule.actions()).map(|(template, (kind, written))| RenderedAction {
                kind,
                span: written.span.clone(),
                made: made(template, kind, change),
            });
            verdict.named = named.collect();
        }
        verdict
    });
    verdicts.collect()
}

fn compared(rule: &Rule, change: &Change) -> Vec<ComparedColumn> {
    if change.operation != Operation::Update {
        return Vec::new();
    }
    let column = |column: &str| ComparedColumn {
        column: column.to_owned(),
        old: cell(change, change.old.as_ref(), column).unwrap_or(Cell::Absent),
        new: cell(change, change.new.as_ref(), column).unwrap_or(Cell::Absent),
    };
    rule.changed.iter().map(|name| column(&name.value)).collect()
}

fn read(rule: &Rule, change: &Change) -> Vec<ReadColumn> {
    let Some(condition) = &rule.condition else { return Vec::new() };
    let columns = condition.value.columns().iter().map(|used| ReadColumn {
        image: used.image,
        column: used.column.clone(),
        cell: cell(change, row(change, used.image), &used.column).unwrap_or(Cell::Null),
    });
    columns.collect()
}

fn made(template: &BoundTemplate, kind: ActionKind, change: &Change) -> Vec<RenderedName> {
    if change.operation == Operation::Truncate {
        return match template.template.references().next() {
            None => vec![RenderedName {
                image: None,
                name: template.render(change, Image::New, NAME_BYTES_MAX),
                because: Vec::new(),
            }],
            // The rows that would name the channel or stream are gone.
            Some(_) if !kind.touches_keys() => Vec::new(),
            Some(_) => {
                vec![RenderedName { image: None, name: Rendered::Glob(template.template.glob()), because: Vec::new() }]
            }
        };
    }
    let images = template.images(change).map(|image| {
        let name = template.render(change, image, NAME_BYTES_MAX);
        let is_at_fault = |reference: &&Reference| match (&name, value(change, reference, image)) {
            (Rendered::Glob(_), Some(cell)) => cell == Cell::Absent,
            (Rendered::Nothing, cell) => cell.is_none_or(|cell| cell == Cell::Null),
            _ => false,
        };
        let because = template.template.references().filter(is_at_fault).map(|reference| match reference.image {
            Image::Old => format!("old.{}", reference.column),
            Image::New => format!("new.{}", reference.column),
            Image::Either | Image::Lookup => reference.column.clone(),
        });
        let because = because.collect();
        RenderedName { image: Some(image), name, because }
    });
    images.collect()
}

/// What a reference reads when the template is rendered for an image; `None` if the row does not
/// exist.
fn value(change: &Change, reference: &Reference, rendering: Image) -> Option<Cell> {
    let image = if reference.image == Image::Either { rendering } else { reference.image };
    cell(change, row(change, image), &reference.column)
}

fn row(change: &Change, image: Image) -> Option<&Row> {
    match image {
        Image::Old => change.old.as_ref(),
        Image::New | Image::Either => change.new.as_ref(),
        Image::Lookup => None,
    }
}

/// A column of a row; one that the relation does not have is not known.
fn cell(change: &Change, row: Option<&Row>, column: &str) -> Option<Cell> {
    let position = change.relation.columns.iter().position(|known| known.name == column);
    row.map(|row| position.map_or(Cell::Absent, |position| row.cell(position).clone()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::change::{Column, ColumnKind, Relation, RelationId, TableName};
    use crate::config::Document;
    use crate::rules::Planner;
    use proptest::prelude::*;

    const RULES: &str = "version: 1
rules:
  names: {table: t, changed: [a], delete: ['k:{id}:{a}', 'o:{old.a}']}
  inserts: {table: t, ops: insert, bump: 'v:{id}'}
  large: {table: t, when: 'new.id != old.id', tags: 'g:{id}', publish: {channel: c}}
  elsewhere: {table: u, delete: 'u:{id}'}
";

    fn rules() -> Arc<RuleSet> {
        let document = Document::parse(RULES, &|_| None).unwrap();
        Arc::new(RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap())
    }

    fn change(old: Option<[Cell; 2]>, new: Option<[Cell; 2]>) -> Change {
        let operation = match (&old, &new) {
            (None, None) => Operation::Truncate,
            (None, _) => Operation::Insert,
            (_, None) => Operation::Delete,
            _ => Operation::Update,
        };
        let column = |name: &str| Column { name: name.into(), kind: ColumnKind::Text, in_identity: true };
        let columns = vec![column("id"), column("a")];
        let relation = Relation { id: RelationId::new(1), name: TableName::new("", "t"), also: Vec::new(), columns };
        let row = |cells: [Cell; 2]| Row::new(cells.into());
        Change { relation: Arc::new(relation), operation, old: old.map(row), new: new.map(row) }
    }

    #[test]
    fn every_rule_of_the_table_has_a_verdict() {
        let change = change(Some([Cell::of("1"), Cell::Absent]), Some([Cell::of("1"), Cell::Null]));
        let verdicts = trace(&rules(), &change, &Commit::default());
        let [names, inserts, large] = &*verdicts else { panic!("{verdicts:?}") };
        assert_eq!(names.decision, Ok(Decision::FiresUnknown));
        assert_eq!(names.changed, [ComparedColumn { column: "a".into(), old: Cell::Absent, new: Cell::Null }]);
        let because: Vec<_> = names.named.iter().flat_map(|named| &named.made).map(|made| &*made.because).collect();
        assert_eq!(because, [["a"], ["a"], ["old.a"]]);
        assert_eq!(inserts.decision, Ok(Decision::OtherOperation));
        assert_eq!(large.decision, Ok(Decision::ConditionFalse));
        assert!(large.plan.is_empty() && large.named.is_empty() && large.read.len() == 2, "{large:?}");
    }

    #[test]
    fn a_truncate_names_what_its_templates_match() {
        let verdicts = trace(&rules(), &change(None, None), &Commit::default());
        let large = &verdicts[2];
        let shown: Vec<_> = large.named.iter().map(|named| (named.kind, named.made.len())).collect();
        assert!(large.acts());
        assert_eq!(shown, [(ActionKind::Tag, 1), (ActionKind::Publish, 1)]);
        assert!(matches!(large.named[0].made[0].name, Rendered::Glob(_)));
    }

    fn any_cell() -> impl Strategy<Value = Cell> {
        prop_oneof![Just(Cell::Null), Just(Cell::Absent), "[ab]".prop_map(|text| Cell::Value(text.into()))]
    }

    proptest! {
        /// One source of truth: what is explained is what is planned.
        #[test]
        fn what_is_explained_is_what_is_planned(
            old in proptest::option::of([any_cell(), any_cell()]),
            new in proptest::option::of([any_cell(), any_cell()]),
        ) {
            let (rules, change, commit) = (rules(), change(old, new), Commit::default());
            let mut planned = Plan::default();
            Planner::new(Arc::clone(&rules)).plan(&change, &commit, &mut planned).unwrap();
            let mut explained = Plan::default();
            for verdict in trace(&rules, &change, &commit) {
                prop_assert!(verdict.acts() || verdict.plan.is_empty());
                explained.append(verdict.plan);
            }
            let ops = |plan: &Plan| plan.ops().map(|(rule, op)| (rule, op.to_string())).collect::<Vec<_>>();
            prop_assert_eq!(ops(&planned), ops(&explained));
        }
    }
}
