//! The fields of a mapping, taken one by one.
//!
//! Owns which values each type of field accepts, and the problem of a wrong one. It must not know
//! the names of fields. Invariant: [`Fields::finish`] reports every field that was not taken.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use super::node::Node;
use super::problem::Problems;
use super::span::Spanned;
use crate::nearest::nearest;

/// A section of the file: its name and its value.
pub(super) type Section = (&'static str, Option<Spanned<Node>>);

/// The fields of one mapping.
pub(super) struct Fields<'p> {
    what: String,
    entries: Vec<(Spanned<String>, Spanned<Node>)>,
    asked: Vec<&'static str>,
    pub(super) span: Range<usize>,
    problems: &'p mut Problems,
}

impl<'p> Fields<'p> {
    /// The fields of a mapping, which messages call `what`. Any other value is a problem.
    pub(super) fn of(node: Spanned<Node>, what: impl Into<String>, problems: &'p mut Problems) -> Option<Self> {
        let what = what.into();
        match node.value {
            Node::Map(entries) => Some(Self { what, entries, asked: Vec::new(), span: node.span, problems }),
            Node::Null => Some(Self { what, entries: Vec::new(), asked: Vec::new(), span: node.span, problems }),
            other => {
                let message = format!("{what} must be a mapping, found {}", other.kind());
                problems.push(node.span, message, "expected `field: value` lines here");
                None
            }
        }
    }

    /// The fields of a section. A missing section has none.
    pub(super) fn of_section((name, node): Section, problems: &'p mut Problems) -> Option<Self> {
        let node = node.unwrap_or(Spanned { value: Node::Null, span: 0..0 });
        Self::of(node, format!("`{name}`"), problems)
    }

