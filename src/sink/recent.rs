//! What was done last, so that somebody can ask what touched a key.
//!
//! Owns a bounded memory of ops and its list in Redis. It must not slow down what it remembers: under load it
//! remembers the latest and writes once a second. Invariant: nothing depends on it.

use std::collections::VecDeque;
use std::time::SystemTime;

use redis::Pipeline;
use serde::{Deserialize, Serialize};

use super::connection::{Scripts, script};
use super::encode::Batch;
use crate::coherence::watermark::Names;
use crate::plan::{ActionKind, Op, RuleId};

/// The most ops that are kept here until they are written.
const PENDING_MAX: usize = 1024;

/// The most ops that the list in Redis keeps.
const LISTED_MAX: usize = 10_000;

/// How long the list lives after it was written last.
const LISTED_MILLIS: u64 = 7 * 24 * 60 * 60 * 1000;

/// A batch of at most so many ops is written at once.
const SMALL: usize = 64;

/// What a rule is called, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleLabel {
    /// Its name.
    pub name: String,
    /// The line of the file, from 1.
    pub line: usize,
}

impl RuleLabel {
    /// The name of a rule.
    pub(super) fn name(labels: &[Self], rule: RuleId) -> &str {
        labels.get(rule.position()).map_or("", |label| &label.name)
    }
}

/// One op that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// What was done.
    pub op: ActionKind,
    /// The full name of what it was done to.
    pub key: String,
    /// The rule.
    pub rule: String,
    /// The line of the file where the rule is.
    pub line: usize,
    /// Up to where the log was applied with it.
    pub lsn: String,
    /// When the last transaction of its batch committed, in RFC 3339.
    pub at: String,
}

/// Ops that are not written yet, as the list will have them.
#[derive(Debug, Default)]
pub(super) struct Recent {
    pending: VecDeque<String>,
}

impl Recent {
    /// Remembers the ops of a batch, or the last of them.
    pub(super) fn remember(&mut self, batch: &Batch, labels: &[RuleLabel]) {
        let (all, told) = (batch.plan.len() + batch.streams.len(), batch.plan.announcements().count());
        if all == 0 {
            return;
        }
        let lsn = batch.started.to_string();
        let at = if batch.at == SystemTime::UNIX_EPOCH { SystemTime::now() } else { batch.at };
        let at = humantime::format_rfc3339_micros(at).to_string();
        let ops = batch.plan.announcements().chain(batch.plan.ops());
        let streams = batch.streams.iter().map(|entry| (entry.rule, Op::Stream(&entry.entry)));
        let skipped = (all + told).saturating_sub(PENDING_MAX);
        for (rule, op) in ops.chain(streams).skip(skipped) {
            let touch = Touch {
                op: op.kind(),
                key: String::from_utf8_lossy(op.name()).into_owned(),
                rule: RuleLabel::name(labels, rule).to_owned(),
                line: labels.get(rule.position()).map_or(0, |label| label.line),
                lsn: lsn.clone(),
                at: at.clone(),
            };
            if self.pending.len() == PENDING_MAX {
                self.pending.pop_front();
            }
            self.pending.push_back(serde_json::to_string(&touch).expect("texts and numbers always serialize"));
        }
    }

    /// Writes what is pending if that is little, or if it is time.
    pub(super) fn write(&mut self, is_time: bool, names: &Names, scripts: &Scripts, pipeline: &mut Pipeline) {
        if self.pending.is_empty() || !(is_time || self.pending.len() <= SMALL) {
            return;
        }
        let mut append = script(&scripts.append, &[&names.recent]);
        append.arg(LISTED_MAX).arg(LISTED_MILLIS);
        for touch in self.pending.drain(..) {
            append.arg(touch);
        }
        pipeline.add_command(append);
    }
}
