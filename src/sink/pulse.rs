//! Whether Redis takes what it is sent.
//!
//! Owns how long it has taken nothing, for whoever waits for the sink elsewhere. It must not judge what is too long.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shared by the sink, which reports, and those who wait for it.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Since when nothing was taken.
    idle: Instant,
    /// A step was refused, or not answered, and has not been taken since: steps before it count no more.
    refused: bool,
}

impl Default for Pulse {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { idle: Instant::now(), refused: false })))
    }
}

impl Pulse {
    /// A step was taken: one of many, as in a scan.
    pub(super) fn step(&self) {
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
    pub fn begin(&self) {
        self.change(|state| *state = State { idle: Instant::now(), refused: false });
    }

    /// For how long nothing was taken.
    pub fn silence(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).idle.elapsed()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
