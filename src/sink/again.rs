//! Second deletes (`again_after`), which wait in Redis until they are due.
//!
//! Owns how they are written there, and the commands. It must not know when Redis is asked.
//! Invariants: a second delete is stored in the same batch as the first one, and stays until it is
//! in force, so neither a slot nor an outbox has to remember it; what cannot be read is dropped
//! from the set and deletes nothing; the set has a bounded number of members.

use std::time::Duration;

use redis::{Cmd, Value};

use super::scripts::{KEYS_PER_COMMAND, Scripts, script};
use crate::key::{CacheKey, Glob};
use crate::plan::{Removal, RuleId};

/// The most second deletes that wait by name. Beyond it, everything that their rules match is
/// deleted a second time.
const WAITING_MAX: usize = 100_000;

/// The most second deletes that Redis returns at once.
const DUE_AT_ONCE: usize = 2048;

/// A removal that is due once more, this long after the first time.
pub type Repeat = (Duration, RuleId, Removal);

/// What a batch does about second deletes.
#[derive(Clone, Debug, Default)]
pub struct Again {
    /// To be stored.
    pub add: Vec<Repeat>,
    /// What is stored instead if too many wait: everything that the same rules match.
    pub instead: Vec<Repeat>,
    /// In force with this batch.
    pub done: Vec<DueDelete>,
    /// Ask which are due.
    pub ask: bool,
}

/// A second delete that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueDelete {
    /// What it removes, and the rule that asked. None if what is stored cannot be read.
    pub removal: Option<(RuleId, Removal)>,
    member: Vec<u8>,
    score: Vec<u8>,
}

/// What Redis says of the second deletes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DueDeletes {
    /// Those that are due.
    pub due: Vec<DueDelete>,
    /// When Redis is to be asked again: the next one is due by then.
    pub next: Option<Duration>,
}

impl Again {
    /// The commands that store second deletes.
    pub(super) fn adds(&self, key: &CacheKey, scripts: &Scripts) -> Vec<Cmd> {
        let command = |chunk: &[Repeat]| {
            let mut add = script(&scripts.again, &[key]);
            add.arg(WAITING_MAX).arg(chunk.len());
            for (after, rule, removal) in chunk.iter().chain(&self.instead) {
                add.arg(u64::try_from(after.as_millis()).unwrap_or(0)).arg(encode(*rule, removal));
            }
            add
        };
        self.add.chunks(KEYS_PER_COMMAND).map(command).collect()
    }

    /// The commands that remove second deletes that are in force.
    pub(super) fn dones(&self, key: &CacheKey, scripts: &Scripts) -> Vec<Cmd> {
        let command = |chunk: &[DueDelete]| {
            let mut done = script(&scripts.again_done, &[key]);
            chunk.iter().for_each(|due| _ = done.arg(&due.member).arg(&due.score));
            done
        };
        self.done.chunks(KEYS_PER_COMMAND).map(command).collect()
    }
}

/// The command that asks which second deletes are due.
pub(super) fn ask(key: &CacheKey, scripts: &Scripts) -> Cmd {
    let mut ask = script(&scripts.again_due, &[key]);
    ask.arg(DUE_AT_ONCE);
    ask
}

#[cfg(test)]
impl DueDelete {
    /// One that was due at time 1.
    pub(crate) fn of(rule: RuleId, removal: Removal) -> Self {
        Self { member: encode(rule, &removal), score: b"1".to_vec(), removal: Some((rule, removal)) }
    }
}

impl DueDeletes {
    /// Reads the reply to [`ask`].
    pub(super) fn parse(reply: &Value) -> Option<Self> {
        let words: Vec<Vec<u8>> = redis::from_redis_value_ref(reply).ok()?;
        let (wait, rest) = words.split_first()?;
        let wait: i64 = std::str::from_utf8(wait).ok()?.parse().ok()?;
        let (pairs, _) = rest.as_chunks::<2>();
        let due = pairs.iter().map(|[member, score]| DueDelete {
            removal: decode(member),
            member: member.clone(),
            score: score.clone(),
        });
        Some(Self { due: due.collect(), next: u64::try_from(wait).ok().map(Duration::from_millis) })
    }
}

/// A removal as it is stored: the rule, a letter for the kind, the name.
fn encode(rule: RuleId, removal: &Removal) -> Vec<u8> {
    let (kind, name) = match removal {
        Removal::Key(key) => ('k', key.as_bytes()),
        Removal::Keys(glob) => ('p', glob.as_bytes()),
        Removal::Tag(set) => ('t', set.as_bytes()),
        Removal::Tags(glob) => ('s', glob.as_bytes()),
    };
    [format!("{} {kind} ", rule.to_hex()).as_bytes(), name].concat()
}

fn decode(member: &[u8]) -> Option<(RuleId, Removal)> {
    let mut words = member.splitn(3, |&byte| byte == b' ');
    let rule = RuleId::from_hex(words.next()?)?;
    let (kind, name) = (words.next()?, words.next()?);
    let removal = match kind {
        b"k" => Removal::Key(CacheKey::new(name)),
        b"p" => Removal::Keys(Glob::from_pattern(name)),
        b"t" => Removal::Tag(CacheKey::new(name)),
        b"s" => Removal::Tags(Glob::from_pattern(name)),
        _ => return None,
    };
    Some((rule, removal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_back() {
        let mut glob = Glob::new();
        glob.push_literal(b"v1:a b*");
        glob.push_any();
        let key = CacheKey::new(b"v1:\xff \x00".to_vec());
        let removals = [Removal::Key(key.clone()), Removal::Keys(glob.clone()), Removal::Tag(key), Removal::Tags(glob)];
        for removal in removals {
            let rule = RuleId::of("user");
            assert_eq!(decode(&encode(rule, &removal)), Some((rule, removal)));
        }
        for unreadable in ["", "x", "0123456789abcdef", "0123456789abcdef k", "0123456789abcdef q x", "012 k x"] {
            assert_eq!(decode(unreadable.as_bytes()), None, "{unreadable}");
        }
    }

    #[test]
    fn the_reply_says_what_is_due_and_when_to_ask_again() {
        let reply = |words: &[&str]| {
            Value::Array(words.iter().map(|word| Value::BulkString(word.as_bytes().to_vec())).collect())
        };
        assert_eq!(DueDeletes::parse(&reply(&["-1"])), Some(DueDeletes::default()));
        let parsed = DueDeletes::parse(&reply(&["250", "0123456789abcdef k x", "17", "?", "18"])).unwrap();
        assert_eq!(parsed.next, Some(Duration::from_millis(250)));
        let removals: Vec<_> = parsed.due.iter().map(|due| due.removal.as_ref().map(|(_, removal)| removal)).collect();
        assert_eq!(removals, [Some(&Removal::Key("x".into())), None]);
        assert_eq!(DueDeletes::parse(&Value::Nil), None);
    }
}
