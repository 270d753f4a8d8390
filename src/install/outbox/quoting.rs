//! Identifiers and strings in generated SQL, which may also be run by hand.
//!
//! Owns quoting. It must not know what is quoted. Invariant: the result is safe for any name and
//! for any settings of the session.

/// A quoted identifier; also a keyword may be a name.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal, valid for either value of `standard_conforming_strings`.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A dollar-quoted string, with a tag that the text does not contain.
pub(super) fn dollar_quoted(text: &str) -> String {
    let mut mark = "$unstale$".to_owned();
    let mut number = 0;
    while text.contains(&mark) {
        number += 1;
        mark = format!("$unstale{number}$");
    }
    format!("{mark}{text}{mark}")
}
