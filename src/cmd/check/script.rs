//! The script of `check --sql`: what fixes PostgreSQL, in the order in which it must run.
//!
//! Owns its text. It must not run anything. Invariants: every statement is preceded by what it
//! locks or restarts; what only an operator can decide is a comment; a second run is harmless.

use super::finding::{Finding, Findings, Severity, Stage, Statement};
use crate::cmd::display::printable;

/// The whole script for a server.
pub(super) fn script(server: &str, findings: &Findings) -> String {
    let mut out = format!(
        "-- Written by `unstale check --sql` for {}.\n\
         -- Run it with psql, as superuser or as owner of the tables, and without --single-transaction: indexes are\n\
         -- built CONCURRENTLY, and settings of the server are changed.\n",
        printable(server)
    );
    let is_redis = |statement: &&Statement| statement.stage == Stage::Redis;
    let is_needed = |finding: &Finding| finding.severity == Severity::Error || finding.is_planned;
    let needed = statements(findings, is_needed);
    let mut optional = statements(findings, |finding| !is_needed(finding));
    optional.retain(|statement| needed.iter().all(|other| other.text != statement.text));
    let (redis, needed): (Vec<_>, Vec<_>) = needed.into_iter().partition(is_redis);
    let (more, optional): (Vec<_>, Vec<_>) = optional.into_iter().partition(is_redis);
    if needed.is_empty() {
        out.push_str("\n-- Nothing has to be changed in PostgreSQL.\n");
    }
    for statement in &needed {
        push_cost(statement, &mut out);
        out.push_str(statement.text.trim_end());
        out.push('\n');
    }
    if needed.iter().any(|statement| statement.stage == Stage::Settings) {
        out.push_str("\n-- Now restart PostgreSQL, and run this script again: the slot cannot be created before.\n");
    }
    push_comments("Optional; decide whether you want it:", &optional, &mut out);
    push_comments("For Redis, with redis-cli:", &redis.into_iter().chain(more).collect::<Vec<_>>(), &mut out);
    out
}

/// The statements of the findings that are chosen, each once, in order.
fn statements(findings: &Findings, chosen: impl Fn(&Finding) -> bool) -> Vec<&Statement> {
    let mut statements: Vec<&Statement> = Vec::new();
    for finding in findings.found.iter().filter(|finding| chosen(finding)) {
        for statement in &finding.statements {
            if statements.iter().all(|other| other.text != statement.text) {
                statements.push(statement);
            }
        }
    }
    statements.sort_by_key(|statement| statement.stage);
    statements
}

fn push_cost(statement: &Statement, out: &mut String) {
    out.push_str(&format!("\n-- {}\n", printable(&statement.cost)));
}

fn push_comments(heading: &str, statements: &[&Statement], out: &mut String) {
    if statements.is_empty() {
        return;
    }
    out.push_str(&format!("\n-- {heading}\n"));
    for statement in statements {
        push_cost(statement, out);
        for line in statement.text.lines() {
            out.push_str(&format!("-- {}\n", printable(line)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_come_once_in_order_with_their_cost() {
        let mut findings = Findings::default();
        let slot = Finding::error("a", "a").statement(Stage::Slot, "SELECT slot;", "waits");
        let index = Finding::error("b", "b").statement(Stage::Identity, "CREATE INDEX i;", "reads t\nonce");
        for finding in [slot, index.clone(), index] {
            findings.add(finding);
        }
        findings.add(Finding::error("c", "c").statement(Stage::Settings, "ALTER SYSTEM x;", "restart"));
        findings.add(Finding::warning("d", "d").statement(Stage::Settings, "ALTER\nSYSTEM y;", "reload"));
        findings.add(Finding::error("e", "e").statement(Stage::Redis, "ACL SETUSER u", "at once"));
        let script = script("PostgreSQL at h:1", &findings);
        let body: Vec<_> = script.lines().skip(3).filter(|line| !line.is_empty()).collect();
        assert_eq!(
            body,
            [
                "-- restart",
                "ALTER SYSTEM x;",
                "-- reads t\\u{a}once",
                "CREATE INDEX i;",
                "-- waits",
                "SELECT slot;",
                "-- Now restart PostgreSQL, and run this script again: the slot cannot be created before.",
                "-- Optional; decide whether you want it:",
                "-- reload",
                "-- ALTER",
                "-- SYSTEM y;",
                "-- For Redis, with redis-cli:",
                "-- at once",
                "-- ACL SETUSER u",
            ]
        );
    }

    #[test]
    fn a_script_without_findings_is_empty() {
        let script = script("PostgreSQL at h:1", &Findings::default());
        assert!(script.lines().all(|line| line.is_empty() || line.starts_with("--")), "{script}");
    }
}
