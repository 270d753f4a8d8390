//! The kinds of actions that a rule can take, which are also the kinds of ops.
//!
//! Owns the list and its words. It must not know templates, ops or Redis commands. Invariant:
//! code that treats the kinds differently matches them exhaustively, so that the compiler lists
//! every place that a new kind concerns.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an action does. The order of kinds is that of their words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActionKind {
    /// Raises a version key.
    Bump,
    /// Removes a key.
    Delete,
    /// Removes every key that a pattern matches.
    Pattern,
    /// Sends a message to a channel.
    Publish,
    /// Writes a value.
    Set,
    /// Appends to a stream.
    Stream,
    /// Removes every key of a set.
    Tag,
}

impl ActionKind {
    /// Every kind, in the order in which a plan is applied.
    pub const ALL: [Self; 7] =
        [Self::Delete, Self::Set, Self::Pattern, Self::Tag, Self::Bump, Self::Publish, Self::Stream];

    /// The word in output, in messages and in Redis.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bump => "bump",
            Self::Delete => "delete",
            Self::Pattern => "pattern",
            Self::Publish => "publish",
            Self::Set => "set",
            Self::Stream => "stream",
            Self::Tag => "tag",
        }
    }

    /// The field in the YAML of rules and tests: the word, except `tags`.
    pub const fn field(self) -> &'static str {
        match self {
            Self::Tag => "tags",
            Self::Bump | Self::Delete | Self::Pattern | Self::Publish | Self::Set | Self::Stream => self.as_str(),
        }
    }

    /// Whether what it does depends on the order of transactions.
    pub const fn needs_order(self) -> bool {
        match self {
            Self::Set | Self::Stream => true,
            Self::Bump | Self::Delete | Self::Pattern | Self::Publish | Self::Tag => false,
        }
    }

    /// Whether its name is that of a key in Redis. The name of a message is a channel.
    pub const fn names_key(self) -> bool {
        match self {
            Self::Bump | Self::Delete | Self::Pattern | Self::Set | Self::Stream | Self::Tag => true,
            Self::Publish => false,
        }
    }

    /// Whether it changes cached values: a broadcast names them, and a new epoch removes them. The
    /// other kinds send messages.
    pub const fn touches_keys(self) -> bool {
        match self {
            Self::Bump | Self::Delete | Self::Pattern | Self::Set | Self::Tag => true,
            Self::Publish | Self::Stream => false,
        }
    }
}

// The last kind has the highest number, so a kind that `ALL` lacks does not compile.
const _: () = assert!(ActionKind::Tag as usize + 1 == ActionKind::ALL.len());

impl fmt::Display for ActionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed_and_sorts_by_its_word() {
        let mut kinds = ActionKind::ALL;
        kinds.sort();
        assert!(kinds.map(ActionKind::as_str).is_sorted_by(|one, other| one < other));
        for kind in ActionKind::ALL {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
            assert_eq!(serde_json::from_str::<ActionKind>(&json).unwrap(), kind);
        }
    }
}
