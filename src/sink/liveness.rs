//! Whether Redis accepts what it is sent.
//!
//! Owns how long Redis has accepted nothing, for tasks that wait for the sink. It must not judge
//! what is too long.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shared by the sink, which reports, and the tasks that wait for it.
#[derive(Clone, Debug)]
pub struct Liveness(Arc<Mutex<LivenessState>>);

#[derive(Debug)]
struct LivenessState {
    /// Since when nothing was accepted.
    idle: Instant,
    /// A step was refused or not answered, and not accepted since. Until then, other steps do not
    /// count.
    refused: bool,
}

impl Default for Liveness {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LivenessState { idle: Instant::now(), refused: false })))
    }
}

impl Liveness {
    /// A step was accepted: one of many, as in a scan.
    pub(super) fn accepted(&self) {
        self.change(|state| {
            if !state.refused {
                state.idle = Instant::now();
            }
        });
    }

    /// A step was refused or not answered. Steps before it that succeed again are not progress.
    pub(super) fn refused(&self) {
        self.change(|state| state.refused = true);
    }

    /// All steps were accepted, or a new series of steps begins.
    pub fn restart(&self) {
        self.change(|state| *state = LivenessState { idle: Instant::now(), refused: false });
    }

    /// For how long nothing was accepted.
    pub fn idle(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).idle.elapsed()
    }

    fn change(&self, change: impl FnOnce(&mut LivenessState)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
