//! Rules and one relation: where each of their columns lies.
//!
//! Owns what is found once for each description of a table, so that planning a row looks nothing up by name. It must
//! not decide anything. Invariant: a column that the relation does not have was dropped or renamed: its values are
//! not known, never NULL.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::compile::RuleSet;
use super::condition::Operand;
use super::message::Message;
use super::rule::{Action, Rule};
use super::template::{Image, Rendered, Resolved, Template};
use crate::change::{Cell, Change, Kind, Operation, Relation};
use crate::plan::RuleId;

/// The rules of one relation, their columns found.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) relation: Arc<Relation>,
    pub(super) rules: Vec<BoundRule>,
}

#[derive(Debug)]
pub(super) struct BoundRule {
    pub(super) id: RuleId,
    /// Where the rule is in its rule set.
    pub(super) position: usize,
    pub(super) changed: Vec<Option<usize>>,
    /// What the condition reads, in its order.
    operands: Vec<(Image, Option<usize>, Kind)>,
    /// The parameters of the lookup, if the rule asks one.
    pub(super) arguments: Option<Vec<BoundTemplate>>,
    /// What every template of the actions reads, in order, if the rule asks a lookup.
    pub(super) references: Vec<Source>,
    /// Those among them that are part of a name: only these may say something else of the row before.
    pub(super) naming: Vec<Source>,
    /// The actions, if the rule asks none.
    pub(super) actions: Vec<BoundAction>,
}

#[derive(Debug)]
pub(super) enum BoundAction {
    Set { key: BoundTemplate, columns: Vec<(String, Option<usize>, Kind)>, ttl: Duration },
    Delete(BoundTemplate),
    Pattern(BoundTemplate),
    Tag(BoundTemplate),
    Bump(BoundTemplate),
    Publish { channel: BoundTemplate, data: Message<BoundTemplate> },
    Stream { name: BoundTemplate, data: Message<BoundTemplate>, maxlen: u64 },
}

/// A template and where each of its references reads.
#[derive(Clone, Debug)]
pub(super) struct BoundTemplate {
    pub(super) template: Template,
    pub(super) sources: Vec<Source>,
}

/// The image a reference reads and the column's position in the row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source(Image, Option<usize>);

impl Bound {
    pub(super) fn new(rules: &RuleSet, relation: &Arc<Relation>, operation: Operation) -> Self {
        let rules = match operation {
            Operation::Event => rules.of_event(&relation.name.table),
            _ => rules.of_table(&relation.name),
        };
        let binder = Binder(relation);
        let rules = rules.into_iter().map(|(position, rule)| binder.rule(position, rule)).collect();
        Self { relation: Arc::clone(relation), rules }
    }
}

impl BoundRule {
    /// Whether it reads the column at a position.
    pub(super) fn uses(&self, at: usize) -> bool {
        let is = |position: &Option<usize>| *position == Some(at);
        let reads = |template: &BoundTemplate| template.sources.iter().any(|Source(_, position)| is(position));
        let in_actions = self.actions.iter().any(|action| match action {
            BoundAction::Set { key, columns, .. } => reads(key) || columns.iter().any(|(_, position, _)| is(position)),
            BoundAction::Delete(name)
            | BoundAction::Pattern(name)
            | BoundAction::Tag(name)
            | BoundAction::Bump(name) => reads(name),
            BoundAction::Publish { channel: name, data } | BoundAction::Stream { name, data, .. } => {
                let mut in_data = false;
                data.each(&mut |template| in_data |= reads(template));
                in_data || reads(name)
            }
        });
        in_actions
            || self.changed.iter().any(is)
            || self.operands.iter().any(|(_, position, _)| is(position))
            || self.arguments.iter().flatten().any(reads)
            || self.references.iter().any(|Source(_, position)| is(position))
    }

