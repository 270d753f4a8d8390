//! The source that is being read, whichever it is.
//!
//! Owns what differs between them as far as the loop is concerned. It must not know what becomes of a change.

pub(super) mod slot;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use super::SessionError;
use super::batcher::Batcher;
use crate::change::{Lsn, Relation};
use crate::coherence::history::Present;
use crate::coherence::primary::{Primary, PrimaryError};

/// A question to the primary, on its way.
pub(super) type Asking<T> = Pin<Box<dyn Future<Output = Result<T, PrimaryError>> + Send>>;

/// A source that was opened, and what is known at that moment.
pub(super) struct Source {
    pub(super) feed: Feed,
    pub(super) primary: Arc<Primary>,
    pub(super) present: Present,
}

/// A source that is being read.
pub(super) enum Feed {
    Slot(Box<slot::Slot>),
}

/// What a feed has to say.
pub(super) enum News {
    /// Something is here to be read.
    Arrived,
    /// The log was written up to here when that was asked.
    LogWritten(Lsn, Instant),
}

impl Feed {
    /// Takes in everything that is here, until too much waits; whether that was all.
    pub(super) async fn read(&mut self, batcher: &mut Batcher) -> Result<bool, SessionError> {
        match self {
            Self::Slot(slot) => slot.read(batcher).await,
        }
    }

    /// Waits until something has happened; without `may_read` nothing is read meanwhile. Cancel-safe.
    pub(super) async fn wait(&mut self, may_read: bool) -> Result<News, SessionError> {
        match self {
            Self::Slot(slot) => slot.wait(may_read).await,
        }
    }

    /// Whether it waits to hear what is in force.
    pub(super) fn is_urgent(&self) -> bool {
        match self {
            Self::Slot(slot) => slot.answer_due(),
        }
    }

    /// Says what is in force, if that is waited for.
    pub(super) fn answer(&mut self, batcher: &Batcher) {
        match self {
            Self::Slot(slot) => {
                if slot.answer_due() {
                    slot.report(batcher.confirmed(), false);
                }
            }
        }
    }

    /// Keeps the connection alive, and notices when it is not. If `reads` is not set, the silence is our own.
    pub(super) fn on_tick(&mut self, batcher: &Batcher, reads: bool) -> Result<(), SessionError> {
        match self {
            Self::Slot(slot) => slot.on_tick(batcher.confirmed(), reads),
        }
    }

    /// Asks how far there is to go, from time to time.
    pub(super) fn measure(&mut self) {
        match self {
            Self::Slot(slot) => slot.measure(),
        }
    }

    /// Says what is in force and leaves.
    pub(super) async fn finish(&mut self, batcher: &Batcher) {
        match self {
            Self::Slot(slot) => slot.finish(batcher.confirmed()).await,
        }
    }
}

/// Says what rules read of a table and it does not have any more.
fn compare(batcher: &Batcher, relation: &Relation) {
    let missing = batcher.planner().missing(relation);
    if !missing.is_empty() {
        tracing::warn!(
            table = %relation.name,
            missing = missing.join(", "),
            "rules read columns that the table does not have any more, so every change of it deletes by pattern; \
             correct the rules and restart"
        );
    }
}

/// What a future gives, if there is one.
pub(super) async fn arrival<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
