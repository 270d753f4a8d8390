//! The keys of one table: their templates, and what these render to for a sample row.
//!
//! Owns which columns are suitable for keys. It must not know rules, YAML or other tables.
//! Invariant: one function builds both template and rendered key, so tests expect what the rule
//! says.

use std::collections::BTreeSet;

use crate::catalog::{CatalogColumn, Table};
use crate::change::{ColumnKind, TableName};

/// Generated columns.
pub(super) type Generated = BTreeSet<(TableName, String)>;

/// A key that changes of a table's rows make stale.
#[derive(Clone, Debug)]
pub(super) struct Key<'a> {
    /// The prefix: letters, digits and `-`.
    pub(super) prefix: String,
    pub(super) columns: Vec<&'a CatalogColumn>,
    /// A comment for the reader.
    pub(super) remark: Option<String>,
}

/// Selects one of a column's two sample values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nth {
    First = 1,
    Second = 2,
}

impl Key<'_> {
    /// The template in the rule.
    pub(super) fn template(&self) -> String {
        self.filled(|column| format!("{{{}{}}}", column.name, if folds_case(column) { "|lower" } else { "" }))
    }

    /// The key for a sample row. Samples are lower case, so `lower` does not change them.
    pub(super) fn rendered(&self, nth: impl Fn(&CatalogColumn) -> Nth) -> String {
        self.filled(|column| sample(column, nth(column)))
    }

    /// Whether the key contains this column.
    pub(super) fn reads(&self, column: &CatalogColumn) -> bool {
        self.columns.iter().any(|known| known.name == column.name)
    }

    /// The set of its column names.
    pub(super) fn names(&self) -> BTreeSet<&str> {
        self.columns.iter().map(|column| column.name.as_str()).collect()
    }

    fn filled(&self, value: impl Fn(&CatalogColumn) -> String) -> String {
        let mut name = self.prefix.clone();
        for column in &self.columns {
            name.push(':');
            name.push_str(&value(column));
        }
        name
    }
}

/// A possible value of a column, in lower case, as the log writes it.
pub(super) fn sample(column: &CatalogColumn, nth: Nth) -> String {
    let number = nth as u8;
    match (column.kind, column.type_name.as_str()) {
        (ColumnKind::Boolean, _) => (nth == Nth::First).to_string(),
        (ColumnKind::Integer, _) => number.to_string(),
        (ColumnKind::Numeric, _) => format!("{number}.5"),
        (_, "uuid") => format!("00000000-0000-4000-8000-00000000000{number}"),
        (_, "date") => format!("2026-01-0{number}"),
        _ => format!("{}-{number}", super::name::slug(&column.name, "value")),
    }
}

/// Whether equality ignores case.
fn folds_case(column: &CatalogColumn) -> bool {
    column.type_name == "citext" || column.type_name.ends_with(".citext")
}

/// Why a column is not suitable for a key; none if it is.
fn unfit(table: &Table, column: &CatalogColumn, generated: &Generated) -> Option<&'static str> {
    let name = column.name.as_str();
    if generated.contains(&(table.name.clone(), name.to_owned())) {
        return Some("it is a generated column, and the log does not carry it");
    }
    if name.contains(['{', '}', '|', '.']) || name.trim() != name || name.is_empty() {
        return Some("templates cannot contain this name");
    }
    match (column.kind, column.type_name.as_str()) {
        (ColumnKind::Json, _) => Some("JSON has more than one text form"),
        (ColumnKind::Timestamp, _) => Some("timestamps have more than one text form"),
        (ColumnKind::Float, _) => Some("floating-point numbers have more than one text form"),
        (_, "bytea") => Some("bytea is not suitable for a key"),
        (_, "xml" | "tsvector" | "tsquery") => Some("documents are not suitable for a key"),
        (_, name) if name.ends_with("[]") => Some("arrays are not suitable for a key"),
        _ => None,
    }
}

/// The columns of these names that are suitable for a key, and the others with the reason.
pub(super) fn columns<'a>(
    table: &'a Table,
    names: &[String],
    generated: &Generated,
) -> (Vec<&'a CatalogColumn>, Vec<(String, &'static str)>) {
    let mut fit = Vec::new();
    let mut others = Vec::new();
    for name in names {
        let found = table.columns.iter().find(|column| column.name == *name);
        match found.map(|column| (column, unfit(table, column, generated))) {
            Some((column, None)) => fit.push(column),
            Some((_, Some(why))) => others.push((name.clone(), why)),
            None => others.push((name.clone(), "it is not in the catalog")),
        }
    }
    (fit, others)
}

