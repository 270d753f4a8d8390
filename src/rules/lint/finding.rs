//! One finding of the lints.
//!
//! Owns its shape. Invariant: an `id` keeps its meaning between versions.

use std::ops::Range;

/// One thing that is suspicious.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lint {
    /// Stays the same between versions, for those who filter.
    pub id: &'static str,
    /// It cannot be meant so; otherwise there may be a reason.
    pub certain: bool,
    /// The bytes of the file that it is about.
    pub span: Range<usize>,
    /// What is suspicious.
    pub message: String,
    /// Why it matters.
    pub why: String,
    /// What to do.
    pub fix: String,
}

impl Lint {
    pub(super) fn new(id: &'static str, certain: bool, span: &Range<usize>, message: String) -> Self {
        Self { id, certain, span: span.clone(), message, why: String::new(), fix: String::new() }
    }

    pub(super) fn why(self, why: impl Into<String>) -> Self {
        Self { why: why.into(), ..self }
    }

    pub(super) fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: fix.into(), ..self }
    }
}
