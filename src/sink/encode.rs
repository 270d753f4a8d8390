//! From a batch to Redis commands.
//!
//! Owns the order of the commands, and the positions of the replies that are read. No I/O; only the
//! nonces of new values are random. It must not know the connection. Invariants: `started` rises
//! before any op; what removes goes before what announces; the count follows every op; no command
//! names more than [`KEYS_PER_COMMAND`] keys, so that none blocks Redis for long; no op touches the
//! daemon's own state.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use redis::{Cmd, Pipeline};

use super::again;
use super::batch::{Batch, StreamEntry};
use super::broadcast::Broadcast;
use super::catalog_record::CatalogRecord;
use super::dataset::{info, time};
use super::owner::OwnerRecord;
use super::proof::Proof;
use super::recent;
use super::refused_op::RefusableOp;
use super::scripts::{KEYS_PER_COMMAND, Scripts, script};
use super::settings::SinkSettings;
use crate::coherence::lease::{Envelope, Token};
use crate::coherence::watermark::Names;
use crate::plan::RuleId;

/// About how many dead letters are kept.
const DEAD_LETTERS_MAX: u64 = 10_000;

/// What counts, among the rules, values of the outbox that are too long to be taken, and sessions
/// that take values without converting them.
const NOT_TAKEN: &str = "(values)";

/// Where a batch is written: the names, the scripts, and what Redis must still know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) names: &'a Names,
    pub(super) scripts: &'a Scripts,
    pub(super) settings: &'a SinkSettings,
    pub(super) proof: &'a Proof,
}

/// What is sent with a batch. Times are milliseconds since 1970 by the clock of Redis.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attached<'a> {
    /// The messages for subscribers.
    pub(super) broadcasts: &'a [Broadcast],
    /// The ops to add to the list of recent ops.
    pub(super) recent: &'a [String],
    /// The time at which values are stored.
    pub(super) now: u64,
    /// The time of [`Batch::heartbeat`].
    pub(super) heartbeat: Option<u64>,
    /// The service that applies the batch, to be written with a probe.
    pub(super) owner: Option<&'a OwnerRecord>,
}

/// The commands of a batch.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) pipeline: Pipeline,
    /// The ops that may be refused by themselves, at the positions of their commands.
    pub(super) refusable: HashMap<usize, RefusableOp>,
    pub(super) positions: Positions,
}

/// Where in the pipeline the commands are whose replies are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Positions {
    /// The stream entries.
    pub(super) streams: Range<usize>,
    /// The count of batches.
    pub(super) count: Option<usize>,
    /// The second deletes that are due.
    pub(super) due: Option<usize>,
    /// `TIME` and `INFO`.
    pub(super) probe: Range<usize>,
    /// The record of the service.
    pub(super) owner: Option<usize>,
}

/// The commands of a batch, in order.
pub(super) fn encode(batch: &Batch, attached: Attached<'_>, target: Target<'_>) -> Encoded {
    let mut encoder = Encoder::new(batch, target);
    encoder.record();
    encoder.raise_started();
    encoder.deletes();
    encoder.sets(attached.now);
    encoder.second_deletes();
    encoder.bumps();
    encoder.publishes();
    encoder.broadcast(attached.broadcasts);
    let streams = encoder.streams();
    encoder.dead_letters();
    encoder.widened();
    encoder.recent(attached.recent);
    encoder.forget_marks();
    encoder.remember();
    let count = encoder.count();
    encoder.heartbeat(attached.heartbeat);
    let due = encoder.due();
    let probe = encoder.probe();
    let owner = encoder.owner(attached.owner);
    let Encoder { pipeline, refusable, .. } = encoder;
    Encoded { pipeline, refusable, positions: Positions { streams, count, due, probe, owner } }
}

