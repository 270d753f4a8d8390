//! One concrete effect on Redis, and what each carries.
//!
//! Owns the ops. It must not know rules, rows or Redis commands. Invariant: an op names one thing, and its name is
//! the full one, namespace included.

use std::fmt;
use std::time::Duration;

use super::action::ActionKind;
use super::rule_id::RuleId;
use crate::change::{Cell, Lsn};
use crate::key::{CacheKey, Glob};

/// A value that is written through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetValue {
    /// The key, namespace included.
    pub key: CacheKey,
    /// The value: one JSON object.
    pub body: Vec<u8>,
    /// How long it lives.
    pub ttl: Duration,
    /// The position of the change it shows. A value that shows a later one stays.
    pub lsn: Lsn,
}

/// A message on a channel that a rule names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Publish {
    /// The channel, namespace included.
    pub channel: CacheKey,
    /// The message: one JSON value.
    pub data: Vec<u8>,
}

/// An entry of a stream that a rule names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamAppend {
    /// The stream, namespace included.
    pub stream: CacheKey,
    /// The entry: one JSON value.
    pub data: Vec<u8>,
    /// About how many entries the stream keeps.
    pub maxlen: u64,
}

/// A row that a lookup has to be asked about, and what the rule's templates read of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LookupCall {
    /// The rule that asks.
    pub rule: RuleId,
    /// The values of the query's parameters, in order.
    pub arguments: Vec<Vec<u8>>,
    /// What each reference of the rule's templates stands for, in their order; those to the looked-up row are absent.
    pub cells: Vec<Cell>,
}

impl LookupCall {
    /// About how much it holds.
    pub(super) fn bytes(&self) -> usize {
        let cell = |cell: &Cell| match cell {
            Cell::Value(value) => value.len(),
            Cell::Null | Cell::Absent => 0,
        };
        self.arguments.iter().map(Vec::len).chain(self.cells.iter().map(cell)).sum()
    }
}

/// The change that made a rule ask, as far as answers and failures need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOrigin {
    /// Its position.
    pub lsn: Lsn,
    /// The change, as one line of a recording.
    pub change: String,
}

/// A change that a rule could not be held against. More was deleted instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The rule.
    pub rule: RuleId,
    /// Why.
    pub reason: String,
    /// The change, as one line of a recording.
    pub change: String,
}

/// What is removed from the cache, by name or by pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Removal {
    /// A key.
    Key(CacheKey),
    /// Every key that the glob matches.
    Keys(Glob),
    /// Every key of the set, and the set.
    Tag(CacheKey),
    /// The same for every set whose name the glob matches.
    Tags(Glob),
}

/// One concrete effect on Redis.
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
    /// The same for every set that the glob matches.
    Tags(&'a Glob),
    /// Raise the version key.
    Bump(&'a CacheKey, Lsn),
    /// Send a message.
    Publish(&'a Publish),
    /// Append to a stream.
    Stream(&'a StreamAppend),
}

impl<'a> Op<'a> {
    /// The kind of action that it follows from.
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

    /// The full name of what is affected: a key, a set, a glob, a channel or a stream.
    pub fn name(&self) -> &'a [u8] {
        match self {
            Self::Delete(key) | Self::Tag(key) | Self::Bump(key, _) => key.as_bytes(),
            Self::Set(value) => value.key.as_bytes(),
            Self::Pattern(glob) | Self::Tags(glob) => glob.as_bytes(),
            Self::Publish(publish) => publish.channel.as_bytes(),
            Self::Stream(entry) => entry.stream.as_bytes(),
        }
    }

    /// What the op carries, as JSON, if anything.
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
