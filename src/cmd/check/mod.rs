//! `unstale check`: checks the file, and whether it fits the servers.
//!
//! Thin: [`postgres`], [`reads`] and [`redis`] ask, [`compare`](mod@compare) and [`lock`](mod@lock)
//! compare the rules with a catalog, [`report`] and [`script`] show. Invariant: everything that can
//! be checked is checked before anything fails.

mod clock;
mod compare;
mod cost;
mod finding;
mod lock;
mod postgres;
mod reads;
mod redis;
mod report;
mod script;

use std::io::Write as _;
use std::path::Path;

use self::finding::{Finding, Findings, Severity};
use self::report::CheckReport;
use super::config_file::ConfigFile;
use super::display::counted;
use super::failure::Failure;
use super::lock_file;
use super::logging::colours;
use super::stdout::print;
use crate::catalog::Catalog;
use crate::rules::{RuleSet, lint};

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Ask no server: check the file, and what --lock wrote beside it
    #[arg(long, conflicts_with_all = ["lock", "sql"])]
    offline: bool,
    /// Write the tables of the rules to a lock file, for --offline and `test`, and stop
    #[arg(long, conflicts_with_all = ["sql", "json", "format"])]
    lock: bool,
    /// Print all fixes as one SQL script, and fail only if SQL cannot fix the rest
    #[arg(long, conflicts_with_all = ["json", "format"])]
    sql: bool,
    /// Print one JSON object
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Print text, or annotations of a GitHub workflow
    #[arg(long, value_enum, default_value_t = CheckFormat::Text, value_name = "FORMAT")]
    format: CheckFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum CheckFormat {
    Text,
    Github,
}

pub(super) async fn run(config: &Path, args: CheckArgs) -> Result<(), Failure> {
    let text = ConfigFile::text_of(config)?;
    let file = match ConfigFile::compile(config, text.clone(), &|name| std::env::var(name).ok()) {
        Ok(file) => file,
        Err(problems) => {
            let mut findings = Findings::default();
            findings.found.extend(problems.iter().map(|problem| Finding::problem("file", problem)));
            return show(&args, &CheckReport::new(config, &text, &findings), &findings, "");
        }
    };
    if args.lock {
        return lock(&file).await;
    }
    let (findings, asked) = if args.offline { (offline(&file), false) } else { online(&file).await };
    let report = CheckReport::new(config, &file.text, &findings);
    if args.sql {
        return show_script(&file, &report, &findings, asked);
    }
    let (rules, tables) = (file.rules.rules().len(), file.rules.tables().len());
    let ready = if args.offline { "" } else { "; PostgreSQL and Redis are ready" };
    let warnings = match findings.count(Severity::Warning) {
        0 => String::new(),
        count => format!(", {}", counted(count, "warning")),
    };
    let sound = format!("{}: {rules} rules on {tables} tables, no problems{warnings}{ready}\n", config.display());
    show(&args, &report, &findings, &sound)
}

/// Writes the lock file.
async fn lock(file: &ConfigFile) -> Result<(), Failure> {
    let tables = lock_file::write(file).await?;
    print(&format!("{}: wrote {tables} tables\n", lock_file::path(&file.path).display()))
}

/// What can be checked without a server.
fn offline(file: &ConfigFile) -> Findings {
    let mut findings = Findings::default();
    findings.heading(file.path.display().to_string());
    match lock_file::read(&file.path) {
        Ok(Some(catalog)) => {
            let mut compared = Findings::default();
            let rules = compare::compare(&file.rules, &catalog, file.settings.mode, &mut compared);
            for finding in &mut compared.found {
                let note = "according to the lock file; if the tables have changed since: unstale check --lock";
                finding.why = if finding.why.is_empty() { note.to_owned() } else { format!("{}\n{note}", finding.why) };
            }
            findings.append(compared);
            lints(&rules, Some(&catalog), &mut findings);
        }
        Ok(None) => lints(&file.rules, None, &mut findings),
        Err(failure) => {
            let why = "the names and types of columns were not checked";
            findings.add(Finding::configuration("lock-file", failure.message).why(why));
            lints(&file.rules, None, &mut findings);
        }
    }
    findings
}

/// Asks both servers at once. Returns the findings, and whether PostgreSQL answered.
async fn online(file: &ConfigFile) -> (Findings, bool) {
    let (database, cache) = tokio::join!(postgres::probe(file), redis::probe(file));
    let mut findings = match &database.compared {
        Some((catalog, rules)) => {
            let mut findings = Findings::default();
            findings.heading(file.path.display().to_string());
            lints(rules, Some(catalog), &mut findings);
            lock::compare(&file.path, catalog, rules, &mut findings);
            findings
        }
        None => offline(file),
    };
    findings.append(database.findings);
    findings.append(cache.findings);
    clock::compare(database.clock, cache.clock, &mut findings);
    (findings, database.compared.is_some())
}

fn lints(rules: &RuleSet, catalog: Option<&Catalog>, findings: &mut Findings) {
    findings.pass_or("rules", lint(rules, catalog).into_iter().map(Finding::lint));
}

/// Prints everything in the requested format. Errors decide the exit code.
fn show(args: &CheckArgs, report: &CheckReport<'_>, findings: &Findings, sound: &str) -> Result<(), Failure> {
    let exit = findings.exit(|_| true);
    if args.json || args.format == CheckFormat::Github {
        print(&if args.json { report.json() } else { report.github() })?;
        return exit.map_or(Ok(()), |exit| Err(Failure::silent(exit)));
    }
    print(&report.passed())?;
    let shown = report.text(colours(), |_| true);
    if let Some(exit) = exit {
        return Err(Failure { exit, message: format!("{shown}{}", counts(findings)) });
    }
    // Standard error may be closed.
    let _ = write!(std::io::stderr(), "{shown}");
    print(sound)
}

/// Prints the script. Errors that it does not fix are printed, too, and decide the exit code.
fn show_script(file: &ConfigFile, report: &CheckReport<'_>, findings: &Findings, asked: bool) -> Result<(), Failure> {
    if asked {
        print(&script::script(&format!("PostgreSQL at {}", file.settings.postgres), findings))?;
    }
    let remains = |finding: &Finding| finding.severity == Severity::Error && !finding.is_scripted();
    match findings.exit(remains) {
        None => Ok(()),
        Some(exit) => Err(Failure { exit, message: report.text(colours(), remains) }),
    }
}

fn counts(findings: &Findings) -> String {
    let (errors, warnings) = (findings.count(Severity::Error), findings.count(Severity::Warning));
    match warnings {
        0 => format!("{}\n", counted(errors, "problem")),
        _ => format!("{}, {}\n", counted(errors, "problem"), counted(warnings, "warning")),
    }
}
