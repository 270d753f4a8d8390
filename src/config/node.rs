//! YAML as a tree in which every scalar and key knows its place.
//!
//! Owns reading YAML into [`Node`]s and taking them apart field by field. It must not know which fields
//! there are. Invariant: [`Fields::finish`] leaves no field unread without a problem.

use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::interpolate::interpolate;
use super::problem::Problems;
use crate::nearest::nearest;

/// A value and the bytes of the file that it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its place, in bytes.
    pub span: Range<usize>,
}

impl<T> Spanned<T> {
    /// The same place with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Spanned<U> {
        Spanned { value: f(self.value), span: self.span }
    }
}

impl Spanned<String> {
    /// The place of a part of the text: exact when the file holds the text as it is, else (it has escapes or
    /// variables) the whole.
    pub fn part(&self, part: &Range<usize>) -> Range<usize> {
        let exact = self.span.len() == self.value.len();
        if exact { self.span.start + part.start..self.span.start + part.end } else { self.span.clone() }
    }
}

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
    fn kind(&self) -> &'static str {
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

/// Parses YAML; a syntax error becomes one problem.
pub(super) fn parse(text: &str, problems: &mut Problems) -> Option<Spanned<Node>> {
    // As YAML 1.2 has it: a column called `n` or `on` is a text.
    let options = serde_saphyr::options! { strict_booleans: true };
    match serde_saphyr::from_str_with_options::<serde_saphyr::Spanned<Node>>(text, options) {
        Ok(root) => {
            let mut root = place(root);
            locate(&mut root, &Lines::new(text));
            Some(root)
        }
        Err(error) => {
            let lines = Lines::new(text);
            let start = error.location().map_or(0, |location| lines.offset(location.line(), location.column()));
            problems.push(start..start, in_our_words(&error.without_snippet().render_plain()), "not valid YAML here");
            None
        }
    }
}

/// The library's message without what it says to programmers.
fn in_our_words(message: &str) -> String {
    if message.contains("multiple YAML documents") {
        return "more than one YAML document in the file".to_owned();
    }
    message.split(", set DuplicateKeyPolicy").next().unwrap_or(message).to_owned()
}

/// Plain text of a library error without the source excerpt, which is ours to show.
trait RenderPlain {
    fn render_plain(&self) -> String;
}

impl RenderPlain for serde_saphyr::Error {
    fn render_plain(&self) -> String {
        let mut options = serde_saphyr::RenderOptions::default();
        options.snippets = serde_saphyr::SnippetMode::Off;
        self.render_with_options(options)
    }
}

/// Where lines start, to turn a line and a column in characters into bytes.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    fn offset(&self, line: u64, column: u64) -> usize {
        let line = usize::try_from(line).unwrap_or(1).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or(self.text.len());
        let characters = usize::try_from(column).unwrap_or(1).max(1) - 1;
        let rest = self.text.get(start..).unwrap_or("");
        start + rest.char_indices().nth(characters).map_or(rest.len(), |(at, _)| at)
    }
}

/// Our own span from the library's; the start still is `line << 32 | column` until [`locate`].
fn place<T>(spanned: serde_saphyr::Spanned<T>) -> Spanned<T> {
    let location = spanned.referenced;
    let packed = usize::try_from(location.line() << 32 | location.column()).unwrap_or(0);
    Spanned { value: spanned.value, span: packed..packed }
}

