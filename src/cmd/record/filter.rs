//! Which changes are recorded, and which of their columns are redacted.
//!
//! Owns the tables and columns of `--tables` and `--redact`. Invariant: a column is redacted under
//! every name that its table's rows may arrive with: that of a partition, and that of its root.

use std::collections::HashSet;

use crate::catalog::{Catalog, Table};
use crate::change::{Change, Operation, TableName};
use crate::cmd::display::printable;
use crate::cmd::failure::Failure;
use crate::cmd::tables::{find_table, require_column};
use crate::source::recording::write::Redaction;

/// What is recorded, and what is redacted.
pub(super) struct RecordFilter {
    /// Only these tables. `None` for all changes.
    tables: Option<HashSet<TableName>>,
    pub(super) redaction: Redaction,
}

impl RecordFilter {
    /// Finds the named tables and columns in the catalog.
    pub(super) fn new(tables: &[String], redact: &[String], catalog: &Catalog) -> Result<Self, Failure> {
        let mut wanted = HashSet::new();
        for name in tables {
            wanted.extend(family(find_table(name.trim(), catalog)?, catalog).cloned());
        }
        let mut redaction = Redaction::new(rand::random());
        for name in redact {
            let expected = || Failure::usage(format!("--redact {}: expected `table.column`", printable(name)));
            let (table, column) = name.rsplit_once('.').ok_or_else(expected)?;
            let table = find_table(table.trim(), catalog)?;
            require_column(table, column)?;
            family(table, catalog).for_each(|table| redaction.add(table.clone(), column));
        }
        Ok(Self { tables: (!tables.is_empty()).then_some(wanted), redaction })
    }

    /// Whether a change is recorded.
    pub(super) fn includes(&self, change: &Change) -> bool {
        let Some(tables) = &self.tables else { return true };
        change.operation != Operation::Event && tables.contains(&change.relation.name)
    }
}

/// Every table that shares rows with this one: itself, its partitions, and its root.
fn family<'a>(table: &'a Table, catalog: &'a Catalog) -> impl Iterator<Item = &'a TableName> {
    let related = move |other: &&Table| other.leaves.iter().any(|leaf| table.leaves.contains(leaf));
    let others = catalog.tables.iter().filter(related).map(|other| &other.name);
    std::iter::once(&table.name).chain(others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{CatalogColumn, Identity};
    use crate::change::{ColumnKind, Relation, RelationId, Row};
    use crate::cmd::failure::Exit;

    fn table(name: &str, leaves: &[&str]) -> Table {
        let column = |name: &str| CatalogColumn {
            name: name.to_owned(),
            type_name: "text".to_owned(),
            kind: ColumnKind::Text,
            not_null: true,
            ..CatalogColumn::default()
        };
        Table {
            name: TableName::new("public", name),
            columns: vec![column("id"), column("email")],
            primary_key: Vec::new(),
            unique: Vec::new(),
            foreign_keys: Vec::new(),
            identity: Identity::Full,
            unlogged: false,
            leaves: leaves.iter().map(|leaf| TableName::new("public", *leaf)).collect(),
            ..Table::default()
        }
    }

    fn catalog() -> Catalog {
        let tables = vec![
            table("users", &["users"]),
            table("events", &["events_1", "events_2"]),
            table("events_1", &["events_1"]),
            table("events_2", &["events_2"]),
        ];
        Catalog { tables, search_path: vec!["public".to_owned()], ..Catalog::default() }
    }

    fn change(table: &str, operation: Operation) -> Change {
        let relation = Relation {
            id: RelationId::new(1),
            name: TableName::new("public", table),
            also: Vec::new(),
            columns: Vec::new(),
        };
        Change { relation: std::sync::Arc::new(relation), operation, old: None, new: Some(Row::default()) }
    }

    #[test]
    fn a_table_stands_for_its_partitions() {
        let filter = |tables: &[&str]| {
            let tables: Vec<_> = tables.iter().map(ToString::to_string).collect();
            RecordFilter::new(&tables, &[], &catalog()).unwrap()
        };
        let check = |tables: &[&str], expected: [bool; 5]| {
            let filter = filter(tables);
            let names = ["users", "events", "events_1", "events_2"];
            let of_tables = names.map(|name| filter.includes(&change(name, Operation::Insert)));
            let found = [&of_tables[..], &[filter.includes(&change("users", Operation::Event))]].concat();
            assert_eq!(found, expected, "{tables:?}");
        };
        check(&[], [true; 5]);
        check(&["users"], [true, false, false, false, false]);
        check(&["events"], [false, true, true, true, false]);
        check(&["public.events_1"], [false, true, true, false, false]);
        check(&["users", "events_2"], [true, true, false, true, false]);
    }

    #[test]
    fn an_unknown_name_is_reported_with_the_nearest() {
        let check = |tables: &[&str], redact: &[&str], expected: &str| {
            let [tables, redact] =
                [tables, redact].map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>());
            let failure = RecordFilter::new(&tables, &redact, &catalog()).err().unwrap();
            assert!(failure.exit == Exit::Usage && failure.message.contains(expected), "{failure:?}");
        };
        check(&["usres"], &[], "did you mean `users`?");
        check(&["other.users"], &[], "did you mean `public.users`?");
        check(&[], &["usres.email"], "did you mean `users`?");
        check(&[], &["users.emial"], "did you mean `email`?");
        check(&[], &["users.frobnicate"], "it has id, email");
        check(&[], &["users"], "expected `table.column`");
    }
}
