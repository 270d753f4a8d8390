//! `for_each: org_members({id}) as m`: the lookup that a rule calls, its values, and the name of
//! its rows.
//!
//! Owns that syntax. It must not ask the database; [`crate::lookups`] does. Invariant: a parsed
//! call names a lookup that the file has.

use std::ops::Range;

use super::template::{InvalidTemplate, Template};
use crate::config::Spanned;
use crate::nearest::nearest;

/// The call of a lookup for every row.
#[derive(Clone, Debug)]
pub struct ForEach {
    /// The lookup's position in the file.
    pub lookup: usize,
    /// The name of a row in templates.
    pub alias: String,
    /// The values of the query's parameters.
    pub arguments: Vec<Spanned<Template>>,
    /// A delete of the row leaves the lookup without an answer, so everything that the rule may
    /// ever have made is removed instead. The database says so.
    pub is_void_on_delete: bool,
}

impl ForEach {
    /// Parses the text of the field. The span of an error is within the text.
    pub(super) fn parse(field: &Spanned<String>, lookups: &[&str]) -> Result<Self, InvalidTemplate> {
        let text = field.value.as_str();
        let (name, rest) = text.split_once('(').ok_or_else(|| expected(0..text.len(), "it has no `(`"))?;
        let name_at = name.len() - name.trim_start().len();
        let name = name.trim();
        let close = rest.rfind(')').ok_or_else(|| expected(0..text.len(), "it has no `)`"))?;
        let (inside, after) = rest.split_at(close);
        let arguments_at = text.len() - rest.len();
        let after_at = arguments_at + close + 1;
        let after = after.get(1..).unwrap_or("");
        let alias = after.trim().strip_prefix("as ").map(str::trim).unwrap_or("");
        if alias.is_empty() || !is_alias(alias) {
            return Err(expected(after_at..text.len(), "it does not say what to call a row"));
        }
        let Some(lookup) = lookups.iter().position(|known| *known == name) else {
            let advice = match nearest(name, lookups.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("add `{name}` under `lookups:`"),
            };
            let message = format!("there is no lookup `{name}`");
            return Err(InvalidTemplate { span: name_at..name_at + name.len(), message, advice });
        };
        let mut arguments = Vec::new();
        for part in split_arguments(inside) {
            let (start, end) = (arguments_at + part.start, arguments_at + part.end);
            let argument = text.get(start..end).unwrap_or("");
            let value = Template::parse_value(argument, None)
                .map_err(|error| InvalidTemplate { span: start + error.span.start..start + error.span.end, ..error })?;
            let span = field.part(&(start..end));
            arguments.push(Spanned { value, span });
        }
        Ok(Self { lookup, alias: alias.to_owned(), arguments, is_void_on_delete: false })
    }
}

fn is_alias(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') && !matches!(text, "old" | "new")
}

fn expected(span: Range<usize>, what: &str) -> InvalidTemplate {
    InvalidTemplate {
        span,
        message: format!("`for_each` does not name a lookup and its rows: {what}"),
        advice: "expected `lookup({column}) as name`".to_owned(),
    }
}

/// The places of the arguments, without the blanks around them. A comma in braces does not separate
/// arguments.
fn split_arguments(text: &str) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0_usize);
    for (at, character) in text.char_indices().chain(std::iter::once((text.len(), ','))) {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 || at == text.len() => {
                let piece = text.get(start..at).unwrap_or("");
                let from = start + (piece.len() - piece.trim_start().len());
                parts.push(from..from + piece.trim().len());
                start = at + 1;
            }
            _ => {}
        }
    }
    if text.trim().is_empty() {
        parts.clear();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spanned(text: &str, at: usize) -> Spanned<String> {
        Spanned { value: text.to_owned(), span: at..at + text.len() }
    }

    #[test]
    fn a_call_names_a_lookup_its_arguments_and_its_rows() {
        let check = |text: &str, expected: &[&str]| {
            let parsed = ForEach::parse(&spanned(text, 100), &["a", "members"]).unwrap();
            let arguments: Vec<_> =
                parsed.arguments.iter().map(|a| &text[a.span.start - 100..a.span.end - 100]).collect();
            assert_eq!((parsed.lookup, parsed.alias.as_str(), &*arguments), (1, "m", expected), "{text}");
        };
        check("members({id}) as m", &["{id}"]);
        check(" members ( {id} , {old.x|lower} )  as m ", &["{id}", "{old.x|lower}"]);
        check("members() as m", &[]);
        check("members(x, {a,b}) as m", &["x", "{a,b}"]);
    }

    #[test]
    fn what_is_not_a_call_says_where() {
        let check = |text: &str, span: Range<usize>, advice: &str| {
            let error = ForEach::parse(&spanned(text, 0), &["members"]).unwrap_err();
            assert!(error.span == span && error.advice.contains(advice), "{text}: {error:?}");
        };
        check("members", 0..7, "lookup({column})");
        check("members({id}", 0..12, "lookup({column})");
        check("members({id})", 13..13, "as name");
        check("members({id}) as new", 13..20, "as name");
        check("membrs({id}) as m", 0..6, "did you mean `members`?");
        check("members({id|lowr}) as m", 9..16, "`lower`");
    }
}
