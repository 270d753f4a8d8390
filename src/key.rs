//! Names in Redis: keys, and the globs that match them.
//!
//! Owns escaping, so that no value can widen a glob or control a terminal. It must not know
//! templates or commands. Invariant: a [`Glob`] made from a literal matches that literal only.

use std::fmt;

/// The prefix, after the namespace, of the keys in which unstale keeps its state. No rule may name
/// such a key.
pub const RESERVED: &str = "unstale:";

/// The prefix, after the namespace, of the set of keys of a tag.
pub const TAG: &str = "tag:";

/// The channel, after the namespace, on which unstale announces invalidations. No rule may publish
/// there.
pub const INVALIDATIONS: &str = "invalidations";

/// The full name of a key, a tag, a channel or a stream in Redis, namespace included. Any bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey(Vec<u8>);

impl CacheKey {
    /// A key of these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes Redis knows it by.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same bytes, to be extended to another name.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl From<&str> for CacheKey {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_printable(f, &self.0)
    }
}

/// A pattern in the syntax of Redis's `SCAN MATCH`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Glob(Vec<u8>);

impl Glob {
    /// The pattern that matches only the empty name, to be extended.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// A pattern that was read back as Redis reads it.
    pub fn from_pattern(pattern: impl Into<Vec<u8>>) -> Self {
        Self(pattern.into())
    }

    /// Appends bytes that match only themselves.
    pub fn push_literal(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if matches!(byte, b'*' | b'?' | b'[' | b'\\') {
                self.0.push(b'\\');
            }
            self.0.push(byte);
        }
    }

    /// Appends "anything", once: two in a row match the same and cost Redis more.
    pub fn push_any(&mut self) {
        let escaped = self.0.iter().rev().skip(1).take_while(|&&byte| byte == b'\\').count() % 2 == 1;
        if self.0.last() != Some(&b'*') || escaped {
            self.0.push(b'*');
        }
    }

    /// Whether it matches a name, as Redis does.
    pub fn matches(&self, name: &[u8]) -> bool {
        let (mut pattern, mut rest) = (&*self.0, name);
        // Where to continue if what follows the last star does not match: one byte further.
        let mut retry: Option<(&[u8], &[u8])> = None;
        loop {
            let literal = match pattern {
                [b'*', after @ ..] => {
                    retry = Some((after, rest));
                    pattern = after;
                    continue;
                }
                [] if rest.is_empty() => return true,
                [b'\\', byte, after @ ..] | [byte, after @ ..] => Some((byte, after)),
                [] => None,
            };
            if let Some((byte, after)) = literal
                && let Some((first, further)) = rest.split_first()
                && first == byte
            {
                (pattern, rest) = (after, further);
                continue;
            }
            match retry {
                Some((after, [_, further @ ..])) => {
                    retry = Some((after, further));
                    (pattern, rest) = (after, further);
                }
                _ => return false,
            }
        }
    }

    /// Whether there is a name that both match.
    pub fn intersects(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.pieces(), other.pieces());
        // Whether the rest of `self` and the rest of `other` have a name in common: one row for
        // each rest of `self`, one column for each rest of `other`.
        let mut row = vec![true];
        for piece in theirs.iter().rev() {
            row.push(piece.is_none() && row.last() == Some(&true));
        }
        for our in ours.iter().rev() {
            let mut last = our.is_none() && row.first() == Some(&true);
            let mut next = vec![last];
            for (their, before) in theirs.iter().rev().zip(row.windows(2)) {
                let &[beyond_both, beyond_ours] = before else { continue };
                last = match (our, their) {
                    (Some(our), Some(their)) => our == their && beyond_both,
                    // A star matches one more byte of the other, or ends.
                    _ => beyond_ours || last,
                };
                next.push(last);
            }
            row = next;
        }
        row.last() == Some(&true)
    }

    /// The literal bytes; `None` for each star.
    fn pieces(&self) -> Vec<Option<u8>> {
        let mut pieces = Vec::with_capacity(self.0.len());
        let mut bytes = self.0.iter();
        while let Some(&byte) = bytes.next() {
            pieces.push(match byte {
                b'*' => None,
                b'\\' => Some(bytes.next().copied().unwrap_or(byte)),
                _ => Some(byte),
            });
        }
        pieces
    }

    /// A glob that matches what any of these match, and perhaps more: their common beginning, then
    /// anything.
    pub fn covering(globs: &[&Self]) -> Self {
        let Some((first, others)) = globs.split_first() else { return Self::new() };
        if others.is_empty() {
            return (*first).clone();
        }
        let mut common = Self::new();
        let mut at = 0;
        loop {
            let length = match first.0.get(at..).unwrap_or_default() {
                [] | [b'*', ..] => break,
                [b'\\', ..] => 2,
                _ => 1,
            };
            let Some(piece) = first.0.get(at..at + length) else { break };
            if !others.iter().all(|other| other.0.get(at..at + length) == Some(piece)) {
                break;
            }
            common.0.extend_from_slice(piece);
            at += length;
        }
        common.push_any();
        common
    }

    /// The pattern as Redis reads it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_printable(f, &self.0)
    }
}

