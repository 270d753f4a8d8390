//! `unstale dry-run`: what changes would do to Redis.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Failure, Loaded, colours};
use crate::change::Lsn;
use crate::config::Problems;
use crate::key::write_printable;
use crate::plan::{Op, Plan, RuleId};
use crate::rules::{Planner, RuleSet};
use crate::source::recording::{Recording, RecordingError};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A recording of changes (NDJSON); `-` reads standard input
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Print one op a line as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(path: &Path, args: Args) -> Result<(), Failure> {
    let loaded = Loaded::read(path)?;
    let name = args.file.display().to_string();
    let input: Box<dyn BufRead> = match name.as_str() {
        "-" => Box::new(std::io::stdin().lock()),
        _ => {
            let file =
                File::open(&args.file).map_err(|error| Failure::usage(format!("cannot read {name}: {error}")))?;
            Box::new(BufReader::new(file))
        }
    };
    let rules = Arc::new(loaded.rules);
    let mut output = BufWriter::new(std::io::stdout().lock());
    let mut summary = Summary::default();
    let mut write = |plan: &Plan| -> Result<(), Failure> {
        if !args.json {
            summary.add(plan);
            return Ok(());
        }
        plan.ops().try_for_each(|(rule, op)| {
            write_op(&mut output, &rules, rule, &op)?;
            Ok(())
        })
    };
    let outcome = plan_all(Recording::new(input), &rules, &name, &mut write);
    let printed = outcome.and_then(|changes| match args.json {
        true => Ok(()),
        false => Ok(output.write_all(summary.table(&rules, changes).as_bytes())?),
    });
    let flushed = output.flush();
    match (printed, flushed) {
        (Err(failure), _) if failure.message.contains("Broken pipe") => Ok(()),
        (Err(failure), _) => Err(failure),
        (Ok(()), Err(error)) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        (Ok(()), _) => Ok(()),
    }
}

/// Plans every transaction of a recording; how many changes there were.
fn plan_all<R: BufRead>(
    recording: Recording<R>,
    rules: &Arc<RuleSet>,
    name: &str,
    write: &mut impl FnMut(&Plan) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    /// A transaction larger than this is shown in parts, so that memory stays bounded.
    const OPS_MAX: usize = 100_000;
    let mut planner = Planner::new(Arc::clone(rules));
    let mut plan = Plan::default();
    let mut changes = 0;
    for recorded in recording {
        let recorded = recorded.map_err(|error| malformed(name, error))?;
        if !recorded.continues || plan.len() >= OPS_MAX {
            write(&plan)?;
            plan = Plan::default();
        }
        changes += 1;
        let lsn = recorded.lsn.unwrap_or(Lsn::ZERO);
        planner.plan(&recorded.change, lsn, &mut plan).map_err(|error| Failure::findings(error.to_string()))?;
    }
    write(&plan)?;
    Ok(changes)
}

fn malformed(name: &str, error: RecordingError) -> Failure {
    match error {
        RecordingError::Io(error) => Failure::usage(format!("cannot read {name}: {error}")),
        RecordingError::Line { line, column, message, text } => {
            let mut problems = Problems::default();
            let at = column.saturating_sub(1).min(text.len());
            problems.push(at..at + 1, message, "expected one change: {\"table\":…,\"op\":…,\"old\":{…},\"new\":{…}}");
            Failure::usage(problems.render(name, &text, line, colours()))
        }
    }
}

#[derive(Serialize)]
struct JsonOp<'a> {
    rule: &'a str,
    op: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

fn write_op(output: &mut impl Write, rules: &RuleSet, rule: RuleId, op: &Op<'_>) -> std::io::Result<()> {
    let key = String::from_utf8_lossy(op.name());
    let data = op.data().and_then(|data| serde_json::from_slice::<&RawValue>(data).ok());
    let line = JsonOp { rule: rule_name(rules, rule), op: op.word(), key: &key, data };
    serde_json::to_writer(&mut *output, &line)?;
    output.write_all(b"\n")
}

fn rule_name(rules: &RuleSet, rule: RuleId) -> &str {
    rules.rule(rule).map_or("", |rule| rule.name.as_str())
}

/// What the plans of all transactions come to, rule by rule.
#[derive(Default)]
struct Summary {
    rules: BTreeMap<RuleId, Counts>,
}

#[derive(Default)]
struct Counts {
    ops: BTreeMap<&'static str, u64>,
    /// The most ops that one transaction asked of this rule.
    fan_out: u64,
    longest: Vec<u8>,
}

impl Summary {
    fn add(&mut self, plan: &Plan) {
        let mut fan_out: BTreeMap<RuleId, u64> = BTreeMap::new();
        for (rule, op) in plan.ops() {
            *fan_out.entry(rule).or_default() += 1;
            let counts = self.rules.entry(rule).or_default();
            *counts.ops.entry(op.word()).or_default() += 1;
            if op.name().len() > counts.longest.len() {
                counts.longest = op.name().to_vec();
            }
        }
        for (rule, count) in fan_out {
            let counts = self.rules.entry(rule).or_default();
            counts.fan_out = counts.fan_out.max(count);
        }
    }

    fn table(&self, rules: &RuleSet, changes: u64) -> String {
        const WORDS: [&str; 4] = ["delete", "pattern", "bump", "publish"];
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["rule", "delete", "pattern", "bump", "publish", "fan-out", "longest key"]);
        for (position, rule) in rules.rules().iter().enumerate() {
            let empty = Counts::default();
            let counts = self.rules.get(&RuleId::new(position)).unwrap_or(&empty);
            let mut row = vec![rule.name.clone()];
            row.extend(WORDS.map(|word| counts.ops.get(word).copied().unwrap_or(0).to_string()));
            row.push(counts.fan_out.to_string());
            row.push(shorten(&counts.longest));
            table.add_row(row);
        }
        let total: u64 = self.rules.values().flat_map(|counts| counts.ops.values()).sum();
        let scans: u64 = self.rules.values().filter_map(|counts| counts.ops.get("pattern")).sum();
        let mut text =
            format!("{table}\n\n{changes} changes, {total} ops; fan-out is the most ops of one transaction\n");
        if scans > 0 {
            let _ = writeln!(text, "warning: {scans} patterns, each a SCAN over every key of the server");
        }
        text
    }
}

/// A key for a table's cell: printable, and not longer than a line.
fn shorten(key: &[u8]) -> String {
    const SHOWN: usize = 60;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_printable(&mut text, key);
    if text.chars().count() <= SHOWN {
        return text;
    }
    let head: String = text.chars().take(SHOWN).collect();
    format!("{head}… ({} bytes)", key.len())
}
