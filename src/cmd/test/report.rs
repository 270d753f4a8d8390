//! How the outcome of a test is printed: a line, and for a failure the difference; or a JSON
//! object.
//!
//! Owns the form. It must not compare. Invariant: in every report, a line without a sign is
//! expected and planned, `-` is expected and not planned, and `+` is planned and not expected.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::case::Case;
use super::named_op::NamedOp;
use super::outcome::{Outcome, TestRun};
use crate::cmd::config_file::ConfigFile;
use crate::cmd::display::{json_line, printable};
use crate::plan::RuleId;
use crate::rules::RuleSet;

/// The indent of the lines below a test.
const INDENT: &str = "     ";

/// What reports are written with.
#[derive(Clone, Copy)]
pub(super) struct TestReport<'a> {
    pub(super) file: &'a ConfigFile,
    pub(super) rules: &'a RuleSet,
    /// Also print what is deleted beyond need if the log carries less.
    pub(super) verbose: bool,
}

impl TestReport<'_> {
    /// One line, and more if it failed.
    pub(super) fn text(&self, case: &Case<'_>, outcome: &Outcome) -> String {
        let title = printable(case.raw.it.value.as_bytes());
        let mut text = match outcome.passed() {
            true => format!("ok   {title}\n"),
            false => format!("FAIL {title}\n{INDENT}{}\n", self.file.place(case.raw.it.span.start)),
        };
        // There is a second run only if the first went well.
        if !outcome.passed() && outcome.carried.is_none() {
            self.run(&outcome.full, &mut text);
        }
        if !outcome.unnamed.is_empty() {
            let columns = quote(&outcome.unnamed);
            note(
                &mut text,
                &format!("the test does not name {columns}, and without a lock file it is not known to be NULL"),
            );
            note(&mut text, "name it in the test, or write a lock file with `unstale check --lock`");
        }
        let Some((run, carried)) = outcome.carried.as_ref().zip(case.carried.as_ref()) else { return text };
        let carried_columns = match carried.columns.is_empty() {
            true => "nothing".to_owned(),
            false => quote(&carried.columns),
        };
        if !outcome.passed() {
            note(&mut text, &format!("with what the log carries of the old row ({carried_columns}):"));
            self.run(run, &mut text);
            if !run.missing.is_empty() {
                let lacking = if outcome.lacking.is_empty() { &carried.lacking } else { &outcome.lacking };
                note(&mut text, &format!("the replica identity does not carry the old value of {}", quote(lacking)));
                note(
                    &mut text,
                    "widen it, or change the rule so that it does not need the value; `unknown: match` acts if it is not known",
                );
            }
        } else if self.verbose && !run.beyond.is_empty() {
            note(&mut text, &format!("with what the log carries of the old row ({carried_columns}), it also does:"));
            run.beyond.iter().for_each(|op| difference(&mut text, '+', op));
        }
        text
    }

    fn run(&self, run: &TestRun, text: &mut String) {
        let mut lines: Vec<(&NamedOp, char)> = run.met.iter().map(|op| (op, ' ')).collect();
        lines.extend(run.missing.iter().map(|op| (op, '-')));
        lines.extend(run.beyond.iter().map(|op| (op, '+')));
        lines.sort();
        for (op, sign) in lines {
            difference(text, sign, op);
        }
        for (rule, reason) in &run.dead {
            let name = self.rule(*rule);
            let reason = printable(reason.as_bytes());
            note(text, &format!("rule `{name}` could not be applied to the change: {reason}"));
        }
        if let Some(error) = &run.stopped {
            note(text, &printable(error.to_string().as_bytes()));
        }
    }

    fn rule(&self, rule: RuleId) -> String {
        printable(self.rules.rule(rule).map_or("?", |rule| &rule.name).as_bytes())
    }

    /// One object on one line.
    pub(super) fn json(&self, case: &Case<'_>, outcome: &Outcome) -> String {
        let mut object = Map::new();
        object.insert("it".to_owned(), case.raw.it.value.clone().into());
        self.file.insert_place(case.raw.it.span.start, &mut object);
        object.insert("passed".to_owned(), outcome.passed().into());
        object.insert("full".to_owned(), self.run_in_json(&outcome.full));
        if let Some((run, carried)) = outcome.carried.as_ref().zip(case.carried.as_ref()) {
            let mut run = self.run_in_json(run);
            if let Value::Object(fields) = &mut run {
                fields.insert("columns".to_owned(), json!(carried.columns));
                fields.insert("lacking".to_owned(), json!(outcome.lacking));
            }
            object.insert("carried".to_owned(), run);
        }
        json_line(Value::Object(object))
    }

    fn run_in_json(&self, run: &TestRun) -> Value {
        let ops = |ops: &BTreeSet<NamedOp>| -> Vec<Value> {
            ops.iter().map(|op| json!({"op": op.kind, "name": String::from_utf8_lossy(&op.name)})).collect()
        };
        let dead = |(rule, reason): &(RuleId, String)| {
            let name = self.rules.rule(*rule).map(|rule| &rule.name);
            json!({"rule": name, "reason": reason})
        };
        json!({
            "missing": ops(&run.missing),
            "unexpected": ops(&run.beyond),
            "dead": run.dead.iter().map(dead).collect::<Vec<_>>(),
            "stopped": run.stopped.as_ref().map(ToString::to_string),
        })
    }
}

fn difference(text: &mut String, sign: char, op: &NamedOp) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{INDENT}{sign} {} {}", op.kind, printable(&op.name));
}

fn note(text: &mut String, words: &str) {
    let _ = writeln!(text, "{INDENT}{words}");
}

fn quote(columns: &[String]) -> String {
    columns.iter().map(|column| format!("`{}`", printable(column.as_bytes()))).collect::<Vec<_>>().join(", ")
}
