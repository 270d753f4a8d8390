//! Ops that Redis refuses for reasons of their own.
//!
//! Owns which refusals these are, when an op is given up, and what takes its place. It must not
//! know how a batch is sent. Invariants: what removes is never given up; a value that cannot be
//! written is deleted, and so is a version key that cannot rise; a message or an entry that cannot
//! be sent becomes a dead letter.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use redis::{RedisError, Value};

use super::batch::{Batch, StreamEntry};
use crate::key::CacheKey;
use crate::plan::{DeadLetter, Publish, RuleId};

/// The errors that concern the server, not one command. Whatever was sent waits.
const OF_SERVER: [&str; 14] = [
    "READONLY",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "NOAUTH",
    "WRONGPASS",
    "BUSY",
    "NOSCRIPT",
    "LOST",
    "CROSSSLOT",
    "MOVED",
];

/// For how long an op is given up at once if one of its kind was refused in the same way.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);

/// How much of a message a dead letter shows, in bytes.
const SHOWN_BYTES_MAX: usize = 1024;

/// An op that is sent as a command of its own, or version keys that rise together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum RefusableOp {
    Set(CacheKey),
    Bumps(Vec<CacheKey>),
    Publish(Publish),
    /// An entry of a stream: the end of its transaction, and its number in it.
    Stream(CacheKey, u64, u64),
}

impl RefusableOp {
    pub(super) fn of_entry(StreamEntry { entry, end, number, .. }: &StreamEntry) -> Self {
        Self::Stream(entry.stream.clone(), end.offset(), *number)
    }

    fn kind(&self) -> RefusedKind {
        match self {
            Self::Set(_) => RefusedKind::Set,
            Self::Bumps(_) => RefusedKind::Bump,
            Self::Publish(_) => RefusedKind::Publish,
            Self::Stream(..) => RefusedKind::Stream,
        }
    }
}

/// What kind of op was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum RefusedKind {
    Set,
    Bump,
    Publish,
    Stream,
}

/// The ops whose commands were refused, with the errors. If some error concerns the server, or a
/// command of the daemon's own state, the first error of all is the outcome of the whole.
pub(super) fn refused(
    replies: &[Value],
    ops: &HashMap<usize, RefusableOp>,
) -> Result<Vec<(RefusableOp, RedisError)>, RedisError> {
    let mut refused = Vec::new();
    for (at, reply) in replies.iter().enumerate() {
        let Value::ServerError(error) = reply else { continue };
        let error = RedisError::from(error.clone());
        match ops.get(&at).filter(|_| !error.code().is_some_and(|code| OF_SERVER.contains(&code))) {
            Some(op) => refused.push((op.clone(), error)),
            None => return Err(refused.into_iter().next().map_or(error, |(_, first)| first)),
        }
    }
    Ok(refused)
}

/// Which refusals were seen before.
#[derive(Debug, Default)]
pub(super) struct RefusedOps {
    /// The ops that the last attempt was refused, with the codes of the errors.
    last: Vec<(RefusableOp, String)>,
    given_up: HashMap<(RefusedKind, String), Instant>,
}

impl RefusedOps {
    /// Another batch begins.
    pub(super) fn begin(&mut self) {
        self.last.clear();
    }

    /// Takes apart a batch of which these ops were refused: what is refused for the second time in
    /// the same way is replaced. Returns what was given up; nothing if all of it is to be tried
    /// again.
    pub(super) fn take_apart(
        &mut self,
        batch: &mut Batch,
        refused: &[(RefusableOp, RedisError)],
        now: Instant,
    ) -> Vec<(RefusedKind, RuleId, String)> {
        let mut given_up = Vec::new();
        let earlier = std::mem::take(&mut self.last);
        for (op, error) in refused {
            let (code, kind) = (error.code().unwrap_or_default().to_owned(), op.kind());
            let is_known = |at: &Instant| now.saturating_duration_since(*at) < REMEMBERED_FOR;
            let way = (kind, code.clone());
            if !earlier.contains(&(op.clone(), code.clone())) && !self.given_up.get(&way).is_some_and(is_known) {
                self.last.push((op.clone(), code));
                continue;
            }
            self.given_up.insert(way, now);
            let reason = crate::redis::describe(error);
            let rule = give_up(batch, op, &reason);
            given_up.push((kind, rule, reason));
        }
        given_up
    }
}

/// Replaces an op by what is certain to work. Returns the rule that asked for it.
fn give_up(batch: &mut Batch, op: &RefusableOp, reason: &str) -> RuleId {
    match op {
        RefusableOp::Set(key) => batch.plan.set_to_delete(key),
        RefusableOp::Bumps(keys) => {
            let rules: Vec<_> = keys.iter().filter_map(|key| batch.plan.bump_to_delete(key)).collect();
            rules.first().copied()
        }
        RefusableOp::Publish(publish) => batch.plan.drop_publish(publish).inspect(|rule| {
            let what = format!("PUBLISH {} {}", publish.channel, shown(&publish.data));
            batch.plan.dead_letter(letter(*rule, &what, reason));
        }),
        RefusableOp::Stream(..) => {
            let at = batch.streams.iter().position(|entry| RefusableOp::of_entry(entry) == *op);
            at.map(|at| {
                let StreamEntry { rule, entry, .. } = batch.streams.remove(at);
                let what = format!("XADD {} {}", entry.stream, shown(&entry.data));
                batch.plan.dead_letter(letter(rule, &what, reason));
                rule
            })
        }
    }
    .unwrap_or(RuleId::NONE)
}

