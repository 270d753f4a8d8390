//! From raw rules to a rule set: every template parsed, every name checked, grouped by table.
//!
//! Owns [`RuleSet`]. It must not see YAML or changes. Invariant: a rule set exists only if all its rules
//! are sound; finding the rules of a table does not depend on how many rules there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::time::Duration;

use indexmap::IndexSet;
use sha2::{Digest as _, Sha256};

use super::condition::Condition;
use super::for_each::ForEach;
use super::message::Message;
use super::rule::{Action, Lookup, Rule, Trigger};
use super::template::{InvalidTemplate, Template};
use crate::change::TableName;
use crate::config::lookup::RawLookup;
use crate::config::rule::{RawData, RawPublish, RawStream, RawTrigger};
use crate::config::{Problems, RawRule, Settings, Spanned, Truncate, Unknown};
use crate::key::{INVALIDATIONS, RESERVED, TAG};
use crate::plan::{Removal, RuleId};

/// All rules of one file, ready to plan.
#[derive(Clone, Debug)]
pub struct RuleSet {
    /// In the order of the file.
    rules: Vec<Rule>,
    lookups: Vec<Lookup>,
    /// The position of each rule in `rules`.
    by_id: HashMap<RuleId, usize>,
    by_table: HashMap<TableName, Vec<usize>>,
    by_event: HashMap<String, Vec<usize>>,
    pub(super) truncate: Truncate,
    pub(super) unknown: Unknown,
}