/// Writes bytes so that a terminal shows them and obeys none: control characters are escaped, and
/// bytes that are not UTF-8 become `\xNN`.
pub fn write_printable(f: &mut impl fmt::Write, bytes: &[u8]) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if hides_in_terminals(character) {
                write!(f, "{}", character.escape_unicode())?;
            } else {
                f.write_char(character)?;
            }
        }
        for byte in chunk.invalid() {
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

/// Control characters, and invisible characters that reorder the text around them.
fn hides_in_terminals(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_cannot_widen_a_glob() {
        let mut glob = Glob::new();
        glob.push_literal(br"user:*?[a-z]\");
        assert_eq!(glob.as_bytes(), br"user:\*\?\[a-z]\\");
    }

    #[test]
    fn neighbouring_stars_are_one() {
        let mut glob = Glob::new();
        glob.push_literal(b"a");
        glob.push_any();
        glob.push_any();
        assert_eq!(glob.as_bytes(), b"a*");
        glob.push_literal(b"*");
        glob.push_any();
        assert_eq!(glob.as_bytes(), br"a*\**", "an escaped star is no wildcard");
    }

    #[test]
    fn a_glob_matches_as_in_redis() {
        let check = |pattern: &str, name: &str, expected: bool| {
            assert_eq!(Glob(pattern.into()).matches(name.as_bytes()), expected, "{pattern} {name}");
        };
        check("user:*", "user:1", true);
        check("user:*", "user:", true);
        check("user:*", "users:1", false);
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "a-c-b", false);
        check("*:7", "x:7:7", true);
        check("*:7", "x:7:8", false);
        check(r"a\*b", "a*b", true);
        check(r"a\*b", "axb", false);
        check(r"a\*b", r"a\xb", false);
        check(r"a\\*", r"a\x", true);
        check("", "", true);
        check("", "x", false);
        check("x", "", false);
    }

    #[test]
    fn two_globs_have_a_name_in_common_or_not() {
        let check = |one: &str, other: &str, expected: bool| {
            let (one, other) = (Glob(one.into()), Glob(other.into()));
            assert_eq!((one.intersects(&other), other.intersects(&one)), (expected, expected), "{one} {other}");
        };
        check("user:*", "user:*", true);
        check("user:*", "user-email:*", false);
        check("user:*", "user:1", true);
        check("user:*", "users", false);
        check("user:*", "user:*:orgs", true);
        check("flag:*:*", "flag:*", true);
        check("flags:*", "flag:*", false);
        check("*a", "b*", true);
        check("a*b", "a*c", false);
        check("a*b", "ab", true);
        check("a*b*c", "*x*", true);
        check(r"a\*", "ab", false);
        check(r"a\*", "a*", true);
        check(r"a\*", r"a\*", true);
        check(r"a*\?*", r"a*@*", true);
        check("", "", true);
        check("", "*", true);
        check("", "a", false);
        check("**", "", true);
    }

    #[test]
    fn one_glob_covers_many() {
        let check = |globs: &[&str], expected: &str| {
            let globs: Vec<_> = globs.iter().map(|glob| Glob((*glob).into())).collect();
            assert_eq!(Glob::covering(&globs.iter().collect::<Vec<_>>()), Glob(expected.into()), "{globs:?}");
        };
        check(&["v1:user:*"], "v1:user:*");
        check(&["v1:user:*", "v1:user-email:*"], "v1:user*");
        check(&["v1:*", "v1:user:*"], "v1:*");
        check(&["a", "b"], "*");
        check(&[r"a\*x", r"a\*y"], r"a\**");
        check(&[r"a\*x", r"a\\y"], "a*");
        check(&["ab", "ab"], "ab*");
    }

    #[test]
    fn what_is_printed_cannot_steer_a_terminal() {
        let key = CacheKey::new(b"a\x1b[31m\n\xff\xe2\x80\xae".to_vec());
        assert_eq!(key.to_string(), r"a\u{1b}[31m\u{a}\xff\u{202e}");
    }
}
