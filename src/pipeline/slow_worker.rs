//! The worker for slow work: asks lookups and sweeps the cache, beside the session's loop.
//!
//! Owns connections that nothing else uses, so that slow work delays nothing else. It must not
//! decide what is to be done. Invariant: a run ends when all of its work is done, or when Redis may
//! no longer be the proven dataset.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::error::SessionError;
use super::lookup_horizons::LookupHorizon;
use super::running::Running;
use super::slow_queue::{SlowEvent, SlowWork};
use crate::causes::with_causes;
use crate::coherence::primary::Primary;
use crate::config::{Mode, Settings};
use crate::lookups::{LookupOutput, LookupRunner, unanswered};
use crate::plan::{CallOrigin, LookupCall, Plan};
use crate::rules::RuleSet;
use crate::sink::{Sweeper, Unproven};
use crate::source::outbox::survey;

/// The worker and its connections, which it opens when it first needs them.
pub(super) struct SlowWorker {
    rules: Arc<RuleSet>,
    settings: Settings,
    primary: Arc<Primary>,
    runner: Option<LookupRunner>,
    sweeper: Sweeper,
}

/// The worker after a run, and what its lookups may have seen.
type SlowRunEnd = (Box<SlowWorker>, Result<Option<LookupHorizon>, SessionError>);

/// The worker, idle or at work.
pub(super) struct SlowRun {
    idle: Option<Box<SlowWorker>>,
    running: Running<SlowRunEnd>,
    pieces: Option<mpsc::Receiver<Plan>>,
}

impl SlowRun {
    pub(super) fn new(worker: SlowWorker) -> Self {
        Self { idle: Some(Box::new(worker)), running: Running::default(), pieces: None }
    }

    /// Starts the worker, which must be idle.
    pub(super) fn start(&mut self, work: SlowWork) {
        let Some(worker) = self.idle.take() else { return };
        tracing::debug!(calls = work.calls.len(), sweeps = work.sweeps.len(), "slow work begins");
        let (sender, pieces) = mpsc::channel(1);
        self.pieces = Some(pieces);
        self.running.start(worker.run(work, sender));
    }

    /// Waits for the next piece, if it may be taken, or for the end; for ever if the worker is
    /// idle. Cancel-safe.
    pub(super) async fn event(&mut self, may_take: bool) -> SlowEvent {
        let Some(pieces) = &mut self.pieces else { return std::future::pending().await };
        tokio::select! {
            biased;
            Some(piece) = pieces.recv(), if may_take => SlowEvent::Found(Box::new(piece)),
            (worker, result) = self.running.finished() => {
                tracing::debug!(?result, "slow work has finished");
                let rest = std::iter::from_fn(|| pieces.try_recv().ok()).collect();
                (self.idle, self.pieces) = (Some(worker), None);
                SlowEvent::Finished { rest, result }
            }
        }
    }
}

impl SlowWorker {
    pub(super) fn new(rules: Arc<RuleSet>, settings: &Settings, primary: Arc<Primary>, sweeper: Sweeper) -> Self {
        Self { rules, settings: settings.clone(), primary, runner: None, sweeper }
    }

    /// Does the work. Sends the ops that follow from it in pieces, and waits while the channel is
    /// full.
    pub(super) async fn run(mut self: Box<Self>, work: SlowWork, pieces: mpsc::Sender<Plan>) -> SlowRunEnd {
        let SlowWork { calls, mut sweeps, started } = work;
        let mut horizon = None;
        if !calls.is_empty() {
            self.look_up(calls, &mut sweeps, &pieces).await;
            match self.horizon().await {
                Ok(reached) => horizon = Some(reached),
                Err(error) => return (self, Err(error)),
            }
        }
        let sweeps = sweeps.take_sweeps();
        let mut done = Plan::default();
        for (rule, removal) in &sweeps {
            done.announce(*rule, removal.clone());
        }
        let swept = self.sweeper.sweep(&sweeps, started, &pieces).await;
        if swept.is_ok() && !done.is_empty() {
            let _ = pieces.send(done).await;
        }
        let result = swept.map(|()| horizon).map_err(|Unproven| SessionError::Unproven);
        (self, result)
    }

    /// What the lookups that were answered so far may have seen.
    async fn horizon(&self) -> Result<LookupHorizon, SessionError> {
        Ok(match self.settings.mode {
            Mode::Slot => LookupHorizon::Log(self.primary.horizon().await?),
            Mode::Outbox => LookupHorizon::Outbox(survey::highest(self.primary.client()).await?),
        })
    }

    /// Asks the lookups. Patterns and tags that follow from an answer join those that are swept
    /// anyway.
    async fn look_up(&mut self, calls: Vec<(LookupCall, CallOrigin)>, sweeps: &mut Plan, pieces: &mpsc::Sender<Plan>) {
        let mut outlet = LookupOutput::Channel(pieces, sweeps);
        if self.runner.as_ref().is_none_or(LookupRunner::is_closed) {
            self.runner = match self.primary.another().await {
                Ok(primary) => Some(LookupRunner::new(primary.into_client())),
                Err(error) => {
                    let reason = format!("there was no connection for lookups: {}", with_causes(&error));
                    return outlet.send(&self.rules, unanswered(&self.rules, &calls, &reason)).await;
                }
            };
        }
        if let Some(runner) = &mut self.runner {
            runner.run(&self.rules, calls, &mut outlet).await;
        }
    }
}
