//! `unstale test`: do the rules do what the file's tests expect?
//!
//! Thin: [`case`] makes tests ready, [`outcome`] runs and compares, [`report`] and [`coverage`] show. No server is
//! asked: what is known of the database is what `check --lock` wrote down.

mod case;
mod coverage;
mod outcome;
mod report;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use self::case::{Bench, Case};
use self::coverage::Coverage;
use self::outcome::Judge;
use self::report::Report;
use super::check::lock;
use super::{Failure, Loaded, print};
use crate::rules::Planner;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run only the tests whose description contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Also say what is deleted beyond need where the log carries less than the whole row before
    #[arg(long, short)]
    verbose: bool,
    /// Also name the rules, actions and filters that no test touches
    #[arg(long)]
    coverage: bool,
    /// With --coverage: fail if there are any
    #[arg(long, requires = "coverage")]
    fail_uncovered: bool,
    /// Print one object a test as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(path: &Path, args: Args) -> Result<(), Failure> {
    let loaded = Loaded::read(path)?;
    if loaded.tests.is_empty() {
        // Nobody may be there to read it.
        let _ = writeln!(std::io::stderr(), "{}: there are no tests; add some under `tests:`", path.display());
        return Ok(());
    }
    let bench = Bench::new(&loaded, lock::read(path)?);
    let mut cases = bench.cases().map_err(|problems| loaded.failure(&problems))?;
    if let Some(part) = &args.filter {
        cases.retain(|case| case.raw.it.value.contains(part.as_str()));
        if cases.is_empty() {
            return Err(Failure::usage(format!("no test's description contains `{part}`")));
        }
    }
    let failed = judge(&args, &loaded, &bench, &cases)?;
    let complete = cover(&args, &loaded, &bench, &cases)?;
    let summary = format!("{} passed, {failed} failed", cases.len() - failed);
    if !args.json {
        let signs = if failed > 0 { " (- expected and not there, + there and not expected)" } else { "" };
        print(&format!("{summary}{signs}\n"))?;
    }
    match (failed, complete || !args.fail_uncovered) {
        (0, true) => Ok(()),
        (0, false) => Err(Failure::findings("the tests do not touch everything")),
        // In words the summary has been said.
        _ => Err(Failure::findings(if args.json { summary } else { String::new() })),
    }
}

/// Runs the tests, each shown as it ends; how many failed.
fn judge(args: &Args, loaded: &Loaded, bench: &Bench<'_>, cases: &[Case<'_>]) -> Result<usize, Failure> {
    let mut judge = Judge::new(Planner::new(Arc::clone(&bench.rules)), &loaded.settings.namespace);
    let report = Report { loaded, rules: &bench.rules, verbose: args.verbose };
    let mut failed = 0;
    for case in cases {
        let outcome = judge.judge(case);
        failed += usize::from(!outcome.passed());
        print(&if args.json { report.json(case, &outcome) } else { report.text(case, &outcome) })?;
    }
    Ok(failed)
}

/// Shows what no test touches, if that is asked for; whether nothing is left.
fn cover(args: &Args, loaded: &Loaded, bench: &Bench<'_>, cases: &[Case<'_>]) -> Result<bool, Failure> {
    if !args.coverage {
        return Ok(true);
    }
    let mut coverage = Coverage::of(&bench.rules);
    cases.iter().for_each(|case| coverage.add(case));
    print(&if args.json { coverage.json(loaded) } else { coverage.text(loaded) })?;
    Ok(coverage.is_complete())
}
