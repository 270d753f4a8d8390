//! What the demo has seen.

use std::time::Duration;

use crate::cmd::failure::Failure;

/// Counts and latencies since the start.
#[derive(Default)]
pub(super) struct Statistics {
    /// From each commit to the arrival of its announcement.
    pub(super) latencies: Vec<Duration>,
    /// Keys that were removed.
    pub(super) removed: usize,
    /// Changes whose invalidation was not announced in time.
    pub(super) missing: usize,
}

impl Statistics {
    /// One line.
    pub(super) fn text(&self) -> String {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let millis = |share: f64| {
            let at = (sorted.len() as f64 * share) as usize;
            let latency = sorted.get(at.min(sorted.len().saturating_sub(1)));
            latency.copied().unwrap_or_default().as_secs_f64() * 1000.0
        };
        format!(
            "{} changes, {} keys invalidated; from commit to subscriber p50 {:.2} ms, p99 {:.2} ms\n",
            self.latencies.len() + self.missing,
            self.removed,
            millis(0.5),
            millis(0.99),
        )
    }

    /// Fails if an invalidation was missing, or if so many cached values were stale.
    pub(super) fn outcome(&self, stale: usize) -> Result<(), Failure> {
        match (stale, self.missing) {
            (0, 0) => Ok(()),
            (_, missing) => Err(Failure::findings(format!(
                "cache and database disagree: {stale} stale values, {missing} changes never invalidated"
            ))),
        }
    }
}
