//! Whether a request continues if a check cannot be made.
//!
//! Owns the setting and its words. It must not know which checks there are.

/// What happens to a request if a check cannot be made, for example because Redis is unreachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The request continues.
    Open,
    /// The request is refused.
    Closed,
}

/// The words in the file.
pub(super) const ON_ERROR: [(&str, OnError); 2] = [("open", OnError::Open), ("closed", OnError::Closed)];
