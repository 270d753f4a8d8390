//! What a batch meets that does not stop it, as log lines.
//!
//! Owns when each is logged again: at growing intervals, because a rule that fails does so for
//! every row. It must not change what is applied.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use super::batch::Batch;
use super::refused_op::RefusedKind;
use super::settings::SinkSettings;
use crate::backoff::Notices;
use crate::plan::RuleId;

/// When each warning was logged last.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    failed_rules: BTreeMap<RuleId, Notices>,
    widened_rules: BTreeMap<RuleId, Notices>,
    given_up: HashMap<(RefusedKind, RuleId), Notices>,
    dropped_entries: Notices,
    full_memory: Notices,
}

impl Warnings {
    /// Rules failed on changes of this batch.
    pub(super) fn failed_rules(&mut self, batch: &Batch, settings: &SinkSettings) {
        for letter in batch.plan.dead_letters() {
            if self.failed_rules.entry(letter.rule).or_default().due(Instant::now()) {
                tracing::warn!(
                    rule = settings.rule_name(letter.rule),
                    line = settings.rule_line(letter.rule),
                    reason = letter.reason,
                    "a rule failed on a change, and all keys that it may name were deleted instead; \
                     `unstale dry-run --dead` shows such changes"
                );
            }
        }
    }

    /// What rules of this batch name was above a limit.
    pub(super) fn widened_rules(&mut self, batch: &Batch, settings: &SinkSettings) {
        for &rule in batch.plan.widened().keys() {
            if self.widened_rules.entry(rule).or_default().due(Instant::now()) {
                tracing::warn!(
                    rule = settings.rule_name(rule),
                    line = settings.rule_line(rule),
                    "a value was above a limit, or an event lacks a field: all keys that the rule may name were \
                     deleted instead, or a field of a message is null; `unstale status` counts such changes"
                );
            }
        }
    }

    /// Ops were given up that Redis refused twice in the same way.
    pub(super) fn given_up(
        &mut self,
        address: &str,
        given_up: &[(RefusedKind, RuleId, String)],
        settings: &SinkSettings,
    ) {
        for (kind, rule, error) in given_up {
            if !self.given_up.entry((*kind, *rule)).or_default().due(Instant::now()) {
                continue;
            }
            let instead = match kind {
                RefusedKind::Set => "the keys that it sets are deleted instead",
                RefusedKind::Bump => "the version keys that it raises are deleted instead",
                RefusedKind::Publish => "its messages become dead letters",
                RefusedKind::Stream => "its stream entries become dead letters",
            };
            let (rule, line) = (settings.rule_name(*rule), settings.rule_line(*rule));
            tracing::warn!(
                redis = address,
                rule,
                line,
                error,
                "Redis refuses what a rule asks for, so {instead}; permit or enable the command, or change the rule"
            );
        }
    }

    /// The key of a stream holds another type, so entries were dropped.
    pub(super) fn dropped_entries(&mut self, address: &str) {
        if self.dropped_entries.due(Instant::now()) {
            tracing::warn!(
                redis = address,
                "stream entries were dropped: the key that a rule names as its `stream` holds another type; \
                 delete that key or rename the stream"
            );
        }
    }

    /// Redis is full, so that many values are deleted instead of written.
    pub(super) fn full_memory(&mut self, address: &str, values: usize) {
        if self.full_memory.due(Instant::now()) {
            tracing::warn!(
                redis = address,
                values,
                "Redis is full: values that rules `set` are deleted instead of written; raise maxmemory"
            );
        }
    }
}
