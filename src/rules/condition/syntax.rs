//! From text to CEL's syntax tree.
//!
//! Owns the guard in front of the `cel` crate's parser: what is too long, nested too deeply or not
//! made of CEL's tokens never reaches it. It must not know what names mean. Invariant: no text
//! makes it panic or recurse deeply, and what has passed can be walked, evaluated and dropped by
//! recursion.

use std::iter::repeat_n;
use std::panic::catch_unwind;

use cel::common::ast::{IdedExpr, SourceInfo};
use cel::parser::Parser;
use cel::{ParseError, ParseErrors};

use super::error::InvalidCondition;

const BYTES_MAX: usize = 4096;
/// Brackets and `? :` inside one another; each costs the parser about ten calls.
const NESTING_MAX: usize = 24;
/// The depth of the syntax tree, as `a.b + c + d` makes it: each operator lies above those to its
/// left.
const DEPTH_MAX: usize = 100;

const SYNTAX: &str = "a condition is CEL, as in `op == 'insert' || old.name != new.name`";
const SPLIT: &str = "split it into several rules";

/// The tree of a condition and the places of its nodes.
pub(super) fn parse(text: &str) -> Result<(IdedExpr, SourceInfo), InvalidCondition> {
    let plain = outline(text)?;
    // It stops at the first error: going on behind one is what a generated parser is least sure of.
    // Nothing is known to make it panic; should something do so, then that is no condition either.
    let parsed = catch_unwind(|| Parser::new().error_recovery_limit(0).parse_with_source_info(&plain));
    match parsed {
        Ok(Ok(tree)) => Ok(tree),
        Ok(Err(errors)) => Err(syntax_error(&plain, &errors)),
        Err(_) => Err(InvalidCondition::new(0..text.len(), "the condition cannot be parsed", SYNTAX)),
    }
}

/// What the parser says, in our words: its own list every token that might have come.
fn syntax_error(text: &str, errors: &ParseErrors) -> InvalidCondition {
    let stopped = |error: &&ParseError| error.msg.contains("error recovery attempt limit");
    let first = errors.errors.iter().find(|error| !stopped(error)).or_else(|| errors.errors.first());
    let Some(error) = first else { return InvalidCondition::new(0..text.len(), "not a condition", SYNTAX) };
    let start = offset(text, error.pos);
    let rest = text.get(start..).unwrap_or_default();
    let token = rest.get(..token_length(rest, false).unwrap_or(rest.len())).unwrap_or_default();
    let span = start..start + token.len();
    if !error.msg.starts_with("Syntax error") {
        return InvalidCondition::new(span, error.msg.clone(), SYNTAX);
    }
    if token.is_empty() {
        return InvalidCondition::new(span, "the condition ends too early", SYNTAX);
    }
    if token.starts_with(['"', '\'']) && error.msg.contains("token recognition") {
        return InvalidCondition::new(span, "a string with an unknown escape", r"write `\\` for a backslash");
    }
    InvalidCondition::new(span, format!("unexpected `{token}`"), SYNTAX)
}

/// The byte at a line and column, both counted from one, columns in characters.
fn offset(text: &str, (line, column): (isize, isize)) -> usize {
    let before = |number: isize| usize::try_from(number).unwrap_or(0).saturating_sub(1);
    let line_start: usize = text.split_inclusive('\n').take(before(line)).map(str::len).sum();
    let rest = text.get(line_start..).unwrap_or_default();
    rest.char_indices().nth(before(column)).map_or(text.len(), |(at, _)| line_start + at)
}

/// Checks the text token by token. Gives it back, byte for byte as long, with blanks for comments
/// and line ends.
fn outline(text: &str) -> Result<String, InvalidCondition> {
    if text.len() > BYTES_MAX {
        let message = format!("the condition is longer than {BYTES_MAX} bytes");
        return Err(InvalidCondition::new(0..text.len(), message, SPLIT));
    }
    let mut nesting = Nesting::new();
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let at = text.len() - rest.len();
        let Some((token, after)) = token_length(rest, is_raw(&plain)).and_then(|length| rest.split_at_checked(length))
        else {
            let advice = "close it with the quote it begins with";
            return Err(InvalidCondition::new(at..text.len(), "a string that is never closed", advice));
        };
        nesting.take(token, at)?;
        match is_blank(token) {
            true => plain.extend(repeat_n(' ', token.len())),
            false => plain.push_str(token),
        }
        rest = after;
    }
    if plain.trim().is_empty() {
        return Err(InvalidCondition::new(0..text.len(), "an empty condition", SYNTAX));
    }
    nesting.finish()?;
    Ok(plain)
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

