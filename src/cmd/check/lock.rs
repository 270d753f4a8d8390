//! The lock file: what the tables of the rules looked like when a database was last asked.
//!
//! Owns its format. It must not know who compares with it. Invariants: the same tables make the same file, byte for
//! byte; a file of another version is refused, never half understood.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::finding::{Finding, Findings};
use crate::catalog::{Catalog, Table};
use crate::cmd::{Failure, Loaded, print};
use crate::config::Problems;
use crate::postgres::catalog;
use crate::rules::RuleSet;

/// The version of the format.
const VERSION: u32 = 1;

/// The whole file.
#[derive(Debug, Serialize, Deserialize)]
struct Lock {
    version: u32,
    catalog: Catalog,
}

/// What every version of the file has.
#[derive(Debug, Deserialize)]
struct Head {
    version: u32,
}

/// The catalog that was written down beside a configuration, if one was.
///
/// # Errors
///
/// It is there and cannot be read, or is of another version.
pub(in crate::cmd) fn read(config: &Path) -> Result<Option<Catalog>, Failure> {
    let path = path(config);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(&path, &error.to_string())),
    };
    parse(&text).map(Some).map_err(|reason| unusable(&path, &reason))
}

/// Asks the database and writes the file.
pub(super) async fn write(loaded: &Loaded) -> Result<(), Failure> {
    let client = crate::postgres::connect(&loaded.settings.postgres).await?;
    let catalog = catalog::read(&client).await?;
    let mut problems = Problems::default();
    let rules = loaded.rules.clone().resolve(&catalog, &mut problems);
    if !problems.is_empty() {
        problems.sort();
        return Err(loaded.failure(&problems));
    }
    let reduced = reduce(&catalog, &rules);
    let tables = reduced.tables.len();
    let path = path(&loaded.path);
    std::fs::write(&path, render(reduced))
        .map_err(|error| Failure::configuration(format!("cannot write {}: {error}", path.display())))?;
    print(&format!("{}: {tables} tables written down\n", path.display()))
}

/// Says so if the file is not what the database would make it now.
pub(super) fn compare(config: &Path, catalog: &Catalog, rules: &RuleSet, findings: &mut Findings) {
    const FIX: &str = "write it anew: unstale check --lock";
    const WHY: &str = "`check --offline` and `test` go by it";
    let name = path(config).display().to_string();
    let locked = match read(config) {
        Ok(Some(locked)) => locked,
        Ok(None) => return,
        Err(failure) => return findings.add(Finding::warning("lock-file", failure.message).why(WHY).fix(FIX)),
    };
    let now = reduce(catalog, rules);
    let finding = (locked != now).then(|| {
        let differing = differing(&locked, &now);
        let what = if differing.is_empty() { "the search path".to_owned() } else { differing.join(", ") };
        let message = format!("{name} is not what the database is like now: {what}");
        Finding::warning("lock-outdated", message).why(WHY).fix(FIX)
    });
    findings.pass_or(format!("{name} is up to date"), finding);
}

/// Where the file is: beside the configuration, under its name.
fn path(config: &Path) -> PathBuf {
    let mut name = config.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    config.with_file_name(name)
}

fn unusable(path: &Path, reason: &str) -> Failure {
    let path = path.display();
    Failure::configuration(format!("cannot use {path}: {reason}; write it anew with `unstale check --lock`"))
}

fn parse(text: &str) -> Result<Catalog, String> {
    let head: Head = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if head.version != VERSION {
        return Err(format!("it is of version {}, and this unstale reads version {VERSION}", head.version));
    }
    let lock: Lock = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(lock.catalog)
}

fn render(catalog: Catalog) -> String {
    let lock = Lock { version: VERSION, catalog };
    let mut text = serde_json::to_string_pretty(&lock).expect("names and numbers always serialize");
    text.push('\n');
    text
}

/// The tables that rules name, in an order of their own.
fn reduce(catalog: &Catalog, rules: &RuleSet) -> Catalog {
    let found = rules.tables().into_iter().filter_map(|name| catalog.find(name)).cloned();
    let mut tables: Vec<Table> = found.collect();
    tables.sort_by(|one, other| one.name.cmp(&other.name));
    tables.dedup_by(|one, other| one.name == other.name);
    for table in &mut tables {
        table.unique.sort();
        table.foreign_keys.sort_by(|one, other| (&one.columns, &one.table).cmp(&(&other.columns, &other.table)));
        table.leaves.sort();
    }
    Catalog { tables, search_path: catalog.search_path.clone() }
}

/// The tables that are not the same in both.
fn differing(one: &Catalog, other: &Catalog) -> Vec<String> {
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
    use crate::change::{Kind, TableName};
    use crate::config::Document;

    fn table(name: &str, unique: &[&str]) -> Table {
        let column =
            CatalogColumn { name: "id".to_owned(), type_name: "uuid".to_owned(), kind: Kind::Text, not_null: true };
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
        }
    }

    fn catalog(tables: Vec<Table>) -> Catalog {
        Catalog { tables, search_path: vec!["public".to_owned()] }
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
    fn what_differs_is_named() {
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
