//! Dead letters: changes on which a rule failed.
//!
//! Owns how many are kept. Invariant: memory is bounded, and every dead letter is at least counted.

use std::collections::BTreeMap;

use super::rule_id::RuleId;

/// The most dead letters that one plan keeps; further ones are counted by rule.
const KEPT_MAX: usize = 100;

/// A change on which a rule failed. Everything that the rule could have made is removed instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The rule.
    pub rule: RuleId,
    /// Why it failed.
    pub reason: String,
    /// The change, as one line of a recording.
    pub change: String,
}

/// The dead letters of a plan.
#[derive(Clone, Debug, Default)]
pub(super) struct DeadLetters {
    kept: Vec<DeadLetter>,
    /// How many more there were, by rule.
    dropped: BTreeMap<RuleId, u64>,
}

impl DeadLetters {
    /// Keeps or counts one. How many bytes that takes.
    pub(super) fn push(&mut self, letter: DeadLetter) -> usize {
        if self.kept.len() >= KEPT_MAX {
            *self.dropped.entry(letter.rule).or_default() += 1;
            return 0;
        }
        let bytes = letter.change.len() + letter.reason.len();
        self.kept.push(letter);
        bytes
    }

    /// Adds those of another plan. How many bytes that takes.
    pub(super) fn append(&mut self, other: Self) -> usize {
        for (rule, count) in other.dropped {
            *self.dropped.entry(rule).or_default() += count;
        }
        other.kept.into_iter().map(|letter| self.push(letter)).sum()
    }

    pub(super) fn kept(&self) -> &[DeadLetter] {
        &self.kept
    }

    pub(super) fn dropped(&self) -> &BTreeMap<RuleId, u64> {
        &self.dropped
    }
}