fn is_blank(token: &str) -> bool {
    token.starts_with("//") || token.chars().all(|character| character.is_ascii_whitespace())
}

/// Whether a string that begins here takes backslashes as they are.
fn is_raw(before: &str) -> bool {
    let word = before.rsplit(|character| !is_word(character)).next().unwrap_or_default();
    matches!(word, "r" | "R" | "br" | "bR" | "Br" | "BR")
}

/// Bytes of the token at the beginning; nothing for a string that is never closed.
fn token_length(rest: &str, raw: bool) -> Option<usize> {
    const PAIRS: [&str; 6] = ["==", "!=", "<=", ">=", "&&", "||"];
    let first = rest.chars().next()?;
    match first {
        '"' | '\'' => string_length(rest, first, raw),
        '/' if rest.starts_with("//") => Some(rest.find('\n').unwrap_or(rest.len())),
        _ if is_word(first) => Some(rest.find(|character| !is_word(character)).unwrap_or(rest.len())),
        _ if PAIRS.iter().any(|pair| rest.starts_with(*pair)) => Some(2),
        _ => Some(first.len_utf8()),
    }
}

/// Only a string in three quotes may go over several lines.
fn string_length(rest: &str, quote: char, raw: bool) -> Option<usize> {
    let three = if quote == '"' { "\"\"\"" } else { "'''" };
    let closer = if rest.starts_with(three) { three } else { three.get(..1)? };
    let mut body = rest.get(closer.len()..)?;
    loop {
        if body.starts_with(closer) {
            return Some(rest.len() - body.len() + closer.len());
        }
        let mut characters = body.chars();
        match characters.next()? {
            '\\' if !raw => _ = characters.next()?,
            '\n' | '\r' if closer.len() == 1 => return None,
            _ => {}
        }
        body = characters.as_str();
    }
}

/// How deep the tree is at a place of the text: the open brackets, and what stands before the place
/// in each.
struct Nesting(Vec<Level>);

/// One bracket, or the whole text.
struct Level {
    at: usize,
    closer: &'static str,
    branches: usize,
    /// Operators since the last `&&`, `||` or comma, at which a flatter tree begins.
    operators: usize,
}

impl Nesting {
    fn new() -> Self {
        Self(vec![Level { at: 0, closer: "", branches: 0, operators: 0 }])
    }

    fn take(&mut self, token: &str, at: usize) -> Result<(), InvalidCondition> {
        let span = at..at + token.len();
        let Some(level) = self.0.last_mut() else { return Ok(()) };
        match token {
            "(" => self.open(at, ")"),
            "[" => self.open(at, "]"),
            "{" => self.open(at, "}"),
            ")" | "]" | "}" => self.close(token, at)?,
            "&&" | "||" | ":" => level.operators = 0,
            "," => (level.branches, level.operators) = (0, 0),
            "?" => (level.branches, level.operators) = (level.branches + 1, 0),
            "in" | "." | "!" | "+" | "-" | "*" | "/" | "%" | "<" | ">" | "<=" | ">=" | "==" | "!=" => {
                level.operators += 1;
            }
            "=" => return Err(InvalidCondition::new(span, "`=` does not compare", "write `==`")),
            _ if is_blank(token) || token.starts_with(|first| is_word(first) || matches!(first, '"' | '\'')) => {}
            _ => return Err(InvalidCondition::new(span, format!("unexpected `{token}`"), SYNTAX)),
        }
        let nesting: usize = self.0.iter().map(|level| 1 + level.branches).sum();
        let depth = nesting + self.0.iter().map(|level| level.operators).sum::<usize>();
        if nesting > NESTING_MAX || depth > DEPTH_MAX {
            return Err(InvalidCondition::new(span, "the condition is nested too deeply", SPLIT));
        }
        Ok(())
    }

