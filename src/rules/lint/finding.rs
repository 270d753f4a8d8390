//! One finding of the lints.
//!
//! Owns its shape. Invariant: an `id` keeps its meaning between versions.

use std::ops::Range;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lint {
    /// Identifies the kind of finding, to filter by.
    pub id: &'static str,
    /// Whether it is certainly a mistake.
    pub certain: bool,
    /// The place in the file.
    pub span: Range<usize>,
    /// What was found.
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
