//! Whether the database folds case as names do.
//!
//! Owns the finding. It must not ask how the database folds; [`folding`] does. Invariant: only
//! letters of ASCII are reported, because names with others are rare, and safe.

use super::probe::PostgresProbe;
use crate::catalog::Catalog;
use crate::cmd::check::finding::{Finding, Findings};
use crate::cmd::preflight::folding;
use crate::reads::ReadSet;
use crate::rules::RuleSet;

impl PostgresProbe<'_> {
    pub(super) async fn folding(
        &self,
        rules: &RuleSet,
        catalog: &Catalog,
        reads: &ReadSet,
        findings: &mut Findings,
    ) -> Result<(), tokio_postgres::Error> {
        let odd = folding::ask(self.client, catalog, rules, reads).await?.odd_ascii();
        if !odd.is_empty() {
            let message = format!("{} folds `{odd}` otherwise than names with `lower` or `upper` do", self.name);
            let finding = Finding::warning("folding", message)
                .why(
                    "a value with one of these letters has no known name: its changes delete everything that matches \
                     the template, and reads do not cache it",
                )
                .fix("use `lower` and `upper` only for columns with another collation, as in `collate \"C\"`");
            findings.add(finding);
        }
        Ok(())
    }
}
