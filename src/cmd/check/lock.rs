//! Whether the lock file is up to date.

use std::path::Path;

use super::finding::{Finding, Findings};
use crate::catalog::Catalog;
use crate::cmd::lock_file;
use crate::rules::RuleSet;

/// Compares the lock file, if it exists, with what the database has now.
pub(super) fn compare(config: &Path, catalog: &Catalog, rules: &RuleSet, findings: &mut Findings) {
    const FIX: &str = "write it again: unstale check --lock";
    const WHY: &str = "`check --offline` and `test` use it";
    let name = lock_file::path(config).display().to_string();
    let locked = match lock_file::read(config) {
        Ok(Some(locked)) => locked,
        Ok(None) => return,
        Err(failure) => return findings.add(Finding::warning("lock-file", failure.message).why(WHY).fix(FIX)),
    };
    let now = lock_file::reduce(catalog, rules);
    let finding = (locked != now).then(|| {
        let differing = lock_file::differing(&locked, &now);
        let what = if differing.is_empty() { "the search path".to_owned() } else { differing.join(", ") };
        let message = format!("{name} differs from the database: {what}");
        Finding::warning("lock-outdated", message).why(WHY).fix(FIX)
    });
    findings.pass_or(format!("{name} is up to date"), finding);
}
