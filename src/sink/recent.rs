//! The ops that were applied last, so that `explain` can show what touched a key.
//!
//! Owns a bounded memory of ops, and when they are written to their list in Redis. It must not slow
//! down what it remembers: under load it keeps the latest ops and writes once a second. Invariant:
//! nothing depends on the list.

use std::collections::VecDeque;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::batch::Batch;
use super::settings::SinkSettings;
use crate::plan::{ActionKind, Op};

/// The most ops that are kept in memory until they are written.
const PENDING_MAX: usize = 1024;

/// The most ops that the list in Redis keeps.
pub(super) const LISTED_MAX: usize = 10_000;

/// How long the list is kept after the last write: 7 days.
pub(super) const LISTED_MILLIS: u64 = 7 * 24 * 60 * 60 * 1000;

/// Up to this many ops are written at once; more are written when a probe is due.
const WRITTEN_AT_ONCE_MAX: usize = 64;

/// An op that was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// What was done.
    pub op: ActionKind,
    /// The full name of what it affected.
    pub key: String,
    /// The name of the rule that asked for it.
    pub rule: String,
    /// The line of the rule in its file, from 1.
    pub line: usize,
    /// The highest position whose invalidations its batch began to apply.
    pub lsn: String,
    /// When the last transaction of its batch committed, in RFC 3339.
    pub at: String,
}

/// Ops that are not yet written, in the form that the list has.
#[derive(Debug, Default)]
pub(super) struct Recent {
    pending: VecDeque<String>,
}

impl Recent {
    /// Remembers the last ops of a batch.
    pub(super) fn remember(&mut self, batch: &Batch, settings: &SinkSettings) {
        let (all, announced) = (batch.plan.len() + batch.streams.len(), batch.plan.announcements().count());
        if all == 0 {
            return;
        }
        let lsn = batch.started.to_string();
        let at = if batch.at == SystemTime::UNIX_EPOCH { SystemTime::now() } else { batch.at };
        let at = humantime::format_rfc3339_micros(at).to_string();
        let ops = batch.plan.announcements().chain(batch.plan.ops());
        let streams = batch.streams.iter().map(|entry| (entry.rule, Op::Stream(&entry.entry)));
        let skipped = (all + announced).saturating_sub(PENDING_MAX);
        for (rule, op) in ops.chain(streams).skip(skipped) {
            let touch = Touch {
                op: op.kind(),
                key: String::from_utf8_lossy(op.name()).into_owned(),
                rule: settings.rule_name(rule).to_owned(),
                line: settings.rule_line(rule),
                lsn: lsn.clone(),
                at: at.clone(),
            };
            if self.pending.len() == PENDING_MAX {
                self.pending.pop_front();
            }
            self.pending.push_back(serde_json::to_string(&touch).expect("texts and numbers always serialize"));
        }
    }

    /// The pending ops, if they are few or if `is_time`. They are written once: if Redis refuses
    /// them, they are lost.
    pub(super) fn take_due(&mut self, is_time: bool) -> Vec<String> {
        if is_time || self.pending.len() <= WRITTEN_AT_ONCE_MAX { self.pending.drain(..).collect() } else { Vec::new() }
    }
}
