//! What happens to a request when what decides about it cannot be asked.

/// What happens when what decides cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The request goes on.
    Open,
    /// It is refused.
    Closed,
}

/// The words for it in the file.
pub(super) const ON_ERROR: [(&str, OnError); 2] = [("open", OnError::Open), ("closed", OnError::Closed)];
