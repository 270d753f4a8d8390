//! The positions kept in Redis, under their names.
//!
//! Owns the layout of `unstale:{slot}:*` and the scripts that write it. It must not know when to
//! move one. Invariant: within an epoch a watermark only rises, whoever writes it and however often.

use crate::key::{CacheKey, INVALIDATIONS, RESERVED};

/// Raises a watermark; a lower position leaves it. Runs where memory is full.
pub const RAISE: &str = include_str!("raise.lua");

/// Raises `applied`, unless Redis went back behind what it recorded: then the error's code is [`LOST`].
pub const RECORD: &str = include_str!("record.lua");

/// The code of the error by which [`RECORD`] and [`COUNT`] say that writes were lost.
pub const LOST: &str = "LOST";

/// Sets a key. Runs where memory is full.
pub const SET: &str = include_str!("set.lua");

/// Counts a batch that is in force, unless Redis went back behind what it counted: then the error's code is [`LOST`].
pub const COUNT: &str = include_str!("count.lua");

/// Begins an epoch: a new number, `started` at the end of the log, and nothing proven until [`PROVE`].
pub const BEGIN: &str = include_str!("begin.lua");

/// Ends the flush of an epoch: from here on history is proven.
pub const PROVE: &str = include_str!("prove.lua");

/// The Lua function by which a version key begins at a position.
pub const DECIMAL: &str = include_str!("decimal.lua");

/// The names of one slot's state. The slot's name is a hash tag, so that in a cluster they share a node.
#[derive(Clone, Debug)]
pub struct Names {
    /// What all of them begin with, and those of other slots.
    reserved: String,
    /// What this slot's begin with.
    state: String,
    /// Every invalidation up to this position is in force; 16 hexadecimal digits.
    pub applied: CacheKey,
    /// Some invalidation up to this position may be in force already; the same form.
    pub started: CacheKey,
    /// The history both belong to, as [`super::history::Origin::encode`] writes it.
    pub origin: CacheKey,
    /// The generation of the cache, a number.
    pub epoch: CacheKey,
    /// How many epochs began, by the word for the reason: a hash.
    pub epochs: CacheKey,
    /// Everything durably committed before this time is in force: milliseconds since 1970, by the clock of Redis.
    /// What is committed with `synchronous_commit = off` counts from when it is durable.
    pub asof: CacheKey,
    /// Which rules and reads the daemon that is at work has: what tells them from any others.
    pub rules: CacheKey,
    /// The id of the last message on the channel [`Names::invalidations`].
    pub last_broadcast: CacheKey,
    /// The channel that tells every instance what was invalidated.
    pub invalidations: CacheKey,
    /// What was done last: a list, newest last.
    pub recent: CacheKey,
    /// Changes that a rule could not be held against: a stream.
    pub dead: CacheKey,
    /// How many of them there were, by rule: a hash. It counts also those that the stream has no room for.
    pub failures: CacheKey,
    /// The last position that was added to each stream, by the stream's name: a hash.
    pub streams: CacheKey,
    /// How many batches of an outbox are in force: a number that only rises.
    pub batches: CacheKey,
    /// Stream entries that were added and whose entry in the outbox is not deleted yet: a hash.
    pub added: CacheKey,
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
            streams: state("streams"),
            batches: state("batches"),
            added: state("added"),
            reserved,
            state: prefix,
        }
    }

    /// Where a rate limit counts somebody's requests.
    pub fn limit(&self, name: &str, who: &str) -> CacheKey {
        CacheKey::new(format!("{}limit:{name}:{who}", self.state))
    }

    /// What stands there while the end of a session need not be moved on again.
    pub fn touched(&self, session: &str) -> CacheKey {
        CacheKey::new(format!("{}touched:{session}", self.state))
    }

    /// Whether a key is state of ours. A value in a row may be chosen so that a template makes such a name, and a
    /// glob may match one; neither may end our memory of what is in force.
    pub fn owns(&self, key: &[u8]) -> bool {
        key.starts_with(self.reserved.as_bytes())
    }
}