impl RuleSet {
    /// Compiles the rules of a file.
    pub fn compile(raw: Vec<RawRule>, lookups: Vec<RawLookup>, settings: &Settings) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let lookups: Vec<_> = lookups.into_iter().map(compile_lookup).collect();
        let compiler = Compiler {
            namespace: &settings.namespace,
            lookups: lookups.iter().map(|lookup| lookup.name.value.as_str()).collect(),
            ttl: settings.ttl,
        };
        let rules: Vec<_> = raw.into_iter().map(|rule| compiler.rule(rule, &mut problems)).collect();
        check_ids(&rules, &mut problems);
        problems.sort();
        match problems.is_empty() {
            true => Ok(Self::of(rules, lookups, settings.truncate, settings.unknown)),
            false => Err(problems),
        }
    }

    fn of(rules: Vec<Rule>, lookups: Vec<Lookup>, truncate: Truncate, unknown: Unknown) -> Self {
        let mut by_id = HashMap::new();
        let mut by_table: HashMap<_, Vec<_>> = HashMap::new();
        let mut by_event: HashMap<_, Vec<_>> = HashMap::new();
        for (position, rule) in rules.iter().enumerate() {
            by_id.insert(rule.id, position);
            match rule.trigger {
                Trigger::Table => by_table.entry(rule.table.value.clone()).or_default().push(position),
                Trigger::Event => by_event.entry(rule.table.value.table.clone()).or_default().push(position),
            }
        }
        Self { rules, lookups, by_id, by_table, by_event, truncate, unknown }
    }

    /// The same rules with the schema filled in where the file left it out.
    pub fn with_schemas(self, resolve: impl Fn(&TableName) -> TableName) -> Self {
        let rules = self.rules.into_iter().map(|mut rule| {
            if rule.trigger == Trigger::Table {
                rule.table.value = resolve(&rule.table.value);
            }
            rule
        });
        Self::of(rules.collect(), self.lookups, self.truncate, self.unknown)
    }

    /// What every rule may ever remove or write, each once: what a new epoch empties.
    pub fn removals(&self) -> Vec<Removal> {
        self.rules.iter().flat_map(Rule::removals).collect::<IndexSet<_>>().into_iter().collect()
    }

    /// What these rules may ever remove or write, with the rule, in the order of the file.
    pub fn removals_of(&self, rules: &BTreeSet<RuleId>) -> Vec<(RuleId, Removal)> {
        let asked = self.rules.iter().filter(|rule| rules.contains(&rule.id));
        asked.flat_map(|rule| rule.removals().into_iter().map(|removal| (rule.id, removal))).collect()
    }

    /// The queries that rules may ask.
    pub fn lookups(&self) -> &[Lookup] {
        &self.lookups
    }

    /// Whether any rule waits for an event.
    pub fn has_events(&self) -> bool {
        !self.by_event.is_empty()
    }

    /// Whether what some rule does depends on the order of transactions: values that are written through, streams.
    pub fn needs_order(&self) -> bool {
        let ordered = |action: &Action| matches!(action, Action::Set { .. } | Action::Stream { .. });
        self.rules.iter().any(|rule| rule.actions.iter().any(ordered))
    }

    /// For each table, as `schema.table`, and each event, as `event:name`, what tells its rules, and what they look up,
    /// from any others.
    pub fn versions(&self) -> BTreeMap<String, String> {
        let lookups: BTreeMap<_, _> = self.lookups.iter().map(|found| (&found.name.value, &found.sql.value)).collect();
        let mut parts: BTreeMap<String, BTreeMap<&str, String>> = BTreeMap::new();
        for rule in &self.rules {
            let subject = match rule.trigger {
                Trigger::Table => rule.table.value.to_string(),
                Trigger::Event => format!("event:{}", rule.table.value.table),
            };
            let asked = rule.for_each.as_ref().map(|_| format!("{lookups:?}")).unwrap_or_default();
            parts.entry(subject).or_default().insert(&rule.name, format!("{}{asked}", rule.canonical));
        }
        let digest = |rules: BTreeMap<&str, String>| {
            Sha256::digest(format!("{rules:?}")).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
        };
        parts.into_iter().map(|(subject, rules)| (subject, digest(rules))).collect()
    }

    /// The names of the events that rules wait for, sorted.
    pub fn events(&self) -> Vec<&str> {
        let mut events: Vec<_> = self.by_event.keys().map(String::as_str).collect();
        events.sort_unstable();
        events
    }

    /// The rules, in the order of the file.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// One rule.
    pub fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(*self.by_id.get(&id)?)
    }

    /// The tables that any rule names, each once, sorted.
    pub fn tables(&self) -> Vec<&TableName> {
        let mut tables: Vec<_> = self.by_table.keys().collect();
        tables.sort();
        tables
    }

    /// The rules that an event triggers, with their positions, in the order of the file.
    pub(super) fn of_event(&self, name: &str) -> Vec<(usize, &Rule)> {
        self.at(self.by_event.get(name).into_iter().flatten().copied().collect())
    }

    /// The rules of a table, with their positions, in the order of the file. A name without a schema, in the rules or in the change, matches in any
    /// schema: which one is meant is settled when the catalog is at hand.
    pub(super) fn of_table(&self, name: &TableName) -> Vec<(usize, &Rule)> {
        let bare = TableName::new("", name.table.clone());
        let mut found = self.by_table.get(name).cloned().unwrap_or_default();
        if name.schema.is_empty() {
            let qualified =
                self.by_table.iter().filter(|(table, _)| table.table == name.table && !table.schema.is_empty());
            found.extend(qualified.flat_map(|(_, rules)| rules));
        } else {
            found.extend(self.by_table.get(&bare).into_iter().flatten());
        }
        self.at(found)
    }

    fn at(&self, mut positions: Vec<usize>) -> Vec<(usize, &Rule)> {
        positions.sort_unstable();
        positions.into_iter().filter_map(|position| Some((position, self.rules.get(position)?))).collect()
    }
}

/// Reports rules with one id, of which only one could be found again.
fn check_ids(rules: &[Rule], problems: &mut Problems) {
    let mut names: HashMap<RuleId, &str> = HashMap::new();
    for rule in rules {
        if let Some(other) = names.insert(rule.id, &rule.name) {
            let message = format!("rule `{}` has the same internal id as rule `{other}`", rule.name);
            problems.push(rule.span.clone(), message, "rename one of them");
        }
    }
}

fn compile_lookup(raw: RawLookup) -> Lookup {
    /// As many keys as one transaction may name by default, divided among a few calls.
    const ROWS_MAX: u64 = 10_000;
    const TIMEOUT: Duration = Duration::from_secs(1);
    Lookup {
        name: raw.name,
        sql: raw.sql,
        max: usize::try_from(raw.max.unwrap_or(ROWS_MAX)).unwrap_or(usize::MAX),
        timeout: raw.timeout.unwrap_or(TIMEOUT),
    }
}

