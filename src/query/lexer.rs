//! Tokens of SQL, as far as finding and replacing parameters needs them.
//!
//! Owns these lexical rules. It must not know grammar. Invariant: strings, quoted names and
//! comments are never changed.

/// Replaces each `$n` by a NULL of its type, so that a view can be made of the query.
pub(super) fn without_parameters(sql: &str, types: &[String]) -> String {
    let mut out = String::with_capacity(sql.len());
    let mut rest = sql;
    while !rest.is_empty() {
        let (token, after) = rest.split_at(token_len(rest));
        let number = token.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok());
        match number.and_then(|number| types.get(number.checked_sub(1)?)) {
            Some(type_name) => out.push_str(&format!("(null::{type_name})")),
            None => out.push_str(token),
        }
        rest = after;
    }
    out
}

/// The length of the first token in bytes, at least 1.
pub(super) fn token_len(text: &str) -> usize {
    let quoted = match text.as_bytes() {
        [b'\'', ..] => quoted_len(text, 0, false),
        [b'e' | b'E', b'\'', ..] => quoted_len(text, 1, true),
        [b'"', ..] => quoted_len(text, 0, false),
        [b'-', b'-', ..] => text.find('\n').unwrap_or(text.len()),
        [b'/', b'*', ..] => comment_len(text),
        [b'$', digit, ..] if digit.is_ascii_digit() => 1 + prefix_len(text, 1, |c| c.is_ascii_digit()),
        [b'$', ..] => dollar_quoted_len(text),
        _ => 0,
    };
    if quoted > 0 {
        return quoted;
    }
    // A `$` inside a name is part of it.
    let word = match text.starts_with(|c: char| c.is_ascii_digit()) {
        true => prefix_len(text, 0, |c| c.is_ascii_digit()),
        false => prefix_len(text, 0, |c| is_name(c) || c == '$' && !text.starts_with('$')),
    };
    word.max(text.chars().next().map_or(0, char::len_utf8))
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii()
}

/// The length in bytes, from `start`, of the run of characters for which `is_part` holds.
fn prefix_len(text: &str, start: usize, is_part: impl Fn(char) -> bool) -> usize {
    let rest = text.get(start..).unwrap_or_default();
    rest.find(|c| !is_part(c)).unwrap_or(rest.len())
}

/// The length up to the closing quote. Without escapes, a doubled quote ends one token and begins
/// the next, which has the same effect.
fn quoted_len(text: &str, start: usize, escapes: bool) -> usize {
    let rest = text.get(start..).unwrap_or_default();
    let quote = rest.chars().next();
    let mut is_escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        if Some(character) == quote && !is_escaped {
            let after = at + character.len_utf8();
            // In a string with escapes, a doubled quote does not end the token: the rest has
            // escapes too.
            let doubled = escapes && rest.get(after..).is_some_and(|rest| rest.starts_with('\''));
            if !doubled {
                return start + after;
            }
            is_escaped = true;
            continue;
        }
        is_escaped = escapes && character == '\\' && !is_escaped;
    }
    text.len()
}

/// The length of a block comment; these nest.
fn comment_len(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth.saturating_sub(1), at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of `$tag$ … $tag$`; 0 if the text does not begin with one.
fn dollar_quoted_len(text: &str) -> usize {
    let name = prefix_len(text, 1, is_name);
    let Some(tag) = text.get(..name + 2).filter(|tag| tag.ends_with('$')) else { return 0 };
    let inside = text.get(tag.len()..).unwrap_or_default();
    inside.find(tag).map_or(text.len(), |end| tag.len() + end + tag.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_are_replaced() {
        let check = |sql: &str, expected: &str| {
            let types = ["text".to_owned(), "app.\"Odd\"[]".to_owned()];
            assert_eq!(without_parameters(sql, &types), expected, "{sql}");
        };
        check("select $1", "select (null::text)");
        check("a=$1::uuid and b=any($2)", "a=(null::text)::uuid and b=any((null::app.\"Odd\"[]))");
        check("$1$2", "(null::text)(null::app.\"Odd\"[])");
        check("select $3, $0, $12, $", "select $3, $0, $12, $");
        check("'$1', '''$1', 'a''$1' || $1", "'$1', '''$1', 'a''$1' || (null::text)");
        check(r"'\' || $1 || '$1'", r"'\' || (null::text) || '$1'");
        check(r"e'\'$1' || $1, E'\\' || $1", r"e'\'$1' || (null::text), E'\\' || (null::text)");
        check(r"e'''\'$1' || $1", r"e'''\'$1' || (null::text)");
        check("type'$1' || e$1", "type'$1' || e$1");
        check("\"$1\" \"a\"\"$1\" $1", "\"$1\" \"a\"\"$1\" (null::text)");
        check("-- it's $1\n$1 -- $1", "-- it's $1\n(null::text) -- $1");
        check("/* $1 /* ' */ $1 */ $1 /* $1", "/* $1 /* ' */ $1 */ (null::text) /* $1");
        check("$$ $1 ' $$ $1 $t$ $1 $$ $1 $t$ $1", "$$ $1 ' $$ (null::text) $t$ $1 $$ $1 $t$ (null::text)");
        check("a$1, ä$1, 1+$1", "a$1, ä$1, 1+(null::text)");
        check("x-$1/$1*$1", "x-(null::text)/(null::text)*(null::text)");
    }
}
