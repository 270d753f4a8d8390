//! From raw rules to a rule set: every template parsed, every name checked, grouped by table.
//!
//! Owns [`RuleSet`]. It must not see YAML or changes. Invariant: a rule set exists only if all its rules
//! are sound; finding the rules of a table does not depend on how many rules there are.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::message::Message;
use super::template::Template;
use crate::change::{Operation, TableName};
use crate::config::file::RawData;
use crate::config::{Problems, RawPublish, RawRule, Settings, Spanned, Truncate, Unknown};
use crate::key::{Glob, INVALIDATIONS, RESERVED};
use crate::plan::RuleId;

/// What a rule does, in the order of a plan.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Delete(Spanned<Template>),
    Bump(Spanned<Template>),
    Publish { channel: Spanned<Template>, data: Message<Spanned<Template>> },
}

impl Action {
    /// The template that names what is affected.
    pub(super) fn name(&self) -> &Spanned<Template> {
        match self {
            Self::Delete(name) | Self::Bump(name) | Self::Publish { channel: name, .. } => name,
        }
    }
}

/// When a table changes so, do these actions.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The name in the file.
    pub name: String,
    /// The table that triggers it, and where the file says so.
    pub table: Spanned<TableName>,
    /// The operations that trigger it.
    pub operations: Vec<Operation>,
    /// If any: an update triggers it only when one of these columns changed.
    pub changed: Vec<Spanned<String>>,
    pub(super) actions: Vec<Action>,
}

impl Rule {
    /// Whether an operation triggers it. A truncate deletes every row, so it triggers what a delete does.
    pub fn triggers_on(&self, operation: Operation) -> bool {
        self.operations.contains(&operation)
            || operation == Operation::Truncate && self.operations.contains(&Operation::Delete)
    }

    /// Calls `f` for every template, those inside messages included.
    pub(super) fn each_template(&self, f: &mut impl FnMut(&Spanned<Template>)) {
        for action in &self.actions {
            f(action.name());
            if let Action::Publish { data, .. } = action {
                data.each(f);
            }
        }
    }

    /// What its keys match, version keys included.
    pub fn globs(&self) -> Vec<Glob> {
        let keys = self.actions.iter().filter_map(|action| match action {
            Action::Delete(key) | Action::Bump(key) => Some(key.value.glob()),
            Action::Publish { .. } => None,
        });
        keys.collect()
    }

    /// The templates that name keys and channels.
    pub fn names(&self) -> impl Iterator<Item = &Spanned<Template>> {
        self.actions.iter().map(Action::name)
    }
}

/// All rules of one file, ready to plan.
#[derive(Clone, Debug)]
pub struct RuleSet {
    rules: Vec<Rule>,
    by_table: HashMap<TableName, Vec<RuleId>>,
    pub(super) truncate: Truncate,
    pub(super) unknown: Unknown,
}

impl RuleSet {
    /// Compiles the rules of a file.
    pub fn compile(raw: Vec<RawRule>, settings: &Settings) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let rules: Vec<_> =
            raw.into_iter().map(|rule| compile_rule(rule, &settings.namespace, &mut problems)).collect();
        problems.sort();
        match problems.is_empty() {
            true => Ok(Self::of(rules, settings.truncate, settings.unknown)),
            false => Err(problems),
        }
    }

    fn of(rules: Vec<Rule>, truncate: Truncate, unknown: Unknown) -> Self {
        let mut by_table: HashMap<_, Vec<_>> = HashMap::new();
        for (position, rule) in rules.iter().enumerate() {
            by_table.entry(rule.table.value.clone()).or_default().push(RuleId::new(position));
        }
        Self { rules, by_table, truncate, unknown }
    }

    /// The same rules with the schema filled in where the file left it out.
    pub fn with_schemas(self, resolve: impl Fn(&TableName) -> TableName) -> Self {
        let rules = self.rules.into_iter().map(|mut rule| {
            rule.table.value = resolve(&rule.table.value);
            rule
        });
        Self::of(rules.collect(), self.truncate, self.unknown)
    }

    /// What every key of the rules matches, each glob once: what a new epoch empties.
    pub fn globs(&self) -> Vec<Glob> {
        self.rules.iter().flat_map(Rule::globs).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The rules, in the order of the file.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// One rule.
    pub fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(id.position())
    }

    /// The tables that any rule names, each once, sorted.
    pub fn tables(&self) -> Vec<&TableName> {
        let mut tables: Vec<_> = self.by_table.keys().collect();
        tables.sort();
        tables
    }

    /// The rules of a table. A name without a schema, in the rules or in the change, matches in any
    /// schema: which one is meant is settled when the catalog is at hand.
    pub(super) fn of_table(&self, name: &TableName) -> Vec<RuleId> {
        let bare = TableName::new("", name.table.clone());
        let mut found = self.by_table.get(name).cloned().unwrap_or_default();
        if name.schema.is_empty() {
            let qualified =
                self.by_table.iter().filter(|(table, _)| table.table == name.table && !table.schema.is_empty());
            found.extend(qualified.flat_map(|(_, rules)| rules));
        } else {
            found.extend(self.by_table.get(&bare).into_iter().flatten());
        }
        found.sort_unstable();
        found
    }
}

