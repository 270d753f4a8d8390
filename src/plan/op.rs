//! Ops: single effects on Redis, and what each carries.
//!
//! Owns the ops. It must not know rules, rows or Redis commands. Invariant: an op has one name,
//! which includes the namespace.

use std::fmt;
use std::time::Duration;

use super::action::ActionKind;
use crate::change::Lsn;
use crate::key::{CacheKey, Glob};

/// A value to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetValue {
    /// The key, namespace included.
    pub key: CacheKey,
    /// The value: one JSON object.
    pub body: Vec<u8>,
    /// The time to live.
    pub ttl: Duration,
    /// The position of the change that it shows. It does not replace the value of a later change.
    pub lsn: Lsn,
}

/// A message to a channel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Publish {
    /// The channel, namespace included.
    pub channel: CacheKey,
    /// The message: one JSON value.
    pub data: Vec<u8>,
}

/// An entry to append to a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamAppend {
    /// The stream, namespace included.
    pub stream: CacheKey,
    /// The entry: one JSON value.
    pub data: Vec<u8>,
    /// The approximate number of entries that the stream keeps.
    pub maxlen: u64,
}

/// A single effect on Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Remove the key.
    Delete(&'a CacheKey),
    /// Write a value.
    Set(&'a SetValue),
    /// Remove every key that the glob matches.
    Pattern(&'a Glob),
    /// Remove every key of the set.
    Tag(&'a CacheKey),
    /// Remove every key of every set that the glob matches.
    Tags(&'a Glob),
    /// Raise the version key.
    Bump(&'a CacheKey, Lsn),
    /// Send a message.
    Publish(&'a Publish),
    /// Append to a stream.
    Stream(&'a StreamAppend),
}

impl<'a> Op<'a> {
    /// The kind of action that asks for it.
    pub const fn kind(self) -> ActionKind {
        match self {
            Self::Delete(_) => ActionKind::Delete,
            Self::Set(_) => ActionKind::Set,
            Self::Pattern(_) => ActionKind::Pattern,
            Self::Tag(_) | Self::Tags(_) => ActionKind::Tag,
            Self::Bump(..) => ActionKind::Bump,
            Self::Publish(_) => ActionKind::Publish,
            Self::Stream(_) => ActionKind::Stream,
        }
    }

    /// The name of what is affected: a key, a set, a glob, a channel or a stream.
    pub fn name(&self) -> &'a [u8] {
        match self {
            Self::Delete(key) | Self::Tag(key) | Self::Bump(key, _) => key.as_bytes(),
            Self::Set(value) => value.key.as_bytes(),
            Self::Pattern(glob) | Self::Tags(glob) => glob.as_bytes(),
            Self::Publish(publish) => publish.channel.as_bytes(),
            Self::Stream(entry) => entry.stream.as_bytes(),
        }
    }

    /// The JSON that the op carries, if any.
    pub fn data(&self) -> Option<&'a [u8]> {
        match self {
            Self::Set(value) => Some(&value.body),
            Self::Publish(publish) => Some(&publish.data),
            Self::Stream(entry) => Some(&entry.data),
            Self::Delete(_) | Self::Pattern(_) | Self::Tag(_) | Self::Tags(_) | Self::Bump(..) => None,
        }
    }
}

impl fmt::Display for Op<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind())?;
        crate::key::write_printable(f, self.name())
    }
}
