//! From the raw rules of a file to a rule set: templates and conditions parsed, names checked.
//!
//! Owns the checks that need no database. It must not see YAML or changes. Invariant: a rule set
//! exists only if all of its rules are valid.

use std::collections::HashMap;
use std::time::Duration;

use super::action::{Action, RuleAction};
use super::condition::Condition;
use super::for_each::ForEach;
use super::message::MessageTemplate;
use super::rule::{Lookup, Rule, Trigger};
use super::rule_set::RuleSet;
use super::template::{InvalidTemplate, Template};
use crate::change::TableName;
use crate::config::lookup::RawLookup;
use crate::config::rule::{RawAction, RawData, RawPublish, RawSet, RawStream, RawTrigger};
use crate::config::{Problems, RawRule, Settings, Spanned};
use crate::key::{INVALIDATIONS, RESERVED, TAG};
use crate::plan::RuleId;

impl RuleSet {
    /// Compiles the rules of a file.
    pub fn compile(raw: Vec<RawRule>, lookups: Vec<RawLookup>, settings: &Settings) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let lookups: Vec<_> = lookups.into_iter().map(compile_lookup).collect();
        let compiler = RuleCompiler {
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
    /// As many rows as one transaction may name keys by default.
    const ROWS_MAX: u64 = 10_000;
    const TIMEOUT: Duration = Duration::from_secs(1);
    Lookup {
        name: raw.name,
        sql: raw.sql,
        max: usize::try_from(raw.max.unwrap_or(ROWS_MAX)).unwrap_or(usize::MAX),
        timeout: raw.timeout.unwrap_or(TIMEOUT),
    }
}

/// The default length of a stream, in entries.
const STREAM_ENTRIES_MAX: u64 = 10_000;

/// Compiles rules against the namespace, the lookups and the default ttl of a file.
struct RuleCompiler<'a> {
    namespace: &'a str,
    lookups: Vec<&'a str>,
    ttl: Duration,
}

/// How a text of the file becomes a template.
type Parse<'a> = &'a dyn Fn(&str) -> Result<Template, InvalidTemplate>;

impl RuleCompiler<'_> {
    fn rule(&self, raw: RawRule, problems: &mut Problems) -> Rule {
        let for_each = raw.for_each.as_ref().and_then(|text| {
            let parsed = ForEach::parse(text, &self.lookups);
            parsed.map_err(|error| report(text, error, problems)).ok()
        });
        // If the call is wrong, its alias may still be right, and templates that use it are no
        // further problem.
        let named =
            raw.for_each.as_ref().and_then(|text| text.value.rsplit_once(" as ")).map(|(_, alias)| alias.trim());
        let alias = for_each.as_ref().map(|for_each| for_each.alias.clone()).or(named.map(ToOwned::to_owned));
        let mut names = RuleTemplates { alias: alias.as_deref(), namespace: self.namespace, problems };
        let in_loop = raw.for_each.as_ref();
        let actions = raw.actions.into_iter().filter_map(|action| names.action(action, in_loop, self.ttl)).collect();
        let condition = raw.when.and_then(|text| match Condition::parse(&text.value) {
            Ok(value) => Some(Spanned { value, span: text.span }),
            Err(error) => {
                problems.push(text.part(&error.span), error.message, error.advice);
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

/// Compiles the templates of one rule.
struct RuleTemplates<'a> {
    alias: Option<&'a str>,
    namespace: &'a str,
    problems: &'a mut Problems,
}

impl RuleTemplates<'_> {
    /// Compiles an action; `for_each` is the text of the rule's lookup, and `ttl` the default of
    /// the file.
    fn action(&mut self, raw: RawAction, for_each: Option<&Spanned<String>>, ttl: Duration) -> Option<RuleAction> {
        Some(match raw {
            RawAction::Set(RawSet { key, columns, ttl: own_ttl }) => {
                Action::Set { key: self.key(key)?, columns, ttl: own_ttl.unwrap_or(ttl) }
            }
            RawAction::Delete(key) => Action::Delete(self.key(key)?),
            RawAction::Pattern(pattern) => Action::Pattern(self.pattern(pattern)?),
            RawAction::Tag(tag) => Action::Tag(self.tag(tag)?),
            RawAction::Bump(key) => Action::Bump(self.key(key)?),
            RawAction::Publish(RawPublish { channel, data }) => {
                let (channel, data) = (self.channel(channel), self.data(data));
                Action::Publish { channel: channel?, data }
            }
            RawAction::Stream(RawStream { name, data, maxlen }) => {
                if let Some(for_each) = for_each {
                    let message =
                        "a stream entry's number follows from its place in the log, and a looked-up row has none";
                    let advice = "move `stream` into a rule without `for_each`";
                    self.problems.push(for_each.span.clone(), message, advice);
                }
                let (name, data) = (self.key(name), self.data(data));
                Action::Stream { name: name?, data, maxlen: maxlen.unwrap_or(STREAM_ENTRIES_MAX) }
            }
        })
    }

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
                format!("the channel `{INVALIDATIONS}` is reserved for the announcements of invalidations"),
                "choose another name",
            );
        }
        self.key(text)
    }

    fn unreserved(&mut self, text: Spanned<String>, parse: Parse<'_>) -> Option<Spanned<Template>> {
        let kept = [(RESERVED, "the state of this tool"), (TAG, "the sets of `tags`")];
        for (_, what) in kept.iter().filter(|(beginning, _)| text.value.starts_with(beginning)) {
            let beginning = if text.value.starts_with(TAG) { TAG } else { RESERVED };
            let message = format!("names that begin with `{beginning}` are reserved for {what}");
            self.problems.push(text.span.clone(), message, "choose another beginning");
        }
        self.parse(text, parse)
    }

    fn data(&mut self, raw: RawData) -> MessageTemplate<Spanned<Template>> {
        match raw {
            RawData::Literal(value) => MessageTemplate::Literal(value),
            RawData::List(items) => MessageTemplate::List(items.into_iter().map(|item| self.data(item)).collect()),
            RawData::Object(fields) => {
                MessageTemplate::Object(fields.into_iter().map(|(name, field)| (name, self.data(field))).collect())
            }
            RawData::Template(text) => {
                let alias = self.alias;
                match self.parse(text, &|text| Template::parse_value(text, alias)) {
                    Some(template) => MessageTemplate::Template(template),
                    None => MessageTemplate::Literal(serde_json::Value::Null),
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
    problems.push(text.part(&error.span), error.message, error.advice);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    #[test]
    fn two_rules_with_one_id_are_an_error() {
        let text = "version: 1\nrules: {a: {table: t, delete: 'a'}, b: {table: t, delete: 'b'}}\n";
        let document = Document::parse(text, &|_| None).unwrap();
        let set = RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap();
        let mut rules = set.rules().to_vec();
        let mut problems = Problems::default();
        check_ids(&rules, &mut problems);
        assert!(problems.is_empty());
        rules[1].id = rules[0].id;
        check_ids(&rules, &mut problems);
        assert_eq!(problems.len(), 1);
    }
}
