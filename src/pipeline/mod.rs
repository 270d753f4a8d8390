//! The owner loop: joins source, rules, gate, ledger and sink, which do not know one another.
//!
//! Owns what happens from one session to the next: when to connect again, when to stop, when the
//! slot has to be created again. Within one session, [`session`] decides and [`driver`] does the
//! I/O. Invariant: a batch in flight is never overtaken by what the next session sends.

mod batcher;
mod catalog_checks;
mod driver;
mod error;
mod feed;
mod held;
mod in_flight;
mod intake;
mod lookup_horizons;
mod part;
mod repeats;
mod resume;
mod running;
#[cfg(test)]
mod scenarios;
mod session;
mod slow_queue;
mod slow_worker;
mod streams;
mod watching;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, Notices};
use crate::causes::with_causes;
use crate::change::Lsn;
use crate::config::{Mode, Settings};
use crate::rules::{Planner, RuleSet};
use crate::sink::Sink;
use crate::watch::{Observation, Observer, Watched};
use driver::Driver;
pub use error::{Fault, RunError, SessionError};
use error::{Policy, Reaction};
use feed::Feed;
use feed::earlier::EarlierSessions;
use feed::opened::OpenSource;
use watching::Watching;

/// After a session that lasted so long, the next failure counts as the first one.
const SESSION_GOOD: Duration = Duration::from_secs(1);

/// Runs until `stop` is cancelled, or until an error happens that waiting does not mend. On `stop`,
/// it first applies the changes that it has received completely, for at most `drain_max`.
pub async fn run(
    settings: &Settings,
    rules: Arc<RuleSet>,
    watched: Arc<Watched>,
    sink: Sink,
    stop: &CancellationToken,
    drain_max: Duration,
) -> Result<(), RunError> {
    let mut sink = Box::new(sink);
    let mut planner = Planner::new(rules);
    let mut retry = Retry { settings, backoff: Backoff::default(), notices: Notices::default() };
    let mut earlier = EarlierSessions::default();
    loop {
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            opened = open(settings, planner.rules(), &watched, &mut earlier) => opened,
        };
        match opened {
            Err(error) => retry.react(error, None, &mut earlier)?,
            Ok((source, observer, seen)) => {
                earlier.streamed = true;
                let began = Instant::now();
                let watching = Watching::new(Arc::clone(planner.rules()), Arc::clone(&watched), Some(seen));
                let mut driver = Driver::new(settings, source, observer, watching, planner, sink, drain_max);
                let ended = driver.run(stop).await;
                if began.elapsed() > SESSION_GOOD {
                    retry.reset();
                }
                // Before the wait for the batch in flight: the error may be about that batch.
                let reacted = match ended {
                    Ok(()) => None,
                    Err(error) => Some(retry.react(error, driver.slot_at(), &mut earlier)),
                };
                let (used_planner, mut idle_sink) = driver.into_parts(stop).await;
                if reacted.as_ref().is_none_or(Result::is_err)
                    && let Some(sink) = &mut idle_sink
                {
                    sink.leave_name().await;
                }
                let Some(reacted) = reacted else { return Ok(()) };
                reacted?;
                // None: the daemon was stopped while Redis did not answer.
                let Some(idle_sink) = idle_sink else { return Ok(()) };
                (planner, sink) = (used_planner, idle_sink);
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(retry.backoff.next_wait()) => {}
        }
    }
}

/// Opens the source, and observes the database for the first time.
async fn open(
    settings: &Settings,
    rules: &RuleSet,
    watched: &Arc<Watched>,
    earlier: &mut EarlierSessions,
) -> Result<(OpenSource<Feed>, Observer, Observation), SessionError> {
    let source = feed::open(settings, rules, earlier).await?;
    let client = source.primary.another().await?.into_client();
    let observer = Observer::new(client, Arc::clone(watched));
    let known: Vec<_> = watched.tables.iter().map(|table| table.id).collect();
    let seen = driver::observe(&observer, &known).await?;
    Ok((source, observer, seen))
}

/// When the next session begins, and which errors are logged.
struct Retry<'a> {
    settings: &'a Settings,
    backoff: Backoff,
    notices: Notices,
}

impl Retry<'_> {
    /// Does what the table of [`SessionError::policy`] says. An error if the daemon stops.
    /// `slot_at` is the position of the slot if a session was reading it.
    fn react(
        &mut self,
        error: SessionError,
        slot_at: Option<Lsn>,
        earlier: &mut EarlierSessions,
    ) -> Result<(), RunError> {
        let Policy { reaction, advice } = error.policy();
        earlier.as_stored = error.is_not_convertible();
        if let Some(fault) = reaction.stops(earlier.streamed) {
            return Err(RunError { fault, advice, source: Box::new(error) });
        }
        if reaction == Reaction::RecreateSlot && slot_at.is_some() {
            earlier.gap_at = slot_at;
        }
        if self.notices.due(Instant::now()) {
            let what = match self.settings.mode {
                Mode::Slot => "no replication",
                Mode::Outbox => "the outbox is not read",
            };
            let advice = advice.map(|advice| format!("; {advice}")).unwrap_or_default();
            let (cause, then) = (with_causes(&error), reaction.sentence());
            tracing::warn!(postgres = %self.settings.postgres, "{what}: {cause}{advice}; {then}");
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.backoff.reset();
        self.notices.reset();
    }
}
