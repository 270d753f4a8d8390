//! Why and when a recording ends.
//!
//! Owns what counts as a regular end: a signal, `--for`, `--count`, or a reader that left.

use std::io;

use tokio_util::sync::CancellationToken;

use crate::cmd::failure::Failure;

/// Why the recording ends.
pub(super) enum RecordingEnd {
    /// As many changes as `--count` asks for were recorded.
    Enough,
    /// The reader of standard output closed it.
    ReaderLeft,
    Failed(Failure),
}

impl From<Failure> for RecordingEnd {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<io::Error> for RecordingEnd {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderLeft,
            _ => Self::Failed(error.into()),
        }
    }
}

/// What ends a recording from outside: a signal, or the time of `--for`.
pub(super) struct StopCondition {
    pub(super) stop: CancellationToken,
    pub(super) deadline: Option<tokio::time::Instant>,
}

impl StopCondition {
    /// Waits for either.
    pub(super) async fn reached(&self) {
        let time_is_over = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = time_is_over => {}
        }
    }
}