/// The commands of a replayed plan: those that go before its patterns and tags are swept, and those
/// that go after. Nothing is recorded or counted.
pub(super) fn encode_replay(batch: &Batch, attached: Attached<'_>, target: Target<'_>) -> [Pipeline; 2] {
    let mut before = Encoder::new(batch, target);
    before.raise_started();
    before.deletes();
    let mut after = Encoder::new(batch, target);
    after.bumps();
    after.publishes();
    after.broadcast(attached.broadcasts);
    after.streams();
    after.recent(attached.recent);
    [before.pipeline, after.pipeline]
}

/// The command that sends a broadcast and stores its id.
pub(super) fn announce(message: &Broadcast, names: &Names, scripts: &Scripts) -> Cmd {
    let (head, tail) = message.around_prev();
    let mut announce = script(&scripts.announce, &[&names.last_broadcast]);
    announce.arg(names.invalidations.as_bytes()).arg(&message.id).arg(head).arg(tail);
    announce
}

/// A pipeline that grows.
struct Encoder<'a> {
    batch: &'a Batch,
    target: Target<'a>,
    pipeline: Pipeline,
    refusable: HashMap<usize, RefusableOp>,
}

impl<'a> Encoder<'a> {
    fn new(batch: &'a Batch, target: Target<'a>) -> Self {
        Self { batch, target, pipeline: Pipeline::new(), refusable: HashMap::new() }
    }

    /// Adds a command without which the rest of the batch can do.
    fn add_refusable(&mut self, op: RefusableOp, command: Cmd) {
        self.refusable.insert(self.pipeline.len(), op);
        self.pipeline.add_command(command);
    }

    /// Records what is in force, unless Redis does not know any more what it recorded before.
    fn record(&mut self) {
        let Target { names, scripts, proof, .. } = self.target;
        if let Some(applied) = self.batch.record {
            let mut record = script(&scripts.record, &[&names.applied, &names.epoch]);
            record.arg(applied.to_fixed_hex()).arg(proof.recorded().to_fixed_hex()).arg(proof.epoch_found());
            self.pipeline.add_command(record);
        }
    }

    fn raise_started(&mut self) {
        if self.batch.plan.is_empty() && self.batch.streams.is_empty() {
            return;
        }
        let mut raise = script(&self.target.scripts.raise, &[&self.target.names.started]);
        raise.arg(self.batch.started.to_fixed_hex());
        self.pipeline.add_command(raise);
    }

    fn deletes(&mut self) {
        let names = self.target.names;
        let mut deletes = self.batch.plan.deletes().filter(|key| !names.owns(key.as_bytes())).peekable();
        while deletes.peek().is_some() {
            let mut unlink = redis::cmd("UNLINK");
            for key in deletes.by_ref().take(KEYS_PER_COMMAND) {
                unlink.arg(key.as_bytes());
            }
            self.pipeline.add_command(unlink);
        }
    }

    /// Values of `set`.
    fn sets(&mut self, now: u64) {
        let Target { names, scripts, .. } = self.target;
        for value in self.batch.plan.sets().filter(|value| !names.owns(value.key.as_bytes())) {
            let envelope = Envelope {
                nonce: Token::of_new_value(),
                lo: value.lsn,
                stored_at: now,
                soft_ttl: 0,
                etag: Envelope::etag_of(&value.body),
                tags: Vec::new(),
                body: value.body.clone(),
            };
            let mut write = script(&scripts.write, &[&value.key, &names.started]);
            write.arg(envelope.encode()).arg(value.lsn.to_fixed_hex()).arg(millis(value.ttl));
            write.arg(self.batch.started.to_fixed_hex());
            self.add_refusable(RefusableOp::Set(value.key.clone()), write);
        }
    }

    /// Stores second deletes, and removes those that are in force.
    fn second_deletes(&mut self) {
        let Target { names, scripts, .. } = self.target;
        let again = &self.batch.again;
        let (adds, dones) = (again.adds(&names.again, scripts), again.dones(&names.again, scripts));
        adds.into_iter().chain(dones).for_each(|command| _ = self.pipeline.add_command(command));
    }

