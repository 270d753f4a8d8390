//! The shape of a lookup: a query that rules run with `for_each`.
//!
//! Owns raw lookups. It must not know SQL.

use std::time::Duration;

use super::fields::Fields;
use super::node::Node;
use super::problem::Problems;
use super::span::Spanned;

/// One lookup of the file.
#[derive(Clone, Debug)]
pub struct RawLookup {
    /// Its name: the key in `lookups:`.
    pub name: Spanned<String>,
    /// `sql:`.
    pub sql: Spanned<String>,
    /// `max:`, the most rows of one call.
    pub max: Option<u64>,
    /// `timeout:`, of one statement.
    pub timeout: Option<Duration>,
}

/// The longest statement that may hold up an invalidation.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Reads the section `lookups`.
pub(super) fn read_lookups(entries: Vec<(Spanned<String>, Spanned<Node>)>, problems: &mut Problems) -> Vec<RawLookup> {
    entries.into_iter().filter_map(|(name, node)| read_lookup(name, node, problems)).collect()
}

fn read_lookup(name: Spanned<String>, node: Spanned<Node>, problems: &mut Problems) -> Option<RawLookup> {
    let mut fields = Fields::of(node, format!("lookup `{}`", name.value), problems)?;
    let has_sql = fields.has_any(&["sql"]);
    let sql = fields.text("sql");
    let max = fields.count("max");
    let timeout = fields.duration("timeout", Duration::from_millis(1)..=TIMEOUT_MAX);
    if !has_sql {
        fields.problems().push(
            name.span.clone(),
            format!("lookup `{}` has no `sql`", name.value),
            "add `sql: select …`",
        );
    }
    fields.finish();
    Some(RawLookup { sql: sql?, name, max, timeout })
}
