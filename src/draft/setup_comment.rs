//! The comment at the end of the file: what `unstale setup` will run.
//!
//! Owns its layout. It must not run anything. Invariant: every line is a comment.

use super::yaml;
use crate::catalog::{quote, quote_table};
use crate::change::TableName;
use crate::config::Settings;

/// The SQL that `unstale setup` will run for rules on these tables, as comments for the end of the
/// file.
pub fn setup_comment(settings: &Settings, tables: &[&TableName], widenings: &[String]) -> String {
    let mut lines = vec!["What `unstale setup` will run. Nothing has been changed yet.".to_owned(), String::new()];
    for statement in widenings {
        lines.push(format!("  {}", yaml::comment(statement)));
    }
    lines.push(format!("  CREATE PUBLICATION {} FOR TABLE", yaml::comment(&quote(&settings.publication))));
    for (at, table) in tables.iter().enumerate() {
        let end = if at + 1 == tables.len() { ';' } else { ',' };
        lines.push(format!("    {}{end}", yaml::comment(&quote_table(table))));
    }
    lines.push(format!("  SELECT pg_create_logical_replication_slot('{}', 'pgoutput');", settings.slot));
    let comment = |line: &String| format!("# {line}").trim_end().to_owned() + "\n";
    std::iter::once("\n".to_owned()).chain(lines.iter().map(comment)).collect()
}
