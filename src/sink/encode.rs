//! From a plan to Redis commands.
//!
//! Owns their order: what removes, then what raises, then what tells. It must not know the connection.
//! Invariants: no command names more than [`KEYS_PER_COMMAND`] keys, so none blocks Redis for long;
//! `started` rises before anything else happens.

use std::time::{Duration, Instant, SystemTime};

use redis::Pipeline;

use super::broadcast::Broadcast;
use super::connection::{KEYS_PER_COMMAND, Scripts, script};
use super::recent::RuleLabel;
use crate::change::Lsn;
use crate::coherence::lease::{Envelope, Token};
use crate::coherence::watermark::Names;
use crate::plan::{Plan, RuleId, StreamAppend};

/// The ops of one or more transactions, or of a part of one, with what they mean for the watermarks.
#[derive(Debug)]
pub struct Batch {
    /// What to do. What takes its time was split off.
    pub plan: Plan,
    /// The stream entries whose turn it is.
    pub streams: Vec<StreamEntry>,
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
    /// Redis is to count it, so that an outbox can tell whether it still knows it.
    pub counts: bool,
    /// Marks ([`StreamEntry::mark`]) that no entry of the outbox can have any more.
    pub forget: Vec<String>,
}

/// A stream entry on its way.
#[derive(Clone, Debug)]
pub struct StreamEntry {
    /// The rule that asked for it.
    pub rule: RuleId,
    /// What it says, and where.
    pub entry: StreamAppend,
    /// The end of its transaction: the first half of its id.
    pub end: Lsn,
    /// Its number in the transaction: the other half.
    pub number: u64,
    /// When the transaction committed.
    pub at: SystemTime,
    /// What tells it from any other, where its position does not: an entry of an outbox has another each time that it
    /// is taken.
    pub mark: Option<String>,
}

/// Under which names and by which scripts a batch is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) names: &'a Names,
    pub(super) scripts: &'a Scripts,
    /// How long what is written lives, unless a rule says otherwise.
    pub(super) ttl: Duration,
}

impl Target<'_> {
    fn ttl_millis(&self) -> u64 {
        millis(self.ttl)
    }
}

/// Milliseconds as Redis takes them: at most what it can add to its clock.
fn millis(duration: Duration) -> u64 {
    const MILLIS_MAX: u64 = 1 << 52;
    u64::try_from(duration.as_millis()).unwrap_or(MILLIS_MAX).clamp(1, MILLIS_MAX)
}

