//! What can be wrong with a condition: with its text, or with its evaluation.
//!
//! Owns these errors. Invariant: neither holds a value of a row.

use std::ops::Range;

/// Why a text is not a condition, or never does what it seems to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidCondition {
    /// The wrong bytes of the text.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What was expected, or what to do.
    pub advice: String,
}

impl InvalidCondition {
    pub(super) fn new(span: Range<usize>, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { span, message: message.into(), advice: advice.into() }
    }
}

/// Why a condition is neither true nor false.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// A column that the log does not carry decides.
    #[error("a column that the log does not carry decides")]
    Unknown,
    /// It cannot be computed, for this reason, which holds no value of the row.
    #[error("{0}")]
    Failed(String),
}
