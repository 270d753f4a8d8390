//! How a query uses its parameters: unchanged, in one case, or otherwise.
//!
//! Owns what the tokens of the query show. It must not know names of parameters. Invariant:
//! anything but the equality of a column with the parameter, its `lower` or its `upper` counts as
//! another use.

use super::lexer::token_len;

/// The use of a parameter in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterUse {
    /// A column is compared with it for equality.
    AsIs,
    /// Something is compared with its `lower`.
    Lower,
    /// Something is compared with its `upper`.
    Upper,
    /// Any other use.
    Otherwise,
}

/// Every use of a parameter, numbered from 1, other than a test for NULL.
pub(super) fn parameter_uses(sql: &str) -> Vec<(usize, ParameterUse)> {
    let folded = sql.to_ascii_lowercase();
    let tokens = tokens(&folded);
    let numbers = tokens.iter().enumerate().filter_map(|(at, token)| Some((at, number(token)?)));
    let taken = numbers.filter_map(|(at, number)| {
        let (before, rest) = tokens.split_at_checked(at)?;
        Some((number, take(before, rest.get(1..)?)?))
    });
    taken.collect()
}

/// All tokens but spaces and comments.
fn tokens(sql: &str) -> Vec<&str> {
    let (mut tokens, mut rest) = (Vec::new(), sql);
    while !rest.is_empty() {
        let (token, after) = rest.split_at(token_len(rest));
        if !token.starts_with("--") && !token.starts_with("/*") && !token.trim().is_empty() {
            tokens.push(token);
        }
        rest = after;
    }
    tokens
}

fn number(token: &str) -> Option<usize> {
    token.strip_prefix('$')?.parse().ok()
}

fn take(before: &[&str], after: &[&str]) -> Option<ParameterUse> {
    if let ["is", "null", ..] | ["is", "not", "null", ..] = uncast(after) {
        return None;
    }
    Some(match (before, uncast(after)) {
        ([before @ .., fold @ ("lower" | "upper"), "("], [")", after @ ..]) if is_equated(before, after) => {
            if *fold == "lower" { ParameterUse::Lower } else { ParameterUse::Upper }
        }
        (_, after) if is_listed(before, after) || is_compared(before, after) => ParameterUse::AsIs,
        ([before @ .., "("], [")", after @ ..]) if is_compared(before, after) => ParameterUse::AsIs,
        _ => ParameterUse::Otherwise,
    })
}

/// The tokens after a cast to text, which does not change the value.
fn uncast<'t, 's>(after: &'t [&'s str]) -> &'t [&'s str] {
    match after {
        [":", ":", "text" | "varchar", after @ ..] if !matches!(after, ["(" | "[", ..]) => after,
        _ => after,
    }
}

/// Whether any expression is compared for equality with what is between.
fn is_equated(before: &[&str], after: &[&str]) -> bool {
    match (before, after) {
        ([.., left, "="], after) => !is_operator(left) && ends(after),
        (before, ["=", ..]) => begins(before),
        _ => false,
    }
}

/// `column = $1`, or `$1 = column`.
fn is_compared(before: &[&str], after: &[&str]) -> bool {
    match (before, after) {
        ([left @ .., "="], after) => is_column_last(left) && ends(after),
        (before, ["=", right @ ..]) => begins(before) && is_column_first(right),
        _ => false,
    }
}

/// `column in ($1, $2)`.
fn is_listed(mut before: &[&str], after: &[&str]) -> bool {
    while let [rest @ .., token, ","] = before {
        if number(token).is_none() {
            return false;
        }
        before = rest;
    }
    match before {
        [left @ .., "not", "in", "("] | [left @ .., "in", "("] => {
            is_column_last(left) && matches!(after, ["," | ")", ..])
        }
        _ => false,
    }
}

fn is_column_last(tokens: &[&str]) -> bool {
    match tokens {
        [rest @ .., ":", ":", "text" | "varchar"] => is_column_last(rest),
        [qualifier @ .., ".", name] => is_name(name) && is_column_last(qualifier),
        [rest @ .., name] => is_name(name) && begins(rest),
        [] => false,
    }
}

fn is_column_first(tokens: &[&str]) -> bool {
    match tokens {
        [name, ".", rest @ ..] if is_name(name) => is_column_first(rest),
        [name, rest @ ..] => is_name(name) && !matches!(rest, ["(", ..]) && ends(uncast(rest)),
        [] => false,
    }
}

/// Whether an expression may begin after these tokens.
fn begins(before: &[&str]) -> bool {
    before.last().is_none_or(|token| matches!(*token, "(" | ",") || is_name(token) && !OPERATORS.contains(token))
}

/// Whether an expression ends before these tokens.
fn ends(after: &[&str]) -> bool {
    after.first().is_none_or(|token| !is_operator(token) && *token != "[" && !OPERATORS.contains(token))
}

/// Operators that are words and bind more tightly than `and`.
const OPERATORS: [&str; 8] = ["at", "between", "collate", "ilike", "in", "like", "operator", "similar"];

fn is_operator(token: &str) -> bool {
    token.bytes().all(|byte| b"+-*/<>=~!@#%^&|`?:".contains(&byte))
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphanumeric() || matches!(first, '_' | '"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_plainly_equal_is_told() {
        let check = |sql: &str, expected: &[ParameterUse]| {
            let found: Vec<_> = parameter_uses(sql).into_iter().map(|(_, take)| take).collect();
            assert_eq!(found, expected, "{sql}");
        };
        let as_is = [
            "where id = $1",
            "where u.id=$1 and true",
            "where a.u.\"Id\" = $1::text order by id",
            "where (id = $1)",
            "where id = ($1)",
            "where $1 = u.id limit 1",
            "where $1::text = id",
            "where id::text = $1",
            "on (a, b.id = $1)",
            "where x and id /* ' */ = $1 -- $2",
            "where id = $1;",
        ];
        as_is.iter().for_each(|sql| check(sql, &[ParameterUse::AsIs]));
        check("where id in ($1, $2)", &[ParameterUse::AsIs, ParameterUse::AsIs]);
        check("where u.id not in ($1)", &[ParameterUse::AsIs]);
        check("where lower(email) = LOWER($1) order by id", &[ParameterUse::Lower]);
        check("where upper($1::text) = upper(email)", &[ParameterUse::Upper]);
        check("where $1 is null or id = $2 or $3::text is not null", &[ParameterUse::AsIs]);
        let otherwise = [
            "where email ilike $1",
            "where email like $1",
            "where lower(email) = $1",
            "where id = $1::text::int",
            "where id = $1 || 'x'",
            "where id || 'x' = $1",
            "where a + u.id = $1",
            "where id <= $1",
            "where id <> $1",
            "where id = f($1)",
            "where lower($1) <> email",
            "where email = lower($1) || 'x'",
            "where id = $1 collate x",
            "where $1 = f(id)",
            "where id || $1 = id",
            "where lower(id) in ($1)",
            "where id in (f($1))",
            "where id = $1::varchar(2)",
            "select json_build_object('id', $1)",
        ];
        otherwise.iter().for_each(|sql| check(sql, &[ParameterUse::Otherwise]));
    }
}
