//! What the sink needs to know of the rules and of the configuration file.
//!
//! Owns the names under which rules appear in Redis and in the log. It must not know how a rule is
//! written.

use std::collections::HashMap;
use std::time::Duration;

use crate::plan::{Removal, RuleId};

/// What the sink needs to know of the rules and of the configuration file.
#[derive(Clone, Debug, Default)]
pub struct SinkSettings {
    /// Everything that the rules and reads can remove or write. A new epoch deletes it.
    pub removals: Vec<Removal>,
    /// The rules.
    pub labels: HashMap<RuleId, RuleLabel>,
    /// How long version keys, streams and dead letters are kept after the last write.
    pub ttl: Duration,
    /// Identifies the rules and reads: different ones have another digest.
    pub digest: String,
}

/// The name of a rule, and where it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleLabel {
    /// Its name.
    pub name: String,
    /// The line of the file, from 1.
    pub line: usize,
}

impl SinkSettings {
    /// The name of a rule; empty if there is no such rule.
    pub(super) fn rule_name(&self, rule: RuleId) -> &str {
        self.label(rule).map_or("", |label| &label.name)
    }

    /// The line of a rule in the file, from 1; 0 if there is no such rule.
    pub(super) fn rule_line(&self, rule: RuleId) -> usize {
        self.label(rule).map_or(0, |label| label.line)
    }

    fn label(&self, rule: RuleId) -> Option<&RuleLabel> {
        self.labels.get(&rule)
    }
}
