//! Going on from what Redis remembers, or beginning a new epoch.
//!
//! Owns the flush. It must not judge history; [`crate::coherence::history`] does. Invariants:
//! during a flush Redis remembers nothing, so that a flush that was cut short is begun again;
//! `started` stands at the end of the log before the first key is deleted, so that no replica that
//! lags can bring a value back.

use std::collections::HashMap;
use std::time::SystemTime;

use redis::{Pipeline, RedisError, Value};

use super::apply::Sink;
use super::broadcast::Broadcast;
use super::encode::announce;
use super::owner;
use super::proof::Unproven;
use super::retry::{AttemptError, RetryState};
use super::scripts::script;
use super::sweep::remove;
use crate::change::Lsn;
use crate::coherence::history::{HistoryGap, Origin, Present, Remembered};
use crate::plan::{Plan, RuleId};

impl Sink {
    /// What the dataset remembers. Tries again until Redis answers.
    pub async fn remembered(&mut self) -> Remembered {
        let mut retry = RetryState::default();
        loop {
            match self.try_remembered().await {
                Ok(remembered) => {
                    self.link.succeeded(&retry);
                    return remembered;
                }
                Err(error) => self.link.failed(&error, &mut retry).await,
            }
        }
    }

    /// What Redis told this process that it had recorded, in the epoch that is known.
    pub fn recorded(&self) -> Lsn {
        self.proof.recorded()
    }

    /// Reports a gap that no comparison of positions would find. A new epoch begins at the next
    /// opportunity.
    pub fn report_gap(&mut self, gap: HistoryGap) {
        self.proof.report(gap);
    }

    /// The gap that was reported. It is returned once.
    pub fn take_reported_gap(&mut self) -> Option<HistoryGap> {
        self.proof.take_reported_gap()
    }

    /// History is proven: goes on with the dataset that [`Sink::remembered`] read.
    pub fn resume_from(&mut self, remembered: &Remembered) {
        self.proof.resume_from(remembered);
    }

    /// Stores in Redis that the proven history belongs to another origin from now on. Tries again
    /// until it succeeds.
    ///
    /// # Errors
    ///
    /// Redis does not hold the dataset any more whose history is proven.
    pub async fn adopt(&mut self, origin: &Origin) -> Result<(), Unproven> {
        let mut retry = RetryState::default();
        loop {
            match self.try_adopt(origin).await {
                Ok(()) => {
                    self.link.succeeded(&retry);
                    return Ok(());
                }
                Err(AttemptError::Refused(error)) => self.link.failed(&error, &mut retry).await,
                Err(AttemptError::Unproven) => return Err(Unproven),
            }
        }
    }

    /// Begins a new epoch: deletes every key that the rules can name, then lets history begin at
    /// `present`. Tries again until it succeeds. May wait first: see [`crate::coherence::epoch`].
    ///
    /// # Errors
    ///
    /// Another daemon began an epoch meanwhile. [`Sink::remembered`] must be asked again.
    pub async fn flush(&mut self, gap: &HistoryGap, present: &Present) -> Result<(), Unproven> {
        let pause = self.epoch_pause();
        if !pause.is_zero() {
            tracing::error!(
                seconds = pause.as_secs(),
                "too many new epochs in a short time: the next one waits, and nothing is invalidated meanwhile"
            );
            tokio::time::sleep(pause).await;
        }
        let beating = owner::beat(self.link.another("records of the service"), self.names.clone(), self.owner.clone());
        tokio::select! {
            biased;
            flushed = self.flush_until_done(gap, present) => flushed,
            // A flush may take long, and other services must see that this one is at work.
            never = beating => match never {},
        }
    }

    async fn flush_until_done(&mut self, gap: &HistoryGap, present: &Present) -> Result<(), Unproven> {
        let mut retry = RetryState::default();
        loop {
            match self.try_flush(gap, present).await {
                Ok(deleted) => {
                    self.link.succeeded(&retry);
                    let (epoch, reason) = (self.proof.epoch(), gap.word());
                    if epoch == 1 && deleted == 0 {
                        tracing::info!(epoch, reason, "the first epoch of an empty cache");
                    } else {
                        tracing::warn!(epoch, reason, deleted, "a new epoch began and the cache was emptied: {gap}");
                    }
                    return Ok(());
                }
                Err(AttemptError::Refused(error)) => self.link.failed(&error, &mut retry).await,
                Err(AttemptError::Unproven) => return Err(Unproven),
            }
        }
    }

