//! Rules bound to one relation: the position of each column that they read.
//!
//! Owns what is found once for each description of a table, so that planning a row searches nothing
//! by name. It must not decide anything. Invariant: if the relation does not have a column (it was
//! dropped or renamed), its values are not known, never NULL.

use std::sync::Arc;

use bytes::Bytes;

use super::action::{Action, RuleAction};
use super::condition::ColumnOperand;
use super::rule::Rule;
use super::rule_set::RuleSet;
use super::template::{Image, Reference, Rendered, Resolved, Template};
use crate::change::{Cell, Change, ColumnKind, Operation, Relation};
use crate::config::Spanned;
use crate::limits::VALUE_BYTES_MAX;

/// The rules of one relation, bound to its columns.
#[derive(Debug)]
pub(super) struct BoundRules {
    pub(super) relation: Arc<Relation>,
    pub(super) rules: Vec<BoundRule>,
}

#[derive(Debug)]
pub(super) struct BoundRule {
    /// Where the rule is in its rule set.
    pub(super) position: usize,
    pub(super) changed: Vec<Option<usize>>,
    /// The columns of the condition, in its order.
    operands: Vec<(Image, Option<usize>, ColumnKind)>,
    /// The parameters of the lookup, if the rule calls one.
    pub(super) arguments: Option<Vec<BoundTemplate>>,
    /// The references of all templates of the actions, in order, if the rule calls a lookup.
    pub(super) references: Vec<ColumnSource>,
    /// Those of them that are part of a name: only these can differ between the images.
    pub(super) naming: Vec<ColumnSource>,
    /// The actions, if the rule calls no lookup.
    pub(super) actions: Vec<BoundAction>,
}

/// An action and where its templates and columns read.
pub(super) type BoundAction = Action<BoundTemplate, BoundColumn>;

/// A column that is written: its name, its position in the row, and what its values are.
#[derive(Clone, Debug)]
pub(super) struct BoundColumn {
    pub(super) name: String,
    pub(super) position: Option<usize>,
    pub(super) kind: ColumnKind,
}

/// A template, and the column of each of its references.
#[derive(Clone, Debug)]
pub(super) struct BoundTemplate {
    pub(super) template: Template,
    pub(super) sources: Vec<ColumnSource>,
}

/// The image that a reference reads, and the position of the column in the row.
#[derive(Clone, Copy, Debug)]
pub(super) struct ColumnSource(Image, Option<usize>);

impl BoundRules {
    pub(super) fn new(rules: &RuleSet, relation: &Arc<Relation>, operation: Operation) -> Self {
        let rules = match operation {
            Operation::Event => rules.of_event(&relation.name.table),
            _ => rules.of_tables(std::iter::once(&relation.name).chain(&relation.also)),
        };
        let binder = RelationBinder(relation);
        let rules = rules.into_iter().map(|(position, rule)| binder.rule(position, rule)).collect();
        Self { relation: Arc::clone(relation), rules }
    }
}

impl BoundRules {
    /// Each rule with its definition in the rule set that it was bound from.
    pub(super) fn with_definitions<'a>(
        &'a self,
        rules: &'a RuleSet,
    ) -> impl Iterator<Item = (&'a BoundRule, &'a Rule)> {
        self.rules.iter().filter_map(|bound| Some((bound, rules.rules().get(bound.position)?)))
    }
}

impl BoundRule {
    /// Whether it reads the column at a position.
    pub(super) fn uses(&self, at: usize) -> bool {
        let is = |position: &Option<usize>| *position == Some(at);
        let reads = |template: &BoundTemplate| template.sources.iter().any(|ColumnSource(_, position)| is(position));
        let in_actions = self.actions.iter().any(|action| {
            let mut in_data = false;
            action.data().into_iter().for_each(|data| data.each(&mut |template| in_data |= reads(template)));
            in_data || reads(action.name()) || action.columns().iter().any(|column| is(&column.position))
        });
        in_actions
            || self.changed.iter().any(is)
            || self.operands.iter().any(|(_, position, _)| is(position))
            || self.arguments.iter().flatten().any(reads)
            || self.references.iter().any(|ColumnSource(_, position)| is(position))
    }

    /// The value of the condition's n-th column. If the change does not have the image, it is NULL.
    pub(super) fn operand<'a>(&self, at: usize, change: &'a Change) -> ColumnOperand<'a> {
        let Some(&(image, position, kind)) = self.operands.get(at) else { return ColumnOperand::Absent };
        let row = if image == Image::Old { &change.old } else { &change.new };
        let Some(row) = row else { return ColumnOperand::Null };
        match position.map_or(&Cell::Absent, |position| row.cell(position)) {
            Cell::Value(value) => ColumnOperand::Value(value, kind),
            Cell::Null => ColumnOperand::Null,
            Cell::Absent => ColumnOperand::Absent,
        }
    }
}

struct RelationBinder<'a>(&'a Relation);

