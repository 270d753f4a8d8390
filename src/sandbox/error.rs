//! Why there is no throwaway server.

use std::io;

/// Why there is no throwaway server.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A program is not installed. With what to set instead.
    #[error("cannot find {0}; install it, or set {1}")]
    Missing(&'static str, &'static str),
    /// A command failed. With its error output.
    #[error("{0} failed: {1}")]
    Failed(String, String),
    /// A server did not start to answer. With the end of its log.
    #[error("{0} did not start; its log says: {1}")]
    Silent(&'static str, String),
    /// A file or process could not be created.
    #[error("cannot prepare a throwaway server")]
    Io(#[from] io::Error),
}
