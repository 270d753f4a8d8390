//! The positions kept in Redis, under their names.
//!
//! Owns the layout of `unstale:{slot}:*` and the scripts that write it. It must not know when to
//! move one. Invariant: a watermark only rises, whoever writes it and however often.

use crate::key::CacheKey;

/// Raises a watermark; a lower position leaves it. Runs where memory is full.
pub const RAISE: &str = include_str!("raise.lua");

/// Begins the first epoch and returns what is remembered. Runs where memory is full.
pub const OPEN: &str = include_str!("open.lua");

/// Remembers the last broadcast. Runs where memory is full.
pub const REMEMBER: &str = include_str!("remember.lua");

/// The names of one slot's state. The slot's name is a hash tag, so that in a cluster they share a node.
#[derive(Clone, Debug)]
pub struct Names {
    /// Every invalidation up to this position is in force; 16 hexadecimal digits.
    pub applied: CacheKey,
    /// Some invalidation up to this position may be in force already; the same form.
    pub started: CacheKey,
    /// The generation of the cache, a number.
    pub epoch: CacheKey,
    /// The id of the last message on the channel [`Names::invalidations`].
    pub last_broadcast: CacheKey,
    /// The channel that tells every instance what was invalidated.
    pub invalidations: CacheKey,
}

impl Names {
    /// The names for a slot in a namespace.
    pub fn new(namespace: &str, slot: &str) -> Self {
        let state = |word: &str| CacheKey::new(format!("{namespace}unstale:{{{slot}}}:{word}"));
        Self {
            applied: state("applied"),
            started: state("started"),
            epoch: state("epoch"),
            last_broadcast: state("last"),
            invalidations: CacheKey::new(format!("{namespace}invalidations")),
        }
    }
}