    fn bumps(&mut self) {
        let Target { names, scripts, .. } = self.target;
        let bumps: Vec<_> = self.batch.plan.bumps().filter(|(key, _)| !names.owns(key.as_bytes())).collect();
        for chunk in bumps.chunks(KEYS_PER_COMMAND) {
            let keys: Vec<_> = std::iter::once(&names.started).chain(chunk.iter().map(|(key, _)| *key)).collect();
            let mut bump = script(&scripts.bump, &keys);
            bump.arg(self.batch.started.to_fixed_hex());
            for (_, lsn) in chunk {
                bump.arg(lsn.offset());
            }
            bump.arg(self.ttl_millis());
            let keys = chunk.iter().map(|(key, _)| (*key).clone()).collect();
            self.add_refusable(RefusableOp::Bumps(keys), bump);
        }
    }

    fn publishes(&mut self) {
        // A row can hold a value with which a template names the channel of broadcasts. Only the
        // daemon sends there.
        let own = &self.target.names.invalidations;
        for publish in self.batch.plan.publishes().filter(|publish| publish.channel != *own) {
            let mut command = redis::cmd("PUBLISH");
            command.arg(publish.channel.as_bytes()).arg(publish.data.as_slice());
            self.add_refusable(RefusableOp::Publish(publish.clone()), command);
        }
    }

    fn broadcast(&mut self, messages: &[Broadcast]) {
        for message in messages {
            self.pipeline.add_command(announce(message, self.target.names, self.target.scripts));
        }
    }

    /// Stream entries, in commit order. Returns their positions.
    fn streams(&mut self) -> Range<usize> {
        let Target { names, scripts, settings, proof } = self.target;
        let first = self.pipeline.len();
        for stream_entry in &self.batch.streams {
            let StreamEntry { rule, entry, end, number, at, mark } = stream_entry;
            if names.owns(entry.stream.as_bytes()) {
                continue;
            }
            let keys = [&entry.stream, &names.streams, &names.added, &names.started];
            let mark = mark.as_deref().map(|mark| self.full_mark(mark)).unwrap_or_default();
            let mut add = script(&scripts.stream, &keys);
            add.arg(end.offset()).arg(*number).arg(entry.maxlen).arg(self.ttl_millis());
            add.arg(proof.history()).arg(end.to_fixed_hex()).arg(mark).arg(self.batch.started.to_fixed_hex());
            add.arg("rule").arg(settings.rule_name(*rule)).arg("at").arg(rfc3339(*at));
            add.arg("data").arg(entry.data.as_slice());
            self.add_refusable(RefusableOp::of_entry(stream_entry), add);
        }
        first..self.pipeline.len()
    }

    /// Changes on which a rule failed, and how many more there were than the plan keeps.
    fn dead_letters(&mut self) {
        let Target { names, scripts, settings, .. } = self.target;
        let count = |rule, count: u64| {
            let mut command = script(&scripts.dead_letter, &[&names.dead, &names.failures]);
            command.arg(DEAD_LETTERS_MAX).arg(millis(settings.ttl)).arg(settings.rule_name(rule)).arg(count);
            command
        };
        for letter in self.batch.plan.dead_letters() {
            let mut command = count(letter.rule, 1);
            command.arg("reason").arg(&letter.reason).arg("at").arg(rfc3339(self.batch.at));
            command.arg("change").arg(&letter.change);
            self.pipeline.add_command(command);
        }
        for (&rule, &more) in self.batch.plan.dead_letters_dropped() {
            self.pipeline.add_command(count(rule, more));
        }
    }

