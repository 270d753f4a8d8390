//! One rule and what it may do, compiled.
//!
//! Owns the shape of a rule. It must not see YAML or changes. Invariant: what a rule may ever remove or write follows
//! from its templates alone.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use super::action::RuleAction;
use super::condition::Condition;
use super::for_each::ForEach;
use super::message::MessageTemplate;
use super::template::{Image, Template};
use crate::change::{Operation, TableName};
use crate::config::Spanned;
use crate::plan::{ActionKind, Plan, Removal, RuleId};

/// What sets a rule off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A change of its table.
    Table,
    /// An event, under whose name the rule's table is.
    Event,
}

/// When a table changes so, do these actions.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What identifies it, after a reload of the file too.
    pub id: RuleId,
    /// The name in the file.
    pub name: String,
    /// Where the file says the name.
    pub span: Range<usize>,
    /// All that the file says of it, as a text that tells it from any other.
    pub canonical: String,
    /// Whether a table or an event sets it off.
    pub trigger: Trigger,
    /// The table that triggers it, or the event as a name without a schema, and where the file says so.
    pub table: Spanned<TableName>,
    /// The operations that trigger it.
    pub operations: Vec<Operation>,
    /// If any: an update triggers it only when one of these columns changed.
    pub changed: Vec<Spanned<String>>,
    /// If any: a change triggers it only when this holds.
    pub condition: Option<Spanned<Condition>>,
    /// If any: what the actions are done for, instead of for the row itself.
    pub for_each: Option<ForEach>,
    /// Deletes are repeated so long after.
    pub again_after: Option<Duration>,
    pub(super) actions: Vec<RuleAction>,
}

impl Rule {
    /// Whether an operation triggers it. A truncate deletes every row, so it triggers what a delete does.
    pub fn triggers_on(&self, operation: Operation) -> bool {
        match self.trigger {
            Trigger::Event => operation == Operation::Event,
            Trigger::Table => {
                self.operations.contains(&operation)
                    || operation == Operation::Truncate && self.operations.contains(&Operation::Delete)
            }
        }
    }

    /// Calls `f` for every template of the actions, those inside messages included, in order.
    pub(crate) fn each_template(&self, f: &mut impl FnMut(&Spanned<Template>)) {
        for action in &self.actions {
            f(action.name());
            if let Some(data) = action.data() {
                data.each(f);
            }
        }
    }

    /// Everything it may ever remove or write, version keys included.
    pub fn removals(&self) -> Vec<Removal> {
        self.actions.iter().filter_map(RuleAction::removal).collect()
    }

    /// Adds everything it may ever have made to what a plan removes, and removes again if it says so.
    pub(super) fn remove_all(&self, plan: &mut Plan) {
        for removal in self.removals() {
            if let Some(after) = self.again_after {
                plan.repeat(self.id, after, removal.clone());
            }
            plan.remove(self.id, removal);
        }
    }

    /// Every column of the table that it reads.
    pub(super) fn columns(&self) -> BTreeSet<&str> {
        let mut columns: BTreeSet<&str> = self.changed.iter().map(|column| column.value.as_str()).collect();
        columns.extend(self.set_columns().map(|column| column.value.as_str()));
        let condition = self.condition.iter().flat_map(|condition| condition.value.columns());
        columns.extend(condition.map(|column| column.column.as_str()));
        let names = self.names().chain(self.for_each.iter().flat_map(|for_each| &for_each.arguments));
        let data = self.actions.iter().filter_map(RuleAction::data).flat_map(MessageTemplate::templates);
        let references = names.chain(data).flat_map(|template| template.value.references());
        let ours = references.filter(|reference| reference.image != Image::Lookup);
        columns.extend(ours.map(|reference| reference.column.as_str()));
        columns
    }

    /// The columns that it writes through.
    pub(super) fn set_columns(&self) -> impl Iterator<Item = &Spanned<String>> {
        self.actions.iter().flat_map(RuleAction::columns)
    }

    /// The templates that name keys, sets, channels and streams.
    pub fn names(&self) -> impl Iterator<Item = &Spanned<Template>> {
        self.actions.iter().map(RuleAction::name)
    }

    /// The actions: the kind of each, and the template that names what is affected.
    pub fn actions(&self) -> impl Iterator<Item = (ActionKind, &Spanned<Template>)> {
        self.actions.iter().map(|action| (action.kind(), action.name()))
    }
}

/// A query that rules may ask.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The name in the file.
    pub name: Spanned<String>,
    /// The query, with its parameters as `$1`, `$2`, …
    pub sql: Spanned<String>,
    /// The most rows of one call.
    pub max: usize,
    /// How long one statement may take.
    pub timeout: Duration,
}
