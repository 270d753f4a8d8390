//! Tests made ready to run: each with its change as it was and as the log would carry it.
//!
//! Owns what a test's values mean as rows. It must not plan or judge. Invariants: what a test leaves out of a known
//! table is NULL; of the row before, the log carries what the replica identity does, or will once `setup` has run.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::to_raw_value;

use super::super::Loaded;
use crate::catalog::{Catalog, Identity, Table};
use crate::change::{Cell, Change, Column, Commit, Lsn, Operation, Relation, Row, TableName};
use crate::config::test::{RawAnswer, RawRow};
use crate::config::{Problems, RawTest, Spanned};
use crate::nearest::nearest;
use crate::rules::{self, Rule, RuleSet, Trigger, Widening};
use crate::source::images::{Image, Images};

/// Every test is committed here and then.
pub(super) const COMMIT: Commit = Commit { lsn: Lsn::new(1), at: Some(SystemTime::UNIX_EPOCH) };

/// The rows that each lookup returns, by its position in the file.
pub(super) type Answers = HashMap<usize, Vec<Vec<(String, Cell)>>>;

/// A test, ready.
#[derive(Debug)]
pub(super) struct Case<'a> {
    pub(super) raw: &'a RawTest,
    /// The change with every value of both rows.
    pub(super) full: Change,
    /// The change as the log carries it, if that is less.
    pub(super) carried: Option<Carried>,
    pub(super) answers: Answers,
    /// Whether the catalog says which columns there are.
    pub(super) is_table_known: bool,
}

/// A change of which the log does not carry the whole row before.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) change: Change,
    /// The columns whose old value it carries.
    pub(super) columns: Vec<String>,
    /// Those whose old value it lacks.
    pub(super) lacking: Vec<String>,
}

/// What tests are made ready with.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    tests: &'a [RawTest],
    pub(super) rules: Arc<RuleSet>,
    catalog: Option<Catalog>,
    widenings: Vec<Widening>,
}

impl<'a> Bench<'a> {
    /// The tests of a file, with what is known of the database.
    pub(super) fn new(loaded: &'a Loaded, catalog: Option<Catalog>) -> Self {
        // What the rules and the catalog do not agree about is for `check` to say.
        let mut ignored = Problems::default();
        let mut rules = loaded.rules.clone();
        let mut widenings = Vec::new();
        if let Some(catalog) = &catalog {
            rules = rules.resolve(catalog, &mut ignored);
            widenings = rules.check_identities(catalog, &mut ignored);
        }
        Self { tests: &loaded.tests, rules: Arc::new(rules), catalog, widenings }
    }

