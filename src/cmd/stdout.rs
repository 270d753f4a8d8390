//! Writing to standard output.
//!
//! Invariant: a reader that closes its end early (`unstale … | head`) is not an error.

use std::io::{self, Write as _};

use super::failure::Failure;

/// Prints text.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    has_reader(io::stdout().write_all(text.as_bytes())).map(drop)
}

/// Whether what was written has a reader.
pub(super) fn has_reader(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}
