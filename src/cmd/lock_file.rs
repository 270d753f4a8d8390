//! The lock file: the tables of the rules, as a database had them.
//!
//! Owns its format. It must not know what is compared with it. Invariants: the same tables make the
//! same file, byte for byte; a file of another version is refused, never partly read.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config_file::ConfigFile;
use super::failure::Failure;
use super::preflight::catalog_fit;
use crate::catalog::{Catalog, Table};
use crate::change::RelationId;
use crate::postgres;
use crate::postgres::catalog;
use crate::rules::RuleSet;

/// The version of the format.
const VERSION: u32 = 1;

/// The whole file.
#[derive(Debug, Serialize, Deserialize)]
struct LockFile {
    version: u32,
    catalog: Catalog,
}

/// What every version of the file has.
#[derive(Debug, Deserialize)]
struct LockHeader {
    version: u32,
}

/// Reads the catalog in the lock file of a configuration, if that file exists.
///
/// # Errors
///
/// The lock file exists and cannot be read, or has another version.
pub(super) fn read(config: &Path) -> Result<Option<Catalog>, Failure> {
    let path = path(config);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(&path, &error.to_string())),
    };
    parse(&text).map(Some).map_err(|reason| unusable(&path, &reason))
}

/// Writes the lock file from what the database has now. Returns how many tables it holds.
pub(super) async fn write(file: &ConfigFile) -> Result<usize, Failure> {
    let client = postgres::connect(&file.settings.postgres).await?;
    let catalog = catalog::read(&client).await?;
    let reduced = reduce(&catalog, &catalog_fit::resolve(file, &catalog)?);
    let tables = reduced.tables.len();
    let path = path(&file.path);
    std::fs::write(&path, render(reduced))
        .map_err(|error| Failure::configuration(format!("cannot write {}: {error}", path.display())))?;
    Ok(tables)
}

/// The path of the lock file: that of the configuration, with `.lock` at its end.
pub(super) fn path(config: &Path) -> PathBuf {
    let mut name = config.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    config.with_file_name(name)
}

fn unusable(path: &Path, reason: &str) -> Failure {
    let path = path.display();
    Failure::configuration(format!("cannot use {path}: {reason}; write it again with `unstale check --lock`"))
}

fn parse(text: &str) -> Result<Catalog, String> {
    let header: LockHeader = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if header.version != VERSION {
        return Err(format!("it has version {}, and this unstale reads version {VERSION}", header.version));
    }
    let lock: LockFile = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(lock.catalog)
}

fn render(catalog: Catalog) -> String {
    let lock = LockFile { version: VERSION, catalog };
    let mut text = serde_json::to_string_pretty(&lock).expect("names and numbers always serialize");
    text.push('\n');
    text
}

/// The tables that rules name, in an order that does not depend on the database.
pub(super) fn reduce(catalog: &Catalog, rules: &RuleSet) -> Catalog {
    let found = rules.tables().into_iter().filter_map(|name| catalog.find(name)).cloned();
    let mut tables: Vec<Table> = found.collect();
    tables.sort_by(|one, other| one.name.cmp(&other.name));
    tables.dedup_by(|one, other| one.name == other.name);
    for table in &mut tables {
        table.unique.sort();
        table.foreign_keys.sort_by(|one, other| (&one.columns, &one.table).cmp(&(&other.columns, &other.table)));
        table.leaves.sort();
        // The file does not have these.
        (table.id, table.row_security) = (RelationId::default(), false);
        table.members.clear();
        for column in &mut table.columns {
            (column.number, column.type_oid, column.base_oid) = (0, 0, 0);
        }
    }
    Catalog { tables, search_path: catalog.search_path.clone(), ..Catalog::default() }
}

/// The tables that differ between two catalogs, or that only one of them has.
pub(super) fn differing(one: &Catalog, other: &Catalog) -> Vec<String> {
    let lacking = |from: &Catalog, table: &Table| !from.tables.contains(table);
    let here = one.tables.iter().filter(|table| lacking(other, table));
    let there = other.tables.iter().filter(|table| lacking(one, table));
    let names: BTreeSet<String> = here.chain(there).map(|table| table.name.to_string()).collect();
    names.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{CatalogColumn, Identity};
    use crate::change::{ColumnKind, TableName};
    use crate::config::Document;

    fn table(name: &str, unique: &[&str]) -> Table {
        let column = CatalogColumn {
            name: "id".to_owned(),
            type_name: "uuid".to_owned(),
            kind: ColumnKind::Text,
            not_null: true,
            ..CatalogColumn::default()
        };
        let name = TableName::new("public", name);
        Table {
            name: name.clone(),
            columns: vec![column],
            primary_key: vec!["id".to_owned()],
            unique: unique.iter().map(|name| vec![(*name).to_owned()]).collect(),
            foreign_keys: Vec::new(),
            identity: Identity::Columns(vec!["id".to_owned()]),
            unlogged: false,
            leaves: vec![name],
            ..Table::default()
        }
    }

    fn catalog(tables: Vec<Table>) -> Catalog {
        Catalog { tables, search_path: vec!["public".to_owned()], ..Catalog::default() }
    }

    #[test]
    fn the_same_tables_make_the_same_file() {
        let text = "version: 1\nrules: {a: {table: users, delete: 'u:{id}'}, b: {table: public.orgs, delete: 'o'}}\n";
        let document = Document::parse(text, &|_| None).unwrap();
        let rules = RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap();
        let one = catalog(vec![table("users", &["a", "b"]), table("other", &[]), table("orgs", &[])]);
        let other = catalog(vec![table("orgs", &[]), table("users", &["b", "a"])]);
        let file = render(reduce(&one, &rules));
        assert_eq!(file, render(reduce(&other, &rules)));
        assert_eq!(parse(&file), Ok(reduce(&one, &rules)));
        assert!(!file.contains("other") && file.ends_with("}\n"), "{file}");
    }

    #[test]
    fn differences_are_named() {
        let one = catalog(vec![table("orgs", &[]), table("users", &["a"])]);
        let other = catalog(vec![table("users", &["b"]), table("new", &[]), table("orgs", &[])]);
        assert_eq!(differing(&one, &other), ["public.new", "public.users"]);
        assert!(differing(&one, &one).is_empty());
    }

    #[test]
    fn another_version_is_refused() {
        assert!(parse(r#"{"version": 2, "anything": []}"#).unwrap_err().contains("version 2"));
        assert!(parse("{").is_err() && parse(r#"{"version": 1}"#).is_err());
        assert_eq!(path(Path::new("d/invalidation.yaml")), Path::new("d/invalidation.yaml.lock"));
    }
}
