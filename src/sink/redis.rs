//! Where plans take effect: batches are applied, and tried again until they are in force.
//!
//! Owns the retry. It must not know what a batch is made of. Invariants: after a time-out the connection is
//! dropped, because the commands may still run; the same batch is then sent again, which is harmless
//! because every op is idempotent; a batch is never sent to another dataset than the one whose history was
//! proven.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use redis::{Client, ConnectionInfo, Pipeline, RedisError, Value};

use super::broadcast::{Broadcast, BroadcastOp, Numbering};
use super::connection::{Clock, Dataset, RedisConnection, info, version};
use super::encode::{
    Batch, Target, announcements, count, dead_letters, forget_marks, heartbeat, removals, streams, writes,
};
use super::liveness::Liveness;
use super::recent::{Recent, RuleLabel};
use super::refusal::{SinkError, explain};
use super::sweep::Sweeper;
use crate::backoff::{Backoff, Notices};
use crate::change::Lsn;
use crate::coherence::epoch::Allowance;
use crate::coherence::history::HistoryGap;
use crate::coherence::watermark::{LOST, Names};
use crate::plan::{Removal, RuleId};

/// The code of the error by which Redis says that its memory is full.
const FULL: &str = "OOM";

/// The dataset in Redis may not hold what was put into force: [`Sink::remembered`] must be asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unproven;

/// Where plans take effect.
#[derive(Debug)]
pub struct Sink {
    client: Client,
    address: String,
    /// The database and the namespace.
    place: String,
    pub(super) names: Names,
    pub(super) settings: SinkSettings,
    pub(super) recent: Recent,
    dead_notices: BTreeMap<RuleId, Notices>,
    stream_notices: Notices,
    full_notices: Notices,
    /// Tells the history of this database from any other, in stream entries.
    pub(super) history: String,
    connection: Option<RedisConnection>,
    /// The dataset whose history is proven.
    pub(super) proven: Option<Dataset>,
    /// What that dataset said it recorded.
    pub(super) recorded: Lsn,
    /// Known without comparing positions.
    pub(super) reported_gap: Option<HistoryGap>,
    pub(super) epoch: u64,
    /// The epoch as Redis had it when it was last asked, or `0`.
    pub(super) epoch_found: String,
    pub(super) allowance: Allowance,
    pub(super) liveness: Liveness,
    pub(super) numbering: Numbering,
    /// How many batches that dataset said it had counted.
    pub(super) counted: u64,
}

/// What the sink has to know of the rules.
#[derive(Clone, Debug)]
pub struct SinkSettings {
    /// What the rules may ever remove or write: what a new epoch empties.
    pub removals: Vec<Removal>,
    /// What each rule is called, in the order of the file.
    pub labels: Vec<RuleLabel>,
    /// How long what is written lives, unless a rule says otherwise.
    pub ttl: Duration,
    /// What tells these rules, and the reads beside them, from any others.
    pub digest: String,
}

/// Why a batch is not in force.
pub(super) enum Setback {
    Refused(RedisError),
    Unproven,
}

impl From<RedisError> for Setback {
    fn from(error: RedisError) -> Self {
        if error.code() == Some(LOST) { Self::Unproven } else { Self::Refused(error) }
    }
}

/// What one series of attempts has done so far about Redis refusing.
#[derive(Default)]
pub(super) struct Patience {
    pub(super) backoff: Backoff,
    pub(super) notices: Notices,
}

impl Sink {
    /// A sink that is not yet connected.
    pub fn new(info: &ConnectionInfo, names: Names, settings: SinkSettings) -> Result<Self, SinkError> {
        let address = info.addr().to_string();
        let place = format!("{} {}", info.redis_settings().db(), names.last_broadcast);
        let client = crate::redis::open_client(info).map_err(|error| SinkError::unusable(&address, error))?;
        Ok(Self {
            client,
            address,
            place,
            names,
            settings,
            recent: Recent::default(),
            dead_notices: BTreeMap::new(),
            stream_notices: Notices::default(),
            full_notices: Notices::default(),
            history: String::new(),
            connection: None,
            proven: None,
            recorded: Lsn::ZERO,
            reported_gap: None,
            epoch: 0,
            epoch_found: "0".to_owned(),
            allowance: Allowance::default(),
            liveness: Liveness::default(),
            numbering: Numbering::default(),
            counted: 0,
        })
    }

