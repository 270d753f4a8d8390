//! The positions kept in Redis, under their names.
//!
//! Owns the layout of `unstale:{slot}:*` and the scripts that write it. It must not know when a
//! watermark moves. Invariant: within an epoch a watermark only rises, however many daemons write
//! it and however often.

use crate::key::{CacheKey, Glob, INVALIDATIONS, RESERVED, TAG};

/// Raises a watermark; a lower position leaves it. Runs when memory is full.
pub const RAISE: &str = include_str!("raise.lua");

/// Raises `applied`. If Redis holds less than it recorded, the error's code is [`LOST`].
pub const RECORD: &str = include_str!("record.lua");

/// The code of the error by which [`RECORD`] and [`COUNT`] say that writes were lost.
pub const LOST: &str = "LOST";

/// Sets a key. Runs when memory is full.
pub const SET: &str = include_str!("set.lua");

/// Counts a batch that is in force. If Redis holds less than it counted, the error's code is
/// [`LOST`].
pub const COUNT: &str = include_str!("count.lua");

/// Begins an epoch: a new number, `started` at the end of the log, and no proven history until
/// [`PROVE`].
pub const BEGIN: &str = include_str!("begin.lua");

/// Ends the flush of an epoch: from here on history is proven.
pub const PROVE: &str = include_str!("prove.lua");

/// The Lua function `to_decimal`, with which a version key begins at a position.
pub const DECIMAL: &str = include_str!("decimal.lua");

/// The names of one slot's state. The slot's name is a hash tag, so that in a cluster all of them
/// are on one node.
#[derive(Clone, Debug)]
pub struct Names {
    /// The prefix of the state of every slot.
    reserved: String,
    /// The prefix of the state of this slot.
    state: String,
    /// The prefix of the sets of tags.
    sets: String,
    /// Every invalidation up to this position is in force; 16 hexadecimal digits.
    pub applied: CacheKey,
    /// Some invalidations up to this position may be in force already; the same form.
    pub started: CacheKey,
    /// The history both belong to, as [`super::history::Origin::encode`] writes it.
    pub origin: CacheKey,
    /// The epoch, a number.
    pub epoch: CacheKey,
    /// How many epochs began, by the word for the reason: a hash.
    pub epochs: CacheKey,
    /// Everything durably committed before this time is in force: milliseconds since 1970, by the
    /// clock of Redis. A commit with `synchronous_commit = off` counts from when it is durable.
    pub asof: CacheKey,
    /// Identifies the rules and reads of the daemon that is at work.
    pub rules: CacheKey,
    /// The id of the last message on the channel [`Names::invalidations`].
    pub last_broadcast: CacheKey,
    /// The channel on which every instance receives what was invalidated.
    pub invalidations: CacheKey,
    /// The ops that were applied last: a list, newest last.
    pub recent: CacheKey,
    /// Dead letters, changes on which a rule failed: a stream.
    pub dead: CacheKey,
    /// How many dead letters there were, by rule: a hash. Those for which the stream has no room
    /// are counted too.
    pub failures: CacheKey,
    /// How often what a rule names was above a limit, by rule: a hash.
    pub widened: CacheKey,
    /// The last position that was added to each stream, by the stream's name: a hash.
    pub streams: CacheKey,
    /// What is remembered of the database's catalog: the state of each table and view of the rules
    /// and reads, a hash.
    pub catalog: CacheKey,
    /// How many changes of the catalog there were, by kind: a hash.
    pub catalog_changes: CacheKey,
    /// The tables whose changes do not arrive, each with the reason: a hash.
    pub blind: CacheKey,
    /// How many batches of an outbox are in force: a number that only rises.
    pub batches: CacheKey,
    /// Stream entries that were added and whose entry in the outbox is not deleted yet: a hash.
    pub added: CacheKey,
    /// Second deletes that are not in force yet, each with the time at which it is due: a sorted
    /// set.
    pub again: CacheKey,
    /// The service that is at work under this name, as JSON. It ends unless it is written again.
    pub owner: CacheKey,
    /// Never exists. Only a server that takes writes answers a command that deletes it.
    pub probe: CacheKey,
}