    /// Every test, or everything that is wrong with them.
    pub(super) fn cases(&self) -> Result<Vec<Case<'a>>, Problems> {
        let mut problems = Problems::default();
        let cases: Vec<_> = self.tests.iter().filter_map(|test| self.case(test, &mut problems)).collect();
        problems.sort();
        if problems.is_empty() { Ok(cases) } else { Err(problems) }
    }

    fn case(&self, test: &'a RawTest, problems: &mut Problems) -> Option<Case<'a>> {
        let answers = self.answers(&test.lookups, problems);
        let (name, table) = self.subject(test, problems)?;
        let seen = seen(test, name);
        let (full, identity) = match table {
            Some(table) => {
                check_columns(test, table, problems);
                (complete(&seen, table), self.identity(table))
            }
            None => {
                let identity = Identity::Columns(self.needed(&seen.relation.name));
                (seen, identity)
            }
        };
        let carried = carried(&full, &identity);
        Some(Case { raw: test, full, carried, answers, is_table_known: table.is_some() })
    }

    /// What the test is about, and what the catalog has of it.
    fn subject(&self, test: &RawTest, problems: &mut Problems) -> Option<(TableName, Option<&Table>)> {
        let subject = &test.subject;
        if test.operation == Operation::Event {
            let events = self.rules.events();
            if !events.contains(&subject.value.as_str()) {
                let message = format!("no rule waits for the event `{}`", subject.value);
                problems.push(subject.span.clone(), message, did_you_mean(&subject.value, events));
                return None;
            }
            return Some((TableName::new("", subject.value.clone()), None));
        }
        let name = TableName::parse(&subject.value);
        if let Some(table) = self.catalog.as_ref().and_then(|catalog| catalog.find(&name)) {
            return Some((table.name.clone(), Some(table)));
        }
        if !self.rules.rules().iter().any(|rule| is_about(rule, &name)) {
            let of_rules = self.rules.tables().into_iter();
            let of_catalog = self.catalog.iter().flat_map(|catalog| catalog.tables.iter().map(|table| &table.name));
            let known: BTreeSet<String> = of_rules.chain(of_catalog).map(|table| shown_as(table, &name)).collect();
            let advice = did_you_mean(&subject.value, known.iter().map(String::as_str));
            problems.push(subject.span.clone(), format!("no rule names a table `{}`", subject.value), advice);
            return None;
        }
        Some((name, None))
    }

    fn answers(&self, answers: &[RawAnswer], problems: &mut Problems) -> Answers {
        let mut found = Answers::new();
        for RawAnswer { lookup, rows } in answers {
            let position = self.rules.lookups().iter().position(|known| known.name.value == lookup.value);
            let Some(position) = position else {
                let known = self.rules.lookups().iter().map(|known| known.name.value.as_str());
                let advice = did_you_mean(&lookup.value, known);
                problems.push(lookup.span.clone(), format!("there is no lookup `{}`", lookup.value), advice);
                continue;
            };
            let row =
                |row: &RawRow| row.iter().map(|(name, value)| (name.value.clone(), cell(value))).collect::<Vec<_>>();
            found.insert(position, rows.iter().map(row).collect());
        }
        found
    }

    /// What the table's identity carries once `setup` has run.
    fn identity(&self, table: &Table) -> Identity {
        match self.widenings.iter().find(|widening| widening.table == table.name) {
            Some(widening) if widening.columns.is_empty() => Identity::Full,
            Some(widening) => Identity::Columns(widening.columns.clone()),
            None => table.identity.clone(),
        }
    }

    /// The columns whose old values the keys of a table's rules need: the least that any identity will carry.
    fn needed(&self, table: &TableName) -> Vec<String> {
        let needs_old = |rule: &&Rule| rule.triggers_on(Operation::Update) || rule.triggers_on(Operation::Delete);
        let rules = self.rules.rules().iter().filter(|rule| is_about(rule, table)).filter(needs_old);
        let columns: BTreeSet<_> = rules.flat_map(old_columns).collect();
        columns.into_iter().collect()
    }
}

/// The columns whose old values the names of a rule, or what it asks a lookup, are made of.
pub(super) fn old_columns(rule: &Rule) -> impl Iterator<Item = String> {
    let arguments = rule.for_each.iter().flat_map(|for_each| &for_each.arguments);
    let references = rule.names().chain(arguments).flat_map(|template| template.value.references());
    let old = references.filter(|reference| matches!(reference.image, rules::Image::Either | rules::Image::Old));
    old.map(|reference| reference.column.clone())
}

/// Whether a rule is about a table: a schema that either leaves out is no difference.
fn is_about(rule: &Rule, table: &TableName) -> bool {
    let named = &rule.table.value;
    let same_schema = named.schema == table.schema || named.schema.is_empty() || table.schema.is_empty();
    rule.trigger == Trigger::Table && named.table == table.table && same_schema
}

/// A table's name with a schema only where the other has one.
fn shown_as(table: &TableName, other: &TableName) -> String {
    if other.schema.is_empty() { table.table.clone() } else { table.to_string() }
}

fn did_you_mean<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    let known: Vec<_> = known.into_iter().collect();
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => "the file has none".to_owned(),
        None => {
            let quoted: Vec<_> = known.iter().map(|known| format!("`{known}`")).collect();
            format!("expected one of {}", quoted.join(", "))
        }
    }
}