    /// Where Redis is, without credentials.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Which dataset's history is proven: a run of a server, a database in it, a namespace.
    pub fn dataset(&self) -> Option<String> {
        self.proven.as_ref().map(|dataset| format!("{}/{}", dataset.server(), self.place))
    }

    /// How many batches were in force, by Redis's own count, when the last one was.
    pub fn counted(&self) -> u64 {
        self.counted
    }

    /// What tells whether Redis takes what it is sent, also while the sink is busy.
    pub fn liveness(&self) -> Liveness {
        self.liveness.clone()
    }

    /// Somebody who searches for what takes its time, on a connection of his own.
    pub fn sweeper(&self) -> Sweeper {
        Sweeper::new(self.client.clone(), self.address.clone(), self.names.clone())
    }

    /// Connects once, so that a wrong address is known at start.
    pub async fn connect(&mut self) -> Result<(), SinkError> {
        let version = version(&self.client).await.map_err(|error| SinkError::unusable(&self.address, error))?;
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_some_and(|major| major < 7) {
            return Err(SinkError::TooOld { address: self.address.clone(), version });
        }
        match self.open().await {
            Ok(_) => Ok(()),
            Err(error) => Err(SinkError::unusable(&self.address, error)),
        }
    }

    /// Puts a batch into force, however often it has to be tried. Ends only when every command was
    /// answered without an error, or when another dataset would get it.
    pub async fn apply(&mut self, mut batch: Batch) -> Result<(), Unproven> {
        let ops = Broadcast::ops(&batch.plan);
        let mut broadcast: Option<Broadcast> = None;
        let mut patience = Patience::default();
        self.recent.remember(&batch, &self.settings.labels);
        self.tell_of_dead(&batch);
        self.liveness.restart();
        loop {
            match self.attempt(&batch, &ops, &mut broadcast).await {
                Ok(()) => {
                    self.relieved(&patience);
                    return Ok(());
                }
                Err(Setback::Unproven) => {
                    self.proven = None;
                    return Err(Unproven);
                }
                Err(Setback::Refused(error)) if error.code() == Some(FULL) && batch.plan.sets().len() > 0 => {
                    if self.full_notices.due() {
                        let values = batch.plan.sets().len();
                        tracing::warn!(
                            redis = self.address,
                            values,
                            "Redis is full: values that rules `set` are deleted instead of written; raise maxmemory"
                        );
                    }
                    batch.plan.sets_to_deletes(Lsn::new(u64::MAX));
                }
                Err(Setback::Refused(error)) => self.refused(&error, &mut patience).await,
            }
        }
    }