    /// Counts what was above a limit, by rule.
    fn widened(&mut self) {
        let Target { names, scripts, settings, .. } = self.target;
        for (&rule, &count) in self.batch.plan.widened() {
            let label = if rule == RuleId::NONE { NOT_TAKEN } else { settings.rule_name(rule) };
            let mut command = script(&scripts.dead_letter, &[&names.dead, &names.widened]);
            command.arg(DEAD_LETTERS_MAX).arg(millis(settings.ttl)).arg(label).arg(count);
            self.pipeline.add_command(command);
        }
    }

    fn recent(&mut self, touches: &[String]) {
        if !touches.is_empty() {
            let mut append = script(&self.target.scripts.append, &[&self.target.names.recent]);
            append.arg(recent::LISTED_MAX).arg(recent::LISTED_MILLIS).arg(touches);
            self.pipeline.add_command(append);
        }
    }

    fn forget_marks(&mut self) {
        for marks in self.batch.forget.chunks(KEYS_PER_COMMAND) {
            let marks: Vec<_> = marks.iter().map(|mark| self.full_mark(mark)).collect();
            let mut forget = redis::cmd("HDEL");
            forget.arg(self.target.names.added.as_bytes()).arg(marks);
            self.pipeline.add_command(forget);
        }
    }

    /// Stores what Redis remembers of the database's catalog.
    fn remember(&mut self) {
        let CatalogRecord { states, counts, faults } = &self.batch.catalog;
        if self.batch.catalog.is_empty() {
            return;
        }
        let Target { names, scripts, .. } = self.target;
        let mut remember = script(&scripts.remember, &[&names.catalog, &names.catalog_changes, &names.blind]);
        remember.arg(states.len());
        for (name, state) in states {
            remember.arg(name).arg(state);
        }
        remember.arg(counts.len());
        for (kind, count) in counts {
            remember.arg(*kind).arg(*count);
        }
        for (table, fault) in faults {
            remember.arg(table).arg(fault);
        }
        self.pipeline.add_command(remember);
    }

    /// Counts the batch, unless Redis does not know any more what it counted before. Returns the
    /// position.
    fn count(&mut self) -> Option<usize> {
        self.batch.counts.then(|| {
            let mut count = script(&self.target.scripts.count, &[&self.target.names.batches]);
            count.arg(self.target.proof.counted());
            self.pipeline.add_command(count);
            self.pipeline.len() - 1
        })
    }

    /// Stores up to when everything is in force, and by which rules.
    fn heartbeat(&mut self, asof: Option<u64>) {
        let Some(asof) = asof else { return };
        let Target { names, scripts, settings, .. } = self.target;
        let mut rules = script(&scripts.set, &[&names.rules]);
        rules.arg(&settings.digest);
        let mut time = script(&scripts.set, &[&names.asof]);
        time.arg(asof);
        // The rules go first: a reader that finds the time finds the rules for which it holds.
        self.pipeline.add_command(rules).add_command(time);
    }

    /// Asks which second deletes are due. Returns the position.
    fn due(&mut self) -> Option<usize> {
        let Target { names, scripts, .. } = self.target;
        self.batch.again.ask.then(|| {
            self.pipeline.add_command(again::ask(&names.again, scripts));
            self.pipeline.len() - 1
        })
    }

    /// Asks for the clock and the dataset. Returns their positions.
    fn probe(&mut self) -> Range<usize> {
        let first = self.pipeline.len();
        if self.batch.probe {
            self.pipeline.add_command(time()).add_command(info());
        }
        first..self.pipeline.len()
    }

    /// Says with a probe which service is at work. Returns the position.
    fn owner(&mut self, owner: Option<&OwnerRecord>) -> Option<usize> {
        let owner = owner.filter(|_| self.batch.probe)?;
        self.pipeline.add_command(owner.write(self.target.names, self.target.scripts));
        Some(self.pipeline.len() - 1)
    }

    fn ttl_millis(&self) -> u64 {
        millis(self.target.settings.ttl)
    }

