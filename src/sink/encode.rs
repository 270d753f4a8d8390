//! From a plan to Redis commands.
//!
//! Owns their order: what removes, then what raises, then what tells. It must not know the connection.
//! Invariants: no command names more than [`KEYS_PER_COMMAND`] keys, so none blocks Redis for long;
//! `started` rises before anything else happens.

use std::time::SystemTime;

use redis::{Cmd, Pipeline};

use super::broadcast::Broadcast;
use crate::change::Lsn;
use crate::coherence::watermark::Names;
use crate::plan::Plan;

/// The most keys that one command names.
pub(super) const KEYS_PER_COMMAND: usize = 256;

/// The ops of one or more transactions, or of a part of one, with what they mean for the watermarks.
#[derive(Debug)]
pub struct Batch {
    /// What to do.
    pub plan: Plan,
    /// The furthest position whose invalidations the batch begins to apply.
    pub started: Lsn,
    /// Everything before the batch that is in force and not yet recorded.
    pub record: Option<Lsn>,
    /// When its last transaction committed.
    pub at: SystemTime,
}

/// The hashes by which Redis knows our scripts.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) raise: String,
    pub(super) bump: String,
    pub(super) remember: String,
}

/// What goes before the globs: records, and removals by name.
pub(super) fn removals(batch: &Batch, names: &Names, scripts: &Scripts, pipeline: &mut Pipeline) {
    if let Some(applied) = batch.record {
        pipeline.add_command(raise(scripts, names.applied.as_bytes(), applied));
    }
    if batch.plan.is_empty() {
        return;
    }
    pipeline.add_command(raise(scripts, names.started.as_bytes(), batch.started));
    let mut deletes = batch.plan.deletes();
    while deletes.len() > 0 {
        let mut unlink = redis::cmd("UNLINK");
        for key in deletes.by_ref().take(KEYS_PER_COMMAND) {
            unlink.arg(key.as_bytes());
        }
        pipeline.add_command(unlink);
    }
}

/// What goes after the globs: version keys, then messages.
pub(super) fn announcements(
    batch: &Batch,
    names: &Names,
    scripts: &Scripts,
    broadcast: Option<&Broadcast>,
    pipeline: &mut Pipeline,
) {
    let bumps: Vec<_> = batch.plan.bumps().collect();
    for chunk in bumps.chunks(KEYS_PER_COMMAND) {
        let mut bump = redis::cmd("EVALSHA");
        bump.arg(&scripts.bump).arg(chunk.len());
        for (key, _) in chunk {
            bump.arg(key.as_bytes());
        }
        for (_, lsn) in chunk {
            bump.arg(lsn.offset());
        }
        pipeline.add_command(bump);
    }
    for publish in batch.plan.publishes() {
        let mut command = redis::cmd("PUBLISH");
        command.arg(publish.channel.as_bytes()).arg(publish.data.as_slice());
        pipeline.add_command(command);
    }
    if let Some(broadcast) = broadcast {
        let message = serde_json::to_vec(broadcast).expect("strings and numbers always serialize");
        let mut command = redis::cmd("PUBLISH");
        command.arg(names.invalidations.as_bytes()).arg(message);
        pipeline.add_command(command);
        let mut remember = redis::cmd("EVALSHA");
        remember.arg(&scripts.remember).arg(1).arg(names.last_broadcast.as_bytes()).arg(&broadcast.id);
        pipeline.add_command(remember);
    }
}

fn raise(scripts: &Scripts, watermark: &[u8], position: Lsn) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(&scripts.raise).arg(1).arg(watermark).arg(position.to_fixed_hex());
    command
}