/// Every minimal unique set of columns, the primary key aside. An index that `unstale setup` made
/// to widen the identity contains the primary key, so it is not minimal.
pub(super) fn unique_sets(table: &Table) -> Vec<&[String]> {
    let set = |columns: &[String]| columns.iter().cloned().collect::<BTreeSet<_>>();
    let listed = table.unique.iter().map(Vec::as_slice);
    let mut sets: Vec<&[String]> = listed.filter(|columns| !columns.is_empty()).collect();
    sets.sort();
    let mut seen = BTreeSet::new();
    sets.retain(|columns| seen.insert(set(columns)));
    let primary = set(&table.primary_key);
    let is_key = |columns: &&[String]| {
        let own = set(columns);
        let contains_primary = !primary.is_empty() && primary.is_subset(&own);
        !contains_primary && !sets.iter().any(|other| set(other) != own && set(other).is_subset(&own))
    };
    sets.iter().copied().filter(is_key).collect()
}

/// A remark on nullable columns: an index on one cannot be a replica identity.
pub(super) fn cost(columns: &[&CatalogColumn]) -> Option<String> {
    let nullable = columns.iter().find(|column| !column.not_null)?;
    Some(format!("{} is nullable, so this key needs REPLICA IDENTITY FULL", super::yaml::key(&nullable.name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Rendered, Resolved, Template};

    fn column(name: &str, type_name: &str, kind: ColumnKind) -> CatalogColumn {
        CatalogColumn {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
            kind,
            not_null: true,
            ..CatalogColumn::default()
        }
    }

    #[test]
    fn what_is_expected_is_what_the_template_renders() {
        let columns = [
            column("id", "integer", ColumnKind::Integer),
            column("a b", "text", ColumnKind::Text),
            column("ok", "boolean", ColumnKind::Boolean),
            column("E-Mail", "public.citext", ColumnKind::Text),
            column("at", "date", ColumnKind::Text),
            column("ref", "uuid", ColumnKind::Text),
            column("price", "numeric(10,2)", ColumnKind::Numeric),
            column("Größe", "text", ColumnKind::Text),
            column("İ", "citext", ColumnKind::Text),
            column("\"\n:", "text", ColumnKind::Text),
            column("old", "text", ColumnKind::Text),
        ];
        let key = Key { prefix: "k".to_owned(), columns: columns.iter().collect(), remark: None };
        let template = Template::parse(&key.template(), "", None).unwrap();
        for nth in [Nth::First, Nth::Second] {
            let samples: Vec<_> = columns.iter().map(|column| sample(column, nth)).collect();
            let rendered = template.render(|at| Resolved::Value(samples[at].as_bytes()));
            assert_eq!(rendered, Rendered::Key(key.rendered(|_| nth).as_str().into()));
        }
        assert!(key.template().contains("{E-Mail|lower}"));
        for column in &columns {
            assert_ne!(sample(column, Nth::First), sample(column, Nth::Second), "{column:?}");
        }
    }

    #[test]
    fn some_columns_make_no_key() {
        let name = TableName::new("public", "t");
        let table = Table {
            name: name.clone(),
            columns: Vec::new(),
            primary_key: Vec::new(),
            unique: Vec::new(),
            foreign_keys: Vec::new(),
            identity: crate::catalog::Identity::Full,
            unlogged: false,
            leaves: vec![name.clone()],
            ..Table::default()
        };
        let generated = Generated::from([(name, "computed".to_owned())]);
        let check = |name: &str, type_name: &str, kind: ColumnKind, expected: Option<&str>| {
            let why = unfit(&table, &column(name, type_name, kind), &generated);
            assert_eq!(why.is_none(), expected.is_none(), "{name} {type_name}: {why:?}");
            assert!(why.unwrap_or_default().contains(expected.unwrap_or_default()), "{name} {type_name}: {why:?}");
        };
        check("a", "text", ColumnKind::Text, None);
        check("a$:", "uuid", ColumnKind::Text, None);
        check("computed", "text", ColumnKind::Text, Some("generated"));
        for name in ["a.b", "{a", "a}", "a|b", " a", "a\n", ""] {
            check(name, "text", ColumnKind::Text, Some("template"));
        }
        check("a", "jsonb", ColumnKind::Json, Some("JSON"));
        check("a", "real", ColumnKind::Float, Some("floating-point"));
        check("a", "timestamp with time zone", ColumnKind::Timestamp, Some("timestamps"));
        check("a", "bytea", ColumnKind::Text, Some("bytea"));
        check("a", "text[]", ColumnKind::Text, Some("arrays"));
    }
}
