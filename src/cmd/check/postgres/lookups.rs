//! Whether each lookup can run: it fits the rules, and the role may read what it reads.
//!
//! Owns the check of privileges; the rules compare the rest. It must not run a lookup. Invariant:
//! nothing is left in the session or the database.

use tokio_postgres::Client;

use super::probe::PostgresProbe;
use crate::catalog::{Catalog, quote, quote_table};
use crate::change::TableName;
use crate::cmd::check::cost::AT_ONCE;
use crate::cmd::check::finding::{Finding, Findings, Stage};
use crate::cmd::preflight::cascades::{self, Cascade};
use crate::config::Problems;
use crate::lookups;
use crate::rules::{Lookup, RuleSet};

/// SQLSTATE: the role lacks a privilege.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// The tables that the role may not read, and whether it may use their schema.
const UNREADABLE: &str = "select n.nspname::text, c.relname::text, has_schema_privilege(n.oid, 'USAGE'), \
     has_table_privilege(c.oid, 'SELECT') from pg_class c join pg_namespace n on n.oid = c.relnamespace \
     where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname not in ('pg_catalog', 'information_schema') \
     and n.nspname !~ '^pg_toast|^pg_temp' \
     and not (has_schema_privilege(n.oid, 'USAGE') and has_table_privilege(c.oid, 'SELECT')) order by 1, 2";

const WHY: &str = "without its rows, every change deletes everything that the rule can name";

impl PostgresProbe<'_> {
    pub(super) async fn lookups(
        &self,
        rules: &RuleSet,
        catalog: &Catalog,
        findings: &mut Findings,
    ) -> Result<(), tokio_postgres::Error> {
        let mut problems = Problems::default();
        lookups::check(rules, self.client, &mut problems).await?;
        problems.sort();
        let mut forbidden = Vec::new();
        for lookup in rules.lookups() {
            let name = &lookup.name.value;
            let Err(error) = plan(self.client, &lookup.sql.value).await else {
                findings.pass(format!("lookup {name}"));
                continue;
            };
            match error.as_db_error() {
                Some(refusal) if refusal.code().code() == INSUFFICIENT_PRIVILEGE => {
                    findings.add(self.unreadable(lookup, refusal.message()).await?);
                    forbidden.push(&lookup.sql.span);
                }
                Some(refusal) if problems.iter().all(|problem| problem.span != lookup.sql.span) => {
                    let message = format!("{} cannot plan the lookup `{name}`: {}", self.name, refusal.message());
                    let finding = Finding::configuration("lookup", message)
                        .why(WHY)
                        .fix("expected one `select` that PostgreSQL can plan");
                    findings.add(Finding { place: Some(lookup.sql.span.clone()), ..finding });
                }
                Some(_) => {}
                None => return Err(error),
            }
        }
        // A schema that the role may not use is an error at parsing already.
        let problems = problems.iter().filter(|problem| !forbidden.contains(&&problem.span));
        findings.found.extend(problems.map(|problem| Finding::problem("lookup", problem).why(WHY)));
        for cascade in cascades::find(self.client, catalog, rules).await? {
            findings.found.extend(void(&cascade, rules));
        }
        Ok(())
    }

    /// What the role must be granted. The server's message names one object, in the server's
    /// language, so the tables that the role may not read are compared with the words of the query.
    async fn unreadable(&self, lookup: &Lookup, reason: &str) -> Result<Finding, tokio_postgres::Error> {
        let (name, role) = (&lookup.name.value, quote(&self.facts.role));
        let message = format!("{}: the role {role} may not run the lookup `{name}`: {reason}", self.name);
        let mut finding = Finding::error("lookup-privilege", message).why(WHY);
        if reason.contains("row-level security") {
            // The server says no more than that some rows are hidden. They would be taken for none.
            finding.place = Some(lookup.sql.span.clone());
            let statement = format!("ALTER ROLE {role} BYPASSRLS;");
            return Ok(finding.fix("run this as superuser:").statement(Stage::Role, statement, AT_ONCE));
        }
        finding = finding.fix("grant the role what the lookup reads:");
        finding.place = Some(lookup.sql.span.clone());
        for row in self.client.query(UNREADABLE, &[]).await? {
            let (schema, table): (String, String) = (row.get(0), row.get(1));
            if !mentions(&lookup.sql.value, &table) {
                continue;
            }
            if !row.get::<_, bool>(2) {
                let statement = format!("GRANT USAGE ON SCHEMA {} TO {role};", quote(&schema));
                finding = finding.statement(Stage::Role, statement, AT_ONCE);
            }
            if !row.get::<_, bool>(3) {
                let table = quote_table(&TableName::new(schema, table));
                finding = finding.statement(Stage::Role, format!("GRANT SELECT ON {table} TO {role};"), AT_ONCE);
            }
        }
        Ok(finding)
    }
}

/// A rule whose lookup has no answer after a delete.
fn void(cascade: &Cascade, rules: &RuleSet) -> Option<Finding> {
    let rule = rules.rules().get(cascade.rule)?;
    let lookup = &rules.lookups().get(rule.for_each.as_ref()?.lookup)?.name.value;
    let (table, name) = (&rule.table.value, &rule.name);
    let reason = match &cascade.reads {
        Some(read) => format!("reads {read}, whose rows PostgreSQL deletes or detaches with the row"),
        None => "may read rows that PostgreSQL deletes or detaches with the row".to_owned(),
    };
    let message =
        format!("after a delete in {table}, lookup `{lookup}` of rule `{name}` has no complete answer: it {reason}");
    let finding = Finding::warning("lookup-cascade", message)
        .why("so a delete does not run the lookup: everything that the rule can name is deleted, and nothing is published")
        .fix("remove `delete` from `ops` of the rule if another rule removes the same keys when the rows that are read are deleted");
    Some(Finding { place: Some(rule.span.clone()), ..finding })
}

/// Lets the server plan a query, which checks every privilege and reads no row.
async fn plan(client: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    let sql = sql.trim().trim_end_matches(';');
    // More than one statement is refused here, so that `prepare` below runs none.
    let statement = client.prepare(sql).await?;
    let nulls = vec!["null"; statement.params().len()].join(", ");
    let arguments = if nulls.is_empty() { nulls } else { format!("({nulls})") };
    client.batch_execute(&format!("prepare unstale_probe as {sql}")).await?;
    let planned = async {
        // A custom plan would decide comparisons with NULL before it checks the tables.
        client.batch_execute("begin read only; set local plan_cache_mode = force_generic_plan").await?;
        client.batch_execute(&format!("explain execute unstale_probe{arguments}")).await
    };
    let planned = planned.await;
    client.batch_execute("rollback").await?;
    client.batch_execute("deallocate unstale_probe").await?;
    planned
}

/// Whether a query names a table.
fn mentions(sql: &str, table: &str) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    if !table.chars().all(is_word) {
        return sql.contains(table);
    }
    sql.split(|character: char| !is_word(character)).any(|word| word == table || word.to_lowercase() == table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_tables_by_words() {
        let check = |sql: &str, table: &str, expected: bool| assert_eq!(mentions(sql, table), expected, "{sql}");
        check("select user_id from memberships where a = $1", "memberships", true);
        check("select user_id from memberships", "users", false);
        check("SELECT x FROM Memberships m", "memberships", true);
        check("select x from app.\"Odd name\"", "Odd name", true);
        check("select x from users_old", "users", false);
    }
}
