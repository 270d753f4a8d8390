//! An op as tests write it.
//!
//! Owns what counts as the same op, and as an op that removes at least as much.

use super::glob::{GlobToken, covers, literal_tokens, tokens};
use crate::plan::ActionKind;

/// An op as tests write it: its kind, and what it names without the namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NamedOp {
    pub(super) kind: ActionKind,
    pub(super) name: Vec<u8>,
    /// Whether the name is a glob.
    pub(super) is_glob: bool,
}

impl NamedOp {
    /// An op whose name is not a glob.
    pub(super) fn literal(kind: ActionKind, name: &[u8]) -> Self {
        Self { kind, name: name.to_vec(), is_glob: false }
    }

    /// Whether both are written the same in a test.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.kind == other.kind && self.name == other.name
    }

    /// Whether this op removes at least what the other removes.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let removes = match other.kind {
            // A key that is deleted instead of set is not stale.
            ActionKind::Set => matches!(self.kind, ActionKind::Delete | ActionKind::Pattern),
            ActionKind::Delete | ActionKind::Bump | ActionKind::Pattern => self.kind == ActionKind::Pattern,
            ActionKind::Tag => self.kind == ActionKind::Tag,
            ActionKind::Publish | ActionKind::Stream => false,
        };
        if self.same(other) && self.is_glob == other.is_glob {
            return true;
        }
        removes && covers(&self.tokens(), &other.tokens())
    }

    fn tokens(&self) -> Vec<GlobToken> {
        if self.is_glob { tokens(&self.name) } else { literal_tokens(&self.name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_op_covers_what_it_takes_away() {
        use ActionKind::{Bump, Delete, Pattern, Publish, Set, Tag};
        let check = |made: (ActionKind, &str, bool), expected: (ActionKind, &str), covered: bool| {
            let made = NamedOp { kind: made.0, name: made.1.into(), is_glob: made.2 };
            assert_eq!(
                made.covers(&NamedOp::literal(expected.0, expected.1.as_bytes())),
                covered,
                "{made:?} {expected:?}"
            );
        };
        check((Delete, "a", false), (Delete, "a"), true);
        check((Delete, "a", false), (Delete, "b"), false);
        check((Pattern, "a*", true), (Delete, "ab"), true);
        check((Pattern, "a*", true), (Bump, "ab"), true);
        check((Pattern, "a*", true), (Set, "ab"), true);
        check((Delete, "ab", false), (Set, "ab"), true);
        check((Bump, "a", false), (Delete, "a"), false);
        check((Tag, "a*", true), (Tag, "ab"), true);
        check((Pattern, "a*", true), (Tag, "ab"), false);
        check((Pattern, "a*", true), (Publish, "ab"), false);
        check((Publish, "a", false), (Publish, "a"), true);
    }
}
