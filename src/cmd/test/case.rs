//! A prepared test.

use std::collections::HashMap;
use std::time::SystemTime;

use super::rows::Carried;
use crate::change::{Cell, Change, Commit, Lsn};
use crate::config::RawTest;
use crate::rules::{Image, Rule};

/// The commit of every test.
pub(super) const COMMIT: Commit = Commit { lsn: Lsn::new(1), at: Some(SystemTime::UNIX_EPOCH) };

/// The rows that each lookup returns, by its position in the file.
pub(super) type Answers = HashMap<usize, Vec<Vec<(String, Cell)>>>;

/// A test, prepared.
#[derive(Debug)]
pub(super) struct Case<'a> {
    pub(super) raw: &'a RawTest,
    /// The change with every value of both rows.
    pub(super) full: Change,
    /// The change as the log carries it, if that is less.
    pub(super) carried: Option<Carried>,
    pub(super) answers: Answers,
    /// Whether the catalog says which columns there are.
    pub(super) is_table_known: bool,
}

/// The columns whose old values a rule needs for its keys or for the arguments of its lookup.
pub(super) fn old_columns(rule: &Rule) -> impl Iterator<Item = String> {
    let arguments = rule.for_each.iter().flat_map(|for_each| &for_each.arguments);
    let references = rule.names().chain(arguments).flat_map(|template| template.value.references());
    let old = references.filter(|reference| matches!(reference.image, Image::Either | Image::Old));
    old.map(|reference| reference.column.clone())
}
