//! What differs between two states of a table.
//!
//! Owns the kinds of differences and their words. It must not ask a server, or know what follows
//! from a difference.

use std::fmt;

use super::state::TableState;
use crate::change::TableName;

/// What changed without a row change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CatalogChangeKind {
    /// The table, or what carries its changes, was altered and looks as before: perhaps two changes
    /// undid each other.
    Altered,
    /// A column was added, dropped, renamed or got another type.
    Columns,
    /// The table is gone.
    Dropped,
    /// The replica identity is another one.
    Identity,
    /// A partition or child was created, attached, detached or dropped.
    Partitions,
    /// The name means another table than before.
    Recreated,
    /// A materialized view was refreshed.
    Refreshed,
    /// The table has another name.
    Renamed,
    /// Rows were written anew.
    Rewritten,
    /// Changes that arrived before do not arrive any more, or the reverse: the publication or the
    /// triggers were changed.
    Source,
    /// The labels of an enum or the fields of a composite type were changed.
    Types,
}

impl CatalogChangeKind {
    /// The word under which changes are counted and reported.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Altered => "altered",
            Self::Columns => "columns",
            Self::Dropped => "dropped",
            Self::Identity => "identity",
            Self::Partitions => "partitions",
            Self::Recreated => "recreated",
            Self::Refreshed => "refreshed",
            Self::Renamed => "renamed",
            Self::Rewritten => "rewritten",
            Self::Source => "source",
            Self::Types => "types",
        }
    }
}

/// One difference, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What changed.
    pub kind: CatalogChangeKind,
    /// What happened, and what to do.
    pub text: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TableState {
    /// What differs from an earlier state of the table that rules call `name`. With
    /// `ignores_files`, other files do not count: a TRUNCATE that the daemon saw made them.
    pub fn differences(&self, earlier: &Self, name: &TableName, ignores_files: bool) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut add = |kind, text: String| found.push(Difference { kind, text });
        if self.id == 0 && earlier.id != 0 {
            add(CatalogChangeKind::Dropped, format!("table {name} was dropped; correct the rules"));
            return found;
        }
        if self.id != earlier.id && earlier.id != 0 {
            add(
                CatalogChangeKind::Recreated,
                format!("{name} is another table than before; run `unstale setup` if its changes do not arrive"),
            );
        } else if self.name != earlier.name && !earlier.name.is_empty() {
            let text = format!(
                "table {} is called {} now, and the rules follow it; correct `table:` in the rules before the next start",
                earlier.name, self.name
            );
            add(CatalogChangeKind::Renamed, text);
        }
        if self.id == earlier.id {
            self.add_changes_of_one_table(earlier, name, ignores_files, &mut add);
        }
        if self.faults != earlier.faults {
            let text = match &*self.faults {
                [] => format!("changes of table {name} arrive again"),
                faults => format!(
                    "changes of table {name} do not arrive: {}; its keys are deleted every few seconds until \
                     `unstale setup` or its owner has corrected that",
                    faults.join("; ")
                ),
            };
            add(CatalogChangeKind::Source, text);
        }
        let is_altered = self.links != earlier.links || self.rows != earlier.rows && !ignores_files;
        if is_altered && found.is_empty() {
            let text = format!("table {name}, or what carries its changes, was altered and looks as before");
            found.push(Difference { kind: CatalogChangeKind::Altered, text });
        }
        found
    }

    fn add_changes_of_one_table(
        &self,
        earlier: &Self,
        name: &TableName,
        ignores_files: bool,
        add: &mut impl FnMut(CatalogChangeKind, String),
    ) {
        let is_reshaped = self.columns != earlier.columns;
        if is_reshaped {
            let new = self.columns.iter().filter(|column| !earlier.columns.contains(column)).map(|c| format!("+{c}"));
            let old = earlier.columns.iter().filter(|column| !self.columns.contains(column)).map(|c| format!("-{c}"));
            let list: Vec<_> = old.chain(new).collect();
            let text = format!("the columns of table {name} were changed ({}); check the rules", list.join(", "));
            add(CatalogChangeKind::Columns, text);
        }
        if self.types != earlier.types {
            add(CatalogChangeKind::Types, format!("a type of a column of table {name} was changed"));
        }
        let is_regrouped = self.tree != earlier.tree;
        if is_regrouped {
            let text = format!(
                "table {name} had {} partitions or children and has {} now, or they are others",
                earlier.members, self.members
            );
            add(CatalogChangeKind::Partitions, text);
        }
        if self.files != earlier.files && !is_regrouped && !is_reshaped && !ignores_files {
            add(CatalogChangeKind::Rewritten, format!("the rows of table {name} were written anew"));
        }
        if self.identity != earlier.identity {
            add(CatalogChangeKind::Identity, format!("the replica identity of table {name} was changed"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> TableState {
        TableState {
            id: 7,
            name: "public.users".to_owned(),
            named: 7,
            columns: vec!["1 id integer".to_owned(), "2 email text".to_owned()],
            types: "t".to_owned(),
            members: 0,
            tree: "m".to_owned(),
            files: "f".to_owned(),
            identity: "\"full\"".to_owned(),
            rows: "r".to_owned(),
            links: "l".to_owned(),
            faults: Vec::new(),
        }
    }

    fn check(change: impl Fn(&mut TableState), expected: &[(&str, &str)]) {
        let mut now = state();
        change(&mut now);
        let found = now.differences(&state(), &TableName::new("public", "users"), false);
        let kinds: Vec<_> = found.iter().map(|found| found.kind.word()).collect();
        assert_eq!(kinds, expected.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), "{found:?}");
        for (found, (_, part)) in found.iter().zip(expected) {
            assert!(found.text.contains(part), "{found:?}");
        }
    }

    #[test]
    fn each_difference_has_a_kind_and_says_what_changed() {
        check(|_| {}, &[]);
        check(|now| now.name = "public.people".to_owned(), &[("renamed", "public.people")]);
        check(|now| now.named = 0, &[]);
        check(|now| *now = TableState { named: 9, ..TableState::default() }, &[("dropped", "public.users")]);
        check(|now| (now.id, now.named) = (8, 8), &[("recreated", "another table")]);
        check(|now| now.columns.push("3 bio text".to_owned()), &[("columns", "+3 bio text")]);
        check(|now| now.types.push('x'), &[("types", "public.users")]);
        check(|now| now.tree.push('x'), &[("partitions", "public.users")]);
        check(|now| now.files.push('x'), &[("rewritten", "public.users")]);
        check(|now| now.identity.push('x'), &[("identity", "public.users")]);
        check(|now| now.rows.push('x'), &[("altered", "public.users")]);
        check(|now| now.links.push('x'), &[("altered", "public.users")]);
        check(|now| now.faults.push("it is not published".to_owned()), &[("source", "it is not published")]);
    }

    #[test]
    fn a_truncate_that_was_seen_is_no_rewrite() {
        let now = TableState { files: "g".to_owned(), rows: "s".to_owned(), ..state() };
        let name = TableName::new("public", "users");
        assert!(now.differences(&state(), &name, true).is_empty());
        assert_eq!(now.differences(&state(), &name, false).len(), 1);
    }

    #[test]
    fn a_state_survives_redis() {
        assert_eq!(TableState::decode(&state().encode()), Some(state()));
        assert_eq!(TableState::decode("{"), None);
    }
}
