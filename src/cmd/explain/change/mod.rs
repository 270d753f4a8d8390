//! A change, explained: why every rule of its table acts or does not, and what its templates make.
//!
//! Owns the input. [`rule_report`] owns how the verdict of a rule is printed. It must not decide:
//! [`trace`] says what the planner decides. Invariant: a server is asked only with `--lookups`.

mod rule_report;

use std::io::BufRead;

use self::rule_report::RuleReport;
use super::args::ExplainArgs;
use crate::change::{Change, Commit, Operation};
use crate::cmd::config_file::ConfigFile;
use crate::cmd::display::{json_line, printable};
use crate::cmd::failure::Failure;
use crate::cmd::stdout::print;
use crate::lookups::LookupRunner;
use crate::nearest::nearest;
use crate::postgres;
use crate::rules::trace;
use crate::source::recording::Recording;

/// The name of the input in messages, if the change is an argument.
const ARGUMENT: &str = "--change";

pub(super) async fn explain(file: &ConfigFile, given: &str, args: &ExplainArgs) -> Result<(), Failure> {
    let name = if given == "-" { "-" } else { ARGUMENT };
    let input: Box<dyn BufRead + '_> = match given {
        "-" => Box::new(std::io::stdin().lock()),
        _ => Box::new(given.as_bytes()),
    };
    let mut runner = match args.lookups && !file.rules.lookups().is_empty() {
        true => Some(LookupRunner::new(postgres::connect(&file.settings.postgres).await?)),
        false => None,
    };
    let mut count = 0;
    for recorded in Recording::new(input) {
        let recorded = recorded.map_err(|error| Failure::recording(name, error))?;
        let commit = Commit { lsn: recorded.lsn.unwrap_or_default(), at: recorded.at };
        let reports = reports(file, &recorded.change, &commit, runner.as_mut()).await;
        count += 1;
        print(&match args.json {
            true => reports.iter().map(|report| json_line(report.json(count))).collect::<String>(),
            false => text(file, &recorded.change, &reports),
        })?;
    }
    if count == 0 {
        return Err(Failure::usage(format!("{name} contains no change; {EXPECTED}")));
    }
    Ok(())
}

const EXPECTED: &str = r#"expected a line such as {"table":"users","op":"update","old":{…},"new":{…}}"#;

/// A report for every rule of the table, with the rows of its lookup if there is a runner.
async fn reports<'a>(
    file: &'a ConfigFile,
    change: &'a Change,
    commit: &Commit,
    mut runner: Option<&mut LookupRunner>,
) -> Vec<RuleReport<'a>> {
    let mut reports = Vec::new();
    for verdict in trace(&file.rules, change, commit) {
        let Some(rule) = file.rules.rule(verdict.rule) else { continue };
        let mut report = RuleReport::new(file, rule, change, verdict);
        if let Some(runner) = runner.as_deref_mut() {
            report.resolve(runner).await;
        }
        reports.push(report);
    }
    reports
}

fn text(file: &ConfigFile, change: &Change, reports: &[RuleReport<'_>]) -> String {
    let name = change.relation.name.to_string();
    let shown = printable(name.as_bytes());
    let mut text = match change.operation {
        Operation::Event => format!("event {shown}"),
        operation => format!("{} of {shown}", operation.word()),
    };
    if reports.is_empty() {
        let known: Vec<String> = match change.operation {
            Operation::Event => file.rules.events().into_iter().map(ToOwned::to_owned).collect(),
            _ => file.rules.tables().into_iter().map(ToString::to_string).collect(),
        };
        text.push_str(": no rule names it");
        let near = |name: &str| nearest(name, known.iter().map(String::as_str));
        if let Some(near) = near(&name).or_else(|| near(&change.relation.name.table)) {
            text.push_str(&format!("; did you mean `{near}`?"));
        }
    }
    text.push_str("\n\n");
    for report in reports {
        text.push_str(&report.text());
        text.push('\n');
    }
    text
}
