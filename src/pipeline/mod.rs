//! The owner loop: joins source, rules, gate, ledger and sink, which do not know one another.
//!
//! Owns what happens from one connection to the next: when to try again, when to stop, when a slot has to be
//! made anew. Within one connection, [`session`] owns the loop. Invariant: a batch in flight is never
//! overtaken by what the next connection sends.

mod batcher;
mod feed;
mod part;
mod repeats;
mod resume;
mod session;
mod slow_queue;
mod slow_worker;
mod streams;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, Notices};
use crate::coherence::primary::PrimaryError;
use crate::config::{Mode, Settings};
use crate::postgres::{ConnectError, ServerError, UNDEFINED_OBJECT};
use crate::rules::{PlanError, Planner, RuleSet};
use crate::sink::Sink;
use crate::source::outbox::entry::OutboxError;
use crate::source::replication::assemble::AssembleError;
use crate::source::replication::connection::ConnectionError;
use crate::source::replication::pgoutput;
use feed::slot::{Condition, SILENCE_MAX};
use session::Session;

/// A connection that held for so long was a good one: the next failure is a new one.
const HELD_LONG: Duration = Duration::from_secs(1);

/// Why the daemon stopped though nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file says to stop at such a change.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// PostgreSQL refused the first connection, and would refuse the next.
    #[error(transparent)]
    Refused(ConnectError),
    /// The slot or the publication cannot be used; waiting would not help.
    #[error("the replication slot `{slot}` cannot be used: {error}")]
    Slot {
        /// Its name.
        slot: String,
        /// What the server said.
        error: ServerError,
    },
    /// The publication is gone.
    #[error("there is no publication `{0}` any more: run `unstale setup`")]
    Unpublished(String),
    /// There is no outbox, or another daemon's.
    #[error("there is no outbox that `{0}` reads: run `unstale setup`")]
    NoOutbox(String),
    /// The server is not one that decides visibility.
    #[error(transparent)]
    NotPrimary(PrimaryError),
}

/// Runs until `stop` says so, or until something happens that waiting does not mend. What was received
/// whole is then put into force first, within `drain_max`.
pub async fn run(
    settings: &Settings,
    rules: Arc<RuleSet>,
    sink: Sink,
    stop: &CancellationToken,
    drain_max: Duration,
) -> Result<(), RunError> {
    let mut idle_sink = Some(Box::new(sink));
    let with_messages = rules.has_events();
    let mut planner = Planner::new(rules);
    let mut backoff = Backoff::default();
    let mut notices = Notices::default();
    let mut slot = Condition::default();
    loop {
        let opening = async {
            match settings.mode {
                Mode::Slot => feed::slot::open(settings, with_messages, &mut slot).await,
                Mode::Outbox => feed::outbox::open(settings, planner.rules(), &slot).await,
            }
        };
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            opened = opening => opened,
        };
        let trouble = match opened {
            Ok(source) => {
                slot.streamed = true;
                let began = Instant::now();
                let mut session = Session::new(settings, source, planner, idle_sink.take());
                let ended = session.run(stop, drain_max).await;
                if began.elapsed() > HELD_LONG {
                    backoff.reset();
                    notices.reset();
                }
                match &ended {
                    Err(SessionError::Broken(trouble)) => {
                        // Before the wait for what is in flight: that may be what the trouble is.
                        say(settings, trouble, &mut notices);
                        if trouble.is_gap_in_publication() {
                            slot.gap_at = session.slot_at();
                        }
                    }
                    Ok(()) | Err(SessionError::Fatal(_)) => {}
                }
                (planner, idle_sink) = session.into_parts(stop).await;
                match ended {
                    Ok(()) => return Ok(()),
                    Err(SessionError::Fatal(error)) => return Err(error),
                    Err(SessionError::Broken(_)) => None,
                }
            }
            // In the middle of a failover either may hold for a while.
            Err(SessionError::Fatal(RunError::NotPrimary(error))) if slot.streamed => Some(Trouble::Primary(error)),
            Err(SessionError::Fatal(error)) => return Err(error),
            Err(SessionError::Broken(Trouble::Connect(error))) if !slot.streamed && !error.is_transient() => {
                return Err(RunError::Refused(error));
            }
            Err(SessionError::Broken(trouble)) => Some(trouble),
        };
        if let Some(trouble) = trouble {
            say(settings, &trouble, &mut notices);
        }
        if idle_sink.is_none() {
            // Told to stop while Redis did not answer.
            return Ok(());
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

/// Says why there is no replication, unless that was said a moment ago.
fn say(settings: &Settings, trouble: &Trouble, notices: &mut Notices) {
    if notices.due() {
        let what = match settings.mode {
            Mode::Slot => "no replication",
            Mode::Outbox => "the outbox is not read",
        };
        tracing::warn!(postgres = %settings.postgres, "{what}: {trouble}; trying again");
    }
}

/// Why one connection to the source ended.
#[derive(Debug)]
enum SessionError {
    /// Another connection may go on.
    Broken(Trouble),
    /// It would not.
    Fatal(RunError),
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Decode(#[from] pgoutput::DecodeError),
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    #[error(transparent)]
    Primary(#[from] PrimaryError),
    #[error("the catalog did not answer: {0}")]
    Catalog(String),
    #[error(transparent)]
    Outbox(OutboxError),
    #[error("a daemon with other rules has taken over: this one stands by until that is gone")]
    Superseded,
    #[error("the outbox is not the one that it was")]
    OutboxReplaced,
    #[error(
        "another daemon works on the outbox, and rules with `set` or `stream` need order: one works, others stand by"
    )]
    Taken,
    #[error("PostgreSQL has been silent for {} seconds", SILENCE_MAX.as_secs())]
    Silent,
    #[error("PostgreSQL does not answer")]
    Unanswered,
    #[error("the slot has log from before its publication existed")]
    Skipped,
    #[error("the slot could not be made anew: {0}")]
    Recreate(tokio_postgres::Error),
    #[error("nothing could be put into force in Redis for {} seconds, and PostgreSQL must be able to shut down", .0.as_secs())]
    RedisAway(Duration),
    #[error("Redis is not the one it was, lost writes, or another daemon is at work")]
    Unproven,
}

impl Trouble {
    /// Whether the slot stands where its publication did not exist. PostgreSQL reports that as an error for
    /// ever, from version 18 on as a warning with which changes are left out.
    fn is_gap_in_publication(&self) -> bool {
        match self {
            Self::Skipped => true,
            Self::Connection(ConnectionError::Server(error)) => error.sqlstate == UNDEFINED_OBJECT,
            _ => false,
        }
    }
}

impl<E: Into<Trouble>> From<E> for SessionError {
    fn from(error: E) -> Self {
        match error.into() {
            Trouble::Primary(PrimaryError::Connect(error)) => Self::Broken(Trouble::Connect(error)),
            Trouble::Primary(error @ (PrimaryError::OtherServer | PrimaryError::Standby)) => {
                Self::Fatal(RunError::NotPrimary(error))
            }
            trouble => Self::Broken(trouble),
        }
    }
}

impl From<PlanError> for SessionError {
    fn from(error: PlanError) -> Self {
        Self::Fatal(error.into())
    }
}