impl Names {
    /// The names for a slot in a namespace.
    pub fn new(namespace: &str, slot: &str) -> Self {
        let reserved = format!("{namespace}{RESERVED}");
        let prefix = format!("{reserved}{{{slot}}}:");
        let state = |word: &str| CacheKey::new(format!("{prefix}{word}"));
        Self {
            applied: state("applied"),
            started: state("started"),
            origin: state("origin"),
            epoch: state("epoch"),
            epochs: state("epochs"),
            asof: state("asof"),
            rules: state("rules"),
            last_broadcast: state("last"),
            invalidations: CacheKey::new(format!("{namespace}{INVALIDATIONS}")),
            recent: state("recent"),
            dead: state("dead"),
            failures: state("failures"),
            widened: state("widened"),
            streams: state("streams"),
            catalog: state("catalog"),
            catalog_changes: state("catalog-changes"),
            blind: state("blind"),
            batches: state("batches"),
            added: state("added"),
            again: state("again"),
            owner: state("owner"),
            probe: state("probe"),
            sets: format!("{namespace}{TAG}"),
            reserved,
            state: prefix,
        }
    }

    /// Where a rate limit counts the requests of one caller.
    pub fn limit(&self, name: &str, who: &str) -> CacheKey {
        CacheKey::new(format!("{}limit:{name}:{who}", self.state))
    }

    /// Exists while the expiry time of a session need not be extended again.
    pub fn touched(&self, session: &str) -> CacheKey {
        CacheKey::new(format!("{}touched:{session}", self.state))
    }

    /// The name of the tag of this set.
    pub fn tag<'s>(&self, set: &'s CacheKey) -> &'s [u8] {
        let name = set.as_bytes();
        name.strip_prefix(self.sets.as_bytes()).unwrap_or(name)
    }

    /// The generation of a tag: random digits, which every value that is found by the tag names. It
    /// is the protocol's own state, so no rule, whatever a row holds, can name it.
    pub fn generation(&self, tag: &[u8]) -> CacheKey {
        CacheKey::new([self.state.as_bytes(), TAG.as_bytes(), tag].concat())
    }

    /// The generation of the tag of this set.
    pub fn generation_of(&self, set: &CacheKey) -> CacheKey {
        self.generation(self.tag(set))
    }

    /// The generations of all tags whose sets this glob matches, and perhaps others.
    pub fn generations(&self, sets: &Glob) -> Glob {
        let literal = |text: &str| {
            let mut glob = Glob::new();
            glob.push_literal(text.as_bytes());
            glob
        };
        let rest = sets.as_bytes().strip_prefix(literal(&self.sets).as_bytes()).unwrap_or(b"*");
        Glob::from_pattern([literal(&self.state).as_bytes(), TAG.as_bytes(), rest].concat())
    }

    /// Whether a key is the daemon's own state. A row can hold a value with which a template makes
    /// such a name, and a glob can match one; neither may delete the state.
    pub fn owns(&self, key: &[u8]) -> bool {
        key.starts_with(self.reserved.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tag_has_a_generation_that_no_rule_can_name() {
        let names = Names::new("v*1:", "unstale");
        let of = |set: &str| names.generation_of(&set.into()).to_string();
        assert_eq!(of("v*1:tag:org:7"), "v*1:unstale:{unstale}:tag:org:7");
        assert!(names.owns(of("v*1:tag:").as_bytes()) && names.owns(of("other").as_bytes()));
        let matching = |sets: &str| names.generations(&Glob::from_pattern(sets)).to_string();
        assert_eq!(matching(r"v\*1:tag:org:*"), r"v\*1:unstale:{unstale}:tag:org:*");
        assert_eq!(matching(r"v\*1:tag:a\*b"), r"v\*1:unstale:{unstale}:tag:a\*b");
        assert_eq!(matching("*"), r"v\*1:unstale:{unstale}:tag:*", "a glob of anything else matches all");
    }
}
