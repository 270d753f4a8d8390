//! The source that is read, whichever it is.
//!
//! Owns what differs between sources as far as the session is concerned. It must not know what
//! becomes of a change.

pub(super) mod earlier;
pub(super) mod event;
mod open_slot;
pub(super) mod opened;
pub(super) mod outbox;
mod slot;

use self::earlier::EarlierSessions;
use self::event::{FeedEvent, FeedStatus};
use self::opened::OpenSource;
use super::batcher::Batcher;
use super::error::SessionError;
use crate::config::{Mode, Settings};
use crate::rules::RuleSet;
use crate::sink::Sink;

/// A source that is being read.
pub(super) enum Feed {
    Slot(Box<slot::SlotFeed>),
    Outbox(Box<outbox::OutboxFeed>),
}

/// Opens the source that the settings name.
pub(super) async fn open(
    settings: &Settings,
    rules: &RuleSet,
    earlier: &mut EarlierSessions,
) -> Result<OpenSource<Feed>, SessionError> {
    Ok(match settings.mode {
        Mode::Slot => open_slot::open(settings, rules, earlier).await?.map(|slot| Feed::Slot(Box::new(slot))),
        Mode::Outbox => outbox::open(settings, rules, earlier).await?.map(|outbox| Feed::Outbox(Box::new(outbox))),
    })
}

impl Feed {
    /// Takes everything that has arrived, until too much waits. Returns whether that was all.
    /// Without `may_read`, takes only what has left the source already.
    pub(super) fn read(&mut self, batcher: &mut Batcher, may_read: bool) -> Result<bool, SessionError> {
        match self {
            Self::Slot(_) if !may_read => Ok(true),
            Self::Slot(slot) => slot.read(batcher),
            Self::Outbox(outbox) => outbox.read(batcher).map(|()| true),
        }
    }

    /// Waits until something has happened. Without `may_read`, reads nothing meanwhile.
    /// Cancel-safe.
    pub(super) async fn wait(&mut self, may_read: bool) -> Result<FeedEvent, SessionError> {
        match self {
            Self::Slot(slot) => slot.wait(may_read).await,
            Self::Outbox(outbox) => outbox.wait().await,
        }
    }

    pub(super) fn status(&self) -> FeedStatus {
        match self {
            Self::Slot(slot) => FeedStatus { is_urgent: slot.answer_due(), is_drained: true },
            // A writer may wait until it can read what it wrote.
            Self::Outbox(outbox) => FeedStatus { is_urgent: true, is_drained: outbox.is_drained() },
        }
    }

    /// Starts what is due: confirms what is in force and, with `may_read`, asks for more.
    pub(super) fn work(&mut self, batcher: &mut Batcher, may_read: bool) {
        match self {
            Self::Slot(slot) => slot.work(batcher),
            Self::Outbox(outbox) => outbox.work(batcher, may_read),
        }
    }

    /// The sink is idle again. The session does not know the outcome yet.
    pub(super) fn on_sink(&mut self, sink: &Sink) {
        match self {
            Self::Slot(_) => {}
            Self::Outbox(outbox) => outbox.on_sink(sink),
        }
    }

    /// Keeps the connection alive, and notices when it is not. `reads` says whether the session
    /// reads what arrives: if not, silence means nothing.
    pub(super) fn on_tick(&mut self, batcher: &Batcher, reads: bool) -> Result<(), SessionError> {
        match self {
            Self::Slot(slot) => slot.on_tick(batcher.confirmed(), reads),
            Self::Outbox(outbox) => outbox.on_tick(),
        }
    }

    /// Asks how far the log is written.
    pub(super) fn measure(&mut self) {
        match self {
            Self::Slot(slot) => slot.measure(),
            // Each survey says it.
            Self::Outbox(_) => {}
        }
    }

    /// Confirms what is in force, and closes.
    pub(super) async fn finish(&mut self, batcher: &mut Batcher) {
        match self {
            Self::Slot(slot) => slot.finish(batcher.confirmed()).await,
            Self::Outbox(outbox) => outbox.finish(batcher).await,
        }
    }
}
