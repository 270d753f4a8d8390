//! `${VAR}`, `${VAR:-default}` and `${VAR:?message}` in string values.
//!
//! Owns that syntax. It must not read the environment; the caller passes a function. Invariant: a
//! substituted value is never parsed again, neither as YAML nor for variables.

/// Why a variable cannot be replaced, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidVariable {
    /// The byte offset of the `$` in the string.
    pub(super) at: usize,
    pub(super) message: String,
    pub(super) advice: String,
}

/// Replaces every variable in `text`. `$${` is a literal `${`.
pub(super) fn interpolate(text: &str, lookup: &impl Fn(&str) -> Option<String>) -> Result<String, InvalidVariable> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let offset = text.len() - rest.len() + at;
        let (before, from) = rest.split_at(at);
        if let Some(escaped) = before.strip_suffix('$') {
            result.push_str(escaped);
            result.push_str("${");
            rest = from.get(2..).unwrap_or("");
            continue;
        }
        result.push_str(before);
        let Some(end) = from.find('}') else {
            return Err(InvalidVariable {
                at: offset,
                message: "`${` without a closing `}`".to_owned(),
                advice: "add `}`, or write `$${` for a literal `${`".to_owned(),
            });
        };
        result.push_str(&variable(from.get(2..end).unwrap_or(""), offset, lookup)?);
        rest = from.get(end + 1..).unwrap_or("");
    }
    result.push_str(rest);
    Ok(result)
}

/// The value of one variable, given the text between the braces.
fn variable(body: &str, at: usize, lookup: &impl Fn(&str) -> Option<String>) -> Result<String, InvalidVariable> {
    let name_end = body.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(body.len());
    let (name, modifier) = body.split_at(name_end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(InvalidVariable {
            at,
            message: format!("`${{{body}}}` does not name a variable"),
            advice: "expected `${NAME}`, `${NAME:-default}` or `${NAME:?message}`".to_owned(),
        });
    }
    // As in a shell, with a colon an empty variable counts as unset.
    let value = lookup(name);
    if let Some(default) = modifier.strip_prefix(":-") {
        return Ok(value.filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned()));
    }
    if let Some(message) = modifier.strip_prefix(":?") {
        return value.filter(|value| !value.is_empty()).ok_or_else(|| InvalidVariable {
            at,
            message: format!("the variable `{name}` is not set"),
            advice: if message.is_empty() { "set it in the environment".to_owned() } else { message.to_owned() },
        });
    }
    if !modifier.is_empty() {
        return Err(InvalidVariable {
            at,
            message: format!("`{modifier}` after the variable `{name}` is not known"),
            advice: "expected `${NAME}`, `${NAME:-default}` or `${NAME:?message}`".to_owned(),
        });
    }
    value.ok_or_else(|| InvalidVariable {
        at,
        message: format!("the variable `{name}` is not set"),
        advice: format!("set it in the environment, or write `${{{name}:-default}}`"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("one".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${A}".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced_once() {
        let check =
            |text: &str, expected: &str| assert_eq!(interpolate(text, &lookup).as_deref(), Ok(expected), "{text}");
        check("", "");
        check("plain $ {x}", "plain $ {x}");
        check("a ${A} b ${A}", "a one b one");
        check("${B:-two}", "two");
        check("${EMPTY:-two}", "two");
        check("${EMPTY}", "");
        check("${B:-}", "");
        check("${NESTED}", "${A}");
        check("$${A}", "${A}");
        check("${A:?needed}", "one");
        check("${B:-postgres://u:p@h:5432/d}", "postgres://u:p@h:5432/d");
    }

    #[test]
    fn what_cannot_be_replaced_says_why() {
        let check = |text: &str, at: usize, advice: &str| {
            let failure = interpolate(text, &lookup).unwrap_err();
            assert_eq!((failure.at, failure.advice.contains(advice)), (at, true), "{text}: {failure:?}");
        };
        check("x ${B}", 2, "${B:-default}");
        check("${B:?set B to the url}", 0, "set B to the url");
        check("${EMPTY:?give it a value}", 0, "give it a value");
        check("${A", 0, "add `}`");
        check("${}", 0, "${NAME}");
        check("${1A}", 0, "${NAME}");
        check("${A!x}", 0, "${NAME}");
    }
}
