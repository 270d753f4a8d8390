//! The plans of all transactions, counted rule by rule.
//!
//! Owns the counts and how they are shown. It must not know where plans come from. Invariant:
//! memory does not grow with the number of changes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::{Table, presets};

use crate::cmd::display::printable;
use crate::key::write_printable;
use crate::plan::{ActionKind, Op, Plan, RuleId};
use crate::rules::RuleSet;

/// How many globs and dead letters are named. The rest is only counted.
const NAMED_MAX: usize = 10;

/// Counts of the ops of all transactions.
#[derive(Default)]
pub(in crate::cmd) struct Summary {
    rules: BTreeMap<RuleId, RuleCounts>,
    ops: u64,
    scans: u64,
    /// The first different globs, each with its rule.
    globs: Vec<(RuleId, Vec<u8>)>,
    dead_letters: u64,
    /// The first of them: the rule and the reason.
    first_dead_letters: Vec<(RuleId, String)>,
    /// The ops of the current transaction.
    open: BTreeMap<RuleId, u64>,
    /// The most ops of one transaction.
    largest: u64,
}

#[derive(Default)]
struct RuleCounts {
    ops: BTreeMap<ActionKind, u64>,
    /// The most ops of this rule in one transaction.
    fan_out: u64,
    longest: Vec<u8>,
}

impl Summary {
    /// Adds the plan of a transaction, or of a further part of one if it does not begin one.
    pub(in crate::cmd) fn add(&mut self, plan: &Plan, begins: bool) {
        if begins {
            self.open.clear();
        }
        for (rule, op) in plan.ops() {
            self.ops += 1;
            *self.open.entry(rule).or_default() += 1;
            let counts = self.rules.entry(rule).or_default();
            *counts.ops.entry(op.kind()).or_default() += 1;
            if op.name().len() > counts.longest.len() {
                counts.longest = op.name().to_vec();
            }
            if let Op::Pattern(glob) | Op::Tags(glob) = op {
                self.scans += 1;
                let named = self.globs.iter().any(|(of, known)| *of == rule && known == glob.as_bytes());
                if !named && self.globs.len() < NAMED_MAX {
                    self.globs.push((rule, glob.as_bytes().to_vec()));
                }
            }
        }
        for (rule, count) in &self.open {
            let counts = self.rules.entry(*rule).or_default();
            counts.fan_out = counts.fan_out.max(*count);
        }
        self.largest = self.largest.max(self.open.values().sum());
        self.dead_letters += plan.dead_letters().len() as u64 + plan.dead_letters_dropped().values().sum::<u64>();
        for letter in plan.dead_letters().iter().take(NAMED_MAX - self.first_dead_letters.len()) {
            self.first_dead_letters.push((letter.rule, letter.reason.clone()));
        }
    }

    /// How many ops there are.
    pub(in crate::cmd) fn ops(&self) -> u64 {
        self.ops
    }

    /// A table with a line for each rule.
    pub(in crate::cmd) fn table(&self, rules: &RuleSet, changes: u64) -> String {
        let occurs = |kind: &ActionKind| self.rules.values().any(|counts| counts.ops.contains_key(kind));
        let kinds: Vec<_> = ActionKind::ALL.into_iter().filter(occurs).collect();
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let words = kinds.iter().map(|kind| kind.as_str());
        let header = std::iter::once("rule").chain(words).chain(["fan-out", "longest key"]);
        table.set_header(header.collect::<Vec<_>>());
        for rule in rules.rules() {
            let empty = RuleCounts::default();
            let counts = self.rules.get(&rule.id).unwrap_or(&empty);
            let mut row = vec![printable(&rule.name)];
            row.extend(kinds.iter().map(|kind| counts.ops.get(kind).copied().unwrap_or(0).to_string()));
            row.push(counts.fan_out.to_string());
            row.push(shorten(&counts.longest));
            table.add_row(row);
        }
        let ops = self.ops;
        format!("{table}\n\n{changes} changes, {ops} ops; fan-out is the most ops of one transaction\n")
    }

