//! One step of `setup`: what it made, or found as it should be.
//!
//! Owns the words in which steps are reported. It must not know what any step does.

/// What setup found to do, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was made or changed.
    Done(String),
    /// It was there already.
    Unchanged(String),
}

impl Step {
    /// A step that may have found nothing to do.
    pub(super) fn of(is_changed: bool, text: String) -> Self {
        if is_changed { Self::Done(text) } else { Self::Unchanged(text) }
    }
}
