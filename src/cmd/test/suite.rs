//! The tests of a file, prepared: each with its change as it was and as the log would carry it.
//!
//! Owns the problems of tests that name what does not exist. It must not plan or compare.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::case::{Answers, Case, old_columns};
use super::rows::{carried, cell, complete, seen};
use crate::catalog::{Catalog, Identity, Table};
use crate::change::{Operation, TableName};
use crate::cmd::config_file::ConfigFile;
use crate::cmd::preflight::catalog_fit::CatalogFit;
use crate::config::test::{RawAnswer, RawRow};
use crate::config::{Mode, Problems, RawTest, Spanned};
use crate::nearest::nearest;
use crate::rules::{Remedy, Rule, RuleSet, Trigger, Widening};

/// The tests of a file, and what they are prepared with.
#[derive(Debug)]
pub(super) struct TestSuite<'a> {
    tests: &'a [RawTest],
    pub(super) rules: Arc<RuleSet>,
    catalog: Option<Catalog>,
    widenings: Vec<Widening>,
}

impl<'a> TestSuite<'a> {
    /// The tests of a file, with the catalog of the lock file if it exists.
    pub(super) fn new(file: &'a ConfigFile, catalog: Option<Catalog>) -> Self {
        // `check` reports where the rules do not fit the catalog. In outbox mode, too, a test is
        // run with the columns that a replica identity would carry.
        let (rules, widenings) = match &catalog {
            Some(catalog) => {
                let fit = CatalogFit::of(&file.rules, catalog, Mode::Slot);
                (fit.rules, fit.widenings)
            }
            None => (file.rules.clone(), Vec::new()),
        };
        Self { tests: &file.tests, rules: Arc::new(rules), catalog, widenings }
    }

    /// Prepares every test. Everything that is wrong with them is reported at once.
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

    /// The table or event of a test, and the table in the catalog if it is known.
    fn subject(&self, test: &RawTest, problems: &mut Problems) -> Option<(TableName, Option<&Table>)> {
        let subject = &test.subject;
        if test.operation == Operation::Event {
            let events = self.rules.events();
            if !events.contains(&subject.value.as_str()) {
                let message = format!("no rule has the event `{}`", subject.value);
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

    /// The replica identity that the table has once `setup` has run.
    fn identity(&self, table: &Table) -> Identity {
        match self.widenings.iter().find(|widening| widening.table == table.name) {
            Some(Widening { remedy: Remedy::Index(columns), .. }) => Identity::Columns(columns.clone()),
            Some(Widening { remedy: Remedy::Full, .. }) => Identity::Full,
            Some(Widening { remedy: Remedy::Nothing(_), .. }) | None => table.identity.clone(),
        }
    }

    /// The columns whose old values the keys of a table's rules need. Every sufficient identity
    /// carries them.
    fn needed(&self, table: &TableName) -> Vec<String> {
        let needs_old = |rule: &&Rule| rule.triggers_on(Operation::Update) || rule.triggers_on(Operation::Delete);
        let rules = self.rules.rules().iter().filter(|rule| is_about(rule, table)).filter(needs_old);
        let columns: BTreeSet<_> = rules.flat_map(old_columns).collect();
        columns.into_iter().collect()
    }
}

/// Whether a rule is about a table. A schema is compared only if both names have one.
fn is_about(rule: &Rule, table: &TableName) -> bool {
    let named = &rule.table.value;
    let same_schema = named.schema == table.schema || named.schema.is_empty() || table.schema.is_empty();
    rule.trigger == Trigger::Table && named.table == table.table && same_schema
}

/// A table's name, with its schema only if the other name has one.
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

/// Reports columns of a test that its table does not have.
fn check_columns(test: &RawTest, table: &Table, problems: &mut Problems) {
    let names = || table.columns.iter().map(|column| column.name.as_str());
    for (Spanned { value, span }, _) in test.row.iter().chain(&test.set) {
        if !names().any(|known| known == value) {
            let message = format!("table {} has no column `{value}`", table.name);
            problems.push(span.clone(), message, did_you_mean(value, names()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CatalogColumn;
    use crate::change::{Cell, Change, ColumnKind};

    const RULES: &str = "version: 1
rules:
  user: {table: users, changed: [name], delete: ['user:{id}', 'user-email:{email|lower}']}
  other: {event: product.updated, delete: 'p:{id}'}
lookups: {members: {sql: select 1}}
";

    fn load(tests: &str) -> ConfigFile {
        let text = format!("{RULES}tests:\n{tests}");
        ConfigFile::parse("f.yaml".as_ref(), text, &|_| None).map_err(|failure| failure.message).unwrap()
    }

    fn catalog() -> Catalog {
        let column = |name: &str, kind| CatalogColumn {
            name: name.to_owned(),
            type_name: "text".to_owned(),
            kind,
            not_null: true,
            ..CatalogColumn::default()
        };
        let name = TableName::new("public", "users");
        let table = Table {
            columns: vec![
                column("id", ColumnKind::Integer),
                column("email", ColumnKind::Text),
                column("name", ColumnKind::Text),
            ],
            primary_key: vec!["id".to_owned()],
            unique: Vec::new(),
            foreign_keys: Vec::new(),
            identity: Identity::Columns(vec!["id".to_owned()]),
            unlogged: false,
            leaves: vec![name.clone()],
            name,
            ..Table::default()
        };
        Catalog { tables: vec![table], search_path: vec!["public".to_owned()], ..Catalog::default() }
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
        let file = load("  - {it: x, update: users, row: {id: 1, email: a}, set: {email: b, name: true}}\n");
        let suite = TestSuite::new(&file, Some(catalog()));
        let cases = suite.cases().unwrap();
        let carried = cases[0].carried.as_ref().unwrap();
        assert_eq!(rows(&cases[0].full), ["id=1 email=a name=-", "id=1 email=b name=true"]);
        assert_eq!(rows(&carried.change), ["id=1 email=a name=?", "id=1 email=b name=true"]);
        assert_eq!([carried.columns.join(" "), carried.lacking.join(" ")], ["id email", "name"]);
    }

    #[test]
    fn without_a_catalog_a_change_has_the_columns_of_the_test() {
        let file = load("  - {it: x, update: users, row: {id: null, email: a, name: n}, set: {id: 1, plan: p}}\n");
        let cases = TestSuite::new(&file, None).cases().unwrap();
        let carried = cases[0].carried.as_ref().unwrap();
        assert_eq!(rows(&cases[0].full), ["id=- email=a name=n plan=?", "id=1 email=a name=n plan=p"]);
        assert_eq!(rows(&carried.change)[0], "id=- email=a name=? plan=?", "the keys need the first two");
        assert_eq!(carried.lacking, ["name"]);
        let kinds: Vec<_> = cases[0].full.relation.columns.iter().map(|column| column.kind).collect();
        assert_eq!(kinds, [ColumnKind::Integer, ColumnKind::Text, ColumnKind::Text, ColumnKind::Text]);
    }

    #[test]
    fn what_a_test_may_not_name() {
        let check = |test: &str, known: bool, expected: &str| {
            let file = load(&format!("  - {{it: x, {test}}}\n"));
            let found = TestSuite::new(&file, known.then(catalog)).cases().map(drop).unwrap_err();
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