/// What rules are compiled against.
struct Compiler<'a> {
    namespace: &'a str,
    lookups: Vec<&'a str>,
    ttl: Duration,
}

/// How a text of the file becomes a template.
type Parse<'a> = &'a dyn Fn(&str) -> Result<Template, InvalidTemplate>;

impl Compiler<'_> {
    fn rule(&self, raw: RawRule, problems: &mut Problems) -> Rule {
        let for_each = raw.for_each.as_ref().and_then(|text| {
            let parsed = ForEach::parse(&text.value, &text.span, &self.lookups);
            parsed.map_err(|error| report(text, error, problems)).ok()
        });
        // A call that is wrong is one problem; what its rows would be called may still be right.
        let named =
            raw.for_each.as_ref().and_then(|text| text.value.rsplit_once(" as ")).map(|(_, alias)| alias.trim());
        let alias = for_each.as_ref().map(|for_each| for_each.alias.clone()).or(named.map(ToOwned::to_owned));
        let mut names = Names { alias: alias.as_deref(), namespace: self.namespace, problems };
        let mut actions = Vec::new();
        for set in raw.set {
            let key = names.key(set.key);
            let ttl = set.ttl.unwrap_or(self.ttl);
            actions.extend(key.map(|key| Action::Set { key, columns: set.columns, ttl }));
        }
        actions.extend(raw.delete.into_iter().filter_map(|text| names.key(text)).map(Action::Delete));
        actions.extend(raw.pattern.into_iter().filter_map(|text| names.pattern(text)).map(Action::Pattern));
        actions.extend(raw.tags.into_iter().filter_map(|text| names.tag(text)).map(Action::Tag));
        actions.extend(raw.bump.into_iter().filter_map(|text| names.key(text)).map(Action::Bump));
        for RawPublish { channel, data } in raw.publish {
            let channel = names.channel(channel);
            let data = names.data(data);
            actions.extend(channel.map(|channel| Action::Publish { channel, data }));
        }
        for RawStream { name, data, maxlen } in raw.stream {
            const ENTRIES_MAX: u64 = 10_000;
            if let Some(for_each) = &raw.for_each {
                let message = "a stream entry's number follows from its place in the log, and a looked-up row has none";
                names.problems.push(for_each.span.clone(), message, "move `stream` into a rule without `for_each`");
            }
            let name = names.key(name);
            let data = names.data(data);
            let maxlen = maxlen.unwrap_or(ENTRIES_MAX);
            actions.extend(name.map(|name| Action::Stream { name, data, maxlen }));
        }
        let condition = raw.when.and_then(|text| match Condition::parse(&text.value) {
            Ok(value) => Some(Spanned { value, span: text.span }),
            Err(error) => {
                problems.push(part_of(&text.span, text.value.len(), &error.span), error.message, error.advice);
                None
            }
        });
        let (trigger, table) = match raw.trigger {
            RawTrigger::Event(name) => (Trigger::Event, name.map(|name| TableName::new("", name))),
            RawTrigger::Table(name) => (Trigger::Table, name.map(|text| TableName::parse(&text))),
        };
        if trigger == Trigger::Table && (table.value.table.is_empty() || table.value.table.contains('.')) {
            problems.push(table.span.clone(), "`table` is not a table's name", "expected `table` or `schema.table`");
        }
        Rule {
            id: RuleId::of(&raw.name.value),
            canonical: raw.canonical,
            span: raw.name.span,
            name: raw.name.value,
            trigger,
            table,
            operations: raw.operations,
            changed: raw.changed,
            condition,
            for_each,
            again_after: raw.again_after,
            actions,
        }
    }
}

/// The names and messages of one rule.
struct Names<'a> {
    alias: Option<&'a str>,
    namespace: &'a str,
    problems: &'a mut Problems,
}

