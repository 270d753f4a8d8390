//! One rule, compiled.
//!
//! Owns the shape of a rule. It must not see YAML or changes. Invariant: what a rule may ever
//! remove or write follows from its templates alone.

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

/// What triggers a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A change of its table.
    Table,
    /// An event. Its name is the rule's table.
    Event,
}

/// Actions, and the changes of a table for which they are done.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What identifies it, after a reload of the file too.
    pub id: RuleId,
    /// The name in the file.
    pub name: String,
    /// The place of the name in the file.
    pub span: Range<usize>,
    /// Everything that the file says of it, as a text that only an equal rule has.
    pub canonical: String,
    /// Whether a table or an event triggers it.
    pub trigger: Trigger,
    /// The table that triggers it, or the event as a name without a schema.
    pub table: Spanned<TableName>,
    /// The operations that trigger it.
    pub operations: Vec<Operation>,
    /// If not empty, an update triggers it only if one of these columns changed.
    pub changed: Vec<Spanned<String>>,
    /// If given, a change triggers it only if this is true.
    pub condition: Option<Spanned<Condition>>,
    /// If given, the actions are done for each row that this lookup returns, not for the row
    /// itself.
    pub for_each: Option<ForEach>,
    /// If given, deletes are repeated this long after.
    pub again_after: Option<Duration>,
    pub(super) actions: Vec<RuleAction>,
}

impl Rule {
    /// Whether an operation triggers it. A truncate deletes every row, so it triggers what a delete
    /// triggers.
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

    /// The removals of everything that it may ever remove or write, version keys included.
    pub fn removals(&self) -> Vec<Removal> {
        self.actions.iter().filter_map(RuleAction::removal).collect()
    }

    /// Removes everything that it may ever have made, and once more later if `again_after` says so.
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

/// A query that rules may call.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The name in the file.
    pub name: Spanned<String>,
    /// The query, with its parameters as `$1`, `$2`, …
    pub sql: Spanned<String>,
    /// The most rows of one call.
    pub max: usize,
    /// The longest time for one statement.
    pub timeout: Duration,
}