    /// Warnings about patterns and about a transaction above `max_keys`.
    pub(in crate::cmd) fn warnings(&self, rules: &RuleSet, max_keys: usize) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        if self.scans > 0 {
            let _ = writeln!(text, "warning: {} patterns, each of which scans every key of the server", self.scans);
            for (rule, glob) in &self.globs {
                let _ = writeln!(text, "  rule {}: {}", printable(rule_name(rules, *rule)), shorten(glob));
            }
            if self.globs.len() == NAMED_MAX {
                text.push_str("  and possibly others\n");
            }
        }
        if self.largest > max_keys as u64 {
            let _ = writeln!(
                text,
                "warning: one transaction has {} ops, more than `max_keys: {max_keys}`; beyond that, the daemon deletes \
                 everything that the rules of the transaction match",
                self.largest
            );
        }
        text
    }

    /// The changes to which a rule could not be applied.
    pub(in crate::cmd) fn dead(&self, rules: &RuleSet) -> String {
        let mut text = String::new();
        for (rule, reason) in &self.first_dead_letters {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "dead letter: rule {}: {}", printable(rule_name(rules, *rule)), printable(reason));
        }
        let more = self.dead_letters.saturating_sub(self.first_dead_letters.len() as u64);
        if more > 0 {
            let _ = writeln!(text, "dead letter: and {more} more");
        }
        text
    }
}

/// The name of a rule.
pub(in crate::cmd) fn rule_name(rules: &RuleSet, rule: RuleId) -> &str {
    rules.rule(rule).map_or("", |rule| rule.name.as_str())
}

/// A key that is printable and not longer than a line.
pub(in crate::cmd) fn shorten(key: &[u8]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;
    use crate::key::Glob;
    use crate::plan::DeadLetter;

    fn rules() -> RuleSet {
        let text = "version: 1\nrules:\n  a: {table: t, delete: 'a:{id}'}\n  b: {table: t, bump: 'b:{id}'}\n";
        let document = Document::parse(text, &|_| None).unwrap();
        RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap()
    }

    fn plan(keys: std::ops::Range<u32>) -> Plan {
        let mut plan = Plan::default();
        keys.for_each(|n| plan.delete(RuleId::of("a"), format!("a:{n}").as_str().into()));
        plan
    }

    #[test]
    fn a_table_has_the_columns_that_occur() {
        let mut summary = Summary::default();
        summary.add(&plan(0..2), true);
        summary.add(&plan(0..3), true);
        summary.add(&plan(3..5), false);
        summary.add(&plan(8..12), true);
        let table = summary.table(&rules(), 9);
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["rule", "delete", "fan-out", "longest", "key"]);
        assert_eq!(lines[1], ["a", "11", "5", "a:10"]);
        assert_eq!(lines[2], ["b", "0", "0"]);
        assert!(table.ends_with("9 changes, 11 ops; fan-out is the most ops of one transaction\n"), "{table}");
        assert_eq!(summary.warnings(&rules(), 5), "");
        assert!(summary.warnings(&rules(), 4).contains("one transaction has 5 ops"));
    }

    #[test]
    fn scans_and_dead_letters_are_named_up_to_a_number() {
        let mut summary = Summary::default();
        for n in 0..30_u32 {
            let mut plan = Plan::default();
            let mut glob = Glob::new();
            glob.push_literal(format!("g{}\u{1b}:", n % 15).as_bytes());
            glob.push_any();
            plan.pattern(RuleId::of("b"), glob);
            plan.dead_letter(DeadLetter {
                rule: RuleId::of("b"),
                reason: format!("no {n}\u{1b}"),
                change: String::new(),
            });
            summary.add(&plan, true);
        }
        let warnings = summary.warnings(&rules(), 100);
        assert!(warnings.starts_with("warning: 30 patterns, each of which scans"), "{warnings}");
        assert_eq!(warnings.lines().count(), 12, "{warnings}");
        assert!(warnings.contains("  rule b: g0\\u{1b}:*\n"), "{warnings}");
        let dead = summary.dead(&rules());
        assert_eq!(dead.lines().count(), 11, "{dead}");
        assert!(dead.starts_with("dead letter: rule b: no 0\\u{1b}\n") && dead.ends_with("and 20 more\n"), "{dead}");
    }
}
