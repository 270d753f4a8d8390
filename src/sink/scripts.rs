//! The Lua scripts of the sink, and the hashes by which Redis knows them.
//!
//! Owns which scripts there are. It must not know when one is run. Invariant: a connection loads
//! all of them before anything else is sent.

use redis::{Cmd, RedisError, Value};

use crate::coherence::watermark::{BEGIN, COUNT, DECIMAL, PROVE, RAISE, RECORD, SET};
use crate::key::CacheKey;

/// The most keys that one command names.
pub(super) const KEYS_PER_COMMAND: usize = 256;

/// Runs when memory is full, as every script does that writes the daemon's state.
const BUMP: [&str; 3] = ["#!lua flags=allow-oom\n", DECIMAL, include_str!("bump.lua")];

/// The hashes by which Redis knows the scripts.
#[derive(Clone, Debug, Default)]
pub(super) struct Scripts {
    pub(super) raise: String,
    pub(super) record: String,
    pub(super) bump: String,
    pub(super) set: String,
    pub(super) begin: String,
    pub(super) prove: String,
    pub(super) write: String,
    pub(super) stream: String,
    pub(super) untag: String,
    pub(super) append: String,
    pub(super) dead_letter: String,
    pub(super) announce: String,
    pub(super) count: String,
    pub(super) again: String,
    pub(super) again_due: String,
    pub(super) again_done: String,
    pub(super) remember: String,
    pub(super) own: String,
    pub(super) disown: String,
}

impl Scripts {
    /// The commands that load them.
    pub(super) fn load() -> impl Iterator<Item = Cmd> {
        sources().into_iter().map(|source| redis::cmd("SCRIPT").arg("LOAD").arg(source).clone())
    }

    /// Reads the replies to [`Scripts::load`].
    pub(super) fn loaded(replies: &[Value]) -> Result<Self, RedisError> {
        let mut scripts = Self::default();
        for (hash, reply) in scripts.hashes().into_iter().zip(replies) {
            *hash = redis::from_redis_value_ref(reply)?;
        }
        Ok(scripts)
    }

    /// Where the hash of each script goes, in the order of [`sources`].
    fn hashes(&mut self) -> [&mut String; 19] {
        [
            &mut self.raise,
            &mut self.record,
            &mut self.bump,
            &mut self.set,
            &mut self.begin,
            &mut self.prove,
            &mut self.write,
            &mut self.stream,
            &mut self.untag,
            &mut self.append,
            &mut self.dead_letter,
            &mut self.announce,
            &mut self.count,
            &mut self.again,
            &mut self.again_due,
            &mut self.again_done,
            &mut self.remember,
            &mut self.own,
            &mut self.disown,
        ]
    }

    /// Scripts whose hashes are their own names, for tests of what is sent.
    #[cfg(test)]
    pub(super) fn named() -> Self {
        const NAMES: [&str; 19] = [
            "raise",
            "record",
            "bump",
            "set",
            "begin",
            "prove",
            "write",
            "stream",
            "untag",
            "append",
            "dead_letter",
            "announce",
            "count",
            "again",
            "again_due",
            "again_done",
            "remember",
            "own",
            "disown",
        ];
        let mut scripts = Self::default();
        scripts.hashes().into_iter().zip(NAMES).for_each(|(hash, name)| *hash = name.to_owned());
        scripts
    }
}

/// Every script.
pub(super) fn sources() -> [String; 19] {
    [
        RAISE.to_owned(),
        RECORD.to_owned(),
        BUMP.concat(),
        SET.to_owned(),
        BEGIN.to_owned(),
        PROVE.to_owned(),
        include_str!("write.lua").to_owned(),
        include_str!("stream.lua").to_owned(),
        include_str!("untag.lua").to_owned(),
        include_str!("append.lua").to_owned(),
        include_str!("dead_letter.lua").to_owned(),
        include_str!("announce.lua").to_owned(),
        COUNT.to_owned(),
        include_str!("again.lua").to_owned(),
        include_str!("again_due.lua").to_owned(),
        include_str!("again_done.lua").to_owned(),
        include_str!("remember.lua").to_owned(),
        include_str!("own.lua").to_owned(),
        include_str!("disown.lua").to_owned(),
    ]
}

/// A command that runs a script on these keys.
pub(super) fn script(hash: &str, keys: &[&CacheKey]) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(hash).arg(keys.len());
    for key in keys {
        command.arg(key.as_bytes());
    }
    command
}
