//! `unstale dry-run`: what changes would do to Redis.

mod diff;
pub(super) mod summary;

use std::borrow::Cow;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::value::RawValue;

use self::summary::Summary;
use super::changes::{Changes, OPS_MAX, SourceArgs, has_reader};
use super::{Failure, Loaded, print};
use crate::plan::{ActionKind, Op, Plan, RuleId};
use crate::rules::RuleSet;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// Print one op a line as JSON
    #[arg(long)]
    json: bool,
    /// Compare with what the rules of this file would do: the ops that are gained and lost
    #[arg(long, value_name = "FILE")]
    diff: Option<PathBuf>,
    /// Exit with 1 if there is a difference
    #[arg(long, requires = "diff")]
    exit_code: bool,
}

pub(super) async fn run(path: &Path, args: Args) -> Result<(), Failure> {
    let loaded = Loaded::read(path)?;
    match &args.diff {
        Some(other) => diff::run(&loaded, &Loaded::read(other)?, &args).await,
        None => show(&loaded, &args).await,
    }
}

async fn show(loaded: &Loaded, args: &Args) -> Result<(), Failure> {
    let settings = &loaded.settings;
    let changes = Changes::find(&args.source, settings).await?;
    let rules = changes.rules(loaded)?;
    let desks = [changes.desk(rules.clone(), settings, false)];
    let mut portions = changes.read(desks, settings, OPS_MAX).await?;
    let mut output = BufWriter::new(io::stdout());
    let mut summary = Summary::default();
    while let Some(portion) = portions.next().await? {
        let [plan] = &portion.plans;
        summary.add(plan, portion.begins);
        if args.json && !has_reader(write_ops(&mut output, &rules, plan))? {
            return Ok(());
        }
    }
    if !has_reader(output.flush())? {
        return Ok(());
    }
    if !args.json {
        print(&summary.table(&rules, portions.changes()))?;
        eprint!("{}", summary.warnings(&rules, settings.max_keys));
    }
    eprint!("{}", summary.dead(&rules));
    if let Some(note) = portions.note() {
        eprintln!("{note}");
    }
    Ok(())
}

/// One op as the JSON that `--json` prints.
#[derive(Serialize)]
struct JsonOp<'a> {
    /// Which of two rule sets asks for it, if only one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<&'static str>,
    rule: &'a str,
    op: ActionKind,
    key: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

impl<'a> JsonOp<'a> {
    fn new(rules: &'a RuleSet, rule: RuleId, op: Op<'a>) -> Self {
        let data = op.data().and_then(|data| serde_json::from_slice::<&RawValue>(data).ok());
        let key = String::from_utf8_lossy(op.name());
        Self { diff: None, rule: rule_name(rules, rule), op: op.kind(), key, data }
    }
}

fn write_ops(output: &mut impl Write, rules: &RuleSet, plan: &Plan) -> io::Result<()> {
    for (rule, op) in plan.ops() {
        serde_json::to_writer(&mut *output, &JsonOp::new(rules, rule, op))?;
        output.write_all(b"\n")?;
    }
    Ok(())
}

fn rule_name(rules: &RuleSet, rule: RuleId) -> &str {
    rules.rule(rule).map_or("", |rule| rule.name.as_str())
}