    /// What the condition's n-th column stands for. An image that the change does not have is all NULL.
    pub(super) fn operand<'a>(&self, at: usize, change: &'a Change) -> Operand<'a> {
        let Some(&(image, position, kind)) = self.operands.get(at) else { return Operand::Absent };
        let row = if image == Image::Old { &change.old } else { &change.new };
        let Some(row) = row else { return Operand::Null };
        match position.map_or(&Cell::Absent, |position| row.cell(position)) {
            Cell::Value(value) => Operand::Value(value, kind),
            Cell::Null => Operand::Null,
            Cell::Absent => Operand::Absent,
        }
    }
}

struct Binder<'a>(&'a Relation);

impl Binder<'_> {
    fn position(&self, name: &str) -> Option<usize> {
        self.0.columns.iter().position(|column| column.name == name)
    }

    fn kind(&self, position: Option<usize>) -> Kind {
        position.and_then(|at| self.0.columns.get(at)).map_or(Kind::Text, |column| column.kind)
    }

    fn template(&self, template: &Template) -> BoundTemplate {
        let source = |reference: &super::Reference| match reference.image {
            Image::Lookup => Source(Image::Lookup, None),
            image => Source(image, self.position(&reference.column)),
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
            id: rule.id,
            position,
            changed: rule.changed.iter().map(|column| self.position(&column.value)).collect(),
            operands: operands.unwrap_or_default(),
            arguments,
            references,
            naming,
            actions,
        }
    }

    fn action(&self, action: &Action) -> BoundAction {
        match action {
            Action::Set { key, columns, ttl } => {
                let column = |name: &crate::config::Spanned<String>| {
                    let position = self.position(&name.value);
                    (name.value.clone(), position, self.kind(position))
                };
                let columns = columns.iter().map(column).collect();
                BoundAction::Set { key: self.template(&key.value), columns, ttl: *ttl }
            }
            Action::Delete(key) => BoundAction::Delete(self.template(&key.value)),
            Action::Pattern(pattern) => BoundAction::Pattern(self.template(&pattern.value)),
            Action::Tag(tag) => BoundAction::Tag(self.template(&tag.value)),
            Action::Bump(key) => BoundAction::Bump(self.template(&key.value)),
            Action::Publish { channel, data } => BoundAction::Publish {
                channel: self.template(&channel.value),
                data: data.map(&mut |template| self.template(&template.value)),
            },
            Action::Stream { name, data, maxlen } => BoundAction::Stream {
                name: self.template(&name.value),
                data: data.map(&mut |template| self.template(&template.value)),
                maxlen: *maxlen,
            },
        }
    }
}

impl Source {
    pub(super) fn resolve(self, change: &Change, rendering: Image) -> Resolved<'_> {
        match self.find(change, rendering) {
            None => Resolved::Nothing,
            Some(Cell::Value(value)) => Resolved::Value(value),
            Some(Cell::Null) => Resolved::Nothing,
            Some(Cell::Absent) => Resolved::Unknown,
        }
    }

    /// The same, to keep. There is no such image: NULL.
    pub(super) fn cell(self, change: &Change, rendering: Image) -> Cell {
        match self.find(change, rendering) {
            // Not a piece of the message it came in, which would be kept with it.
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

/// The images to render for: the new one first, and the old one where it may say something else.
pub(super) fn images(sources: &[Source], change: &Change) -> impl Iterator<Item = Image> + use<> {
    let new = change.new.is_some().then_some(Image::New);
    let differs = |&Source(image, position): &Source| match (&change.old, &change.new, position) {
        _ if image != Image::Either => false,
        (Some(old), Some(new), Some(position)) => old.cell(position) != new.cell(position),
        _ => true,
    };
    let old = change.old.is_some() && (new.is_none() || sources.iter().any(differs));
    new.into_iter().chain(old.then_some(Image::Old))
}

impl BoundTemplate {
    pub(super) fn source(&self, at: usize) -> Source {
        self.sources.get(at).copied().unwrap_or(Source(Image::Either, None))
    }

    pub(super) fn images(&self, change: &Change) -> impl Iterator<Item = Image> + use<> {
        images(&self.sources, change)
    }

    pub(super) fn render(&self, change: &Change, image: Image) -> Rendered {
        self.template.render(|at| self.source(at).resolve(change, image))
    }
}
