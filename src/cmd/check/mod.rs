//! `unstale check`: is the file right, and does it fit the servers?
//!
//! Thin: [`postgres`], [`reads`] and [`redis`] ask, [`compare`](mod@compare) and [`lock`] hold the rules against a
//! catalog, [`report`] and [`script`] show. Invariant: everything that can be checked is checked before anything fails.

mod clock;
mod compare;
mod finding;
pub(super) mod lock;
mod postgres;
mod reads;
mod redis;
mod report;
mod script;

use std::io::Write as _;
use std::path::Path;

use self::finding::{Finding, Findings, Severity};
pub(super) use self::reads::require_reads;
use self::report::Report;
use super::{Failure, Loaded, colours, print};
use crate::catalog::Catalog;
use crate::rules::{RuleSet, lint};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ask no server: look at the file, and at what --lock wrote beside it
    #[arg(long, conflicts_with_all = ["lock", "sql"])]
    offline: bool,
    /// Write down what the tables look like, for --offline and for `test`, and stop
    #[arg(long, conflicts_with_all = ["sql", "json", "format"])]
    lock: bool,
    /// Print the SQL that mends what can be mended, and fail only over the rest
    #[arg(long, conflicts_with_all = ["json", "format"])]
    sql: bool,
    /// Print one JSON object
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Print for people, or as annotations of a GitHub workflow
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Github,
}

pub(super) async fn run(path: &Path, args: Args) -> Result<(), Failure> {
    let text = Loaded::text_of(path)?;
    let loaded = match Loaded::compile(path, text.clone(), &|name| std::env::var(name).ok()) {
        Ok(loaded) => loaded,
        Err(problems) => {
            let mut findings = Findings::default();
            findings.found.extend(problems.iter().map(|problem| Finding::problem("file", problem)));
            return show(&args, &Report::new(path, &text, &findings), &findings, "");
        }
    };
    if args.lock {
        return lock::write(&loaded).await;
    }
    let (findings, asked) = if args.offline { (offline(&loaded), false) } else { online(&loaded).await };
    let report = Report::new(path, &loaded.text, &findings);
    if args.sql {
        return show_script(&loaded, &report, &findings, asked);
    }
    let (rules, tables) = (loaded.rules.rules().len(), loaded.rules.tables().len());
    let ready = if args.offline { "" } else { "; PostgreSQL and Redis are ready" };
    let warnings = match findings.count(Severity::Warning) {
        0 => String::new(),
        count => format!(", {}", counted(count, "warning")),
    };
    let sound = format!("{}: {rules} rules on {tables} tables, no problems{warnings}{ready}\n", path.display());
    show(&args, &report, &findings, &sound)
}

/// What can be said without a server.
fn offline(loaded: &Loaded) -> Findings {
    let mut findings = Findings::default();
    findings.heading(loaded.path.display().to_string());
    match lock::read(&loaded.path) {
        Ok(Some(catalog)) => {
            let mut compared = Findings::default();
            let rules = compare::compare(&loaded.rules, &catalog, loaded.settings.mode, &mut compared);
            for finding in &mut compared.found {
                let note = "as the lock file has the tables; if they are otherwise now: unstale check --lock";
                finding.why = if finding.why.is_empty() { note.to_owned() } else { format!("{}\n{note}", finding.why) };
            }
            findings.append(compared);
            lints(&rules, Some(&catalog), &mut findings);
        }
        Ok(None) => lints(&loaded.rules, None, &mut findings),
        Err(failure) => {
            let why = "the names and types of columns were not checked";
            findings.add(Finding::configuration("lock-file", failure.message).why(why));
            lints(&loaded.rules, None, &mut findings);
        }
    }
    findings
}

/// Both servers are asked at once, each whether or not the other answers; and whether PostgreSQL did.
async fn online(loaded: &Loaded) -> (Findings, bool) {
    let (database, cache) = tokio::join!(postgres::probe(loaded), redis::probe(loaded));
    let mut findings = match &database.compared {
        Some((catalog, rules)) => {
            let mut findings = Findings::default();
            findings.heading(loaded.path.display().to_string());
            lints(rules, Some(catalog), &mut findings);
            lock::compare(&loaded.path, catalog, rules, &mut findings);
            findings
        }
        None => offline(loaded),
    };
    findings.append(database.findings);
    findings.append(cache.findings);
    clock::compare(database.clock, cache.clock, &mut findings);
    (findings, database.compared.is_some())
}

fn lints(rules: &RuleSet, catalog: Option<&Catalog>, findings: &mut Findings) {
    findings.pass_or("rules", lint(rules, catalog).into_iter().map(Finding::lint));
}

/// Shows everything in the format that was asked for; errors make the exit code.
fn show(args: &Args, report: &Report<'_>, findings: &Findings, sound: &str) -> Result<(), Failure> {
    let code = findings.exit_code(|_| true);
    if args.json || args.format == Format::Github {
        print(&if args.json { report.json() } else { report.github() })?;
        return if code == 0 { Ok(()) } else { Err(Failure { code, message: String::new() }) };
    }
    print(&report.passed())?;
    let shown = report.text(colours(), |_| true);
    if code == 0 {
        // Nobody may be there to read it.
        let _ = write!(std::io::stderr(), "{shown}");
        return print(sound);
    }
    Err(Failure { code, message: format!("{shown}{}", counts(findings)) })
}

/// Prints the script; what it does not mend is said besides, and makes the exit code.
fn show_script(loaded: &Loaded, report: &Report<'_>, findings: &Findings, asked: bool) -> Result<(), Failure> {
    if asked {
        print(&script::script(&format!("PostgreSQL at {}", loaded.settings.postgres), findings))?;
    }
    let remains = |finding: &Finding| finding.severity == Severity::Error && !finding.is_scripted();
    match findings.exit_code(remains) {
        0 => Ok(()),
        code => Err(Failure { code, message: report.text(colours(), remains) }),
    }
}

fn counts(findings: &Findings) -> String {
    let (errors, warnings) = (findings.count(Severity::Error), findings.count(Severity::Warning));
    match warnings {
        0 => format!("{}\n", counted(errors, "problem")),
        _ => format!("{}, {}\n", counted(errors, "problem"), counted(warnings, "warning")),
    }
}

fn counted(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}
