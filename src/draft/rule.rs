//! The rule of one table and its tests, as lines of the file.
//!
//! Owns which keys a table gets, and the layout of rules and tests. It must not know which tables
//! are drafted. Invariants: an active rule has at least one key; tests expect what the keys render
//! to.

use std::collections::{BTreeMap, BTreeSet};

use super::key::{Generated, Key, Nth, columns, cost, sample, unique_sets};
use super::name::{TakenNames, row_of, slug};
use super::yaml;
use crate::catalog::{CatalogColumn, ForeignKey, Table};
use crate::change::{ColumnKind, TableName};

/// One table's rule.
#[derive(Debug)]
pub(super) struct DraftRule<'a> {
    /// The name of the rule.
    name: String,
    /// The table, as the file names it.
    table: &'a str,
    keys: Vec<Key<'a>>,
    /// Comments for the reader, one line each.
    remarks: Vec<String>,
    /// The columns that `changed:` may list.
    others: Vec<&'a CatalogColumn>,
    /// The column that the test of an update changes.
    moving: Option<&'a CatalogColumn>,
    /// The columns that keys use, in the order of the table.
    read: Vec<&'a CatalogColumn>,
    /// Why the rule is only a comment, if it is.
    why_not: Option<&'static str>,
}

/// Drafts the rules of these tables; each comes with its name in the file.
pub(super) fn draft<'a>(tables: &'a [(&'a Table, String)], generated: &Generated) -> Vec<DraftRule<'a>> {
    let mut names = TakenNames::default();
    // Names of rows come first: `user` is a key of users, in whatever order the tables come.
    let mut rows = BTreeMap::new();
    for (table, _) in tables {
        let row = row_of(&table.name.table);
        let qualified = format!("{}-{row}", slug(&table.name.schema, "schema"));
        rows.insert(&table.name, names.take(&[row, qualified]));
    }
    let mut drafter = Drafter { names, rows, generated };
    tables.iter().map(|(table, text)| drafter.rule(table, text)).collect()
}

struct Drafter<'a> {
    /// The prefixes of keys; each is used once.
    names: TakenNames,
    /// The name of one row of each table.
    rows: BTreeMap<&'a TableName, String>,
    generated: &'a Generated,
}

impl Drafter<'_> {
    fn rule<'a>(&mut self, table: &'a Table, text: &'a str) -> DraftRule<'a> {
        let name = self.row(&table.name);
        let mut remarks = Vec::new();
        let mut keys = Vec::new();
        let (primary, unfit) = columns(table, &table.primary_key, self.generated);
        remarks.extend(unfit.iter().map(|(column, why)| format!("no key by {}: {why}", yaml::key(column))));
        if !primary.is_empty() {
            keys.push(Key { prefix: name.clone(), columns: primary, remark: None });
        }
        for set in unique_sets(table) {
            let prefix = [format!("{name}-by-{}", joined(set))];
            keys.extend(self.key(table, set, &prefix, &mut remarks));
        }
        for foreign_key in lists(table, &keys) {
            let prefixes = self.list_names(table, foreign_key);
            let key = self.key(table, &foreign_key.columns, &prefixes, &mut remarks);
            let parent = self.row(&foreign_key.table);
            keys.extend(key.map(|key| {
                let lists = format!("list of one {parent}");
                let remark = key.remark.map_or(lists.clone(), |remark| format!("{lists}; {remark}"));
                Key { remark: Some(remark), ..key }
            }));
        }
        let why_not = match (table.primary_key.is_empty(), keys.is_empty()) {
            (true, _) => Some("has no primary key; add one, so that updates and deletes identify their row"),
            (false, true) => Some("has no column that is suitable for a key"),
            (false, false) => None,
        };
        if keys.is_empty() {
            keys.push(Key { prefix: format!("{name}:all"), columns: Vec::new(), remark: None });
        }
        let in_primary = |column: &CatalogColumn| table.primary_key.contains(&column.name);
        let computed = |column: &CatalogColumn| self.generated.contains(&(table.name.clone(), column.name.clone()));
        DraftRule {
            others: table.columns.iter().filter(|column| !in_primary(column) && !computed(column)).collect(),
            moving: keys.iter().flat_map(|key| &key.columns).copied().find(|column| !in_primary(column)),
            read: table.columns.iter().filter(|column| keys.iter().any(|key| key.reads(column))).collect(),
            name,
            table: text,
            keys,
            remarks,
            why_not,
        }
    }

    /// The name of one row of a table, with or without a rule.
    fn row(&self, table: &TableName) -> String {
        self.rows.get(table).cloned().unwrap_or_else(|| row_of(&table.table))
    }

    /// The key by these columns. If a column is not suitable, adds a remark and returns none.
    fn key<'a>(
        &mut self,
        table: &'a Table,
        names: &[String],
        prefixes: &[String],
        remarks: &mut Vec<String>,
    ) -> Option<Key<'a>> {
        let (columns, unfit) = columns(table, names, self.generated);
        if let Some((column, why)) = unfit.first() {
            let names: Vec<_> = names.iter().map(|name| yaml::key(name)).collect();
            let and_which = if names.len() > 1 { format!(" ({})", yaml::key(column)) } else { String::new() };
            let remark = format!("no key by {}: {why}{and_which}", names.join(", "));
            // A foreign key and a unique index may have the same columns.
            if !remarks.contains(&remark) {
                remarks.push(remark);
            }
            return None;
        }
        let remark = cost(&columns);
        Some(Key { prefix: self.names.take(prefixes), columns, remark })
    }

    /// Candidate names for the list of rows that reference one row of another table.
    fn list_names(&self, table: &Table, foreign_key: &ForeignKey) -> Vec<String> {
        let list = format!("{}-{}", self.row(&foreign_key.table), slug(&table.name.table, "table"));
        let by = format!("{list}-by-{}", joined(&foreign_key.columns));
        // With two foreign keys to the same table, neither gets the short name.
        let ways = table.foreign_keys.iter().filter(|other| other.table == foreign_key.table);
        let columns: BTreeSet<_> = ways.map(|other| &other.columns).collect();
        if columns.len() > 1 { vec![by] } else { vec![list, by] }
    }
}

