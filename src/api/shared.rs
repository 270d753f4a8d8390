//! What all threads of the API share.
//!
//! Owns no behaviour. What belongs to one thread, above all its connection to Redis, is not here.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::single_flight::SingleFlight;
use super::stats::Stats;
use super::upstream::Upstream;
use crate::config;
use crate::reads::ReadSet;

/// State shared by the readers and fillers of all threads.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) reads: ReadSet,
    pub(super) settings: config::Api,
    pub(super) stats: Stats,
    pub(super) upstream: Upstream,
    /// The fills of this process.
    pub(super) fills: SingleFlight,
    /// Limits background refreshes to half of the database connections.
    pub(super) refreshes: Arc<Semaphore>,
}

impl Shared {
    pub(super) fn new(reads: ReadSet, upstream: Upstream, settings: config::Api) -> Self {
        let stats = Stats::new(reads.reads().iter().map(|read| read.name.clone()));
        let refreshes = Arc::new(Semaphore::new((settings.database_connections / 2).max(1)));
        Self { reads, settings, stats, upstream, fills: SingleFlight::default(), refreshes }
    }
}
