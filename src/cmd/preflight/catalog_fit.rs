//! The rules, compared with the tables of a database.
//!
//! Owns which comparisons there are in which mode; each of them is the rules' own. It must not ask
//! a server: the catalog may come from the lock file. Invariant: everything is compared, also if a
//! name is unknown.

use crate::catalog::Catalog;
use crate::cmd::config_file::ConfigFile;
use crate::cmd::failure::Failure;
use crate::config::{Mode, Problems};
use crate::rules::{RuleSet, Widening};

/// What a comparison of rules with a catalog found.
pub(in crate::cmd) struct CatalogFit {
    /// The rules, with the schema of every known table filled in.
    pub(in crate::cmd) rules: RuleSet,
    /// Tables and columns that do not exist.
    pub(in crate::cmd) unknown: Problems,
    /// Tables whose changes PostgreSQL does not log. Slot mode only: triggers see every table.
    pub(in crate::cmd) unlogged: Problems,
    /// Columns that keys need the old value of, and that the replica identity does not carry. Slot
    /// mode only: triggers see the whole old row.
    pub(in crate::cmd) narrow: Problems,
    /// What makes the identities in `narrow` wide enough.
    pub(in crate::cmd) widenings: Vec<Widening>,
}

impl CatalogFit {
    /// Compares rules with a catalog. Problems are in the order of the file.
    pub(in crate::cmd) fn of(rules: &RuleSet, catalog: &Catalog, mode: Mode) -> Self {
        let (mut unknown, mut unlogged, mut narrow) = (Problems::default(), Problems::default(), Problems::default());
        let rules = rules.clone().resolve(catalog, &mut unknown);
        let widenings = match mode {
            Mode::Slot => {
                rules.check_logged(catalog, &mut unlogged);
                rules.check_identities(catalog, &mut narrow)
            }
            Mode::Outbox => Vec::new(),
        };
        for problems in [&mut unknown, &mut unlogged, &mut narrow] {
            problems.sort();
        }
        Self { rules, unknown, unlogged, narrow, widenings }
    }
}

/// The rules of a file, with the schema of every table filled in. Unknown tables and columns are a
/// failure.
pub(in crate::cmd) fn resolve(file: &ConfigFile, catalog: &Catalog) -> Result<RuleSet, Failure> {
    let mut unknown = Problems::default();
    let rules = file.rules.clone().resolve(catalog, &mut unknown);
    if unknown.is_empty() {
        return Ok(rules);
    }
    unknown.sort();
    Err(file.failure(&unknown))
}