/// The foreign keys that get a list: those whose values several rows may share.
fn lists<'a>(table: &'a Table, keys: &[Key<'_>]) -> Vec<&'a ForeignKey> {
    let mut foreign_keys: Vec<_> = table.foreign_keys.iter().collect();
    foreign_keys.sort_by_key(|foreign_key| (&foreign_key.columns, &foreign_key.table));
    let mut seen = BTreeSet::new();
    foreign_keys.retain(|foreign_key| {
        let own: BTreeSet<&str> = foreign_key.columns.iter().map(String::as_str).collect();
        let one_row = keys.iter().any(|key| key.names().is_subset(&own));
        !own.is_empty() && !one_row && seen.insert(own)
    });
    foreign_keys
}

fn joined(columns: &[String]) -> String {
    columns.iter().map(|column| slug(column, "column")).collect::<Vec<_>>().join("-")
}

impl DraftRule<'_> {
    /// Whether the rule is not only a comment.
    pub(super) fn is_active(&self) -> bool {
        self.why_not.is_none()
    }

    /// Why the rule is only a comment, after the table's name.
    pub(super) fn excuse(&self) -> Option<String> {
        self.why_not.map(|why_not| format!("{} {why_not}", yaml::key(self.table)))
    }

    /// The text of the rule, below `rules:`.
    pub(super) fn yaml(&self) -> String {
        let excuse = self.excuse().map(|excuse| format!("  # {excuse}.\n")).unwrap_or_default();
        let margin = if self.is_active() { "  " } else { "  # " };
        let lines: String = self.lines().iter().map(|line| format!("{margin}{line}\n")).collect();
        excuse + &lines
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{}:", yaml::key(&self.name)), format!("  table: {}", yaml::text(self.table))];
        if !self.others.is_empty() {
            let columns = yaml::list(self.others.iter().map(|column| &column.name));
            let meaning = "limits updates to the columns that you cache";
            lines.push(format!("  # changed: {columns}   # {meaning}"));
        }
        lines.extend(self.remarks.iter().map(|remark| format!("  # {remark}")));
        lines.push("  delete:".to_owned());
        lines.extend(self.keys.iter().map(|key| {
            let remark = key.remark.as_ref().map(|remark| format!("   # {remark}")).unwrap_or_default();
            format!("    - {}{remark}", yaml::text(&key.template()))
        }));
        lines
    }

    /// The text of its tests, below `tests:`.
    pub(super) fn tests(&self) -> Vec<String> {
        if !self.is_active() {
            return Vec::new();
        }
        let it = format!("{}: an insert deletes its keys", self.name);
        let expected = self.keys.iter().map(|key| key.rendered(|_| Nth::First));
        let mut tests = vec![self.test(&it, "insert", None, expected)];
        if let Some(moving) = self.moving {
            let column = yaml::comment(&moving.name);
            let it = format!("{}: a change of {column} deletes the keys of both values", self.name);
            let after = |column: &CatalogColumn| if column.name == moving.name { Nth::Second } else { Nth::First };
            let expected = self.keys.iter().flat_map(|key| {
                let before = key.reads(moving).then(|| key.rendered(|_| Nth::First));
                [Some(key.rendered(after)), before].into_iter().flatten()
            });
            tests.push(self.test(&it, "update", Some(moving), expected));
        }
        tests
    }

    fn test(
        &self,
        it: &str,
        operation: &str,
        moving: Option<&CatalogColumn>,
        expected: impl Iterator<Item = String>,
    ) -> String {
        let row: Vec<_> = self.read.iter().map(|column| written(column, Nth::First)).collect();
        let mut test = format!("  - it: {}\n    {operation}: {}\n", yaml::text(it), yaml::text(self.table));
        test.push_str(&format!("    row: {{{}}}\n", row.join(", ")));
        if let Some(moving) = moving {
            test.push_str(&format!("    set: {{{}}}\n", written(moving, Nth::Second)));
        }
        test.push_str(&format!("    expect:\n      delete: {}\n", yaml::list(expected)));
        test
    }
}

/// A column and its sample value.
fn written(column: &CatalogColumn, nth: Nth) -> String {
    let value = sample(column, nth);
    let value = match column.kind {
        ColumnKind::Integer | ColumnKind::Boolean => value,
        _ => yaml::text(&value),
    };
    format!("{}: {value}", yaml::key(&column.name))
}
