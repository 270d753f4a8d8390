//! What the requests on one thread share.
//!
//! Owns how it is put together. It must not know HTTP.

use std::sync::Arc;

use bytes::Bytes;

use super::cache::Cache;
use super::events::Events;
use super::limit::Limits;
use super::reader::Reader;
use super::session::Sessions;
use super::shared::Shared;
use crate::coherence::watermark::Names;

/// The state of one thread of the API.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) cache: Arc<Cache>,
    pub(super) reader: Arc<Reader>,
    pub(super) sessions: Option<Sessions>,
    pub(super) limits: Limits,
    pub(super) events: Arc<Events>,
    /// The document of `/openapi.json`.
    pub(super) openapi: Bytes,
}

impl Worker {
    /// A worker for the thread that the cache belongs to.
    pub(super) fn new(shared: &Arc<Shared>, cache: Cache, names: &Names, events: Arc<Events>, openapi: Bytes) -> Self {
        let (settings, cache) = (&shared.settings, Arc::new(cache));
        let reader = Arc::new(Reader::new(shared, &cache));
        let position = |name: &str| shared.reads.reads().iter().position(|read| read.name == name);
        let sessions = settings.session.clone().and_then(|session| {
            let read = position(&session.read.value)?;
            Some(Sessions::new(session, read, names.clone()))
        });
        let limits = Limits::new(settings, names);
        Self { shared: Arc::clone(shared), cache, reader, sessions, limits, events, openapi }
    }
}
