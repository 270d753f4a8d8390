//! How often a new epoch may begin.
//!
//! Owns the rate. Every epoch empties the cache and sends its readers to the database. A Redis that
//! fails over again and again must not overload the database. Synchronous; time is an argument.
//! Invariant: a flush is delayed, never omitted, and nothing is applied or confirmed meanwhile.

use std::time::{Duration, Instant};

/// How many epochs may begin without a wait.
const BURST: u32 = 5;

/// After this time one more may begin.
const REFILL: Duration = Duration::from_secs(60);

/// How many epochs may still begin.
#[derive(Debug, Default)]
pub struct Allowance {
    /// When [`BURST`] epochs may begin again. None: now.
    whole_at: Option<Instant>,
}

impl Allowance {
    /// Counts an epoch. Returns how long to wait before it may begin.
    pub fn take(&mut self, now: Instant) -> Duration {
        let whole_at = self.whole_at.map_or(now, |at| at.max(now)) + REFILL;
        self.whole_at = Some(whole_at);
        whole_at.saturating_duration_since(now).saturating_sub(REFILL * BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_few_begin_at_once_and_then_one_a_minute() {
        let start = Instant::now();
        let mut allowance = Allowance::default();
        let mut waits = (0..7).map(|_| allowance.take(start).as_secs());
        assert_eq!(waits.by_ref().take(5).sum::<u64>(), 0);
        assert_eq!(waits.collect::<Vec<_>>(), [60, 120]);
        assert_eq!(allowance.take(start + 20 * REFILL), Duration::ZERO);
    }
}