    async fn try_remembered(&mut self) -> Result<Remembered, RedisError> {
        let names = &self.names;
        let connection = self.link.open().await?;
        let mut mget = redis::cmd("MGET");
        for key in [&names.applied, &names.started, &names.origin, &names.epoch, &names.batches] {
            mget.arg(key.as_bytes());
        }
        let mut pipeline = Pipeline::new();
        if !self.proof.covers(&connection.dataset) {
            // In another dataset it was copied from the former one, and says nothing of this one.
            pipeline.add_command(redis::cmd("DEL").arg(names.asof.as_bytes()).clone());
        }
        pipeline.add_command(mget).add_command(redis::cmd("HGETALL").arg(names.catalog.as_bytes()).clone());
        let mut replies = connection.send(&pipeline).await?;
        let catalog: HashMap<String, String> = redis::from_redis_value(replies.pop().unwrap_or(Value::Nil))?;
        let texts: Vec<Option<String>> = redis::from_redis_value(replies.pop().unwrap_or(Value::Nil))?;
        let text = |at: usize| texts.get(at).and_then(Option::as_deref);
        self.proof.read(connection.dataset.clone(), text(3));
        Ok(Remembered {
            applied: text(0).and_then(Lsn::from_fixed_hex),
            started: text(1).and_then(Lsn::from_fixed_hex),
            origin: text(2).and_then(Origin::decode),
            batches: text(4).and_then(|batches| batches.parse().ok()).unwrap_or(0),
            catalog,
        })
    }

    async fn try_adopt(&mut self, origin: &Origin) -> Result<(), AttemptError> {
        let connection = self.link.open().await?;
        if !self.proof.covers(&connection.dataset) {
            return Err(AttemptError::Unproven);
        }
        let mut set = script(&connection.scripts.set, &[&self.names.origin]);
        set.arg(origin.encode());
        connection.send(Pipeline::new().add_command(set)).await?;
        Ok(())
    }

    /// Returns how many keys were deleted.
    async fn try_flush(&mut self, gap: &HistoryGap, present: &Present) -> Result<u64, AttemptError> {
        let names = &self.names;
        let removals: Vec<_> = self.settings.removals.iter().map(|removal| (RuleId::NONE, removal.clone())).collect();
        let connection = self.link.open().await?;

        let mut begin = script(
            &connection.scripts.begin,
            &[&names.epoch, &names.epochs, &names.started, &names.applied, &names.origin],
        );
        begin.arg(self.proof.epoch_found()).arg(self.proof.epoch()).arg(present.end.to_fixed_hex());
        begin.arg(gap.word()).arg(present.origin.encode());
        let reply = connection.send(Pipeline::new().add_command(begin)).await?.pop().unwrap_or(Value::Nil);
        let epoch: u64 = redis::from_redis_value(reply).map_err(RedisError::from)?;
        self.proof.epoch_began(epoch);

        let deleted = remove(connection, &removals, names, None).await?;
        let mut prove =
            script(&connection.scripts.prove, &[&names.applied, &names.origin, &names.epoch, &names.batches]);
        prove.arg(present.slot.to_fixed_hex()).arg(present.origin.encode()).arg(epoch);
        prove.arg(present.batches.map_or_else(String::new, |batches| batches.to_string()));
        connection.send(Pipeline::new().add_command(prove)).await?;

        // Copies elsewhere go last: from now on, what is read from Redis is new. Before its first
        // epoch, a slot can have no subscribers with copies.
        if epoch > 1 {
            let mut plan = Plan::default();
            removals.into_iter().for_each(|(rule, removal)| plan.announce(rule, removal));
            let message = self.numbering.next(epoch, present.end, SystemTime::now(), Broadcast::ops(&plan));
            let announce = announce(&message, names, &connection.scripts);
            connection.send(Pipeline::new().add_command(announce)).await?;
        }
        self.proof.flushed(epoch, connection.dataset.clone(), present);
        Ok(deleted)
    }
}
