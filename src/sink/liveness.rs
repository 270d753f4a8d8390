//! Whether Redis takes what it is sent.
//!
//! Owns how long it has taken nothing, for whoever waits for the sink elsewhere. It must not judge what is too long.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shared by the sink, which reports, and those who wait for it.
#[derive(Clone, Debug)]
pub struct Liveness(Arc<Mutex<LivenessState>>);

#[derive(Debug)]
struct LivenessState {
    /// Since when nothing was taken.
    idle: Instant,
    /// A step was refused, or not answered, and has not been taken since: steps before it count no more.
    refused: bool,
}

impl Default for Liveness {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LivenessState { idle: Instant::now(), refused: false })))
    }
}

impl Liveness {
    /// A step was taken: one of many, as in a scan.
    pub(super) fn accepted(&self) {
        self.change(|state| {
            if !state.refused {
                state.idle = Instant::now();
            }
        });
    }

    /// A step was not taken. What succeeds before it the next time is no progress.
    pub(super) fn refused(&self) {
        self.change(|state| state.refused = true);
    }

    /// All steps were taken, or a new series of them begins.
    pub fn restart(&self) {
        self.change(|state| *state = LivenessState { idle: Instant::now(), refused: false });
    }

    /// For how long nothing was taken.
    pub fn idle(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).idle.elapsed()
    }

    fn change(&self, change: impl FnOnce(&mut LivenessState)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
