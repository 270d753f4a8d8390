//! `unstale dry-run --diff`: the same changes through two rule sets.
//!
//! Owns the comparison. Invariant: an op that both rule sets plan for one transaction is not a
//! difference, whichever rules plan it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};

use super::args::DryRunArgs;
use super::json_op::JsonOp;
use crate::change::Lsn;
use crate::cmd::changes::summary::{Summary, rule_name, shorten};
use crate::cmd::changes::{Changes, OPS_MAX, PlanChunk};
use crate::cmd::config_file::ConfigFile;
use crate::cmd::display::printable;
use crate::cmd::failure::{Exit, Failure};
use crate::cmd::stdout::has_reader;
use crate::plan::{ActionKind, Op, Plan, RuleId};
use crate::rules::RuleSet;

pub(super) async fn run(file: &ConfigFile, other: &ConfigFile, args: &DryRunArgs) -> Result<(), Failure> {
    let settings = &file.settings;
    let changes = Changes::find(&args.changes, settings).await?;
    let rules = [changes.rules(file, None).await?, changes.rules(other, None).await?];
    let resolvers = rules.clone().map(|rules| changes.resolver(rules, settings, false));
    let mut chunks = changes.read(resolvers, settings, OPS_MAX).await?;
    let mut output = BufWriter::new(io::stdout());
    let mut totals = DiffTotals::default();
    let mut summaries = [Summary::default(), Summary::default()];
    let [old, new] = &rules;
    while let Some(chunk) = chunks.next().await? {
        for (summary, plan) in summaries.iter_mut().zip(&chunk.plans) {
            summary.add(plan, chunk.begins);
        }
        let [before, after] = &chunk.plans;
        let differences = compare((old, before), (new, after));
        totals.add(&differences, chunk.begins);
        let written = match args.json {
            true => write_json(&mut output, &differences),
            false => output.write_all(text(&title(&chunk), &differences).as_bytes()),
        };
        if !has_reader(written)? {
            return Ok(());
        }
    }
    if !args.json && !has_reader(output.write_all(totals.line(chunks.changes()).as_bytes()))? {
        return Ok(());
    }
    if !has_reader(output.flush())? {
        return Ok(());
    }
    for ((summary, rules), file) in summaries.iter().zip(&rules).zip([file, other]) {
        for line in summary.dead(rules).lines() {
            eprintln!("{}: {line}", printable(file.path.display().to_string()));
        }
    }
    if let Some(note) = chunks.note() {
        eprintln!("{note}");
    }
    match args.exit_code && totals.gained + totals.lost > 0 {
        true => Err(Failure::silent(Exit::Findings)),
        false => Ok(()),
    }
}

/// An op that only one of the rule sets plans.
struct OpDifference<'a> {
    gained: bool,
    rules: &'a RuleSet,
    rule: RuleId,
    op: Op<'a>,
}

/// The differences between two plans of the same changes, sorted by what they name.
fn compare<'a>((old, before): (&'a RuleSet, &'a Plan), (new, after): (&'a RuleSet, &'a Plan)) -> Vec<OpDifference<'a>> {
    let (before, after) = (by_name(before), by_name(after));
    let lost = before.iter().filter(|(name, _)| !after.contains_key(*name));
    let gained = after.iter().filter(|(name, _)| !before.contains_key(*name));
    let lost = lost.map(|(name, &(rule, op))| (name, OpDifference { gained: false, rules: old, rule, op }));
    let gained = gained.map(|(name, &(rule, op))| (name, OpDifference { gained: true, rules: new, rule, op }));
    let mut differences: Vec<_> = lost.chain(gained).collect();
    differences.sort_by_key(|&(name, _)| name);
    differences.into_iter().map(|(_, difference)| difference).collect()
}

/// What identifies an op: its name, its kind and its data.
type OpIdentity<'a> = (&'a [u8], ActionKind, Option<&'a [u8]>);

fn by_name(plan: &Plan) -> BTreeMap<OpIdentity<'_>, (RuleId, Op<'_>)> {
    plan.ops().map(|(rule, op)| ((op.name(), op.kind(), op.data()), (rule, op))).collect()
}