impl Names<'_> {
    fn key(&mut self, text: Spanned<String>) -> Option<Spanned<Template>> {
        let (namespace, alias) = (self.namespace, self.alias);
        self.unreserved(text, &|text| Template::parse(text, namespace, alias))
    }

    fn pattern(&mut self, text: Spanned<String>) -> Option<Spanned<Template>> {
        let (namespace, alias) = (self.namespace, self.alias);
        self.unreserved(text, &|text| Template::parse_pattern(text, namespace, alias))
    }

    fn tag(&mut self, text: Spanned<String>) -> Option<Spanned<Template>> {
        let (namespace, alias) = (format!("{}{TAG}", self.namespace), self.alias);
        self.parse(text, &|text| Template::parse(text, &namespace, alias))
    }

    fn channel(&mut self, text: Spanned<String>) -> Option<Spanned<Template>> {
        if text.value == INVALIDATIONS {
            self.problems.push(
                text.span.clone(),
                format!("the channel `{INVALIDATIONS}` is kept for what this tool tells of every invalidation"),
                "choose another name",
            );
        }
        self.key(text)
    }

    fn unreserved(&mut self, text: Spanned<String>, parse: Parse<'_>) -> Option<Spanned<Template>> {
        let kept = [(RESERVED, "the state of this tool"), (TAG, "the sets of `tags`")];
        for (_, what) in kept.iter().filter(|(beginning, _)| text.value.starts_with(beginning)) {
            let beginning = if text.value.starts_with(TAG) { TAG } else { RESERVED };
            let message = format!("names that begin with `{beginning}` are kept for {what}");
            self.problems.push(text.span.clone(), message, "choose another beginning");
        }
        self.parse(text, parse)
    }

    fn data(&mut self, raw: RawData) -> Message<Spanned<Template>> {
        match raw {
            RawData::Literal(value) => Message::Literal(value),
            RawData::List(items) => Message::List(items.into_iter().map(|item| self.data(item)).collect()),
            RawData::Object(fields) => {
                Message::Object(fields.into_iter().map(|(name, field)| (name, self.data(field))).collect())
            }
            RawData::Template(text) => {
                let alias = self.alias;
                match self.parse(text, &|text| Template::parse_value(text, alias)) {
                    Some(template) => Message::Template(template),
                    None => Message::Literal(serde_json::Value::Null),
                }
            }
        }
    }

    fn parse(&mut self, text: Spanned<String>, parse: Parse<'_>) -> Option<Spanned<Template>> {
        match parse(&text.value) {
            Ok(value) => Some(Spanned { value, span: text.span }),
            Err(error) => {
                report(&text, error, self.problems);
                None
            }
        }
    }
}

fn report(text: &Spanned<String>, error: InvalidTemplate, problems: &mut Problems) {
    problems.push(part_of(&text.span, text.value.len(), &error.span), error.message, error.advice);
}

/// The place of a part of a text in the file: exact when the file holds the text as it is, else (it has
/// escapes or variables) the whole.
pub(super) fn part_of(whole: &Range<usize>, length: usize, part: &Range<usize>) -> Range<usize> {
    if whole.len() == length { whole.start + part.start..whole.start + part.end } else { whole.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    fn rules(text: &str) -> RuleSet {
        let document = Document::parse(&format!("version: 1\nrules:\n{text}"), &|_| None).unwrap();
        RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap()
    }

    #[test]
    fn a_rule_keeps_its_id_in_another_file() {
        let one = rules("  a: {table: t, delete: 'a'}\n  b: {table: t, delete: 'b'}\n");
        let other = rules("  b: {table: u, delete: 'c'}\n");
        let id = one.rules()[1].id;
        assert_eq!(other.rule(id).map(|rule| rule.name.as_str()), Some("b"));
        assert!(other.rule(one.rules()[0].id).is_none());
    }

    #[test]
    fn removals_are_in_the_order_of_the_file() {
        let names: Vec<_> = (0..20).map(|number| format!("r{number}")).collect();
        let text: String = names.iter().map(|name| format!("  {name}: {{table: t, delete: '{name}'}}\n")).collect();
        let found = rules(&text).removals_of(&names.iter().map(|name| RuleId::of(name)).collect());
        let expected: Vec<_> = names.iter().map(|name| RuleId::of(name)).collect();
        assert_eq!(found.into_iter().map(|(rule, _)| rule).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn two_rules_with_one_id_are_an_error() {
        let mut rules = rules("  a: {table: t, delete: 'a'}\n  b: {table: t, delete: 'b'}\n").rules;
        let mut problems = Problems::default();
        check_ids(&rules, &mut problems);
        assert!(problems.is_empty());
        rules[1].id = rules[0].id;
        check_ids(&rules, &mut problems);
        assert_eq!(problems.len(), 1);
    }
}
