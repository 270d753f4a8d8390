//! A YAML document as a tree, with the position of every scalar and key.
//!
//! Owns the tree and its interpolation. It must not know the syntax of YAML or the names of fields.

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
    /// The kind of value, for "found …".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl Spanned<Node> {
    /// A canonical text of the value, independent of its position, its layout and the order of
    /// fields.
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

    /// Replaces variables in every string of the tree, but not in keys.
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
