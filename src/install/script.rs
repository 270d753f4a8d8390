//! The scripts of `sql/`.
//!
//! Owns where the body of a function is in a script. It must not know what a script does.

/// The body of the function that a script creates, between two of these marks.
pub(super) fn body<'a>(script: &'a str, mark: &str) -> &'a str {
    script.split(mark).nth(1).unwrap_or_default()
}
