//! What the rules require of the database.
//!
//! Owns the comparison of a rule set with a [`Catalog`]. It must not ask a server. Invariant: if it
//! finds no problem, the replica identities carry every old value that a key needs.

use std::collections::BTreeSet;
use std::ops::Range;

use super::rule::{Rule, Trigger};
use super::rule_set::RuleSet;
use super::template::{Image, Reference};
use super::widening::{Remedy, Widening};
use crate::catalog::{Catalog, Identity, Table, quote_table};
use crate::change::{Operation, TableName};
use crate::config::{Problems, Spanned};
use crate::nearest::nearest;

/// What triggers must record of a table's changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// The table that rules name.
    pub table: TableName,
    /// The columns that its rules read, in the table's own order.
    pub columns: Vec<String>,
    /// The operations that trigger a rule, in the order of [`Operation::ALL`].
    pub operations: Vec<Operation>,
    /// Whether an update triggers a rule only if one of `columns` changed.
    pub only_changed: bool,
}

impl RuleSet {
    /// Fills in the schemas and reports every table and column that the database does not have.
    pub fn resolve(self, catalog: &Catalog, problems: &mut Problems) -> Self {
        for rule in self.rules().iter().filter(|rule| rule.trigger == Trigger::Table) {
            match catalog.find(&rule.table.value) {
                None => {
                    let near = nearest_table(&rule.table.value, catalog);
                    problems.push(rule.table.span.clone(), format!("there is no table `{}`", rule.table.value), near);
                }
                Some(table) => check_columns(rule, table, problems),
            }
        }
        self.with_schemas(|name| catalog.find(name).map_or_else(|| name.clone(), |table| table.name.clone()))
    }

    /// The replica identities that are too narrow for the keys. Each becomes a problem that shows
    /// its fix.
    pub fn check_identities(&self, catalog: &Catalog, problems: &mut Problems) -> Vec<Widening> {
        let mut widenings = Vec::new();
        for name in self.tables() {
            let Some(table) = catalog.find(name) else { continue };
            let of_table =
                || self.rules().iter().filter(|rule| rule.trigger == Trigger::Table && rule.table.value == *name);
            let needed: BTreeSet<&str> =
                of_table().flat_map(old_columns).map(|(_, reference)| reference.column.as_str()).collect();
            let exists = |column: &str| table.columns.iter().any(|known| known.name == column);
            let missing = needed.iter().any(|&column| exists(column) && !table.identity.carries(column));
            // This concerns every table of the publication, whatever its rules are.
            let unusable = table.identity == Identity::Nothing;
            if !missing && !unusable {
                continue;
            }
            let widening = Widening::of(table, &needed, catalog);
            let advice = match &widening.remedy {
                Remedy::Nothing(reason) => format!("{reason}; give it a primary key, or use source.mode: outbox"),
                _ => format!("`unstale setup` runs this, or run it yourself:\n{}", widening.statements().join("\n")),
            };
            if unusable && !missing {
                let span = of_table().next().map_or(0..0, |rule| rule.table.span.clone());
                let message = format!(
                    "table {} has no replica identity: once it is published, PostgreSQL refuses its updates and deletes",
                    table.name
                );
                problems.push(span, message, advice.clone());
            }
            // Without a remedy such a rule deletes by pattern, which is no problem of the file.
            let is_limited = matches!(widening.remedy, Remedy::Nothing(_)) && !unusable;
            for (template, reference) in of_table().flat_map(old_columns) {
                if is_limited || !exists(&reference.column) || table.identity.carries(&reference.column) {
                    continue;
                }
                let message = format!(
                    "the log does not carry the old value of {}.{}: when it changes, the old key would stay stale",
                    table.name, reference.column
                );
                let span = template.place_of(reference);
                problems.push(span, message, advice.clone());
            }
            widenings.push(widening);
        }
        widenings
    }

    /// The tables that must not be published, because they would have no replica identity then.
    pub fn unpublishable(&self, catalog: &Catalog) -> Vec<TableName> {
        let widenings = self.check_identities(catalog, &mut Problems::default());
        widenings.into_iter().filter(Widening::is_unpublishable).map(|widening| widening.table).collect()
    }

    /// What triggers must record of each table, sorted by name.
    pub fn captures(&self, catalog: &Catalog) -> Vec<Capture> {
        let capture = |table: &Table| {
            let of_table =
                || self.rules().iter().filter(|rule| rule.trigger == Trigger::Table && rule.table.value == table.name);
            let read: BTreeSet<&str> = of_table().flat_map(Rule::columns).collect();
            let names = table.columns.iter().map(|column| &column.name);
            let wanted = |operation: &Operation| of_table().any(|rule| rule.triggers_on(*operation));
            Capture {
                table: table.name.clone(),
                columns: names.filter(|name| read.contains(name.as_str())).cloned().collect(),
                operations: Operation::ALL.into_iter().filter(wanted).collect(),
                only_changed: of_table()
                    .filter(|rule| rule.triggers_on(Operation::Update))
                    .all(|rule| !rule.changed.is_empty()),
            }
        };
        self.tables().into_iter().filter_map(|name| catalog.find(name)).map(capture).collect()
    }