fn compile_rule(raw: RawRule, namespace: &str, problems: &mut Problems) -> Rule {
    let mut actions = Vec::new();
    let key = |text: Spanned<String>, problems: &mut Problems| {
        if text.value.starts_with(RESERVED) {
            problems.push(
                text.span.clone(),
                format!("names that begin with `{RESERVED}` are kept for the state of this tool"),
                "choose another beginning",
            );
        }
        parse(text, problems, |text| Template::parse(text, namespace))
    };
    for text in raw.delete {
        actions.extend(key(text, problems).map(Action::Delete));
    }
    for text in raw.bump {
        actions.extend(key(text, problems).map(Action::Bump));
    }
    for RawPublish { channel, data } in raw.publish {
        if channel.value == INVALIDATIONS {
            problems.push(
                channel.span.clone(),
                format!("the channel `{INVALIDATIONS}` is kept for what this tool tells of every invalidation"),
                "choose another name",
            );
        }
        let channel = key(channel, problems);
        let data = compile_data(data, problems);
        actions.extend(channel.map(|channel| Action::Publish { channel, data }));
    }
    let table = raw.table.map(|text| TableName::parse(&text));
    if table.value.table.is_empty() || table.value.table.contains('.') {
        problems.push(table.span.clone(), "`table` is not a table's name", "expected `table` or `schema.table`");
    }
    Rule { name: raw.name.value, table, operations: raw.operations, changed: raw.changed, actions }
}

fn compile_data(raw: RawData, problems: &mut Problems) -> Message<Spanned<Template>> {
    match raw {
        RawData::Literal(value) => Message::Literal(value),
        RawData::List(items) => Message::List(items.into_iter().map(|item| compile_data(item, problems)).collect()),
        RawData::Object(fields) => {
            Message::Object(fields.into_iter().map(|(name, field)| (name, compile_data(field, problems))).collect())
        }
        RawData::Template(text) => match parse(text, problems, Template::parse_value) {
            Some(template) => Message::Template(template),
            None => Message::Literal(serde_json::Value::Null),
        },
    }
}

fn parse(
    text: Spanned<String>,
    problems: &mut Problems,
    parse: impl FnOnce(&str) -> Result<Template, super::InvalidTemplate>,
) -> Option<Spanned<Template>> {
    match parse(&text.value) {
        Ok(value) => Some(Spanned { value, span: text.span }),
        Err(error) => {
            let length = text.value.len();
            problems.push(part_of(&text.span, length, &error.span), error.message, error.advice);
            None
        }
    }
}

/// The place of a part of a text in the file: exact when the file holds the text as it is, else (it has
/// escapes or variables) the whole.
pub(super) fn part_of(whole: &Range<usize>, length: usize, part: &Range<usize>) -> Range<usize> {
    if whole.len() == length { whole.start + part.start..whole.start + part.end } else { whole.clone() }
}
