//! How long to wait before the next attempt, and which failures to log.
//!
//! Owns the two schedules. Invariants: waits are bounded and jittered, so that many daemons do not
//! return at once; the first failure is logged at once, later ones at growing intervals.

use std::time::{Duration, Instant};

use rand::RngExt as _;

const FIRST_WAIT: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(5);
const FIRST_SILENCE: Duration = Duration::from_secs(5);
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// Growing waits.
#[derive(Debug)]
pub struct Backoff {
    wait: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { wait: FIRST_WAIT }
    }
}

impl Backoff {
    /// The next wait: between half of the current one and all of it; the one after is longer.
    pub fn next_wait(&mut self) -> Duration {
        let current = self.wait;
        self.wait = (current * 2).min(WAIT_MAX);
        current.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// An attempt succeeded: the next wait is the first again.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Which failures of a series are logged.
#[derive(Debug, Default)]
pub struct Notices {
    last: Option<(Instant, Duration)>,
}

impl Notices {
    /// Whether to log the failure that happens at `now`.
    pub fn due(&mut self, now: Instant) -> bool {
        let (due, silence) = match self.last {
            None => (true, FIRST_SILENCE),
            Some((logged, silence)) => (now.duration_since(logged) >= silence, (silence * 2).min(SILENCE_MAX)),
        };
        if due {
            self.last = Some((now, silence));
        }
        due
    }

    /// Whether any failure was logged.
    pub fn any(&self) -> bool {
        self.last.is_some()
    }

    /// The series is over.
    pub fn reset(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..20).map(|_| backoff.next_wait()).collect();
        assert!(waits.iter().all(|wait| (FIRST_WAIT / 2..=WAIT_MAX).contains(wait)), "{waits:?}");
        assert!(waits[19] >= WAIT_MAX / 2);
    }

    #[test]
    fn the_first_failure_is_logged_and_the_second_is_not() {
        let (mut notices, now) = (Notices::default(), Instant::now());
        assert_eq!((notices.due(now), notices.due(now), notices.any()), (true, false, true));
        let later = now + SILENCE_MAX;
        assert_eq!((notices.due(later), notices.due(later)), (true, false));
    }
}
