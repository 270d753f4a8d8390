//! The source that is being read, whichever it is.
//!
//! Owns what differs between them as far as the loop is concerned. It must not know what becomes of a change.

pub(super) mod outbox;
pub(super) mod slot;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use super::batcher::Batcher;
use super::error::SessionError;
use crate::change::{Lsn, Relation};
use crate::coherence::history::Present;
use crate::coherence::primary::{Primary, PrimaryError};
use crate::sink::Sink;

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
    Outbox(Box<outbox::Outbox>),
}

/// What a feed has to say.
pub(super) enum FeedEvent {
    /// Something is here to be read.
    Arrived,
    /// The log was written up to here when that was asked.
    LogWritten(Lsn, Instant),
    /// It was looked how far the outbox reaches.
    Surveyed,
}

impl Feed {
    /// Takes in everything that is here, until too much waits; whether that was all. Without `may_read` only what was
    /// taken out of the source already.
    pub(super) async fn read(&mut self, batcher: &mut Batcher, may_read: bool) -> Result<bool, SessionError> {
        match self {
            Self::Slot(_) if !may_read => Ok(true),
            Self::Slot(slot) => slot.read(batcher).await,
            Self::Outbox(outbox) => outbox.read(batcher).map(|()| true),
        }
    }

    /// Waits until something has happened; without `may_read` nothing is read meanwhile. Cancel-safe.
    pub(super) async fn wait(&mut self, may_read: bool) -> Result<FeedEvent, SessionError> {
        match self {
            Self::Slot(slot) => slot.wait(may_read).await,
            Self::Outbox(outbox) => outbox.wait().await,
        }
    }

    /// Whether nothing more comes unless it is asked for more.
    pub(super) fn is_drained(&self) -> bool {
        match self {
            Self::Slot(_) => true,
            Self::Outbox(outbox) => outbox.is_drained(),
        }
    }

    /// Whether it waits to hear what is in force.
    pub(super) fn is_urgent(&self) -> bool {
        match self {
            Self::Slot(slot) => slot.answer_due(),
            // A writer may wait until it can read what it wrote.
            Self::Outbox(_) => true,
        }
    }

    /// Does what is due: says what is in force; with `may_read`, asks for more.
    pub(super) fn work(&mut self, batcher: &mut Batcher, may_read: bool) {
        match self {
            Self::Slot(slot) => {
                if slot.answer_due() {
                    slot.report(batcher.confirmed(), false);
                }
            }
            Self::Outbox(outbox) => outbox.work(batcher, may_read),
        }
    }

    /// The sink is back, and what it did is not yet known to be done.
    pub(super) fn on_landed(&mut self, sink: &Sink) {
        match self {
            Self::Slot(_) => {}
            Self::Outbox(outbox) => outbox.on_landed(sink),
        }
    }

    /// Keeps the connection alive, and notices when it is not. If `reads` is not set, the silence is our own.
    pub(super) fn on_tick(&mut self, batcher: &Batcher, reads: bool) -> Result<(), SessionError> {
        match self {
            Self::Slot(slot) => slot.on_tick(batcher.confirmed(), reads),
            Self::Outbox(outbox) => outbox.on_tick(),
        }
    }

    /// Asks how far there is to go, from time to time.
    pub(super) fn measure(&mut self) {
        match self {
            Self::Slot(slot) => slot.measure(),
            // Each look says that.
            Self::Outbox(_) => {}
        }
    }

    /// Says what is in force and leaves.
    pub(super) async fn finish(&mut self, batcher: &mut Batcher) {
        match self {
            Self::Slot(slot) => slot.finish(batcher.confirmed()).await,
            Self::Outbox(outbox) => outbox.finish(batcher).await,
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
