//! Who fills which key in this process, so that the others wait for it instead of asking Redis again and again.
//!
//! Owns the list. It must not hand on what was read: an invalidation may lie between the fill's beginning and the request
//! of whoever waits, so they look again. A failure is handed on: it is no value.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::reader::ReadError;
use crate::key::CacheKey;

type Signal = watch::Receiver<Landed>;

/// How a fill ended.
#[derive(Clone, Debug, Default)]
pub(super) enum Landed {
    /// With a value in Redis, or nobody knows.
    #[default]
    Over,
    /// Nothing was stored.
    Empty,
    /// The database gave no value.
    Failed(ReadError),
}

/// The fills under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<CacheKey, Signal>>>);

/// What somebody who needs a key does.
pub(super) enum Place {
    /// Fills it.
    Pilot(Flight),
    /// Waits for somebody here who does.
    Passenger(Landing),
    /// Nobody here is at it.
    None,
}

/// A fill under way; over when it is dropped.
#[derive(Debug)]
pub(super) struct Flight {
    flights: Flights,
    key: CacheKey,
    signal: watch::Sender<Landed>,
}

/// The end of somebody else's fill.
pub(super) struct Landing(Signal);

impl Flights {
    /// Joins the fill of a key, or begins one if `may_begin`.
    pub(super) fn join(&self, key: &CacheKey, may_begin: bool) -> Place {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signal) = flights.get(key) {
            return Place::Passenger(Landing(signal.clone()));
        }
        if !may_begin {
            return Place::None;
        }
        let (sender, signal) = watch::channel(Landed::Over);
        flights.insert(key.clone(), signal);
        Place::Pilot(Flight { flights: self.clone(), key: key.clone(), signal: sender })
    }
}

impl Flight {
    /// Tells those who wait how it ends.
    pub(super) fn end(&self, landed: Landed) {
        self.signal.send_replace(landed);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Before those who wait wake up: the next of them may begin anew.
        self.flights.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Landing {
    /// Waits for the end.
    pub(super) async fn wait(mut self) -> Landed {
        // The end is that nobody will change it any more.
        while self.0.changed().await.is_ok() {}
        self.0.borrow().clone()
    }
}
