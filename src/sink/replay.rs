//! Applying plans beside the daemon, or without one.
//!
//! Owns what differs from the daemon: nothing is recorded as applied, and no attempt is repeated.
//! Invariant: a replay can only make readers ask the database again.

use std::time::SystemTime;

use redis::{Pipeline, RedisError, Value};

use super::again::Again;
use super::apply::Sink;
use super::batch::{Batch, StreamEntry};
use super::broadcast::Broadcast;
use super::catalog_record::CatalogRecord;
use super::encode::{Attached, Target, encode_replay};
use super::proof::Proof;
use super::refusal::SinkError;
use super::sweep::remove;
use crate::change::Lsn;
use crate::plan::Plan;

impl Sink {
    /// Applies a plan. Version keys rise to `fresh`, a position that was never used. The keys of
    /// `set` are deleted, because it is not known which value is newer.
    ///
    /// # Errors
    ///
    /// Redis refused a command, or did not answer. Part of the plan may be in force; all of it may
    /// be replayed again.
    pub async fn replay(&mut self, plan: &Plan, fresh: Lsn) -> Result<(), SinkError> {
        let done = self.try_replay(plan.clone(), fresh).await;
        done.map_err(|error| SinkError::unusable(self.address(), error))
    }

    /// Deletes dead letters by their ids.
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
        let sent = async { self.link.open().await?.send(Pipeline::new().add_command(forget)).await };
        let sent = sent.await;
        sent.map(|_| ()).map_err(|error| SinkError::unusable(self.address(), error))
    }

    async fn try_replay(&mut self, mut plan: Plan, fresh: Lsn) -> Result<(), RedisError> {
        let epoch = self.read_epoch().await?;
        plan.raise_bumps(fresh);
        plan.sets_to_deletes(Lsn::new(u64::MAX));
        let at = SystemTime::now();
        let entry = |(number, (rule, entry))| StreamEntry { rule, entry, end: fresh, number, at, mark: None };
        let streams = (0..).zip(plan.take_streams()).map(entry).collect();
        let sweeps = plan.take_sweeps();
        sweeps.iter().for_each(|(rule, removal)| plan.announce(*rule, removal.clone()));
        let batch = Batch {
            plan,
            streams,
            started: fresh,
            record: None,
            at,
            heartbeat: None,
            probe: false,
            counts: false,
            catalog: CatalogRecord::default(),
            forget: Vec::new(),
            again: Again::default(),
        };
        self.recent.remember(&batch, &self.settings);
        let (recent, ops) = (self.recent.take_due(true), Broadcast::ops(&batch.plan));
        let next = |ops: &[_]| self.numbering.next(epoch, fresh, at, ops.to_vec());
        let broadcasts: Vec<_> = Broadcast::pieces(&ops).map(next).collect();

        let connection = self.link.open().await?;
        let attached = Attached { broadcasts: &broadcasts, recent: &recent, ..Attached::default() };
        // Without a history, so that the script does not remember these entries: the daemon's are
        // remembered by position, and these have no positions of their own.
        let proof = Proof::default();
        let target =
            Target { names: &self.names, scripts: &connection.scripts, settings: &self.settings, proof: &proof };
        let [before, after] = encode_replay(&batch, attached, target);
        connection.send(&before).await?;
        remove(connection, &sweeps, &self.names, None).await?;
        connection.send(&after).await?;
        Ok(())
    }

    /// The epoch that Redis holds; 0 if it holds none.
    async fn read_epoch(&mut self) -> Result<u64, RedisError> {
        let mut get = redis::cmd("GET");
        get.arg(self.names.epoch.as_bytes());
        let reply = self.link.open().await?.send(Pipeline::new().add_command(get)).await?.pop().unwrap_or(Value::Nil);
        let epoch: Option<String> = redis::from_redis_value(reply)?;
        Ok(epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or(0))
    }
}