    /// Reports tables whose changes are not in the log at all. The advice ends with the statements
    /// of [`set_logged`].
    pub fn check_logged(&self, catalog: &Catalog, problems: &mut Problems) {
        for rule in self.rules().iter().filter(|rule| rule.trigger == Trigger::Table) {
            let Some(table) = catalog.find(&rule.table.value) else { continue };
            let statements = set_logged(table, catalog);
            if !statements.is_empty() {
                let message = format!("table {} is unlogged: its changes never reach the log", rule.table.value);
                let advice = format!("use source.mode: outbox, drop the rule, or run this:\n{}", statements.join("\n"));
                problems.push(rule.table.span.clone(), message, advice);
            }
        }
    }
}

/// The statements after which the changes of a table are logged, one for each of its partitions and
/// children that is unlogged. PostgreSQL refuses them while the table refers to an unlogged one, so
/// that one comes first.
fn set_logged(table: &Table, catalog: &Catalog) -> Vec<String> {
    let mut order: Vec<&TableName> = Vec::new();
    add_unlogged(table, catalog, &mut BTreeSet::new(), &mut order);
    order.into_iter().map(|name| format!("ALTER TABLE {} SET LOGGED;", quote_table(name))).collect()
}

fn add_unlogged<'a>(
    table: &'a Table,
    catalog: &'a Catalog,
    seen: &mut BTreeSet<&'a TableName>,
    order: &mut Vec<&'a TableName>,
) {
    let members = table.members.iter().filter(|member| member.unlogged && member.has_rows).map(|member| &member.name);
    let unlogged: Vec<&TableName> = members.chain(table.unlogged.then_some(&table.name)).collect();
    if unlogged.is_empty() || !seen.insert(&table.name) {
        return;
    }
    for key in &table.foreign_keys {
        if let Some(other) = catalog.find(&key.table) {
            add_unlogged(other, catalog, seen, order);
        }
    }
    for name in unlogged {
        if !order.contains(&name) {
            order.push(name);
        }
    }
}

/// The references of a rule's names whose old value is needed.
fn old_columns(rule: &Rule) -> impl Iterator<Item = (&Spanned<super::Template>, &Reference)> {
    let needs_old = rule.triggers_on(Operation::Update) || rule.triggers_on(Operation::Delete);
    let arguments = rule.for_each.iter().flat_map(|for_each| &for_each.arguments);
    let names = rule.names().chain(arguments).filter(move |_| needs_old);
    names
        .flat_map(|name| name.value.references().map(move |reference| (name, reference)))
        .filter(|(_, reference)| matches!(reference.image, Image::Either | Image::Old))
}

fn check_columns(rule: &Rule, table: &Table, problems: &mut Problems) {
    let known = || table.columns.iter().map(|column| column.name.as_str());
    let advice = |name: &str| match nearest(name, known()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("it has {}", known().collect::<Vec<_>>().join(", ")),
    };
    let exists = |name: &str| known().any(|column| column == name);
    for column in rule.changed.iter().filter(|column| !exists(&column.value)) {
        let message = format!("table {} has no column `{}`", table.name, column.value);
        problems.push(column.span.clone(), message, advice(&column.value));
    }
    let mut check = |template: &Spanned<super::Template>| {
        let ours = template.value.references().filter(|reference| reference.image != Image::Lookup);
        for reference in ours.filter(|reference| !exists(&reference.column)) {
            let message = format!("table {} has no column `{}`", table.name, reference.column);
            problems.push(template.place_of(reference), message, advice(&reference.column));
        }
    };
    rule.each_template(&mut check);
    rule.for_each.iter().flat_map(|for_each| &for_each.arguments).for_each(check);
    for column in rule.set_columns().filter(|column| !exists(&column.value)) {
        let message = format!("table {} has no column `{}`", table.name, column.value);
        problems.push(column.span.clone(), message, advice(&column.value));
    }
    let Some(condition) = &rule.condition else { return };
    let at = |span: &Range<usize>| condition.part_of_text(condition.value.text().len(), span);
    for column in condition.value.columns().iter().filter(|column| !exists(&column.column)) {
        let message = format!("table {} has no column `{}`", table.name, column.column);
        problems.push(at(&column.span), message, advice(&column.column));
    }
    let kind_of = |name: &str| table.columns.iter().find(|column| column.name == name).map(|column| column.kind);
    for problem in condition.value.check(&kind_of) {
        problems.push(at(&problem.span), problem.message, problem.advice);
    }
}

fn nearest_table(name: &TableName, catalog: &Catalog) -> String {
    let bare = catalog.tables.iter().map(|table| table.name.table.as_str());
    match nearest(&name.table, bare) {
        Some(near) if near == name.table => {
            let schemas = catalog.tables.iter().filter(|table| table.name.table == name.table);
            let full: Vec<_> = schemas.map(|table| format!("`{}`", table.name)).collect();
            format!("did you mean {}?", full.join(" or "))
        }
        Some(near) => format!("did you mean `{near}`?"),
        None => "create it, or correct the name".to_owned(),
    }
}
