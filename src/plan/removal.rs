//! What is removed from the cache.
//!
//! Owns the ways to name it. It must not know why it is removed. Invariant: names include the
//! namespace.

use super::op::Op;
use crate::key::{CacheKey, Glob};

/// What is removed from the cache, by name or by pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Removal {
    /// A key.
    Key(CacheKey),
    /// Every key that the glob matches.
    Keys(Glob),
    /// A set, and every key in it.
    Tag(CacheKey),
    /// Every set whose name the glob matches, and every key in it.
    Tags(Glob),
}

impl Removal {
    /// The op that removes it.
    pub(super) fn op(&self) -> Op<'_> {
        match self {
            Self::Key(key) => Op::Delete(key),
            Self::Keys(glob) => Op::Pattern(glob),
            Self::Tag(set) => Op::Tag(set),
            Self::Tags(glob) => Op::Tags(glob),
        }
    }
}