/// What goes before the globs: records, and removals by name. `recorded` is what Redis must still know, and in which epoch.
pub(super) fn removals(batch: &Batch, recorded: (Lsn, &str), target: Target<'_>, pipeline: &mut Pipeline) {
    let Target { names, scripts, .. } = target;
    if let Some(applied) = batch.record {
        let (recorded, epoch) = recorded;
        let mut record = script(&scripts.record, &[&names.applied, &names.epoch]);
        record.arg(applied.to_fixed_hex()).arg(recorded.to_fixed_hex()).arg(epoch);
        pipeline.add_command(record);
    }
    if batch.plan.is_empty() && batch.streams.is_empty() {
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

/// Values that are written through. Nothing else may be in their pipeline: a full Redis refuses them.
pub(super) fn writes(batch: &Batch, now: u64, target: Target<'_>, pipeline: &mut Pipeline) {
    for value in batch.plan.sets().filter(|value| !target.names.owns(value.key.as_bytes())) {
        let envelope = Envelope {
            nonce: Token::of_new_value(),
            lo: value.lsn,
            stored_at: now,
            soft_ttl: 0,
            etag: Envelope::etag_of(&value.body),
            body: value.body.clone(),
        };
        let mut write = script(&target.scripts.write, &[&value.key, &target.names.started]);
        write.arg(envelope.encode()).arg(value.lsn.to_fixed_hex()).arg(millis(value.ttl));
        write.arg(batch.started.to_fixed_hex());
        pipeline.add_command(write);
    }
}

/// Stream entries, in order. `history` tells whether positions can be compared with those of entries before.
pub(super) fn streams(batch: &Batch, labels: &[RuleLabel], history: &str, target: Target<'_>, pipeline: &mut Pipeline) {
    for StreamEntry { rule, entry, end, number, at, mark } in &batch.streams {
        if target.names.owns(entry.stream.as_bytes()) {
            continue;
        }
        let mut add = script(
            &target.scripts.stream,
            &[&entry.stream, &target.names.streams, &target.names.added, &target.names.started],
        );
        add.arg(end.offset()).arg(*number).arg(entry.maxlen).arg(target.ttl_millis()).arg(history);
        add.arg(end.to_fixed_hex())
            .arg(mark.as_deref().map(|mark| full_mark(history, mark)).unwrap_or_default())
            .arg(batch.started.to_fixed_hex());
        add.arg("rule").arg(RuleLabel::name(labels, *rule));
        add.arg("at").arg(humantime::format_rfc3339_micros(*at).to_string());
        add.arg("data").arg(entry.data.as_slice());
        pipeline.add_command(add);
    }
}

/// Numbers of entries begin again in another outbox.
fn full_mark(history: &str, mark: &str) -> String {
    format!("{history}:{mark}")
}

/// Changes that a rule could not be held against.
pub(super) fn dead_letters(batch: &Batch, labels: &[RuleLabel], target: Target<'_>, pipeline: &mut Pipeline) {
    const LETTERS_MAX: u64 = 10_000;
    let bury = |rule: &str, count: u64| {
        let mut bury = script(&target.scripts.bury, &[&target.names.dead, &target.names.failures]);
        bury.arg(LETTERS_MAX).arg(target.ttl_millis()).arg(rule).arg(count);
        bury
    };
    for letter in batch.plan.dead_letters() {
        let mut bury = bury(RuleLabel::name(labels, letter.rule), 1);
        let at = humantime::format_rfc3339_micros(batch.at).to_string();
        bury.arg("reason").arg(&letter.reason).arg("at").arg(at).arg("change").arg(&letter.change);
        pipeline.add_command(bury);
    }
    for (rule, count) in batch.plan.dead_letters_dropped() {
        pipeline.add_command(bury(RuleLabel::name(labels, *rule), *count));
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
        bump.arg(target.ttl_millis());
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
    let (head, tail) = message.around_prev();
    let mut tell = script(&target.scripts.tell, &[&target.names.last_broadcast]);
    tell.arg(target.names.invalidations.as_bytes()).arg(&message.id).arg(head).arg(tail);
    pipeline.add_command(tell);
}

/// Counts a batch, after everything that it does: how many are in force. `counted` is what Redis must still know.
pub(super) fn count(counted: u64, target: Target<'_>, pipeline: &mut Pipeline) {
    let mut count = script(&target.scripts.count, &[&target.names.batches]);
    count.arg(counted);
    pipeline.add_command(count);
}

/// Forgets marks of stream entries whose entries in the outbox are gone.
pub(super) fn forget_marks(batch: &Batch, history: &str, target: Target<'_>, pipeline: &mut Pipeline) {
    for marks in batch.forget.chunks(KEYS_PER_COMMAND) {
        let mut forget = redis::cmd("HDEL");
        let marks: Vec<_> = marks.iter().map(|mark| full_mark(history, mark)).collect();
        forget.arg(target.names.added.as_bytes()).arg(marks);
        pipeline.add_command(forget);
    }
}

/// Says up to when everything is in force, in milliseconds since 1970 by the clock of Redis, and by which rules.
pub(super) fn heartbeat(asof: u64, rules: &str, target: Target<'_>, pipeline: &mut Pipeline) {
    let mut set_rules = script(&target.scripts.set, &[&target.names.rules]);
    set_rules.arg(rules);
    let mut set = script(&target.scripts.set, &[&target.names.asof]);
    set.arg(asof);
    // In this order: whoever believes the time believes the rules.
    pipeline.add_command(set_rules).add_command(set);
}
