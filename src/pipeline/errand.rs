//! The errand: asks lookups and sweeps the cache, beside the loop.
//!
//! Owns the connections that are used for nothing else, so that whatever takes long here holds up nothing there. It
//! must not decide what is to be done. Invariant: an errand ends when all of it is done, or when Redis is not the one
//! it was.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::aside::Errand;
use crate::coherence::primary::Primary;
use crate::config::Settings;
use crate::lookups::{Outlet, Runner, give_up_all};
use crate::plan::{Asked, Call, Plan};
use crate::rules::RuleSet;
use crate::sink::{Sweeper, Unproven};

/// What an errand is done with. Connected when first used.
pub(super) struct Helper {
    rules: Arc<RuleSet>,
    settings: Settings,
    primary: Arc<Primary>,
    runner: Option<Runner>,
    sweeper: Sweeper,
}

impl Helper {
    pub(super) fn new(rules: Arc<RuleSet>, settings: &Settings, primary: Arc<Primary>, sweeper: Sweeper) -> Self {
        Self { rules, settings: settings.clone(), primary, runner: None, sweeper }
    }

    /// Does an errand. What comes of it is handed on in pieces; a receiver that waits makes this wait.
    pub(super) async fn run(
        mut self: Box<Self>,
        errand: Errand,
        pieces: mpsc::Sender<Plan>,
    ) -> (Box<Self>, Result<(), Unproven>) {
        let Errand { calls, mut sweeps, started } = errand;
        if !calls.is_empty() {
            self.look_up(calls, &mut sweeps, &pieces).await;
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
        (self, swept)
    }

    /// Patterns and sets that follow from an answer join those that are swept anyway.
    async fn look_up(&mut self, calls: Vec<(Call, Asked)>, sweeps: &mut Plan, pieces: &mpsc::Sender<Plan>) {
        let mut outlet = Outlet::Channel(pieces, sweeps);
        if self.runner.as_ref().is_none_or(Runner::is_closed) {
            self.runner = match self.primary.another(&self.settings.postgres).await {
                Ok(primary) => Some(Runner::new(primary.into_client())),
                Err(error) => {
                    let reason = format!("there was no connection for lookups: {error}");
                    return outlet.send(&self.rules, give_up_all(&self.rules, &calls, &reason)).await;
                }
            };
        }
        if let Some(runner) = &mut self.runner {
            runner.run(&self.rules, calls, &mut outlet).await;
        }
    }
}
