//! Strings as YAML scalars and as YAML comments.
//!
//! Owns quoting. It must not know what a string means. Invariant: any name reads back as the same
//! name and stays on its line.

use std::fmt::Write as _;

use crate::key::write_printable;

/// Plain scalars that YAML 1.1 or 1.2 does not read as strings.
const WORDS: &[&str] = &["false", "inf", "n", "nan", "no", "null", "off", "on", "true", "y", "yes"];

/// A value; it reads back as this string after variables were replaced.
pub(super) fn text(text: &str) -> String {
    scalar(&text.replace("${", "$${"))
}

/// A key of a mapping; variables are not replaced in keys.
pub(super) fn key(text: &str) -> String {
    scalar(text)
}

/// A flow sequence, on one line.
pub(super) fn list<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = texts.into_iter().map(|item| text(item.as_ref())).collect();
    format!("[{}]", items.join(", "))
}

/// The text of a comment: on one line, without characters that YAML refuses or that are invisible.
pub(super) fn comment(text: &str) -> String {
    let mut shown = String::new();
    // Writing to a String cannot fail.
    let _ = write_printable(&mut shown, text.as_bytes());
    shown.replace(NONCHARACTERS, "\u{fffd}")
}

/// Characters that are not printable in YAML, though Unicode does not classify them as controls.
const NONCHARACTERS: [char; 2] = ['\u{fffe}', '\u{ffff}'];

fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word));
    if plain { text.to_owned() } else { quote(text) }
}

fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            ' '..='~' => quoted.push(character),
            // Letters of every script stay; characters that may be invisible or break a line are
            // escaped.
            _ if character.is_alphanumeric() => quoted.push(character),
            _ => {
                // Writing to a String cannot fail.
                let _ = write!(quoted, "\\U{:08X}", u32::from(character));
            }
        }
    }
    quoted.push('"');
    quoted
}

/// Names that break naive generators.
#[cfg(test)]
pub(super) const HOSTILE: &[&str] = &[
    "",
    " ",
    "a",
    "a b",
    " a",
    "a ",
    "a: b",
    "a #b",
    "- a",
    "? a",
    "&a",
    "*a",
    "!a",
    "%a",
    "@a",
    "`a`",
    "'a'",
    "\"a\"",
    "a\\b",
    "a\nb",
    "a\r\nb",
    "\ta",
    "{a}",
    "[a]",
    "a, b",
    "a|b",
    ">",
    "~",
    "<<",
    "null",
    "Null",
    "true",
    "Yes",
    "off",
    "y",
    "1",
    "0x1f",
    "1e3",
    ".nan",
    "-1",
    "2026-11-21",
    "12:30:45",
    "${HOME}",
    "$${HOME}",
    "a$$${HOME}${",
    "ünïcödé",
    "日本語",
    "🦀",
    "\u{7f}",
    "\u{85}",
    "\u{2028}",
    "\u{feff}",
    "\u{202e}abc",
    "\u{fffe}",
    "\u{10ffff}",
    "---",
    "...",
    "select",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// A value as the parser of the file reads it.
    fn read_back(yaml: &str) -> String {
        let file = format!("version: 1\nrules:\n  r: {{table: {yaml}, delete: \"k:{{a}}\"}}\n");
        let document = crate::config::Document::parse(&file, &|_| None).unwrap_or_else(|p| panic!("{file}: {p:?}"));
        match document.rules.into_iter().next().unwrap().trigger {
            crate::config::rule::RawTrigger::Table(name) => name.value,
            trigger => panic!("{trigger:?}"),
        }
    }

    #[test]
    fn every_value_reads_back() {
        for name in HOSTILE {
            assert_eq!(read_back(&text(name)), *name, "{}", text(name));
        }
    }

    #[test]
    fn every_key_reads_back() {
        for name in HOSTILE {
            let file = format!("version: 1\nrules:\n  {}: {{table: t, delete: k}}\n", key(name));
            let document = crate::config::Document::parse(&file, &|_| None).unwrap_or_else(|p| panic!("{file}: {p:?}"));
            assert_eq!(document.rules[0].name.value, *name, "{file}");
        }
    }

    #[test]
    fn what_needs_no_quotes_has_none() {
        let check = |name: &str, expected: &str| assert_eq!(text(name), expected);
        check("feature_flags", "feature_flags");
        check("user-1", "user-1");
        check("User", "User");
        check("no", "\"no\"");
        check("1st", "\"1st\"");
        check("user:{id}", "\"user:{id}\"");
        check("größe", "\"größe\"");
        check("a\u{85}", "\"a\\U00000085\"");
        check("${HOME}", "\"$${HOME}\"");
    }

    #[test]
    fn a_comment_stays_on_its_line() {
        for name in HOSTILE {
            let shown = comment(name);
            assert!(!shown.contains(['\n', '\r', '\u{85}', '\u{2028}', '\u{0}']), "{shown:?}");
            let file = format!("version: 1\n# {shown}\nrules:\n  r: {{table: t, delete: k}} # {shown}\n");
            assert!(crate::config::Document::parse(&file, &|_| None).is_ok(), "{file:?}");
        }
    }
}
