//! Going on from what Redis remembers, or beginning a new epoch.
//!
//! Owns the flush. It must not judge history; [`crate::coherence::history`] does. Invariants: while a flush is
//! under way Redis remembers nothing, so that a flush that was cut short is begun again; `started` stands at
//! the end of the log before the first key goes, so that no replica that lags can bring a value back.

use std::time::SystemTime;

use redis::{Pipeline, RedisError, Value};
use sha2::{Digest as _, Sha256};

use super::broadcast::Broadcast;
use super::connection::script;
use super::encode::{Target, broadcast};
use super::redis::{Patience, Setback, Sink, Unproven};
use crate::change::Lsn;
use crate::coherence::history::{HistoryGap, Origin, Present, Remembered};
use crate::plan::{Plan, RuleId};

impl Sink {
    /// What the dataset knows of itself, however long it takes until Redis answers.
    pub async fn remembered(&mut self) -> Remembered {
        let mut patience = Patience::default();
        loop {
            match self.read_memory().await {
                Ok(remembered) => {
                    self.relieved(&patience);
                    return remembered;
                }
                Err(error) => self.refused(&error, &mut patience).await,
            }
        }
    }

    /// What Redis told this process it had recorded, whatever became of it since.
    pub fn recorded(&self) -> Lsn {
        self.recorded
    }

    /// A new epoch begins at the next opportunity, whatever the positions say.
    pub fn report_gap(&mut self, gap: HistoryGap) {
        self.reported_gap = Some(gap);
    }

    /// A reason to gap that no comparison of positions would find. It is said once.
    pub fn take_reported_gap(&mut self) -> Option<HistoryGap> {
        self.reported_gap.take()
    }

    /// History is proven: go on with the dataset that [`Sink::remembered`] read.
    pub fn go_on(&mut self, remembered: &Remembered) {
        self.recorded = remembered.applied.unwrap_or_default();
        self.counted = remembered.batches;
        self.history = remembered.origin.as_ref().map(history).unwrap_or_default();
    }

    /// Remembers that what is proven belongs to another origin from now on.
    pub async fn adopt(&mut self, origin: &Origin) -> Result<(), Unproven> {
        let mut patience = Patience::default();
        loop {
            let proven = self.proven.clone();
            let names = self.names.clone();
            let adopted = async {
                let connection = self.open().await?;
                if proven.as_ref() != Some(&connection.dataset) {
                    return Err(Setback::Unproven);
                }
                let mut set = script(&connection.scripts.set, &[&names.origin]);
                set.arg(origin.encode());
                connection.send(Pipeline::new().add_command(set)).await?;
                Ok(())
            };
            match adopted.await {
                Ok(()) => {
                    self.relieved(&patience);
                    return Ok(());
                }
                Err(Setback::Refused(error)) => self.refused(&error, &mut patience).await,
                Err(Setback::Unproven) => return Err(Unproven),
            }
        }
    }

    /// Begins a new epoch: deletes every key that the rules can name, then lets history begin at `present`.
    /// Ends only when that is done, or when somebody else began one meanwhile: then whoever has the slot is to
    /// look again.
    pub async fn flush(&mut self, gap: &HistoryGap, present: &Present) -> Result<(), Unproven> {
        let pause = self.epoch_pause();
        if !pause.is_zero() {
            tracing::error!(
                seconds = pause.as_secs(),
                "too many new epochs in a short time: the next one waits, and nothing is invalidated meanwhile"
            );
            tokio::time::sleep(pause).await;
        }
        let mut patience = Patience::default();
        loop {
            match self.try_flush(gap, present).await {
                Ok(deleted) => {
                    self.relieved(&patience);
                    let (epoch, reason) = (self.epoch, gap.word());
                    if epoch == 1 && deleted == 0 {
                        tracing::info!(epoch, reason, "the first epoch of a cache that is empty");
                    } else {
                        tracing::warn!(epoch, reason, deleted, "a new epoch, the cache was emptied: {gap}");
                    }
                    return Ok(());
                }
                Err(Setback::Refused(error)) => self.refused(&error, &mut patience).await,
                Err(Setback::Unproven) => return Err(Unproven),
            }
        }
    }