/// The title of a transaction's differences.
fn title<const N: usize>(chunk: &PlanChunk<N>) -> String {
    match chunk.lsn {
        Lsn::ZERO => format!("change {}", chunk.change),
        lsn => format!("transaction at {lsn}"),
    }
}

fn text(title: &str, differences: &[OpDifference<'_>]) -> String {
    let mut text = String::new();
    if differences.is_empty() {
        return text;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{title}");
    for OpDifference { gained, rules, rule, op } in differences {
        let sign = if *gained { '+' } else { '-' };
        let _ = write!(text, "  {sign} {} {}", op.kind(), shorten(op.name()));
        if let Some(data) = op.data() {
            let _ = write!(text, " {}", shorten(data));
        }
        let _ = writeln!(text, "  (rule {})", printable(rule_name(rules, *rule)));
    }
    text
}

fn write_json(output: &mut impl Write, differences: &[OpDifference<'_>]) -> io::Result<()> {
    for difference in differences {
        let diff = Some(if difference.gained { "gained" } else { "lost" });
        let line = JsonOp::new(diff, difference.rules, difference.rule, difference.op);
        serde_json::to_writer(&mut *output, &line)?;
        output.write_all(b"\n")?;
    }
    Ok(())
}

/// How much differs in total.
#[derive(Default)]
struct DiffTotals {
    gained: u64,
    lost: u64,
    transactions: u64,
    /// Something differs in the current transaction.
    differs: bool,
}

impl DiffTotals {
    fn add(&mut self, differences: &[OpDifference<'_>], begins: bool) {
        let gained = differences.iter().filter(|difference| difference.gained).count() as u64;
        self.gained += gained;
        self.lost += differences.len() as u64 - gained;
        if begins {
            self.differs = false;
        }
        if !self.differs && !differences.is_empty() {
            self.differs = true;
            self.transactions += 1;
        }
    }

    fn line(&self, changes: u64) -> String {
        let Self { gained, lost, transactions, .. } = self;
        match gained + lost {
            0 => format!("no difference in {changes} changes\n"),
            _ => format!("{gained} gained, {lost} lost, in {transactions} transactions of {changes} changes\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;
    use crate::plan::Publish;

    fn rules(names: [&str; 2]) -> RuleSet {
        let rules = names.map(|name| format!("  {name}: {{table: t, delete: 'a:{{id}}'}}\n")).concat();
        let document = Document::parse(&format!("version: 1\nrules:\n{rules}"), &|_| None).unwrap();
        RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap()
    }

    #[test]
    fn an_op_of_only_one_rule_set_is_a_difference() {
        let (old, new) = (rules(["a", "b"]), rules(["b", "c"]));
        let (mut before, mut after) = (Plan::default(), Plan::default());
        let [a, b, c] = ["a", "b", "c"].map(RuleId::of);
        before.delete(a, "both".into());
        after.delete(c, "both".into());
        before.delete(b, "z".into());
        after.bump(c, "z".into(), Lsn::new(1));
        after.delete(b, "m".into());
        before.publish(a, Publish { channel: "c".into(), data: b"1".to_vec() });
        after.publish(b, Publish { channel: "c".into(), data: b"2".to_vec() });
        let differences = compare((&old, &before), (&new, &after));
        let expected = "here\n  - publish c 1  (rule a)\n  + publish c 2  (rule b)\n  + delete m  (rule b)\n  \
                        + bump z  (rule c)\n  - delete z  (rule b)\n";
        assert_eq!(text("here", &differences), expected);
        let mut json = Vec::new();
        write_json(&mut json, &differences).unwrap();
        let json = String::from_utf8(json).unwrap();
        assert!(
            json.starts_with("{\"diff\":\"lost\",\"rule\":\"a\",\"op\":\"publish\",\"key\":\"c\",\"data\":1}\n"),
            "{json}"
        );
        let mut totals = DiffTotals::default();
        totals.add(&differences, true);
        totals.add(&differences, false);
        totals.add(&[], true);
        assert_eq!(totals.line(7), "6 gained, 4 lost, in 1 transactions of 7 changes\n");
        assert_eq!(text("here", &compare((&old, &before), (&old, &before))), "");
        assert_eq!(DiffTotals::default().line(7), "no difference in 7 changes\n");
    }
}
