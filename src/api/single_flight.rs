//! Single flight: of the requests of this process that need a key, one fills it and the others
//! wait.
//!
//! Owns the list of fills in progress. Invariant: a follower never receives the leader's value,
//! because an invalidation may lie between the start of the fill and the follower's request. It
//! looks the key up again. It does receive a failure, which is not a value.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::error::ReadError;
use crate::key::CacheKey;

type Signal = watch::Receiver<FillOutcome>;

/// How a fill ended.
#[derive(Clone, Debug, Default)]
pub(super) enum FillOutcome {
    /// The value was stored, or the leader ended without saying.
    #[default]
    Ended,
    /// The value was read but not stored.
    NotStored,
    /// The database gave no value.
    Failed(ReadError),
}

/// The fills in progress, by key.
#[derive(Clone, Debug, Default)]
pub(super) struct SingleFlight(Arc<Mutex<HashMap<CacheKey, Signal>>>);

/// The part of a request in the fill of a key.
pub(super) enum FlightRole {
    /// It fills the key.
    Leader(Leader),
    /// It waits for the leader.
    Follower(Follower),
    /// No request of this process fills the key.
    Bystander,
}

/// The right to fill a key in this process. The fill ends when this is dropped.
#[derive(Debug)]
pub(super) struct Leader {
    fills: SingleFlight,
    key: CacheKey,
    signal: watch::Sender<FillOutcome>,
}

/// Waits for the end of another request's fill.
pub(super) struct Follower(Signal);

impl SingleFlight {
    /// Joins the fill of a key, or begins one if `may_lead`.
    pub(super) fn join(&self, key: &CacheKey, may_lead: bool) -> FlightRole {
        let mut fills = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signal) = fills.get(key) {
            return FlightRole::Follower(Follower(signal.clone()));
        }
        if !may_lead {
            return FlightRole::Bystander;
        }
        let (sender, signal) = watch::channel(FillOutcome::Ended);
        fills.insert(key.clone(), signal);
        FlightRole::Leader(Leader { fills: self.clone(), key: key.clone(), signal: sender })
    }
}

impl Leader {
    /// Sets the outcome that followers receive when the fill ends.
    pub(super) fn set_outcome(&self, outcome: FillOutcome) {
        self.signal.send_replace(outcome);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // Before the followers wake up, so that the first of them may lead the next fill.
        self.fills.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Follower {
    /// Waits until the fill has ended.
    pub(super) async fn wait(mut self) -> FillOutcome {
        // An error means that the sender was dropped: the fill has ended.
        while self.0.changed().await.is_ok() {}
        self.0.borrow().clone()
    }
}
