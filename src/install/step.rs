//! One step of `setup`, and whether it changed anything.
//!
//! Owns how steps are reported. It must not know what a step does.

/// A step of `setup`, with a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something was created or changed.
    Done(String),
    /// It was already as it should be.
    Unchanged(String),
}

impl Step {
    /// A step with this outcome.
    pub(super) fn of(is_changed: bool, text: String) -> Self {
        if is_changed { Self::Done(text) } else { Self::Unchanged(text) }
    }
}
