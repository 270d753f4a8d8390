//! The path of a read: `/users/{id}`.
//!
//! Owns its syntax. It must not know routers, though it accepts what axum's router does: a
//! parameter is a whole segment. Invariant: a path has only characters that no client encodes, so
//! it is written in one way.

use std::ops::Range;

use crate::config::Spanned;

/// A path and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    text: Spanned<String>,
    names: Vec<String>,
}

/// Why a text is not a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidPath {
    /// The bytes of the text that are wrong.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: &'static str,
    /// What was expected.
    pub advice: &'static str,
}

impl Path {
    /// Reads a path.
    ///
    /// # Errors
    ///
    /// Why it is not a path. The span is within the text.
    pub fn parse(text: &Spanned<String>) -> Result<Self, InvalidPath> {
        let whole = 0..text.value.len();
        let Some(inside) = text.value.strip_prefix('/') else {
            return Err(invalid(whole, "a path must begin with `/`", "expected `/name/{parameter}`"));
        };
        let mut names: Vec<String> = Vec::new();
        let mut start = 1;
        for segment in inside.split('/') {
            let span = start..start + segment.len();
            start = span.end + 1;
            if segment.is_empty() && !inside.is_empty() {
                return Err(invalid(span, "an empty segment", "remove a `/`"));
            }
            match parameter(segment) {
                Some(name) if !is_name(name) => {
                    return Err(invalid(span, "not a valid parameter", "expected `{name}`: letters, digits and `_`"));
                }
                Some(name) if names.iter().any(|known| known == name) => {
                    return Err(invalid(span, "a parameter of the path already has this name", "choose another name"));
                }
                Some(name) => names.push(name.to_owned()),
                None if segment.contains(['{', '}']) => {
                    return Err(invalid(span, "a parameter must be a whole segment", "expected `/{name}/`"));
                }
                None if !is_literal(segment) => {
                    return Err(invalid(span, "not a valid segment", "expected letters, digits and `-._~@`"));
                }
                None => {}
            }
        }
        Ok(Self { text: text.clone(), names })
    }

    /// The text, as in the file and for axum.
    pub fn as_str(&self) -> &str {
        &self.text.value
    }

    /// Where it is in the file.
    pub fn span(&self) -> Range<usize> {
        self.text.span.clone()
    }

    /// The names of its parameters, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

fn invalid(span: Range<usize>, message: &'static str, advice: &'static str) -> InvalidPath {
    InvalidPath { span, message, advice }
}

fn parameter(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}').filter(|name| !name.contains(['{', '}']))
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Without `.` and `..`, which clients resolve.
fn is_literal(segment: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~@".contains(&byte);
    segment.bytes().all(known) && !matches!(segment, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Path, InvalidPath> {
        Path::parse(&Spanned { value: text.to_owned(), span: 0..text.len() })
    }

    #[test]
    fn a_path_has_parameters() {
        let check = |text: &str, names: &[&str]| {
            let path = parse(text).unwrap();
            assert_eq!(
                (path.as_str(), path.names()),
                (text, &*names.iter().map(ToString::to_string).collect::<Vec<_>>())
            );
            matchit::Router::new().insert(path.as_str(), ()).unwrap();
        };
        check("/", &[]);
        check("/session", &[]);
        check("/users/{id}", &["id"]);
        check("/a-b/{x_1}/c.d/{_y}", &["x_1", "_y"]);
    }

    #[test]
    fn an_invalid_path_is_refused_at_its_fault() {
        let check = |text: &str, at: &str, advice: &str| {
            let error = parse(text).unwrap_err();
            assert_eq!(&text[error.span.clone()], at, "{text}: {error:?}");
            assert!(error.advice.contains(advice), "{text}: {error:?}");
        };
        check("", "", "/name/{parameter}");
        check("users", "users", "/name/{parameter}");
        check("//a", "", "remove a `/`");
        check("/a/", "", "remove a `/`");
        check("/a/{}", "{}", "letters, digits");
        check("/a/{b-c}", "{b-c}", "letters, digits");
        check("/a/{*rest}", "{*rest}", "letters, digits");
        check("/a/x{b}", "x{b}", "`/{name}/`");
        check("/a/{b}{c}", "{b}{c}", "`/{name}/`");
        check("/a/{b", "{b", "`/{name}/`");
        check("/{a}/{a}", "{a}", "another name");
        check("/a b", "a b", "letters, digits");
        check("/a?b", "a?b", "letters, digits");
        check("/ä", "ä", "letters, digits");
        check("/a/../b", "..", "letters, digits");
    }
}