/// Reports the columns of the test that the table does not have.
fn check_columns(test: &RawTest, table: &Table, problems: &mut Problems) {
    let names = || table.columns.iter().map(|column| column.name.as_str());
    for (Spanned { value, span }, _) in test.row.iter().chain(&test.set) {
        if !names().any(|known| known == value) {
            let message = format!("table {} has no column `{value}`", table.name);
            problems.push(span.clone(), message, did_you_mean(value, names()));
        }
    }
}

/// The change as the test shows it, which is how a recording would.
fn seen(test: &RawTest, name: TableName) -> Change {
    let (row, changed) = (image(&[&test.row]), image(&[&test.row, &test.set]));
    let (old, new) = match test.operation {
        Operation::Insert | Operation::Event => (None, Some(&row)),
        Operation::Update => (Some(&row), Some(&changed)),
        Operation::Delete => (Some(&row), None),
        Operation::Truncate => (None, None),
    };
    Images::default().change(name, test.operation, old, new)
}

/// An image with the values of these rows; of each column the last.
fn image(rows: &[&RawRow]) -> Image {
    let mut image = Image::new();
    for (name, value) in rows.iter().flat_map(|row| row.iter()) {
        image.insert(name.value.clone(), to_raw_value(value).expect("a JSON value always serializes"));
    }
    image
}

/// The same with every column of the table, in its order: those that the test leaves out are NULL.
fn complete(seen: &Change, table: &Table) -> Change {
    let position = |name: &str| seen.relation.columns.iter().position(|column| column.name == name);
    let positions: Vec<_> = table.columns.iter().map(|column| position(&column.name)).collect();
    let row = |row: &Row| {
        let cells = positions.iter().map(|position| match position.map(|at| row.cell(at)) {
            None | Some(Cell::Absent) => Cell::Null,
            Some(cell) => cell.clone(),
        });
        Row::new(cells.collect())
    };
    let columns =
        table.columns.iter().map(|column| Column { name: column.name.clone(), kind: column.kind, in_identity: true });
    let (id, name) = (seen.relation.id, seen.relation.name.clone());
    Change {
        relation: Arc::new(Relation { id, name, columns: columns.collect() }),
        operation: seen.operation,
        old: seen.old.as_ref().map(row),
        new: seen.new.as_ref().map(row),
    }
}

/// A value as PostgreSQL writes it.
fn cell(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::Null,
        Value::String(text) => Cell::Value(Bytes::from(text.clone())),
        other => Cell::Value(Bytes::from(other.to_string())),
    }
}

