//! `unstale dry-run`: prints what changes would do to Redis.

mod args;
mod diff;
mod json_op;

use std::io::{self, BufWriter, Write};
use std::path::Path;

pub(super) use self::args::DryRunArgs;
use self::json_op::JsonOp;
use super::changes::summary::Summary;
use super::changes::{Changes, OPS_MAX};
use super::config_file::ConfigFile;
use super::failure::Failure;
use super::stdout::{has_reader, print};
use crate::plan::Plan;
use crate::rules::RuleSet;

pub(super) async fn run(config: &Path, args: DryRunArgs) -> Result<(), Failure> {
    let file = ConfigFile::read(config)?;
    match &args.diff {
        Some(other) => diff::run(&file, &ConfigFile::read(other)?, &args).await,
        None => show(&file, &args).await,
    }
}

async fn show(file: &ConfigFile, args: &DryRunArgs) -> Result<(), Failure> {
    let settings = &file.settings;
    let changes = Changes::find(&args.changes, settings).await?;
    let rules = changes.rules(file, None).await?;
    let resolvers = [changes.resolver(rules.clone(), settings, false)];
    let mut chunks = changes.read(resolvers, settings, OPS_MAX).await?;
    let mut output = BufWriter::new(io::stdout());
    let mut summary = Summary::default();
    while let Some(chunk) = chunks.next().await? {
        let [plan] = &chunk.plans;
        summary.add(plan, chunk.begins);
        if args.json && !has_reader(write_ops(&mut output, &rules, plan))? {
            return Ok(());
        }
    }
    if !has_reader(output.flush())? {
        return Ok(());
    }
    if !args.json {
        print(&summary.table(&rules, chunks.changes()))?;
        eprint!("{}", summary.warnings(&rules, settings.max_keys));
    }
    eprint!("{}", summary.dead(&rules));
    if let Some(note) = chunks.note() {
        eprintln!("{note}");
    }
    Ok(())
}

fn write_ops(output: &mut impl Write, rules: &RuleSet, plan: &Plan) -> io::Result<()> {
    for (rule, op) in plan.ops() {
        serde_json::to_writer(&mut *output, &JsonOp::new(None, rules, rule, op))?;
        output.write_all(b"\n")?;
    }
    Ok(())
}