    fn open(&mut self, at: usize, closer: &'static str) {
        self.0.push(Level { at, closer, branches: 0, operators: 0 });
    }

    fn close(&mut self, token: &str, at: usize) -> Result<(), InvalidCondition> {
        let closed = self.0.pop_if(|level| level.closer == token);
        match (closed, self.0.last_mut()) {
            (Some(_), Some(around)) => {
                // It may be a call or an index, which lies above what it is applied to.
                around.operators += 1;
                Ok(())
            }
            (_, around) => {
                let message = format!("a `{token}` that closes nothing");
                let advice = match around.map(|level| level.closer) {
                    None | Some("") => "remove it, or open a bracket before it".to_owned(),
                    Some(closer) => format!("a `{closer}` must come first"),
                };
                Err(InvalidCondition::new(at..at + token.len(), message, advice))
            }
        }
    }

    fn finish(self) -> Result<(), InvalidCondition> {
        match self.0.last() {
            Some(level) if !level.closer.is_empty() => {
                let advice = format!("a `{}` is missing", level.closer);
                Err(InvalidCondition::new(level.at..level.at + 1, "a bracket that is never closed", advice))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syntax_error_is_shown_at_its_place() {
        let check = |text: &str, at: &str, advice: &str| {
            let error = parse(text).map(|_| ()).unwrap_err();
            let found = text.get(error.span.clone()).unwrap();
            assert!(found == at && error.advice.contains(advice), "{text}: {error:?}");
        };
        check("", "", "old.name != new.name");
        check(" // nothing\n ", " // nothing\n ", "old.name != new.name");
        check("old.a = 1", "=", "`==`");
        check("old.a <> 1", ">", "CEL");
        check("old.a == 1 & new.a == 1", "&", "CEL");
        check("old.a ==", "", "CEL");
        check("old.a and new.a", "and", "CEL");
        check("(old.a == 1", "(", "`)` is missing");
        check("old.a == 1)", ")", "remove it");
        check("old.t[0)", ")", "`]` must come first");
        check("old.a == 'x", "'x", "close it");
        check("old.a == 'x\n'", "'x\n'", "close it");
        check("old.a == `x`", "`", "CEL");
        check("öld.a == 1", "ö", "CEL");
        check("old.a == @b", "@", "CEL");
        check(r"old.a == 'C:\windows'", r"'C:\windows'", r"`\\`");
        check("for == 1", "for", "CEL");
        check("has(old)", "old", "CEL");
        check(&"(".repeat(4000), "(", "several rules");
        check(&"x".repeat(5000), &"x".repeat(5000), "several rules");
    }

    #[test]
    fn a_tree_stays_shallow() {
        let check = |text: String, accepted: bool| assert_eq!(outline(&text).is_ok(), accepted, "{text}");
        check(["old.a != new.a"; 200].join(" || "), true);
        check(["old.a"; 40].join(" + "), true);
        check(["old.a"; 200].join(" + "), false);
        check(format!("old{}", ".a".repeat(200)), false);
        check(format!("old{}", "[0]".repeat(200)), false);
        check(format!("old{}", ".f()".repeat(200)), false);
        check(["true ? 1"; 40].join(" : "), false);
        check("!".repeat(200), false);
        check(format!("[{}]", ["1"; 1000].join(",")), true);
        check(format!("{}1{}", "(".repeat(20), ")".repeat(20)), true);
        check(format!("{}1{}", "(".repeat(30), ")".repeat(30)), false);
    }

    #[test]
    fn strings_and_comments_hide_what_they_hold() {
        let check = |text: &str, expected: &str| assert_eq!(outline(text).as_deref(), Ok(expected));
        check("a == '((' // ((\n&& b", "a == '(('       && b");
        check(r#"'\'' == "'""#, r#"'\'' == "'""#);
        check(r"r'\' == br'\'", r"r'\' == br'\'");
        check("'''it's\nfine''' == a", "'''it's\nfine''' == a");
        check("a\n\t== 'é'", "a  == 'é'");
    }
}