fn letter(rule: RuleId, what: &str, reason: &str) -> DeadLetter {
    DeadLetter { rule, reason: format!("Redis refused twice: {reason}; it was sent {what}"), change: String::new() }
}

fn shown(data: &[u8]) -> String {
    String::from_utf8_lossy(data.get(..SHOWN_BYTES_MAX).unwrap_or(data)).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::again::Again;
    use super::super::catalog_record::CatalogRecord;
    use super::*;
    use crate::change::Lsn;
    use crate::plan::{Plan, SetValue, StreamAppend};

    fn reply(code: &str) -> Value {
        redis::parse_redis_value(format!("-{code} no\r\n").as_bytes()).unwrap()
    }

    fn error(code: &str) -> RedisError {
        let ops = HashMap::from([(0, RefusableOp::Set("a".into()))]);
        refused(&[reply(code)], &ops).unwrap().remove(0).1
    }

    #[test]
    fn errors_of_the_server_and_of_state_commands_are_of_the_whole() {
        let ops = HashMap::from([(1, RefusableOp::Set("a".into()))]);
        assert_eq!(refused(&[Value::Okay, Value::Okay], &ops).unwrap().len(), 0);
        assert_eq!(refused(&[Value::Okay, reply("NOPERM")], &ops).unwrap().len(), 1);
        for code in OF_SERVER {
            assert!(refused(&[Value::Okay, reply(code)], &ops).is_err(), "{code}");
        }
        assert!(refused(&[reply("NOPERM"), reply("NOPERM")], &ops).is_err());
    }

    /// A batch with one op of each kind.
    fn batch() -> (Batch, Vec<RefusableOp>) {
        let (mut plan, rule) = (Plan::default(), RuleId::of("r"));
        plan.begin_transaction();
        plan.set(rule, SetValue { key: "s".into(), body: Vec::new(), ttl: Duration::from_secs(1), lsn: Lsn::new(5) });
        plan.bump(rule, "v".into(), Lsn::new(5));
        let publish = Publish { channel: "c".into(), data: b"{}".to_vec() };
        plan.publish(rule, publish.clone());
        plan.end_transaction(Lsn::new(5));
        let entry = StreamAppend { stream: "x".into(), data: b"{}".to_vec(), maxlen: 1 };
        let at = SystemTime::UNIX_EPOCH;
        let entry = StreamEntry { rule, entry, end: Lsn::new(5), number: 0, at, mark: None };
        let ops = vec![
            RefusableOp::Set("s".into()),
            RefusableOp::Bumps(vec!["v".into()]),
            RefusableOp::Publish(publish),
            RefusableOp::of_entry(&entry),
        ];
        let batch = Batch {
            plan,
            streams: vec![entry],
            started: Lsn::new(5),
            record: None,
            at,
            heartbeat: None,
            probe: false,
            counts: false,
            catalog: CatalogRecord::default(),
            forget: Vec::new(),
            again: Again::default(),
        };
        (batch, ops)
    }

    #[test]
    fn what_is_refused_twice_in_the_same_way_is_replaced_by_what_works() {
        let (mut batch, ops) = batch();
        let mut refusals = RefusedOps::default();
        let now = Instant::now();
        let with = |code: &str| ops.iter().map(|op| (op.clone(), error(code))).collect::<Vec<_>>();
        assert_eq!(refusals.take_apart(&mut batch, &with("NOPERM"), now).len(), 0);
        assert_eq!(refusals.take_apart(&mut batch, &with("WRONGTYPE"), now).len(), 0, "in another way");
        assert_eq!(refusals.take_apart(&mut batch, &with("WRONGTYPE"), now).len(), 4);
        let deletes: Vec<_> = batch.plan.deletes().map(ToString::to_string).collect();
        assert_eq!(deletes, ["s", "v"]);
        assert_eq!((batch.plan.sets().len(), batch.plan.bumps().len(), batch.plan.publishes().len()), (0, 0, 0));
        assert!(batch.streams.is_empty() && batch.plan.dead_letters().len() == 2);
    }

    #[test]
    fn a_way_of_refusal_is_remembered_for_a_while() {
        let mut refusals = RefusedOps::default();
        let now = Instant::now();
        let mut refuse = |at: Instant| {
            let (mut batch, ops) = batch();
            refusals.begin();
            refusals.take_apart(&mut batch, &[(ops[2].clone(), error("NOPERM"))], at).len()
        };
        assert_eq!(refuse(now), 0);
        assert_eq!(refuse(now), 0, "another batch");
        let (mut batch, ops) = batch();
        assert_eq!(refusals.take_apart(&mut batch, &[(ops[2].clone(), error("NOPERM"))], now).len(), 1);
        let mut refuse = |at: Instant| {
            let (mut batch, ops) = self::batch();
            refusals.begin();
            refusals.take_apart(&mut batch, &[(ops[2].clone(), error("NOPERM"))], at).len()
        };
        assert_eq!(refuse(now + REMEMBERED_FOR / 2), 1);
        assert_eq!(refuse(now + REMEMBERED_FOR * 2), 0);
    }
}
