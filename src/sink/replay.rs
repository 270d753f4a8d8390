//! Putting plans into force beside the daemon, or without one.
//!
//! Owns what differs from the daemon's way: nothing is recorded as applied, and no attempt is repeated. Invariant: what is replayed can only make readers ask the database again.

use std::time::SystemTime;

use redis::{Pipeline, RedisError, Value};

use super::broadcast::Broadcast;
use super::connection::script;
use super::encode::{Batch, StreamEntry, Target, announcements, removals, streams};
use super::redis::Sink;
use super::refusal::SinkError;
use crate::change::Lsn;
use crate::plan::Plan;

impl Sink {
    /// Puts a plan into force. Version keys rise to `fresh`, a position that was never used; what a rule would write
    /// through is deleted, since nobody knows what is newer.
    ///
    /// # Errors
    ///
    /// Redis refused a part of it, or did not answer: some of it may be in force, and all of it may be tried again.
    pub async fn replay(&mut self, plan: &Plan, fresh: Lsn) -> Result<(), SinkError> {
        let done = self.try_replay(plan.clone(), fresh).await;
        done.map_err(|error| SinkError::unusable(self.address(), error))
    }

    /// Removes dead letters.
    ///
    /// # Errors
    ///
    /// Redis refused, or did not answer.
    pub async fn forget_dead(&mut self, ids: &[String]) -> Result<(), SinkError> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut forget = redis::cmd("XDEL");
        forget.arg(self.names.dead.as_bytes()).arg(ids);
        let sent = async { self.open().await?.send(Pipeline::new().add_command(forget)).await };
        let sent = sent.await;
        sent.map(|_| ()).map_err(|error| SinkError::unusable(self.address(), error))
    }

    async fn try_replay(&mut self, mut plan: Plan, fresh: Lsn) -> Result<(), RedisError> {
        self.read_place().await?;
        plan.raise_bumps(fresh);
        plan.sets_to_deletes(Lsn::new(u64::MAX));
        let entries = (0..).zip(plan.take_streams());
        let at = SystemTime::now();
        let entries =
            entries.map(|(number, (rule, entry))| StreamEntry { rule, entry, end: fresh, number, at, mark: None });
        let entries = entries.collect();
        let sweeps = plan.take_sweeps();
        sweeps.iter().for_each(|(rule, removal)| plan.announce(*rule, removal.clone()));
        let batch = Batch {
            plan,
            streams: entries,
            started: fresh,
            record: None,
            at,
            heartbeat: None,
            probe: false,
            counts: false,
            forget: Vec::new(),
        };
        self.recent.remember(&batch, &self.settings.labels);
        let (epoch, ops) = (self.epoch, Broadcast::ops(&batch.plan));
        let broadcast = (!ops.is_empty()).then(|| self.numbering.next(epoch, fresh, at, ops));

        let (names, settings) = (self.names.clone(), self.settings.clone());
        let connection = self.open().await?;
        let scripts = connection.scripts.clone();
        let target = Target { names: &names, scripts: &scripts, ttl: settings.ttl };
        let mut first = Pipeline::new();
        let mut raise = script(&scripts.raise, &[&names.started]);
        raise.arg(fresh.to_fixed_hex());
        first.add_command(raise);
        removals(&batch, (Lsn::ZERO, "0"), target, &mut first);
        connection.send(&first).await?;
        connection.remove(&sweeps, &names, None).await?;
        let mut then = Pipeline::new();
        announcements(&batch, target, broadcast.as_ref(), &mut then);
        // The daemon's own entries are remembered by position, and these have none of their own.
        streams(&batch, &settings.labels, "", target, &mut then);
        self.recent.write(true, &names, &scripts, &mut then);
        self.open().await?.send(&then).await?;
        Ok(())
    }

    /// What Redis knows of the history that this takes part in.
    async fn read_place(&mut self) -> Result<(), RedisError> {
        let mut place = redis::cmd("GET");
        place.arg(self.names.epoch.as_bytes());
        let reply = self.open().await?.send(Pipeline::new().add_command(place)).await?.pop().unwrap_or(Value::Nil);
        let epoch: Option<String> = redis::from_redis_value(reply)?;
        self.epoch = epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        Ok(())
    }
}
