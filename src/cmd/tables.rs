//! Tables and columns that arguments name, looked up in a catalog.
//!
//! Owns the failure if one does not exist, with the name that was probably meant.

use super::display::printable;
use super::failure::Failure;
use crate::catalog::{Catalog, Table};
use crate::change::TableName;
use crate::nearest::nearest;

/// Finds a table by its name, `table` or `schema.table`.
pub(super) fn find_table<'a>(name: &str, catalog: &'a Catalog) -> Result<&'a Table, Failure> {
    let name = TableName::parse(name);
    catalog.find(&name).ok_or_else(|| no_table(&name, catalog))
}

/// Fails if a table does not have a column.
pub(super) fn require_column(table: &Table, column: &str) -> Result<(), Failure> {
    let names = table.columns.iter().map(|known| known.name.as_str());
    if names.clone().any(|known| known == column) {
        return Ok(());
    }
    let advice = match nearest(column, names.clone()) {
        Some(near) => format!("did you mean `{}`?", shown(near)),
        None => format!("it has {}", shown(&names.collect::<Vec<_>>().join(", "))),
    };
    let (table, column) = (shown(&table.name.to_string()), shown(column));
    Err(Failure::usage(format!("table {table} has no column `{column}`; {advice}")))
}

fn no_table(name: &TableName, catalog: &Catalog) -> Failure {
    let mut names = catalog.tables.iter().map(|table| &table.name);
    let elsewhere = names.clone().find(|known| known.table == name.table).map(ToString::to_string);
    let near = elsewhere.or_else(|| {
        let near = nearest(&name.table, names.clone().map(|known| known.table.as_str()))?;
        let known = names.find(|known| known.table == near)?;
        Some(if name.schema.is_empty() { known.table.clone() } else { known.to_string() })
    });
    let advice = match near {
        Some(near) => format!("did you mean `{}`?", shown(&near)),
        None => "name it as `table` or `schema.table`".to_owned(),
    };
    Failure::usage(format!("there is no table `{}` in the database; {advice}", shown(&name.to_string())))
}

fn shown(name: &str) -> String {
    printable(name.as_bytes())
}
