//! A change explained: for every rule of its table, why it acts or does not, and what its templates say.
//!
//! Owns the input and, with [`verdict`], how verdicts are shown. It must not decide: [`trace`] tells what the planner
//! decides. Invariant: nothing is asked of a server unless `--lookups` says so.

mod verdict;

use std::io::BufRead;

use self::verdict::Shown;
use super::super::display::{line, printable};
use super::super::{Failure, Loaded, malformed, print};
use super::Args;
use crate::change::{Change, Commit, Operation};
use crate::lookups::Runner;
use crate::nearest::nearest;
use crate::postgres;
use crate::rules::trace;
use crate::source::recording::Recording;

/// What the change is called in messages when it stands on the command line.
const ARGUMENT: &str = "--change";

pub(super) async fn explain(loaded: &Loaded, given: &str, args: &Args) -> Result<(), Failure> {
    let name = if given == "-" { "-" } else { ARGUMENT };
    let input: Box<dyn BufRead + '_> = match given {
        "-" => Box::new(std::io::stdin().lock()),
        _ => Box::new(given.as_bytes()),
    };
    let mut runner = match args.lookups && !loaded.rules.lookups().is_empty() {
        true => Some(Runner::new(postgres::connect(&loaded.settings.postgres).await?)),
        false => None,
    };
    let mut count = 0;
    for recorded in Recording::new(input) {
        let recorded = recorded.map_err(|error| malformed(name, error))?;
        let commit = Commit { lsn: recorded.lsn.unwrap_or_default(), at: recorded.at };
        let shown = judged(loaded, &recorded.change, &commit, runner.as_mut()).await;
        count += 1;
        print(&match args.json {
            true => shown.iter().map(|shown| line(shown.json(count))).collect::<String>(),
            false => text(loaded, &recorded.change, &shown),
        })?;
    }
    if count == 0 {
        return Err(Failure::usage(format!("{name} holds no change; {EXPECTED}")));
    }
    Ok(())
}

const EXPECTED: &str = r#"expected a line such as {"table":"users","op":"update","old":{…},"new":{…}}"#;

/// Every rule's verdict, with the rows of its lookups if there is somebody to ask.
async fn judged<'a>(
    loaded: &'a Loaded,
    change: &'a Change,
    commit: &Commit,
    mut runner: Option<&mut Runner>,
) -> Vec<Shown<'a>> {
    let mut judged = Vec::new();
    for verdict in trace(&loaded.rules, change, commit) {
        let Some(rule) = loaded.rules.rule(verdict.rule) else { continue };
        let mut shown = Shown::new(loaded, rule, change, verdict);
        if let Some(runner) = runner.as_deref_mut() {
            shown.resolve(runner).await;
        }
        judged.push(shown);
    }
    judged
}

fn text(loaded: &Loaded, change: &Change, judged: &[Shown<'_>]) -> String {
    let name = change.relation.name.to_string();
    let shown = printable(name.as_bytes());
    let mut text = match change.operation {
        Operation::Event => format!("event {shown}"),
        operation => format!("{} of {shown}", operation.word()),
    };
    if judged.is_empty() {
        let known: Vec<String> = match change.operation {
            Operation::Event => loaded.rules.events().into_iter().map(ToOwned::to_owned).collect(),
            _ => loaded.rules.tables().into_iter().map(ToString::to_string).collect(),
        };
        text.push_str(": no rule names it");
        let near = |name: &str| nearest(name, known.iter().map(String::as_str));
        if let Some(near) = near(&name).or_else(|| near(&change.relation.name.table)) {
            text.push_str(&format!("; did you mean `{near}`?"));
        }
    }
    text.push_str("\n\n");
    for shown in judged {
        text.push_str(&shown.text());
        text.push('\n');
    }
    text
}