    /// Takes a field, if it exists.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Spanned<Node>> {
        self.asked.push(name);
        let at = self.entries.iter().position(|(key, _)| key.value == name)?;
        Some(self.entries.remove(at).1)
    }

    /// Takes a field that must be a string.
    pub(super) fn text(&mut self, name: &'static str) -> Option<Spanned<String>> {
        let node = self.take(name)?;
        as_text(node, name, self.problems)
    }

    /// Takes a field that must be a string or a list of strings.
    pub(super) fn texts(&mut self, name: &'static str) -> Vec<Spanned<String>> {
        match self.take(name) {
            None => Vec::new(),
            Some(Spanned { value: Node::List(items), .. }) => {
                items.into_iter().filter_map(|item| as_text(item, name, self.problems)).collect()
            }
            Some(node) => as_text(node, name, self.problems).into_iter().collect(),
        }
    }

    /// Takes a field that must be one of a few words.
    pub(super) fn word<T: Copy>(&mut self, name: &'static str, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(name)?;
        as_word(&text, name, words, self.problems)
    }

    /// Takes a field that must be a duration within limits, such as `30s`.
    pub(super) fn duration(&mut self, name: &'static str, limits: RangeInclusive<Duration>) -> Option<Duration> {
        let node = self.take(name)?;
        let span = node.span.clone();
        if let Node::Number(number) = &node.value {
            let message = format!("`{name}` has no unit");
            self.problems.push(span, message, format!("write `{number}s` for seconds"));
            return None;
        }
        let text = as_text(node, name, self.problems)?;
        let show = |limit: &Duration| humantime::format_duration(*limit).to_string();
        let (message, advice) = match humantime::parse_duration(&text.value) {
            Ok(duration) if limits.contains(&duration) => return Some(duration),
            Ok(duration) if duration < *limits.start() => {
                (format!("`{name}` is too short"), format!("expected at least `{}`", show(limits.start())))
            }
            Ok(_) => (format!("`{name}` is too long"), format!("expected at most `{}`", show(limits.end()))),
            Err(error) => (format!("`{name}`: {error}"), "expected a duration such as `30s` or `5m`".to_owned()),
        };
        self.problems.push(span, message, advice);
        None
    }

    /// Takes a field that must be a whole number, at least 1.
    pub(super) fn count(&mut self, name: &'static str) -> Option<u64> {
        let node = self.take(name)?;
        match &node.value {
            Node::Number(number) if number.as_u64().is_some_and(|count| count > 0) => number.as_u64(),
            _ => {
                let message = format!("`{name}` is not a whole number from 1 on");
                self.problems.push(node.span, message, "expected a whole number, 1 or more");
                None
            }
        }
    }

    /// Takes a field that must be a whole number from 1 to `most`.
    pub(super) fn count_at_most(&mut self, name: &'static str, most: u64) -> Option<u64> {
        let span = self.span_of(name).unwrap_or_default();
        let count = self.count(name)?;
        if count > most {
            self.problems.push(span, format!("`{name}` is too large"), format!("expected at most {most}"));
        }
        (count <= most).then_some(count)
    }

    /// Takes a field that must be a share, `10%` or 0.1, within limits.
    pub(super) fn share(&mut self, name: &'static str, limits: RangeInclusive<f64>) -> Option<f64> {
        let node = self.take(name)?;
        let share = match &node.value {
            Node::Number(number) => number.as_f64(),
            Node::Text(text) => parse_share(text),
            _ => None,
        };
        let share = share.filter(|share| limits.contains(share));
        if share.is_none() {
            let (least, most) = (limits.start() * 100.0, limits.end() * 100.0);
            let message = format!("`{name}` is not a share within its limits");
            self.problems.push(node.span, message, format!("expected `{least}%` to `{most}%`"));
        }
        share
    }

    /// Takes a field that must be `true` or `false`, also as the value of a variable.
    pub(super) fn flag(&mut self, name: &'static str) -> Option<bool> {
        let node = self.take(name)?;
        match &node.value {
            Node::Bool(flag) => return Some(*flag),
            Node::Text(text) if text == "true" || text == "false" => return Some(text == "true"),
            _ => {
                self.problems.push(node.span, format!("`{name}` is neither true nor false"), "write `true` or `false`")
            }
        }
        None
    }

    /// The position of a field's value, if the field was not taken.
    pub(super) fn span_of(&self, name: &str) -> Option<Range<usize>> {
        self.entries.iter().find(|(key, _)| key.value == name).map(|(_, value)| value.span.clone())
    }

    /// Whether any of these fields exists and was not taken.
    pub(super) fn has_any(&self, names: &[&str]) -> bool {
        self.entries.iter().any(|(key, _)| names.contains(&key.value.as_str()))
    }

    pub(super) fn problems(&mut self) -> &mut Problems {
        self.problems
    }

    /// The remaining entries, of a mapping whose keys are names.
    pub(super) fn rest(self) -> Vec<(Spanned<String>, Spanned<Node>)> {
        self.entries
    }

    /// Reports every field that was not taken.
    pub(super) fn finish(self) {
        for (key, _) in self.entries {
            let what = &self.what;
            let advice = match nearest(&key.value, self.asked.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("expected one of {}", quote_all(&self.asked)),
            };
            self.problems.push(key.span, format!("unknown field `{}` in {what}", key.value), advice);
        }
    }
}

/// `10%`, `10 %` or `0.1`.
fn parse_share(text: &str) -> Option<f64> {
    match text.trim().strip_suffix('%') {
        Some(percent) => percent.trim_end().parse::<f64>().ok().map(|percent| percent / 100.0),
        None => text.trim().parse().ok(),
    }
}

/// A string, or a problem.
pub(super) fn as_text(node: Spanned<Node>, name: &str, problems: &mut Problems) -> Option<Spanned<String>> {
    match node.value {
        Node::Text(value) => Some(Spanned { value, span: node.span }),
        other => {
            let message = format!("`{name}` must be a string, found {}", other.kind());
            let advice = match other {
                Node::Number(_) | Node::Bool(_) => "write it in quotes",
                _ => "expected a string here",
            };
            problems.push(node.span, message, advice);
            None
        }
    }
}

/// One of a few words, or a problem.
pub(super) fn as_word<T: Copy>(
    text: &Spanned<String>,
    name: &str,
    words: &[(&'static str, T)],
    problems: &mut Problems,
) -> Option<T> {
    let found = words.iter().find(|(word, _)| *word == text.value).map(|&(_, value)| value);
    if found.is_none() {
        let known: Vec<_> = words.iter().map(|&(word, _)| word).collect();
        let advice = match nearest(&text.value, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("expected one of {}", quote_all(&known)),
        };
        // The value is not repeated, because it may come from a variable. The excerpt shows the
        // file.
        problems.push(text.span.clone(), format!("unknown value for `{name}`"), advice);
    }
    found
}

fn quote_all(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
