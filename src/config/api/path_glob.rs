//! Patterns of paths: `/users/*`.
//!
//! Owns their syntax and what they match. It must not know requests. Invariant: matching is linear
//! if the pattern ends in its only star, and never takes more steps than the square of the path's
//! length.

use std::fmt;

use crate::config::problem::Problems;
use crate::config::span::Spanned;

/// A pattern of paths: `*` matches anything within a segment, `**` anything including slashes. It
/// is matched against the decoded path, in which an encoded slash stays `%2F`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathGlob(String);

impl PathGlob {
    /// Parses a pattern.
    ///
    /// # Errors
    ///
    /// What was expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if !text.starts_with('/') {
            return Err("begin it with `/`, as in `/users/*` or `/**`");
        }
        if text.contains(['{', '}']) {
            return Err("write `*` for a segment, as in `/users/*`");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains(['?', '#']) {
            return Err("expected a path as in a URL, percent-encoded, without a query");
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads the value of a field.
    pub(super) fn read(text: Spanned<String>, field: &str, problems: &mut Problems) -> Option<Self> {
        match Self::parse(&text.value) {
            Ok(glob) => Some(glob),
            Err(advice) => {
                problems.push(text.span, format!("`{field}` is not a path pattern"), advice);
                None
            }
        }
    }

    /// Whether the pattern matches a decoded path.
    pub fn matches(&self, path: &str) -> bool {
        let (mut pattern, mut rest) = (self.0.as_bytes(), path.as_bytes());
        // Where to continue if the rest after the last star of each kind does not match: one byte
        // on.
        let mut within: Option<(&[u8], &[u8])> = None;
        let mut across: Option<(&[u8], &[u8])> = None;
        loop {
            match (pattern, rest) {
                ([b'*', b'*', after @ ..], _) => {
                    (within, across) = (None, Some((after, rest)));
                    pattern = after;
                    continue;
                }
                ([b'*', after @ ..], _) => {
                    within = Some((after, rest));
                    pattern = after;
                    continue;
                }
                ([byte, after @ ..], [first, further @ ..]) if byte == first => {
                    (pattern, rest) = (after, further);
                    continue;
                }
                ([], []) => return true,
                _ => {}
            }
            if let Some((after, [first, further @ ..])) = within
                && *first != b'/'
            {
                within = Some((after, further));
                (pattern, rest) = (after, further);
            } else if let Some((after, [_, further @ ..])) = across {
                (within, across) = (None, Some((after, further)));
                (pattern, rest) = (after, further);
            } else {
                return false;
            }
        }
    }
}

impl fmt::Display for PathGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_glob_knows_segments() {
        let check = |glob: &str, path: &str, expected: bool| {
            assert_eq!(PathGlob::parse(glob).unwrap().matches(path), expected, "{glob} {path}");
        };
        check("/users/*", "/users/u1", true);
        check("/users/*", "/users/", true);
        check("/users/*", "/users/u1/roles", false);
        check("/users/*", "/users", false);
        check("/users/*/roles", "/users/u1/roles", true);
        check("/users/*/roles", "/users/u1/x/roles", false);
        check("/users/**", "/users/u1/roles", true);
        check("/users/**", "/users", false);
        check("/**", "/", true);
        check("/**", "/a/b", true);
        check("/**/roles", "/a/b/roles", true);
        check("/**/roles", "/a/b/roles/c", false);
        check("/**/a*c/*", "/x/abc/abd/abc/y", true);
        check("/**/a*c/*", "/x/ab/c/y", false);
        check("/a*b*c", "/abbcbc", true);
        check("/a*b*c", "/ab/c", false);
        check("/session", "/session", true);
        check("/session", "/sessions", false);
        check("/session", "/sessio", false);
        check("/x%2F*", "/x%2Fy", true);
        assert_eq!(PathGlob::parse("/a/**").unwrap().to_string(), "/a/**");
        let hostile = format!("/{}", "*a".repeat(40));
        check(&hostile, &format!("/{}b", "a".repeat(8000)), false);
        check(&format!("{hostile}/**/x"), &format!("/{}", "a/".repeat(4000)), false);
    }

    #[test]
    fn what_is_not_a_pattern_says_what_is() {
        let check = |glob: &str, advice: &str| {
            let found = PathGlob::parse(glob).unwrap_err();
            assert!(found.contains(advice), "{glob}: {found}");
        };
        check("", "begin it with `/`");
        check("**", "begin it with `/`");
        check("/users/{id}", "write `*`");
        check("/users?page=*", "without a query");
        check("/a b", "percent-encoded");
        check("/ä", "percent-encoded");
    }
}