    async fn read_memory(&mut self) -> Result<Remembered, RedisError> {
        let (names, proven) = (self.names.clone(), self.proven.clone());
        let connection = self.open().await?;
        let dataset = connection.dataset.clone();
        let mut mget = redis::cmd("MGET");
        for key in [&names.applied, &names.started, &names.origin, &names.epoch, &names.batches] {
            mget.arg(key.as_bytes());
        }
        let mut pipeline = Pipeline::new();
        if proven.as_ref() != Some(&dataset) {
            // In another dataset it was copied from the one before, and says nothing of this one.
            pipeline.add_command(redis::cmd("DEL").arg(names.asof.as_bytes()).clone());
        }
        pipeline.add_command(mget);
        let reply = connection.send(&pipeline).await?.pop().unwrap_or(Value::Nil);
        let texts: Vec<Option<String>> = redis::from_redis_value(reply)?;
        let text = |at: usize| texts.get(at).and_then(Option::as_deref);
        self.epoch_found = text(3).unwrap_or("0").to_owned();
        let epoch = text(3).and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        if epoch > self.epoch {
            // Somebody else began it: what was recorded before was recorded in another one.
            (self.recorded, self.counted) = (Lsn::ZERO, 0);
        }
        self.epoch = self.epoch.max(epoch);
        self.proven = Some(dataset);
        Ok(Remembered {
            applied: text(0).and_then(Lsn::from_fixed_hex),
            started: text(1).and_then(Lsn::from_fixed_hex),
            origin: text(2).and_then(Origin::decode),
            batches: text(4).and_then(|batches| batches.parse().ok()).unwrap_or(0),
        })
    }

    async fn try_flush(&mut self, gap: &HistoryGap, present: &Present) -> Result<u64, Setback> {
        let (names, floor) = (self.names.clone(), self.epoch);
        let removals: Vec<_> = self.settings.removals.iter().map(|removal| (RuleId::new(0), removal.clone())).collect();
        let found = self.epoch_found.clone();
        let connection = self.open().await?;
        let scripts = connection.scripts.clone();

        let mut begin =
            script(&scripts.begin, &[&names.epoch, &names.epochs, &names.started, &names.applied, &names.origin]);
        begin.arg(&found).arg(floor).arg(present.end.to_fixed_hex()).arg(gap.word()).arg(present.origin.encode());
        let reply = connection.send(Pipeline::new().add_command(begin)).await?.pop().unwrap_or(Value::Nil);
        let epoch: u64 = redis::from_redis_value(reply).map_err(RedisError::from)?;
        // What is tried again begins where this began.
        self.epoch_found = epoch.to_string();
        let connection = self.open().await?;
        let deleted = connection.remove(&removals, &names, None).await?;
        let mut prove = script(&scripts.prove, &[&names.applied, &names.origin, &names.epoch, &names.batches]);
        prove.arg(present.slot.to_fixed_hex()).arg(present.origin.encode()).arg(epoch);
        prove.arg(present.batches.map_or_else(String::new, |batches| batches.to_string()));
        connection.send(Pipeline::new().add_command(prove)).await?;
        let dataset = connection.dataset.clone();

        // Copies elsewhere go last: what is read again from Redis from now on is new. Nobody can have followed
        // a slot before its first epoch.
        if epoch > 1 {
            let mut plan = Plan::default();
            removals.into_iter().for_each(|(rule, removal)| plan.announce(rule, removal));
            let message = self.numbering.next(epoch, present.end, SystemTime::now(), Broadcast::ops(&plan));
            let mut tell = Pipeline::new();
            broadcast(&message, Target { names: &names, scripts: &scripts, ttl: self.settings.ttl }, &mut tell);
            self.open().await?.send(&tell).await?;
        }
        self.history = history(&present.origin);
        (self.epoch, self.proven, self.recorded) = (epoch, Some(dataset), present.slot);
        self.counted = present.batches.unwrap_or_default();
        Ok(deleted)
    }
}

/// A short name of a history: positions of one can be compared, and only those. An unclean stop begins no other: only
/// log that was safely written is ever streamed.
fn history(origin: &Origin) -> String {
    // Not into which dataset an outbox went: what came twice because Redis was started anew came twice.
    let source: String = origin.source.split(' ').take(2).collect();
    Sha256::digest(format!("{}/{}{source}", origin.system, origin.timeline))
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