/// The change as the log has it: of the row before, what the identity carries.
fn carried(full: &Change, identity: &Identity) -> Option<Carried> {
    let old = full.old.as_ref()?;
    let (mut columns, mut lacking, mut cells) = (Vec::new(), Vec::new(), Vec::new());
    for (column, cell) in full.relation.columns.iter().zip(old.cells()) {
        if identity.carries(&column.name) {
            columns.push(column.name.clone());
            cells.push(cell.clone());
            continue;
        }
        if *cell != Cell::Absent {
            lacking.push(column.name.clone());
        }
        cells.push(Cell::Absent);
    }
    if lacking.is_empty() {
        return None;
    }
    let change = Change { old: Some(Row::new(cells)), ..full.clone() };
    Some(Carried { change, columns, lacking })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CatalogColumn;
    use crate::change::Kind;

    const RULES: &str = "version: 1
rules:
  user: {table: users, changed: [name], delete: ['user:{id}', 'user-email:{email|lower}']}
  other: {event: product.updated, delete: 'p:{id}'}
lookups: {members: {sql: select 1}}
";

    fn load(tests: &str) -> Loaded {
        let text = format!("{RULES}tests:\n{tests}");
        Loaded::parse("f.yaml".as_ref(), text, &|_| None).map_err(|failure| failure.message).unwrap()
    }

    fn catalog() -> Catalog {
        let column = |name: &str, kind| CatalogColumn {
            name: name.to_owned(),
            type_name: "text".to_owned(),
            kind,
            not_null: true,
        };
        let name = TableName::new("public", "users");
        let table = Table {
            columns: vec![column("id", Kind::Integer), column("email", Kind::Text), column("name", Kind::Text)],
            primary_key: vec!["id".to_owned()],
            unique: Vec::new(),
            foreign_keys: Vec::new(),
            identity: Identity::Columns(vec!["id".to_owned()]),
            unlogged: false,
            leaves: vec![name.clone()],
            name,
        };
        Catalog { tables: vec![table], search_path: vec!["public".to_owned()] }
    }

    /// Both rows as `name=value`, `-` for NULL and `?` for what is not known.
    fn rows(change: &Change) -> [String; 2] {
        [&change.old, &change.new].map(|row| {
            let Some(row) = row else { return String::new() };
            let shown = change.relation.columns.iter().zip(row.cells()).map(|(column, cell)| match cell {
                Cell::Value(value) => format!("{}={}", column.name, String::from_utf8_lossy(value)),
                Cell::Null => format!("{}=-", column.name),
                Cell::Absent => format!("{}=?", column.name),
            });
            shown.collect::<Vec<_>>().join(" ")
        })
    }

    #[test]
    fn a_change_has_the_columns_that_are_known() {
        let loaded = load("  - {it: x, update: users, row: {id: 1, email: a}, set: {email: b, name: true}}\n");
        let bench = Bench::new(&loaded, Some(catalog()));
        let cases = bench.cases().unwrap();
        let carried = cases[0].carried.as_ref().unwrap();
        assert_eq!(rows(&cases[0].full), ["id=1 email=a name=-", "id=1 email=b name=true"]);
        assert_eq!(rows(&carried.change), ["id=1 email=a name=?", "id=1 email=b name=true"]);
        assert_eq!([carried.columns.join(" "), carried.lacking.join(" ")], ["id email", "name"]);
    }

    #[test]
    fn without_a_catalog_a_change_has_the_columns_of_the_test() {
        let loaded = load("  - {it: x, update: users, row: {id: null, email: a, name: n}, set: {id: 1, plan: p}}\n");
        let cases = Bench::new(&loaded, None).cases().unwrap();
        let carried = cases[0].carried.as_ref().unwrap();
        assert_eq!(rows(&cases[0].full), ["id=- email=a name=n plan=?", "id=1 email=a name=n plan=p"]);
        assert_eq!(rows(&carried.change)[0], "id=- email=a name=? plan=?", "the keys need the first two");
        assert_eq!(carried.lacking, ["name"]);
        let kinds: Vec<_> = cases[0].full.relation.columns.iter().map(|column| column.kind).collect();
        assert_eq!(kinds, [Kind::Integer, Kind::Text, Kind::Text, Kind::Text]);
    }

    #[test]
    fn what_a_test_may_not_name() {
        let check = |test: &str, known: bool, expected: &str| {
            let loaded = load(&format!("  - {{it: x, {test}}}\n"));
            let found = Bench::new(&loaded, known.then(catalog)).cases().map(drop).unwrap_err();
            let shown: Vec<_> =
                found.iter().map(|problem| format!("{}; {}", problem.message, problem.advice)).collect();
            assert!(shown.len() == 1 && shown[0].contains(expected), "{test}: {shown:?}");
        };
        check("truncate: usres", false, "no rule names a table `usres`; did you mean `users`?");
        check("truncate: public.usres", true, "did you mean `public.users`?");
        check("event: product.update, row: {}", false, "did you mean `product.updated`?");
        check(
            "insert: users, row: {emial: x}",
            true,
            "table public.users has no column `emial`; did you mean `email`?",
        );
        check("truncate: users, lookups: {member: []}", false, "there is no lookup `member`; did you mean `members`?");
    }
}