/// Replaces packed line and column by byte offsets in the whole tree.
fn locate(node: &mut Spanned<Node>, lines: &Lines<'_>) {
    let resolve = |span: &mut Range<usize>, length: Option<usize>| {
        let quote = lines.offset((span.start >> 32) as u64, (span.start & 0xFFFF_FFFF) as u64);
        let quoted = length.is_some() && matches!(lines.text.as_bytes().get(quote), Some(b'"' | b'\''));
        let start = quote + usize::from(quoted);
        let end_of_line =
            lines.text.get(start..).and_then(|rest| rest.find('\n')).map_or(lines.text.len(), |at| start + at);
        let end = length.map_or(end_of_line, |length| (start + length).min(end_of_line));
        *span = start..end.max(start);
    };
    let length = match &node.value {
        Node::Text(text) => Some(text.len()),
        Node::Number(number) => Some(number.to_string().len()),
        Node::Bool(value) => Some(value.to_string().len()),
        Node::Null | Node::List(_) | Node::Map(_) => Some(1),
    };
    resolve(&mut node.span, length);
    match &mut node.value {
        Node::List(items) => items.iter_mut().for_each(|item| locate(item, lines)),
        Node::Map(entries) => {
            for (key, value) in entries {
                let length = key.value.len();
                resolve(&mut key.span, Some(length));
                locate(value, lines);
            }
        }
        Node::Null | Node::Bool(_) | Node::Number(_) | Node::Text(_) => {}
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;

        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any YAML value")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_none<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Bool(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Number(value.into()))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Number(value.into()))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
                Ok(serde_json::Number::from_f64(value).map_or(Node::Null, Node::Number))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(place(item));
                }
                Ok(Node::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
                let mut map = Vec::new();
                while let Some(key) = entries.next_key()? {
                    map.push((place(key), place(entries.next_value()?)));
                }
                Ok(Node::Map(map))
            }
        }

        deserializer.deserialize_any(NodeVisitor)
    }
}

/// The fields of one mapping, taken one by one.
pub(super) struct Fields<'p> {
    what: String,
    entries: Vec<(Spanned<String>, Spanned<Node>)>,
    asked: Vec<&'static str>,
    pub(super) span: Range<usize>,
    problems: &'p mut Problems,
}

impl<'p> Fields<'p> {
    /// The fields of a mapping called `what` in messages; anything else is a problem.
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

    /// Takes a field, if it is there.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Spanned<Node>> {
        self.asked.push(name);
        let at = self.entries.iter().position(|(key, _)| key.value == name)?;
        Some(self.entries.remove(at).1)
    }

    /// Takes a field that must be text.
    pub(super) fn text(&mut self, name: &'static str) -> Option<Spanned<String>> {
        let node = self.take(name)?;
        as_text(node, name, self.problems)
    }

    /// Takes a field that must be one text or a list of texts.
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

    /// Takes a field that must be a number of things, at least one.
    pub(super) fn count(&mut self, name: &'static str) -> Option<u64> {
        let node = self.take(name)?;
        match &node.value {
            Node::Number(number) if number.as_u64().is_some_and(|count| count > 0) => number.as_u64(),
            _ => {
                let message = format!("`{name}` is not a number of things");
                self.problems.push(node.span, message, "expected a whole number from 1 on");
                None
            }
        }
    }

    /// Takes a field that must be a share of something, `10%` or 0.1, within limits.
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
            let message = format!("`{name}` is not a share that it may be");
            self.problems.push(node.span, message, format!("expected `{least}%` to `{most}%`"));
        }
        share
    }

    /// Takes a field that must be `true` or `false`, also where a variable says so.
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

    /// Where the value of a field is, if the field is still there.
    pub(super) fn place(&self, name: &str) -> Option<Range<usize>> {
        self.entries.iter().find(|(key, _)| key.value == name).map(|(_, value)| value.span.clone())
    }

    /// Whether any of these fields is still there.
    /// Whether any of these fields is still there.
    pub(super) fn has_any(&self, names: &[&str]) -> bool {
        self.entries.iter().any(|(key, _)| names.contains(&key.value.as_str()))
    }

    pub(super) fn problems(&mut self) -> &mut Problems {
        self.problems
    }

    /// What remains, for a mapping whose keys the user chooses.
    pub(super) fn rest(self) -> Vec<(Spanned<String>, Spanned<Node>)> {
        self.entries
    }

    /// Reports every field that nobody asked for.
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

/// Text, or a problem.
pub(super) fn as_text(node: Spanned<Node>, name: &str, problems: &mut Problems) -> Option<Spanned<String>> {
    match node.value {
        Node::Text(value) => Some(Spanned { value, span: node.span }),
        other => {
            let message = format!("`{name}` must be text, found {}", other.kind());
            let advice = match other {
                Node::Number(_) | Node::Bool(_) => "write it in quotes",
                _ => "expected text here",
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
        // The value is not repeated: it may come from a variable. The excerpt shows what the file says.
        problems.push(text.span.clone(), format!("unknown value for `{name}`"), advice);
    }
    found
}

fn quote_all(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
