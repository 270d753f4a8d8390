//! Whether the database accepts the lookups of a file.
//!
//! Owns the questions to the server. It must not know how rules call lookups:
//! [`RuleSet::check_calls`] does.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::prepared::PreparedLookup;
use crate::config::Problems;
use crate::rules::RuleSet;

/// Compares the lookups with the database: their SQL, the number of their parameters, and the
/// columns that they return.
///
/// # Errors
///
/// The connection failed. What the server refuses becomes a problem.
pub async fn check(rules: &RuleSet, client: &Client, problems: &mut Problems) -> Result<(), tokio_postgres::Error> {
    for (position, lookup) in rules.lookups().iter().enumerate() {
        let prepared = match PreparedLookup::new(client, lookup).await {
            Ok(prepared) => prepared,
            Err(error) => {
                let Some(refusal) = error.as_db_error() else { return Err(error) };
                let message = format!("PostgreSQL refuses lookup `{}`: {}", lookup.name.value, refusal.message());
                let advice = match refusal.code() == &SqlState::INSUFFICIENT_PRIVILEGE {
                    // Rows that are hidden from the role would be taken for none.
                    true if refusal.message().contains("row-level security") => "ALTER ROLE … BYPASSRLS, as superuser",
                    true => "GRANT SELECT on what it reads to the role of source.url",
                    false => refusal.hint().unwrap_or("expected one query that returns rows"),
                };
                let advice = advice.to_owned();
                problems.push(lookup.sql.span.clone(), message, advice);
                continue;
            }
        };
        let columns: Vec<_> = prepared.columns.iter().map(String::as_str).collect();
        if columns.is_empty() {
            let message = format!("lookup `{}` returns no columns", lookup.name.value);
            problems.push(lookup.sql.span.clone(), message, "expected a `select`");
        }
        rules.check_calls(position, &columns, prepared.statement.params().len(), problems);
    }
    Ok(())
}
