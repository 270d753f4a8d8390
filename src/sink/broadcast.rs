//! The message by which every instance learns what was invalidated.
//!
//! Owns its format and its id. It must not know how it is sent. Invariant: `prev` is the id of the
//! message before, which only Redis knows when the message is sent. So a subscriber that misses a
//! message sees a gap and flushes.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::change::Lsn;
use crate::plan::{ActionKind, Op, Plan};

/// About how long a message is at most, in bytes: what followers keep.
const MESSAGE_BYTES_MAX: usize = 512 << 10;

/// About how much an op takes besides its name, in bytes.
const OP_BYTES: usize = 32;

/// A message on the channel `invalidations`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broadcast {
    /// The version of this format: 1.
    pub v: u32,
    /// Opaque; different from every other.
    pub id: String,
    /// The id of the message before. Null if it is not known: flush.
    pub prev: Option<String>,
    /// The epoch. If it changes: flush.
    pub epoch: u64,
    /// The highest position in PostgreSQL's log whose invalidations the batch begins to apply.
    pub lsn: String,
    /// When its last transaction committed, in RFC 3339, by the database server's clock.
    pub at: String,
    /// What a cache must delete.
    pub ops: Vec<BroadcastOp>,
}

/// One op of a [`Broadcast`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BroadcastOp {
    /// `delete`, `set`, `pattern`, `tag` or `bump`.
    pub op: ActionKind,
    /// The full name: a key, for `pattern` a glob, for `tag` a set. The keys that were found in a
    /// set are announced one by one.
    pub key: String,
}

impl Broadcast {
    /// What a plan means for a subscriber that keeps copies. Empty if the plan only sends messages.
    pub(super) fn ops(plan: &Plan) -> Vec<BroadcastOp> {
        plan.announcements().chain(plan.ops()).filter_map(|(_, op)| broadcast_op(op)).collect()
    }

    /// The ops in pieces that each fit into a message, at least one op in each.
    pub(super) fn pieces(ops: &[BroadcastOp]) -> impl Iterator<Item = &[BroadcastOp]> {
        let mut bytes = 0;
        ops.chunk_by(move |_, next| {
            bytes += next.key.len() + OP_BYTES;
            let fits = bytes <= MESSAGE_BYTES_MAX;
            bytes = if fits { bytes } else { 0 };
            fits
        })
    }

    /// The JSON before and after the value of `prev`.
    pub(super) fn around_prev(&self) -> (String, String) {
        const PREV: &str = "\"prev\":";
        let json = serde_json::to_string(&Self { prev: None, ..self.clone() });
        let json = json.expect("strings and numbers always serialize");
        // Before it there are only a number and an id of hexadecimal digits.
        let (head, tail) = json.split_once(PREV).expect("the field is always written");
        (format!("{head}{PREV}"), tail.strip_prefix("null").unwrap_or(tail).to_owned())
    }
}

fn broadcast_op(op: Op<'_>) -> Option<BroadcastOp> {
    if !op.kind().touches_keys() {
        return None;
    }
    match std::str::from_utf8(op.name()) {
        Ok(name) => Some(BroadcastOp { op: op.kind(), key: name.to_owned() }),
        // JSON has no bytes. A name that is not UTF-8 becomes a glob that matches it and a few
        // other names.
        Err(_) => {
            let mut glob = crate::key::Glob::new();
            for chunk in op.name().utf8_chunks() {
                glob.push_literal(chunk.valid().as_bytes());
                if !chunk.invalid().is_empty() {
                    glob.push_any();
                }
            }
            Some(BroadcastOp { op: ActionKind::Pattern, key: String::from_utf8_lossy(glob.as_bytes()).into_owned() })
        }
    }
}

/// Gives the messages of one process their ids.
#[derive(Debug)]
pub(super) struct Numbering {
    instance: u64,
    sent: u64,
}

impl Default for Numbering {
    fn default() -> Self {
        Self { instance: rand::random(), sent: 0 }
    }
}

impl Numbering {
    /// The next message, without `prev`.
    pub(super) fn next(&mut self, epoch: u64, lsn: Lsn, at: SystemTime, ops: Vec<BroadcastOp>) -> Broadcast {
        self.sent += 1;
        Broadcast {
            v: 1,
            id: format!("{:016x}-{}", self.instance, self.sent),
            prev: None,
            epoch,
            lsn: lsn.to_string(),
            at: humantime::format_rfc3339_micros(at).to_string(),
            ops,
        }
    }
}