    async fn attempt(
        &mut self,
        batch: &Batch,
        ops: &[BroadcastOp],
        broadcast: &mut Option<Broadcast>,
    ) -> Result<(), Setback> {
        let proven = self.proven.clone();
        let dataset = &self.open().await?.dataset;
        if proven.as_ref() != Some(dataset) {
            return Err(Setback::Unproven);
        }
        if broadcast.is_none() && !ops.is_empty() {
            *broadcast = Some(self.numbering.next(self.epoch, batch.started, batch.at, ops.to_vec()));
        }
        let Some(connection) = &mut self.connection else { return Err(Setback::Unproven) };
        let scripts = connection.scripts.clone();
        let target = Target { names: &self.names, scripts: &scripts, ttl: self.settings.ttl };
        let mut pipeline = Pipeline::new();
        removals(batch, (self.recorded, &self.epoch_found), target, &mut pipeline);
        writes(batch, connection.clock.at(Instant::now()), target, &mut pipeline);
        announcements(batch, target, broadcast.as_ref(), &mut pipeline);
        let added_from = pipeline.len();
        streams(batch, &self.settings.labels, &self.history, target, &mut pipeline);
        let added = added_from..pipeline.len();
        dead_letters(batch, &self.settings.labels, target, &mut pipeline);
        self.recent.write(batch.probe, &self.names, &scripts, &mut pipeline);
        forget_marks(batch, &self.history, target, &mut pipeline);
        let count_at = pipeline.len();
        if batch.counts {
            count(self.counted, target, &mut pipeline);
        }
        if let Some(moment) = batch.heartbeat {
            heartbeat(connection.clock.at(moment), &self.settings.digest, target, &mut pipeline);
        }
        if batch.probe {
            pipeline.add_command(redis::cmd("TIME")).add_command(info());
        }
        let replies = connection.send(&pipeline).await?;
        if replies.get(added).into_iter().flatten().any(|reply| *reply == Value::Int(-1)) && self.stream_notices.due() {
            tracing::warn!(
                redis = self.address,
                "entries were dropped: the name of a rule's `stream` is a key of another kind; delete or rename one of them"
            );
        }
        if let ([.., time, info], true) = (&*replies, batch.probe) {
            connection.clock = Clock::parse(time)?;
            let dataset = Dataset::parse(&redis::from_redis_value_ref::<String>(info).map_err(RedisError::from)?)?;
            if !dataset.continues(&connection.dataset) {
                // Under a living connection: what was recorded since may be the new dataset's.
                self.reported_gap = Some(HistoryGap::DatasetReplaced);
                self.connection = None;
                return Err(Setback::Unproven);
            }
            self.proven = Some(dataset.clone());
            connection.dataset = dataset;
        }
        if let (true, Some(Value::Int(counted))) = (batch.counts, replies.get(count_at)) {
            self.counted = self.counted.max(counted.cast_unsigned());
        }
        self.recorded = self.recorded.max(batch.record.unwrap_or_default());
        Ok(())
    }

    /// Says that rules failed, and why, at growing intervals: a rule that fails does so for every row.
    fn tell_of_dead(&mut self, batch: &Batch) {
        for letter in batch.plan.dead_letters() {
            if !self.dead_notices.entry(letter.rule).or_default().due() {
                continue;
            }
            let label = self.settings.labels.get(letter.rule.position());
            tracing::warn!(
                rule = label.map_or("", |label| &label.name),
                line = label.map_or(0, |label| label.line),
                reason = letter.reason,
                "a rule failed on a change, so more was deleted than it may have asked for; `unstale dry-run --dead` shows such changes"
            );
        }
    }

    /// The open connection, or a new one.
    pub(super) async fn open(&mut self) -> Result<&mut RedisConnection, RedisError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => RedisConnection::open(&self.client, self.liveness.clone()).await?,
        };
        Ok(self.connection.insert(connection))
    }

    /// Says so at growing intervals, and waits before the next attempt.
    pub(super) async fn refused(&mut self, error: &RedisError, patience: &mut Patience) {
        self.liveness.refused();
        let refusal = explain(error);
        if refusal.reconnect {
            self.connection = None;
        }
        notice("invalidations", &self.address, error, patience);
        tokio::time::sleep(patience.backoff.next_wait()).await;
    }

    /// Redis answered; says so if it was said that it did not.
    pub(super) fn relieved(&self, patience: &Patience) {
        self.liveness.restart();
        relief("invalidations", &self.address, patience);
    }

    /// How long a new epoch has to wait.
    pub(super) fn epoch_pause(&mut self) -> Duration {
        self.allowance.take(Instant::now())
    }
}

/// Says that Redis refuses `what`, and what helps, unless that was said a moment ago.
pub(super) fn notice(what: &str, address: &str, error: &RedisError, patience: &mut Patience) {
    if patience.notices.due() {
        let advice = explain(error).advice;
        let error = crate::redis::describe(error);
        tracing::warn!(redis = address, error, "{what} wait for Redis; {advice}");
    }
}

/// Says that Redis answers again, if it was said that it did not.
pub(super) fn relief(what: &str, address: &str, patience: &Patience) {
    if patience.notices.any() {
        tracing::info!(redis = address, "Redis takes {what} again");
    }
}