    /// A mark as it is stored. The numbers of entries begin again in another outbox.
    fn full_mark(&self, mark: &str) -> String {
        format!("{}:{mark}", self.target.proof.history())
    }
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_micros(at).to_string()
}

/// Milliseconds as Redis accepts them: at least one, and at most what it can add to its clock.
fn millis(duration: Duration) -> u64 {
    const MILLIS_MAX: u64 = 1 << 52;
    u64::try_from(duration.as_millis()).unwrap_or(MILLIS_MAX).clamp(1, MILLIS_MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};
    use std::time::Instant;

    use redis::Arg;

    use super::super::again::Again;
    use super::super::dataset::Dataset;
    use super::super::settings::RuleLabel;
    use super::*;
    use crate::change::Lsn;
    use crate::coherence::history::{Origin, Remembered};
    use crate::plan::{ActionKind, DeadLetter, Plan, Publish, Removal, RuleId, SetValue, StreamAppend};

    fn batch(plan: Plan) -> Batch {
        Batch {
            plan,
            streams: Vec::new(),
            started: Lsn::new(9),
            record: None,
            at: SystemTime::UNIX_EPOCH,
            heartbeat: None,
            probe: false,
            counts: false,
            forget: Vec::new(),
            again: Again::default(),
            catalog: CatalogRecord::default(),
        }
    }

    fn plan(fill: impl FnOnce(&mut Plan, RuleId)) -> Plan {
        let mut plan = Plan::default();
        fill(&mut plan, RuleId::of("user"));
        plan
    }

    fn entry(stream: &str, mark: Option<&str>) -> StreamEntry {
        let entry = StreamAppend { stream: stream.into(), data: b"{}".to_vec(), maxlen: 100 };
        let (rule, end, at) = (RuleId::of("user"), Lsn::new(8), SystemTime::UNIX_EPOCH);
        StreamEntry { rule, entry, end, number: 2, at, mark: mark.map(ToOwned::to_owned) }
    }

    fn broadcast() -> Broadcast {
        let (id, lsn, at) = ("i-1".to_owned(), "0/9".to_owned(), "t".to_owned());
        Broadcast { v: 1, id, prev: None, epoch: 1, lsn, at, ops: Vec::new() }
    }

    /// A dataset that recorded position 5 and counted 4 batches in epoch 3.
    fn proof() -> Proof {
        let origin = Origin::decode("s/1/0");
        let mut proof = Proof::default();
        proof.read(Dataset::parse("role:master").unwrap(), Some("3"));
        proof.resume_from(&Remembered {
            applied: Some(Lsn::new(5)),
            started: None,
            origin,
            batches: 4,
            ..Remembered::default()
        });
        proof
    }

    fn with_target<T>(proof: &Proof, run: impl FnOnce(Target<'_>) -> T) -> T {
        let labels = HashMap::from([(RuleId::of("user"), RuleLabel { name: "user".to_owned(), line: 3 })]);
        let (ttl, digest) = (Duration::from_millis(60), "d1".to_owned());
        let settings = SinkSettings { removals: Vec::new(), labels, ttl, digest };
        let (names, scripts) = (Names::new("", "s"), Scripts::named());
        run(Target { names: &names, scripts: &scripts, settings: &settings, proof })
    }

    /// The commands as text: `EVALSHA` and the number of keys are left out, `@` is the daemon's own
    /// state, `H` the history, `VALUE` an envelope.
    fn shown(pipeline: &Pipeline) -> Vec<String> {
        let history = proof().history().to_owned();
        let command = |command: &Cmd| {
            let mut words: Vec<String> = command
                .args_iter()
                .map(|argument| match argument {
                    Arg::Simple(bytes) if bytes.starts_with(b"V:") => "VALUE".to_owned(),
                    Arg::Simple(b"") => "''".to_owned(),
                    Arg::Simple(bytes) => String::from_utf8_lossy(bytes).replace("unstale:{s}:", "@"),
                    _ => "?".to_owned(),
                })
                .collect();
            if words.first().is_some_and(|word| word == "EVALSHA") {
                words.remove(2);
                words.remove(0);
            }
            words.join(" ").replace(&history, "H")
        };
        pipeline.cmd_iter().map(command).collect()
    }

    fn check(batch: &Batch, attached: Attached<'_>, expected: &[&str]) -> Positions {
        let proof = proof();
        let encoded = with_target(&proof, |target| encode(batch, attached, target));
        assert_eq!(shown(&encoded.pipeline), expected);
        encoded.positions
    }

    const NINE: &str = "0000000000000009";
    const AT: &str = "1970-01-01T00:00:00.000000Z";

    #[test]
    fn each_part_becomes_its_commands() {
        let check = |plan: Plan, expected: &str| {
            let raise = format!("raise @started {NINE}");
            check(&batch(plan), Attached { now: 77, ..Attached::default() }, &[&raise, expected]);
        };
        let delete = |plan: &mut Plan, rule| ["a", "b"].into_iter().for_each(|key| plan.delete(rule, key.into()));
        check(plan(delete), "UNLINK a b");
        let value = |ttl| SetValue { key: "k".into(), body: b"{}".to_vec(), ttl, lsn: Lsn::new(7) };
        let set = |plan: &mut Plan, rule| plan.set(rule, value(Duration::from_secs(1)));
        check(plan(set), &format!("write k @started VALUE 0000000000000007 1000 {NINE}"));
        let bump = |plan: &mut Plan, rule| plan.bump(rule, "v".into(), Lsn::new(8));
        check(plan(bump), &format!("bump @started v {NINE} 8 60"));
        let publish = |plan: &mut Plan, rule| plan.publish(rule, Publish { channel: "c".into(), data: b"1".to_vec() });
        check(plan(publish), "PUBLISH c 1");
        let dead = |plan: &mut Plan, rule| {
            plan.dead_letter(DeadLetter { rule, reason: "why".to_owned(), change: "{}".to_owned() });
        };
        let expected = format!("dead_letter @dead @failures 10000 60 user 1 reason why at {AT} change {{}}");
        check(plan(dead), &expected);
    }

    #[test]
    fn dead_letters_beyond_the_limit_are_counted() {
        let (mut full, rule) = (Plan::default(), RuleId::of("user"));
        for at in 0..103 {
            full.dead_letter(DeadLetter { rule, reason: at.to_string(), change: String::new() });
        }
        let proof = proof();
        let encoded = with_target(&proof, |target| encode(&batch(full), Attached::default(), target));
        let commands = shown(&encoded.pipeline);
        assert_eq!((commands.len(), &*commands[101]), (102, "dead_letter @dead @failures 10000 60 user 3"));
    }

    #[test]
    fn what_belongs_to_no_op_stands_alone() {
        let nothing = || batch(Plan::default());
        let with = |fill: fn(&mut Batch)| {
            let mut batch = nothing();
            fill(&mut batch);
            batch
        };
        let plain = Attached::default;
        check(&nothing(), plain(), &[]);
        let record = with(|batch| batch.record = Some(Lsn::new(6)));
        check(&record, plain(), &["record @applied @epoch 0000000000000006 0000000000000005 3"]);
        let positions = check(&with(|batch| batch.counts = true), plain(), &["count @batches 4"]);
        assert_eq!(positions.count, Some(0));
        let positions = check(&with(|batch| batch.probe = true), plain(), &["TIME", "INFO server replication"]);
        assert_eq!(positions, Positions { streams: 0..0, count: None, due: None, probe: 0..2, owner: None });
        let heartbeat = Attached { heartbeat: Some(70), ..plain() };
        check(&nothing(), heartbeat, &["set @rules d1", "set @asof 70"]);
        let forget = with(|batch| batch.forget = vec!["e1".to_owned(), "e2".to_owned()]);
        check(&forget, plain(), &["HDEL @added H:e1 H:e2"]);
        let touches = ["{1}".to_owned(), "{2}".to_owned()];
        check(&nothing(), Attached { recent: &touches, ..plain() }, &["append @recent 10000 604800000 {1} {2}"]);
        let message = broadcast();
        let head = r#"{"v":1,"id":"i-1","prev":"#;
        let tail = r#","epoch":1,"lsn":"0/9","at":"t","ops":[]}"#;
        let announced = format!("announce @last invalidations i-1 {head} {tail}");
        check(&nothing(), Attached { broadcasts: std::slice::from_ref(&message), ..plain() }, &[&announced]);
    }

    #[test]
    fn second_deletes_are_stored_with_what_takes_their_place() {
        let (rule, hex) = (RuleId::of("user"), RuleId::of("user").to_hex());
        let mut glob = crate::key::Glob::new();
        glob.push_any();
        let mut batch = batch(Plan::default());
        batch.again.add = vec![(Duration::from_secs(1), rule, Removal::Key("a".into()))];
        batch.again.instead = vec![(Duration::from_secs(1), rule, Removal::Keys(glob))];
        let expected = format!("again @again 100000 1 1000 {hex} k a 1000 {hex} p *");
        check(&batch, Attached::default(), &[&expected]);
    }

    #[test]
    fn stream_entries_keep_their_order_and_their_positions() {
        let mut streams = batch(Plan::default());
        streams.streams = vec![entry("s", None), entry("t", Some("e1"))];
        streams.counts = true;
        let added = |stream: &str, mark: &str| {
            let place = format!("{stream} @streams @added @started");
            format!("stream {place} 8 2 100 60 H 0000000000000008 {mark} {NINE} rule user at {AT} data {{}}")
        };
        let expected = [&*format!("raise @started {NINE}"), &added("s", "''"), &added("t", "H:e1"), "count @batches 4"];
        let positions = check(&streams, Attached::default(), &expected);
        assert_eq!(positions, Positions { streams: 1..3, count: Some(3), due: None, probe: 4..4, owner: None });
    }

    /// A batch of everything.
    fn whole() -> Batch {
        let mut whole = batch(plan(|plan, rule| {
            plan.dead_letter(DeadLetter { rule, reason: "why".to_owned(), change: "{}".to_owned() });
            plan.publish(rule, Publish { channel: "c".into(), data: b"1".to_vec() });
            plan.bump(rule, "v".into(), Lsn::new(8));
            plan.set(rule, SetValue { key: "k".into(), body: Vec::new(), ttl: Duration::MAX, lsn: Lsn::new(7) });
            plan.delete(rule, "a".into());
        }));
        whole.streams = vec![entry("s", None), entry("t", None)];
        whole.record = Some(Lsn::new(6));
        (whole.heartbeat, whole.probe, whole.counts) = (Some(Instant::now()), true, true);
        whole.forget = vec!["e1".to_owned()];
        whole.again.add = vec![(Duration::from_secs(1), RuleId::of("user"), Removal::Key("a".into()))];
        whole.again.ask = true;
        whole
    }

    /// A new kind of op that the encoder does not know would be planned and not sent.
    #[test]
    fn a_batch_of_everything_has_every_kind_of_op() {
        let batch = whole();
        let encoded = batch.plan.ops().map(|(_, op)| op.kind()).chain([ActionKind::Stream]);
        // The sweeper removes what patterns and tags name.
        let kinds: BTreeSet<_> = encoded.chain([ActionKind::Pattern, ActionKind::Tag]).collect();
        assert_eq!(kinds, BTreeSet::from(ActionKind::ALL));
    }

    #[test]
    fn a_batch_of_everything_has_one_order() {
        let (proof, message, touches) = (proof(), broadcast(), ["{1}".to_owned()]);
        let owner = OwnerRecord::default();
        let (broadcasts, owner) = (std::slice::from_ref(&message), Some(&owner));
        let attached = Attached { broadcasts, recent: &touches, now: 77, heartbeat: Some(70), owner };
        let Encoded { pipeline, positions, .. } = with_target(&proof, |target| encode(&whole(), attached, target));
        let commands = shown(&pipeline);
        let first: Vec<_> = commands.iter().map(|command| command.split(' ').next().unwrap()).collect();
        let expected = [
            "record",
            "raise",
            "UNLINK",
            "write",
            "again",
            "bump",
            "PUBLISH",
            "announce",
            "stream",
            "stream",
            "dead_letter",
            "append",
            "HDEL",
            "count",
            "set",
            "set",
            "again_due",
            "TIME",
            "INFO",
            "own",
        ];
        assert_eq!(first, expected);
        let at = |range: Range<usize>| &first[range];
        assert_eq!(at(positions.streams), ["stream", "stream"]);
        assert_eq!(positions.count.map(|at| first[at]), Some("count"));
        assert_eq!(at(positions.probe), ["TIME", "INFO"]);
        assert_eq!(positions.owner.map(|at| first[at]), Some("own"));
        assert_eq!(positions.due.map(|at| first[at]), Some("again_due"));
        assert!(commands[14].starts_with("set @rules") && commands[15].starts_with("set @asof"), "{commands:?}");
    }

    #[test]
    fn a_replay_removes_before_its_sweeps_and_announces_after_them() {
        let (proof, message, touches) = (Proof::default(), broadcast(), ["{1}".to_owned()]);
        let attached = Attached { broadcasts: std::slice::from_ref(&message), recent: &touches, ..Attached::default() };
        let pipelines = with_target(&proof, |target| encode_replay(&whole(), attached, target));
        let [before, after] = pipelines.map(|pipeline| {
            let first = |command: String| command.split(' ').next().unwrap().to_owned();
            shown(&pipeline).into_iter().map(first).collect::<Vec<_>>()
        });
        assert_eq!(before, ["raise", "UNLINK"]);
        assert_eq!(after, ["bump", "PUBLISH", "announce", "stream", "stream", "append"]);
    }

    #[test]
    fn no_command_names_too_many_keys() {
        let many = batch(plan(|plan, rule| {
            for at in 0..=KEYS_PER_COMMAND {
                plan.delete(rule, at.to_string().as_str().into());
                plan.bump(rule, format!("v{at}").as_str().into(), Lsn::new(1));
            }
        }));
        let proof = proof();
        let encoded = with_target(&proof, |target| encode(&many, Attached::default(), target));
        let words: Vec<_> = shown(&encoded.pipeline).iter().map(|command| command.split(' ').count()).collect();
        assert_eq!(words, [3, 1 + KEYS_PER_COMMAND, 2, 4 + 2 * KEYS_PER_COMMAND, 6]);
    }

    #[test]
    fn no_op_touches_the_state_of_the_daemon() {
        let own = "unstale:{s}:applied";
        let mut hostile = batch(plan(|plan, rule| {
            plan.delete(rule, own.into());
            plan.bump(rule, own.into(), Lsn::new(8));
            plan.publish(rule, Publish { channel: "invalidations".into(), data: b"1".to_vec() });
        }));
        hostile.streams = vec![entry(own, None)];
        check(&hostile, Attached::default(), &[&format!("raise @started {NINE}")]);
        let (ttl, lsn) = (Duration::MAX, Lsn::new(8));
        let set = plan(|plan, rule| plan.set(rule, SetValue { key: own.into(), body: Vec::new(), ttl, lsn }));
        check(&batch(set), Attached::default(), &[&format!("raise @started {NINE}")]);
    }

    #[test]
    fn a_ttl_fits_into_the_clock_of_redis() {
        assert_eq!([Duration::ZERO, Duration::from_secs(1), Duration::MAX].map(millis), [1, 1000, 1 << 52]);
    }
}
