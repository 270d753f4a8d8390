//! Names and texts in SQL that is shown to people and may be run by hand.
//!
//! Owns quoting, whatever a name contains and whatever the session is set to.

/// A name in quotes, which it needs where it happens to be a word of the language.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text for SQL, whatever `standard_conforming_strings` is.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A text between marks that it does not contain.
pub(super) fn dollar_quoted(text: &str) -> String {
    let mut mark = "$unstale$".to_owned();
    let mut number = 0;
    while text.contains(&mark) {
        number += 1;
        mark = format!("$unstale{number}$");
    }
    format!("{mark}{text}{mark}")
}
