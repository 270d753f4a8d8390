//! The changes that no rule matches.
//!
//! Owns their counts and the note about them. Invariant: memory does not grow with the number of
//! tables.

use std::collections::BTreeMap;

use super::source::{InputChange, Planning};
use crate::cmd::display::printable;

/// Counts of the changes that no rule matches.
#[derive(Default)]
pub(super) struct Unmatched {
    tables: BTreeMap<String, u64>,
    /// Dead letters, by the rule that no longer exists.
    rules: BTreeMap<String, u64>,
    /// Changes of further names.
    more: u64,
}

impl Unmatched {
    /// How many tables, and how many rules, are counted by name.
    const NAMES_MAX: usize = 100;

    /// Counts a change.
    pub(super) fn count(&mut self, input: &InputChange) {
        let (names, name) = match &input.planning {
            Planning::OneRule(entry) => (&mut self.rules, entry.rule.clone()),
            _ => (&mut self.tables, input.change.relation.name.to_string()),
        };
        match names.len() < Self::NAMES_MAX || names.contains_key(&name) {
            true => *names.entry(name).or_default() += 1,
            false => self.more += 1,
        }
    }

    /// One line for each kind, if there were any.
    pub(super) fn note(&self) -> Option<String> {
        let listed = |names: &BTreeMap<String, u64>| {
            let each: Vec<_> = names.iter().map(|(name, count)| format!("{} ({count})", printable(name))).collect();
            each.join(", ")
        };
        let mut lines = Vec::new();
        let count = self.tables.values().sum::<u64>();
        if count > 0 {
            let s = if count == 1 { "" } else { "s" };
            lines.push(format!("note: {count} change{s} of tables without a rule: {}", listed(&self.tables)));
        }
        let count = self.rules.values().sum::<u64>();
        if count > 0 {
            let s = if count == 1 { "" } else { "s" };
            lines.push(format!(
                "note: {count} dead letter{s} of rules that no longer exist; not replayed: {}",
                listed(&self.rules)
            ));
        }
        if self.more > 0 {
            lines.push(format!("note: {} more, of other names", self.more));
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Commit;
    use crate::source::recording::Recording;

    fn input(table: &str) -> InputChange {
        let line = format!("{{\"table\":\"{table}\",\"op\":\"truncate\"}}");
        let change = Recording::new(line.as_bytes()).next().unwrap().unwrap().change;
        InputChange { change, commit: Commit::default(), continues: false, planning: Planning::AsDaemon }
    }

    #[test]
    fn unmatched_changes_are_listed_by_table() {
        let mut unmatched = Unmatched::default();
        assert_eq!(unmatched.note(), None);
        for table in ["b\\u001b", "a", "a"] {
            unmatched.count(&input(table));
        }
        assert_eq!(unmatched.note().unwrap(), r"note: 3 changes of tables without a rule: a (2), b\u{1b} (1)");
        for n in 0..200 {
            unmatched.count(&input(&format!("t{n}")));
        }
        assert!(unmatched.note().unwrap().ends_with("note: 102 more, of other names"), "{:?}", unmatched.note());
    }
}
