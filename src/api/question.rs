//! What a request asks of a read.
//!
//! Owns the question, free of HTTP. It must not know how an answer is found. Invariant: the
//! arguments are in the order of the read's parameters.

use crate::change::Lsn;

/// One request for a read.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The position of the read in the file.
    pub(super) read: usize,
    /// The values of the read's parameters.
    pub(super) arguments: Vec<Option<Vec<u8>>>,
    /// The answer must contain every commit up to this position.
    pub(super) min: Option<Lsn>,
    /// What the client asks of the cache.
    pub(super) control: CacheControl,
}

/// What a client may ask of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheControl {
    /// Serve the cached value.
    Serve,
    /// Query the database and store the result.
    Revalidate,
    /// Query the database and store nothing.
    Bypass,
}
