//! Printing an error with its causes.
//!
//! Owns the one line that log messages and commands print. It must not know any error. Invariant: a
//! cause whose text the message already ends with is not repeated.

use std::error::Error;

/// An error and its causes in one line, each after a colon.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layered {
        #[error("{0}")]
        Text(&'static str),
        #[error("above")]
        Above(#[source] Box<Layered>),
        #[error("above: {0}")]
        Formatted(#[source] Box<Layered>),
    }

    #[test]
    fn causes_are_printed_once() {
        let check = |error: Layered, expected: &str| assert_eq!(with_causes(&error), expected);
        let cause = || Box::new(Layered::Text("below"));
        check(Layered::Text("alone"), "alone");
        check(Layered::Above(cause()), "above: below");
        check(Layered::Formatted(cause()), "above: below");
        // It cannot be told from a message that repeats its cause.
        check(Layered::Above(Box::new(Layered::Above(cause()))), "above: below");
    }
}
