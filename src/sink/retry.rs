//! Why an attempt failed, and when the next one follows.
//!
//! Owns the state of a series of attempts, and its log lines. It must not know what is attempted.

use std::time::{Duration, Instant};

use redis::RedisError;

use super::proof::Unproven;
use super::refusal::explain;
use crate::backoff::{Backoff, Notices};
use crate::coherence::watermark::LOST;

/// Why an attempt failed.
pub(super) enum AttemptError {
    /// Redis refused, or did not answer. The next attempt may succeed.
    Refused(RedisError),
    /// The dataset is not the one whose history is proven. No further attempt may follow.
    Unproven,
}

impl From<RedisError> for AttemptError {
    fn from(error: RedisError) -> Self {
        if error.code() == Some(LOST) { Self::Unproven } else { Self::Refused(error) }
    }
}

impl From<Unproven> for AttemptError {
    fn from(_: Unproven) -> Self {
        Self::Unproven
    }
}

/// The state of a series of attempts.
#[derive(Default)]
pub(super) struct RetryState {
    backoff: Backoff,
    notices: Notices,
}

impl RetryState {
    /// An attempt failed. Logs that `what` waits, at growing intervals. Returns how long to wait
    /// before the next attempt.
    pub(super) fn failed(&mut self, what: &str, address: &str, error: &RedisError) -> Duration {
        if self.notices.due(Instant::now()) {
            let advice = explain(error).advice;
            let error = crate::redis::describe(error);
            tracing::warn!(redis = address, error, "{what} wait for Redis; {advice}");
        }
        self.backoff.next_wait()
    }

    /// An attempt succeeded. Logs it if a failure was logged.
    pub(super) fn succeeded(&self, what: &str, address: &str) {
        if self.notices.any() {
            tracing::info!(redis = address, "Redis accepts {what} again");
        }
    }
}
