//! The findings about reads.
//!
//! Owns which findings follow from a [`ReadReview`]. It must not ask the database. Invariant:
//! `check` calls an error what keeps the reads from being served, and nothing else.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Error};

use super::finding::{Finding, Findings};
use crate::cmd::config_file::ConfigFile;
use crate::cmd::display::counted;
use crate::cmd::preflight::read_review::ReadReview;
use crate::rules::RuleSet;

/// Reviews every read. The rules have every table's schema filled in.
pub(super) async fn check(
    client: &Client,
    file: &ConfigFile,
    rules: &RuleSet,
    findings: &mut Findings,
) -> Result<(), Error> {
    let reads = file.reads.reads();
    if reads.is_empty() {
        return Ok(());
    }
    let mut found = Vec::new();
    let mut unseen: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for read in reads {
        let review = ReadReview::of(client, file, rules, read).await?;
        let why = "the API does not start with a read that PostgreSQL cannot answer";
        found.extend(review.problems.iter().map(|problem| Finding::problem("read-sql", problem).why(why)));
        found.extend(review.lints.into_iter().map(Finding::lint));
        if let Some(reason) = review.unseen {
            unseen.entry(reason).or_default().push(&read.name);
        }
    }
    for (reason, names) in unseen {
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        let message = format!("the columns and functions that {} use are not known: {reason}", names.join(", "));
        let finding = Finding::warning("read-column", message)
            .why("PostgreSQL reports them only for a temporary view. Whether a change of them goes unnoticed was not checked")
            .fix("if a privilege is missing: GRANT TEMPORARY ON DATABASE … TO …");
        found.push(finding);
    }
    findings.pass_or(format!("reads: {}, every table they read has a rule", counted(reads.len(), "read")), found);
    Ok(())
}
