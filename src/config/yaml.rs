//! Parses YAML into [`Node`]s, each with its position.
//!
//! Owns the use of the parser library. It must not know the names of fields. Invariant: every
//! position lies in the text.

use std::fmt;
use std::ops::Range;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::node::Node;
use super::problem::Problems;
use super::span::Spanned;

/// Parses YAML. A syntax error becomes one problem.
pub(super) fn parse(text: &str, problems: &mut Problems) -> Option<Spanned<Node>> {
    // As in YAML 1.2, `n` and `on` are strings, as for columns of these names.
    let options = serde_saphyr::options! { strict_booleans: true };
    match serde_saphyr::from_str_with_options::<serde_saphyr::Spanned<Node>>(text, options) {
        Ok(root) => {
            let mut root = packed(root);
            locate(&mut root, &LineStarts::new(text));
            Some(root)
        }
        Err(error) => {
            let lines = LineStarts::new(text);
            let start = error.location().map_or(0, |location| lines.offset(location.line(), location.column()));
            problems.push(start..start, in_our_words(&error.without_snippet().render_plain()), "not valid YAML here");
            None
        }
    }
}

/// The library's message without its hints for programmers.
fn in_our_words(message: &str) -> String {
    if message.contains("multiple YAML documents") {
        return "more than one YAML document in the file".to_owned();
    }
    message.split(", set DuplicateKeyPolicy").next().unwrap_or(message).to_owned()
}

/// The text of a library error without the excerpt; [`Problems`] shows its own.
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

/// The starts of lines, to convert a line and a column in characters into bytes.
struct LineStarts<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> LineStarts<'a> {
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

/// Converts a span of the library. Its start is `line << 32 | column` until [`locate`].
fn packed<T>(spanned: serde_saphyr::Spanned<T>) -> Spanned<T> {
    let location = spanned.referenced;
    let packed = usize::try_from(location.line() << 32 | location.column()).unwrap_or(0);
    Spanned { value: spanned.value, span: packed..packed }
}

/// Replaces packed lines and columns by byte offsets in the whole tree.
fn locate(node: &mut Spanned<Node>, lines: &LineStarts<'_>) {
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
                    list.push(packed(item));
                }
                Ok(Node::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
                let mut map = Vec::new();
                while let Some(key) = entries.next_key()? {
                    map.push((packed(key), packed(entries.next_value()?)));
                }
                Ok(Node::Map(map))
            }
        }

        deserializer.deserialize_any(NodeVisitor)
    }
}