impl RelationBinder<'_> {
    fn position(&self, name: &str) -> Option<usize> {
        self.0.columns.iter().position(|column| column.name == name)
    }

    fn kind(&self, position: Option<usize>) -> ColumnKind {
        position.and_then(|at| self.0.columns.get(at)).map_or(ColumnKind::Text, |column| column.kind)
    }

    fn template(&self, template: &Template) -> BoundTemplate {
        let source = |reference: &Reference| match reference.image {
            Image::Lookup => ColumnSource(Image::Lookup, None),
            image => ColumnSource(image, self.position(&reference.column)),
        };
        BoundTemplate { sources: template.references().map(source).collect(), template: template.clone() }
    }

    fn rule(&self, position: usize, rule: &Rule) -> BoundRule {
        let operand = |column: &super::condition::ColumnUse| {
            let position = self.position(&column.column);
            (column.image, position, self.kind(position))
        };
        let operands = rule.condition.as_ref().map(|condition| condition.value.columns().iter().map(operand).collect());
        let arguments = rule.for_each.as_ref();
        let arguments = arguments.map(|each| each.arguments.iter().map(|text| self.template(&text.value)).collect());
        let (mut references, mut naming) = (Vec::new(), Vec::new());
        let mut actions = Vec::new();
        if rule.for_each.is_some() {
            rule.each_template(&mut |template| references.extend(self.template(&template.value).sources));
            rule.names().for_each(|name| naming.extend(self.template(&name.value).sources));
        } else {
            actions.extend(rule.actions.iter().map(|action| self.action(action)));
        }
        BoundRule {
            position,
            changed: rule.changed.iter().map(|column| self.position(&column.value)).collect(),
            operands: operands.unwrap_or_default(),
            arguments,
            references,
            naming,
            actions,
        }
    }

    fn action(&self, action: &RuleAction) -> BoundAction {
        let mut column = |name: &Spanned<String>| {
            let position = self.position(&name.value);
            BoundColumn { name: name.value.clone(), position, kind: self.kind(position) }
        };
        action.map(&mut |template| self.template(&template.value), &mut column)
    }
}

impl ColumnSource {
    pub(super) fn resolve(self, change: &Change, rendering: Image) -> Resolved<'_> {
        match self.find(change, rendering) {
            None => Resolved::Nothing,
            Some(Cell::Value(value)) => Resolved::Value(value),
            Some(Cell::Null) => Resolved::Nothing,
            Some(Cell::Absent) => Resolved::Unknown,
        }
    }

    /// The value, to keep. If the change does not have the image, it is NULL; a value that is too
    /// long is not known.
    pub(super) fn cell(self, change: &Change, rendering: Image) -> Cell {
        match self.find(change, rendering) {
            Some(Cell::Value(value)) if value.len() > VALUE_BYTES_MAX => Cell::Absent,
            // A copy: a slice would keep the whole message from PostgreSQL in memory.
            Some(Cell::Value(value)) => Cell::Value(Bytes::copy_from_slice(value)),
            Some(cell) => cell.clone(),
            None => Cell::Null,
        }
    }

    fn find(self, change: &Change, rendering: Image) -> Option<&Cell> {
        let image = if self.0 == Image::Either { rendering } else { self.0 };
        let row = match image {
            Image::Lookup => return Some(&Cell::Absent),
            Image::Old => &change.old,
            Image::Either | Image::New => &change.new,
        };
        row.as_ref().map(|row| self.1.map_or(&Cell::Absent, |position| row.cell(position)))
    }
}

/// The images to render for: the new one first, then the old one if a column differs.
pub(super) fn images(sources: &[ColumnSource], change: &Change) -> impl Iterator<Item = Image> + use<> {
    let new = change.new.is_some().then_some(Image::New);
    let differs = |&ColumnSource(image, position): &ColumnSource| match (&change.old, &change.new, position) {
        _ if image != Image::Either => false,
        (Some(old), Some(new), Some(position)) => old.cell(position) != new.cell(position),
        _ => true,
    };
    let old = change.old.is_some() && (new.is_none() || sources.iter().any(differs));
    new.into_iter().chain(old.then_some(Image::Old))
}

impl BoundTemplate {
    pub(super) fn source(&self, at: usize) -> ColumnSource {
        self.sources.get(at).copied().unwrap_or(ColumnSource(Image::Either, None))
    }

    pub(super) fn images(&self, change: &Change) -> impl Iterator<Item = Image> + use<> {
        images(&self.sources, change)
    }

    pub(super) fn render(&self, change: &Change, image: Image, bytes_max: usize) -> Rendered {
        self.template.render_within(bytes_max, |at| self.source(at).resolve(change, image))
    }

    /// Whether it renders a glob because something is too long, or because an event does not have a
    /// field: what others send decides that, not the database.
    pub(super) fn is_widened(&self, change: &Change, image: Image, bytes_max: usize) -> bool {
        let is_missing = |source: &ColumnSource| source.resolve(change, image) == Resolved::Unknown;
        change.operation == Operation::Event && self.sources.iter().any(is_missing)
            || self.template.is_above(bytes_max, |at| self.source(at).resolve(change, image))
    }
}
