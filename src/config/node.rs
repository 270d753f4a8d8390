//! YAML as a tree in which every scalar and key knows its place.
//!
//! Owns the tree and its interpolation. It must not know the syntax of YAML, nor which fields there are.

use super::interpolate::interpolate;
use super::problem::Problems;
use super::span::Spanned;

/// Any YAML value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl Node {
    /// What it is, for "expected …, found …".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl Spanned<Node> {
    /// The same text for the same value, wherever it stands, however it is laid out and in whatever order its fields are.
    pub(super) fn canonical(&self) -> String {
        match &self.value {
            Node::Null => "null".to_owned(),
            Node::Bool(flag) => flag.to_string(),
            Node::Number(number) => number.to_string(),
            Node::Text(text) => format!("{text:?}"),
            Node::List(items) => format!("[{}]", items.iter().map(Self::canonical).collect::<Vec<_>>().join(",")),
            Node::Map(entries) => {
                let entry = |(key, value): &(Spanned<String>, Self)| format!("{:?}:{}", key.value, value.canonical());
                let mut entries: Vec<_> = entries.iter().map(entry).collect();
                entries.sort();
                format!("{{{}}}", entries.join(","))
            }
        }
    }

    /// Replaces the variables in every text of the tree; keys stay as they are.
    pub(super) fn interpolate(&mut self, lookup: &impl Fn(&str) -> Option<String>, problems: &mut Problems) {
        match &mut self.value {
            Node::Text(text) => match interpolate(text, lookup) {
                Ok(replaced) => *text = replaced,
                Err(failure) => {
                    let start = self.span.start + failure.at;
                    problems.push(start..self.span.end.max(start), failure.message, failure.advice);
                }
            },
            Node::List(items) => items.iter_mut().for_each(|item| item.interpolate(lookup, problems)),
            Node::Map(entries) => entries.iter_mut().for_each(|(_, value)| value.interpolate(lookup, problems)),
            Node::Null | Node::Bool(_) | Node::Number(_) => {}
        }
    }
}
