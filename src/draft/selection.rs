//! Which tables get a rule, and how the file names each.
//!
//! Owns why a table is left out. It must not know keys or the layout of the file.

use super::error::DraftError;
use super::input::DraftInput;
use super::yaml;
use crate::catalog::{Catalog, Table};
use crate::change::TableName;
use crate::nearest::nearest;

/// The schema of unstale's own objects.
const OWN_SCHEMA: &str = "unstale";

/// Tables of migration tools.
const MIGRATIONS: &[&str] = &[
    "SequelizeMeta",
    "__EFMigrationsHistory",
    "__diesel_schema_migrations",
    "__drizzle_migrations",
    "_prisma_migrations",
    "_sqlx_migrations",
    "alembic_version",
    "ar_internal_metadata",
    "atlas_schema_revisions",
    "databasechangelog",
    "databasechangeloglock",
    "django_migrations",
    "flyway_schema_history",
    "goose_db_version",
    "knex_migrations",
    "knex_migrations_lock",
    "pgmigrations",
    "refinery_schema_history",
    "schema_migrations",
    "seaql_migrations",
];

/// The tables to consider, sorted by name.
pub(super) fn choose<'a>(survey: &'a DraftInput, wanted: &[String]) -> Result<Vec<&'a Table>, DraftError> {
    let catalog = &survey.catalog;
    let mut tables = Vec::new();
    for text in wanted {
        let found = catalog.find(&TableName::parse(text));
        tables.push(found.ok_or_else(|| unknown_table(text, catalog))?);
    }
    if wanted.is_empty() {
        let ours = |table: &&Table| {
            catalog.search_path.contains(&table.name.schema) && reason_of_place(survey, table).is_none()
        };
        tables.extend(catalog.tables.iter().filter(ours));
        if tables.is_empty() {
            let path: Vec<_> = catalog.search_path.iter().map(|schema| yaml::key(schema)).collect();
            return Err(DraftError::NoTables(path.join(", ")));
        }
    }
    tables.sort_by_key(|table| &table.name);
    tables.dedup_by(|table, other| table.name == other.name);
    Ok(tables)
}

fn unknown_table(text: &str, catalog: &Catalog) -> DraftError {
    let name = TableName::parse(text);
    let near = nearest(&name.table, catalog.tables.iter().map(|table| table.name.table.as_str()));
    let near = near.and_then(|near| catalog.tables.iter().find(|table| table.name.table == near));
    DraftError::UnknownTable { name: yaml::key(text), near: near.map(|table| yaml::key(&table.name.to_string())) }
}

/// Why a table never gets a rule of its own; none if it may.
fn reason_of_place(survey: &DraftInput, table: &Table) -> Option<&'static str> {
    if table.name.schema == OWN_SCHEMA {
        return Some("belongs to unstale");
    }
    survey.dependent.contains(&table.name).then_some("is a partition or belongs to an extension")
}

/// How the file names a table, or why it has no rule. A bare name is used only if it is unique: a
/// test with a bare name matches tables of any schema.
pub(super) fn name_in_file(
    survey: &DraftInput,
    table: &Table,
    tables: &[&Table],
    asked_for: bool,
) -> Result<String, &'static str> {
    let name = &table.name;
    if let Some(why) = reason_of_place(survey, table) {
        return Err(why);
    }
    if table.unlogged {
        return Err("is unlogged; its changes are not in the log");
    }
    if !asked_for && MIGRATIONS.iter().any(|known| known.eq_ignore_ascii_case(&name.table)) {
        return Err("belongs to a migration tool");
    }
    let bare = TableName::new("", name.table.clone());
    let is_found = survey.catalog.find(&bare).is_some_and(|found| found.name == *name);
    let is_only = tables.iter().filter(|other| other.name.table == name.table).count() == 1;
    let is_bare = is_found && is_only;
    if name.table.contains('.') || !is_bare && name.schema.contains('.') {
        return Err("has a `.` in its name; rules cannot name it");
    }
    Ok(if is_bare { name.table.clone() } else { name.to_string() })
}
