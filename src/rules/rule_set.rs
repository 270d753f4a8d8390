//! All rules of one file, found by table, by event and by id.
//!
//! Owns [`RuleSet`]. It must not see YAML or changes. Invariant: how long it takes to find the
//! rules of a table does not depend on how many rules there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use indexmap::IndexSet;
use sha2::{Digest as _, Sha256};

use super::folding::Folding;
use super::rule::{Lookup, Rule, Trigger};
use super::template::Image;
use crate::change::TableName;
use crate::config::{Truncate, Unknown};
use crate::plan::{Plan, Removal, RuleId};

/// The values whose case is folded.
#[derive(Clone, Debug, Default)]
pub struct FoldedValues<'a> {
    /// These columns of tables.
    pub columns: Vec<(&'a TableName, &'a str)>,
    /// Columns of looked-up rows.
    pub of_lookups: bool,
    /// Fields of events.
    pub of_events: bool,
}

/// All rules of one file.
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
    pub(super) fn of(rules: Vec<Rule>, lookups: Vec<Lookup>, truncate: Truncate, unknown: Unknown) -> Self {
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

    /// The removals of everything that any rule may ever remove or write, each once. A new epoch
    /// removes it.
    pub fn removals(&self) -> Vec<Removal> {
        self.rules.iter().flat_map(Rule::removals).collect::<IndexSet<_>>().into_iter().collect()
    }

    /// What these rules may ever remove or write, with the rule, in the order of the file.
    pub fn removals_of(&self, rules: &BTreeSet<RuleId>) -> Vec<(RuleId, Removal)> {
        let asked = self.rules.iter().filter(|rule| rules.contains(&rule.id));
        asked.flat_map(|rule| rule.removals().into_iter().map(|removal| (rule.id, removal))).collect()
    }

    /// Removes everything that the rules of this table may ever have made.
    pub fn remove_all_of(&self, table: &TableName, plan: &mut Plan) {
        self.of_table(table).into_iter().for_each(|(_, rule)| rule.remove_all(plan));
    }

    /// The queries that rules may call.
    pub fn lookups(&self) -> &[Lookup] {
        &self.lookups
    }

    /// Whether any rule is triggered by an event.
    pub fn has_events(&self) -> bool {
        !self.by_event.is_empty()
    }

    /// The events that trigger rules, each with the fields that they read.
    pub fn event_fields(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut events: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for rule in self.rules.iter().filter(|rule| rule.trigger == Trigger::Event) {
            let fields = rule.columns().into_iter().map(ToOwned::to_owned);
            events.entry(rule.table.value.table.clone()).or_default().extend(fields);
        }
        events
    }

    /// Whether any rule asks for second deletes (`again_after`).
    pub fn repeats(&self) -> bool {
        self.rules.iter().any(|rule| rule.again_after.is_some())
    }

    /// Whether the actions of some rule depend on the order of transactions, as `set` and `stream`
    /// do.
    pub fn needs_order(&self) -> bool {
        self.rules.iter().flat_map(Rule::actions).any(|(kind, _)| kind.needs_order())
    }

    /// A digest of the rules of each table, as `schema.table`, and of each event, as `event:name`.
    /// It changes with the rules and with the lookups that they call.
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

    /// The names of the events that trigger rules, sorted.
    pub fn events(&self) -> Vec<&str> {
        let mut events: Vec<_> = self.by_event.keys().map(String::as_str).collect();
        events.sort_unstable();
        events
    }

    /// A delete leaves the lookup of the rule at this position without an answer, because the
    /// database deletes or detaches the rows that it reads.
    pub fn void_on_delete(&mut self, rule: usize) {
        let for_each = self.rules.get_mut(rule).and_then(|rule| rule.for_each.as_mut());
        for_each.into_iter().for_each(|for_each| for_each.is_void_on_delete = true);
    }

    /// Folds case in names of keys, and in arguments of lookups, as this database does.
    pub fn fold_as(&mut self, folding: &Arc<Folding>) {
        for rule in &mut self.rules {
            rule.actions.iter_mut().for_each(|action| action.fold_as(folding));
            let arguments = rule.for_each.iter_mut().flat_map(|for_each| &mut for_each.arguments);
            arguments.for_each(|argument| argument.value.fold_as(folding));
        }
    }

    /// The values whose case some name or argument folds.
    pub fn folded(&self) -> FoldedValues<'_> {
        let mut folded = FoldedValues::default();
        for rule in &self.rules {
            let arguments = rule.for_each.iter().flat_map(|for_each| &for_each.arguments);
            for reference in rule.names().chain(arguments).flat_map(|template| template.value.references()) {
                match (rule.trigger, reference.image) {
                    _ if !reference.folds() => {}
                    (_, Image::Lookup) => folded.of_lookups = true,
                    (Trigger::Event, _) => folded.of_events = true,
                    (Trigger::Table, _) => folded.columns.push((&rule.table.value, &reference.column)),
                }
            }
        }
        folded
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

    /// The rules of a table, with their positions, in the order of the file.
    pub(super) fn of_table(&self, name: &TableName) -> Vec<(usize, &Rule)> {
        self.of_tables(std::iter::once(name))
    }

    /// The rules that mean a table by any of its names, with their positions, in the order of the
    /// file. A name without a schema, in the rules or in the change, matches in any schema; only
    /// the catalog can tell which one is meant.
    pub(super) fn of_tables<'n>(&self, names: impl Iterator<Item = &'n TableName>) -> Vec<(usize, &Rule)> {
        let mut found = Vec::new();
        for name in names {
            found.extend(self.by_table.get(name).into_iter().flatten());
            if name.schema.is_empty() {
                let qualified =
                    self.by_table.iter().filter(|(table, _)| table.table == name.table && !table.schema.is_empty());
                found.extend(qualified.flat_map(|(_, rules)| rules));
            } else {
                found.extend(self.by_table.get(&TableName::new("", name.table.clone())).into_iter().flatten());
            }
        }
        self.at(found)
    }

    fn at(&self, mut positions: Vec<usize>) -> Vec<(usize, &Rule)> {
        positions.sort_unstable();
        positions.dedup();
        positions.into_iter().filter_map(|position| Some((position, self.rules.get(position)?))).collect()
    }
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
}
