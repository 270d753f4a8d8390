//! From a plan to Redis commands.
//!
//! Owns their order: what removes, then what raises, then what tells. It must not know the connection.
//! Invariants: no command names more than [`KEYS_PER_COMMAND`] keys, so none blocks Redis for long;
//! `started` rises before anything else happens.

use std::time::{Instant, SystemTime};

use redis::Pipeline;

use super::broadcast::Broadcast;
use super::connection::{KEYS_PER_COMMAND, Scripts, script};
use crate::change::Lsn;
use crate::coherence::watermark::Names;
use crate::plan::Plan;

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
    /// Everything committed before this moment is in force once the batch is.
    pub heartbeat: Option<Instant>,
    /// The dataset has to say again which one it is.
    pub probe: bool,
}

/// Under which names and by which scripts a batch is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) names: &'a Names,
    pub(super) scripts: &'a Scripts,
}

/// What goes before the globs: records, and removals by name. `recorded` is what Redis must still know.
pub(super) fn removals(batch: &Batch, recorded: Lsn, target: Target<'_>, pipeline: &mut Pipeline) {
    let Target { names, scripts } = target;
    if let Some(applied) = batch.record {
        let mut record = script(&scripts.record, &[&names.applied]);
        record.arg(applied.to_fixed_hex()).arg(recorded.to_fixed_hex());
        pipeline.add_command(record);
    }
    if batch.plan.is_empty() {
        return;
    }
    let mut raise = script(&scripts.raise, &[&names.started]);
    raise.arg(batch.started.to_fixed_hex());
    pipeline.add_command(raise);
    let mut deletes = batch.plan.deletes().filter(|key| !names.owns(key.as_bytes())).peekable();
    while deletes.peek().is_some() {
        let mut unlink = redis::cmd("UNLINK");
        for key in deletes.by_ref().take(KEYS_PER_COMMAND) {
            unlink.arg(key.as_bytes());
        }
        pipeline.add_command(unlink);
    }
}

/// What goes after the globs: version keys, then messages.
pub(super) fn announcements(batch: &Batch, target: Target<'_>, message: Option<&Broadcast>, pipeline: &mut Pipeline) {
    let bumps: Vec<_> = batch.plan.bumps().filter(|(key, _)| !target.names.owns(key.as_bytes())).collect();
    for chunk in bumps.chunks(KEYS_PER_COMMAND) {
        let keys: Vec<_> = std::iter::once(&target.names.started).chain(chunk.iter().map(|(key, _)| *key)).collect();
        let mut bump = script(&target.scripts.bump, &keys);
        bump.arg(batch.started.to_fixed_hex());
        for (_, lsn) in chunk {
            bump.arg(lsn.offset());
        }
        pipeline.add_command(bump);
    }
    // A value can be chosen so that a template names our own channel; nobody else speaks there.
    for publish in batch.plan.publishes().filter(|publish| publish.channel != target.names.invalidations) {
        let mut command = redis::cmd("PUBLISH");
        command.arg(publish.channel.as_bytes()).arg(publish.data.as_slice());
        pipeline.add_command(command);
    }
    if let Some(message) = message {
        broadcast(message, target, pipeline);
    }
}

/// Sends a broadcast and remembers its id.
pub(super) fn broadcast(message: &Broadcast, target: Target<'_>, pipeline: &mut Pipeline) {
    let json = serde_json::to_vec(message).expect("strings and numbers always serialize");
    let mut publish = redis::cmd("PUBLISH");
    publish.arg(target.names.invalidations.as_bytes()).arg(json);
    pipeline.add_command(publish);
    let mut remember = script(&target.scripts.set, &[&target.names.last_broadcast]);
    remember.arg(&message.id);
    pipeline.add_command(remember);
}

/// Says up to when everything is in force, in milliseconds since 1970 by the clock of Redis.
pub(super) fn heartbeat(asof: u64, target: Target<'_>, pipeline: &mut Pipeline) {
    let mut set = script(&target.scripts.set, &[&target.names.asof]);
    set.arg(asof);
    pipeline.add_command(set);
}
