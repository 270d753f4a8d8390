//! Vacuuming the outbox.
//!
//! Owns when it is due, and a connection for it. It must not know entries. Invariant: no writer
//! waits for it.

use std::sync::Arc;

use tokio_postgres::Client;

use crate::causes::with_causes;
use crate::coherence::primary::Primary;
use crate::pipeline::running::Running;
use crate::postgres::StatementError;

/// After this many deleted entries the table is vacuumed: sooner than autovacuum, which runs once a
/// minute, would.
const VACUUM_AFTER: usize = 20_000;

/// `skip_locked`: a process that has the table locked, or vacuums it, is not waited for.
/// `truncate`: giving pages back to the operating system would stop every writer for a moment.
const VACUUM: &str = "vacuum (skip_locked, truncate false) unstale.outbox";

/// Vacuums the table after many entries were deleted.
#[derive(Default)]
pub(super) struct Vacuum {
    /// Entries deleted since the last run.
    deleted: usize,
    client: Option<Client>,
    running: Running<(Option<Client>, Result<(), String>)>,
}

impl Vacuum {
    /// Entries were deleted.
    pub(super) fn count(&mut self, deleted: usize) {
        self.deleted += deleted;
    }

    /// Starts a run if one is due.
    pub(super) fn work(&mut self, primary: &Arc<Primary>) {
        if self.deleted < VACUUM_AFTER || self.running.is_running() {
            return;
        }
        self.deleted = 0;
        let (primary, client) = (Arc::clone(primary), self.client.take());
        self.running.start(async move {
            let client = match client.filter(|client| !client.is_closed()) {
                Some(client) => client,
                None => match primary.another().await {
                    Ok(another) => another.into_client(),
                    Err(error) => return (None, Err(with_causes(&error))),
                },
            };
            let vacuumed = client.batch_execute(VACUUM).await;
            (Some(client), vacuumed.map_err(|error| with_causes(&StatementError::from(error))))
        });
    }

    /// Waits until a run has finished, and for ever if there is none. Cancel-safe.
    pub(super) async fn finished(&mut self) {
        let (client, vacuumed) = self.running.finished().await;
        self.client = client;
        if let Err(error) = vacuumed {
            tracing::debug!(error, "the outbox could not be vacuumed; autovacuum will do it");
        }
    }
}
