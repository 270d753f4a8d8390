//! `unstale test`: do the rules do what the file's tests expect?
//!
//! Thin: [`suite`] prepares tests, [`runner`] runs them, [`report`] and [`coverage`] show. No
//! server is asked: the lock file says what is known of the database.

mod case;
mod coverage;
mod glob;
mod named_op;
mod outcome;
mod report;
mod rows;
mod runner;
mod suite;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use self::case::Case;
use self::coverage::Coverage;
use self::report::TestReport;
use self::runner::CaseRunner;
use self::suite::TestSuite;
use super::config_file::ConfigFile;
use super::failure::{Exit, Failure};
use super::lock_file;
use super::stdout::print;
use crate::rules::Planner;

#[derive(Debug, clap::Args)]
pub(super) struct TestArgs {
    /// Run only the tests whose description contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Also print what is deleted beyond need if the log carries less than the whole old row
    #[arg(long, short)]
    verbose: bool,
    /// Also print the rules, actions and filters that no test touches
    #[arg(long)]
    coverage: bool,
    /// With --coverage: fail if there are any
    #[arg(long, requires = "coverage")]
    fail_uncovered: bool,
    /// Print one JSON object for each test
    #[arg(long)]
    json: bool,
}

pub(super) fn run(config: &Path, args: TestArgs) -> Result<(), Failure> {
    let file = ConfigFile::read(config)?;
    if file.tests.is_empty() {
        // Standard error may be closed.
        let _ = writeln!(std::io::stderr(), "{}: there are no tests; add some under `tests:`", config.display());
        return Ok(());
    }
    let suite = TestSuite::new(&file, lock_file::read(config)?);
    let mut cases = suite.cases().map_err(|problems| file.failure(&problems))?;
    if let Some(part) = &args.filter {
        cases.retain(|case| case.raw.it.value.contains(part.as_str()));
        if cases.is_empty() {
            return Err(Failure::usage(format!("no test's description contains `{part}`")));
        }
    }
    let failed = run_cases(&args, &file, &suite, &cases)?;
    let complete = cover(&args, &file, &suite, &cases)?;
    let summary = format!("{} passed, {failed} failed", cases.len() - failed);
    if !args.json {
        let signs = if failed > 0 { " (- expected and not planned, + planned and not expected)" } else { "" };
        print(&format!("{summary}{signs}\n"))?;
    }
    match (failed, complete || !args.fail_uncovered) {
        (0, true) => Ok(()),
        (0, false) => {
            Err(Failure::findings("some rules, actions or filters are not touched by any test; add tests for them"))
        }
        _ if args.json => Err(Failure::findings(summary)),
        // The summary was printed already.
        _ => Err(Failure::silent(Exit::Findings)),
    }
}

/// Runs the tests and prints each when it ends. Returns how many failed.
fn run_cases(args: &TestArgs, file: &ConfigFile, suite: &TestSuite<'_>, cases: &[Case<'_>]) -> Result<usize, Failure> {
    let mut runner = CaseRunner::new(Planner::new(Arc::clone(&suite.rules)), &file.settings.namespace);
    let report = TestReport { file, rules: &suite.rules, verbose: args.verbose };
    let mut failed = 0;
    for case in cases {
        let outcome = runner.run(case);
        failed += usize::from(!outcome.passed());
        print(&if args.json { report.json(case, &outcome) } else { report.text(case, &outcome) })?;
    }
    Ok(failed)
}

/// Prints what no test touches, with `--coverage`. Returns whether nothing is left.
fn cover(args: &TestArgs, file: &ConfigFile, suite: &TestSuite<'_>, cases: &[Case<'_>]) -> Result<bool, Failure> {
    if !args.coverage {
        return Ok(true);
    }
    let mut coverage = Coverage::of(&suite.rules);
    cases.iter().for_each(|case| coverage.add(case));
    print(&if args.json { coverage.json(file) } else { coverage.text(file) })?;
    Ok(coverage.is_complete())
}
