//! Where plans take effect: a batch is applied, and tried again until it is in force.
//!
//! Owns the attempts. It must not know the order of the commands; [`super::encode`] does.
//! Invariants: a batch whose outcome is not known is sent again, which is harmless because every op
//! is idempotent; a batch is never sent to another dataset than the one whose history is proven.

use std::time::{Duration, Instant};

use redis::{ConnectionInfo, RedisError, Value};

use super::again::DueDeletes;
use super::batch::Batch;
use super::broadcast::{Broadcast, BroadcastOp, Numbering};
use super::dataset::{Dataset, RedisClock};
use super::encode::{Attached, Encoded, Target, encode};
use super::link::RedisLink;
use super::liveness::Liveness;
use super::owner::{self, OwnerRecord};
use super::proof::{Proof, Unproven};
use super::recent::Recent;
use super::refusal::SinkError;
use super::refused_op::{RefusableOp, RefusedOps, refused};
use super::retry::{AttemptError, RetryState};
use super::settings::SinkSettings;
use super::sweep::Sweeper;
use super::warnings::Warnings;
use crate::change::Lsn;
use crate::coherence::epoch::Allowance;
use crate::coherence::watermark::Names;

/// The code of the error by which Redis says that its memory is full.
const FULL: &str = "OOM";

/// How an attempt ended of which Redis answered every command.
enum Attempted {
    /// The batch is in force. These second deletes are due.
    Applied(DueDeletes),
    /// Redis refused these ops, for reasons of their own. The rest of the batch is in force.
    OpsRefused(Vec<(RefusableOp, RedisError)>),
}

/// Where plans take effect.
#[derive(Debug)]
pub struct Sink {
    pub(super) link: RedisLink,
    /// The database and the namespace.
    location: String,
    pub(super) names: Names,
    pub(super) settings: SinkSettings,
    pub(super) proof: Proof,
    pub(super) numbering: Numbering,
    pub(super) recent: Recent,
    /// What this process says of itself. None until it has taken the name.
    pub(super) owner: Option<OwnerRecord>,
    warnings: Warnings,
    refused: RefusedOps,
    allowance: Allowance,
}

impl Sink {
    /// A sink that is not yet connected.
    ///
    /// # Errors
    ///
    /// The settings of the connection cannot be used.
    pub fn new(info: &ConnectionInfo, names: Names, settings: SinkSettings) -> Result<Self, SinkError> {
        Ok(Self {
            link: RedisLink::new(info, "invalidations")?,
            location: format!("{} {}", info.redis_settings().db(), names.last_broadcast),
            names,
            settings,
            proof: Proof::default(),
            numbering: Numbering::default(),
            recent: Recent::default(),
            owner: None,
            warnings: Warnings::default(),
            refused: RefusedOps::default(),
            allowance: Allowance::default(),
        })
    }

    /// Where Redis is, without credentials.
    pub fn address(&self) -> &str {
        self.link.address()
    }

    /// Identifies the dataset whose history is proven: a run of a server, a database in it, a
    /// namespace.
    pub fn dataset(&self) -> Option<String> {
        self.proof.dataset().map(|dataset| format!("{}/{}", dataset.run_id(), self.location))
    }

    /// How many batches were in force, by the count of Redis, after the last batch.
    pub fn counted(&self) -> u64 {
        self.proof.counted()
    }

    /// Whether Redis accepts what it is sent. It can be read while the sink is busy.
    pub fn liveness(&self) -> Liveness {
        self.link.liveness().clone()
    }

    /// A sweeper with a connection of its own.
    pub fn sweeper(&self) -> Sweeper {
        Sweeper::new(self.link.another("removals by tag or pattern"), self.names.clone())
    }

    /// Connects once, so that a wrong address is reported at start.
    ///
    /// # Errors
    ///
    /// Redis does not answer, refuses, is a replica, or is too old.
    pub async fn connect(&mut self) -> Result<(), SinkError> {
        let unusable = |link: &RedisLink, error| SinkError::unusable(link.address(), error);
        let version = self.link.version().await.map_err(|error| unusable(&self.link, error))?;
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_some_and(|major| major < 7) {
            return Err(SinkError::TooOld { address: self.link.address().to_owned(), version });
        }
        match self.link.open().await {
            Ok(_) => Ok(()),
            Err(error) => Err(unusable(&self.link, error)),
        }
    }

    /// Applies a batch, and tries again until Redis answered every command without an error.
    /// Returns the second deletes that are due, if the batch asks for them.
    ///
    /// # Errors
    ///
    /// Redis does not hold the dataset any more whose history is proven.
    pub async fn apply(&mut self, mut batch: Batch) -> Result<DueDeletes, Unproven> {
        let ops = Broadcast::ops(&batch.plan);
        let mut broadcasts: Vec<Broadcast> = Vec::new();
        self.refused.begin();
        let mut retry = RetryState::default();
        self.recent.remember(&batch, &self.settings);
        self.warnings.failed_rules(&batch, &self.settings);
        self.warnings.widened_rules(&batch, &self.settings);
        self.link.liveness().restart();
        loop {
            match self.attempt(&batch, &ops, &mut broadcasts).await {
                Ok(Attempted::Applied(due)) => {
                    self.link.succeeded(&retry);
                    return Ok(due);
                }
                Ok(Attempted::OpsRefused(refused)) => {
                    let given_up = self.refused.take_apart(&mut batch, &refused, Instant::now());
                    self.warnings.given_up(self.link.address(), &given_up, &self.settings);
                    if let Some((_, error)) = refused.first().filter(|_| given_up.is_empty()) {
                        self.link.failed(error, &mut retry).await;
                    }
                }
                Err(AttemptError::Unproven) => {
                    self.proof.revoke();
                    return Err(Unproven);
                }
                Err(AttemptError::Refused(error)) if error.code() == Some(FULL) && batch.plan.sets().len() > 0 => {
                    self.warnings.full_memory(self.link.address(), batch.plan.sets().len());
                    batch.plan.sets_to_deletes(Lsn::new(u64::MAX));
                }
                Err(AttemptError::Refused(error)) => self.link.failed(&error, &mut retry).await,
            }
        }
    }

    async fn attempt(
        &mut self,
        batch: &Batch,
        ops: &[BroadcastOp],
        broadcasts: &mut Vec<Broadcast>,
    ) -> Result<Attempted, AttemptError> {
        let connection = self.link.open().await?;
        if !self.proof.covers(&connection.dataset) {
            return Err(AttemptError::Unproven);
        }
        if broadcasts.is_empty() {
            let next =
                |ops: &[BroadcastOp]| self.numbering.next(self.proof.epoch(), batch.started, batch.at, ops.to_vec());
            broadcasts.extend(Broadcast::pieces(ops).map(next));
        }
        let recent = self.recent.take_due(batch.probe);
        let attached = Attached {
            broadcasts,
            recent: &recent,
            now: connection.clock.at(Instant::now()),
            heartbeat: batch.heartbeat.map(|moment| connection.clock.at(moment)),
            owner: self.owner.as_ref(),
        };
        let target =
            Target { names: &self.names, scripts: &connection.scripts, settings: &self.settings, proof: &self.proof };
        let Encoded { pipeline, refusable, positions } = encode(batch, attached, target);
        let replies = connection.send_each(&pipeline).await?;
        let refused = refused(&replies, &refusable)?;
        if !refused.is_empty() {
            return Ok(Attempted::OpsRefused(refused));
        }
        if replies.get(positions.streams).into_iter().flatten().any(|reply| *reply == Value::Int(-1)) {
            self.warnings.dropped_entries(self.link.address());
        }
        if let Some([time, info]) = replies.get(positions.probe) {
            self.confirm(time, info).await?;
        }
        if positions.owner.and_then(|at| replies.get(at)).and_then(owner::other).is_some() {
            // Another service took the name while this one was not at work.
            return Err(AttemptError::Unproven);
        }
        let counted = positions.count.and_then(|at| match replies.get(at) {
            Some(Value::Int(counted)) => Some(counted.cast_unsigned()),
            _ => None,
        });
        self.proof.applied(batch.record, counted);
        let due = positions.due.and_then(|at| replies.get(at)).and_then(DueDeletes::parse);
        Ok(Attempted::Applied(due.unwrap_or_default()))
    }

    /// Redis said over the open connection what time it is, and which dataset it holds.
    async fn confirm(&mut self, time: &Value, info: &Value) -> Result<(), AttemptError> {
        let (clock, dataset) = (RedisClock::parse(time)?, Dataset::from_reply(info)?);
        if let Err(Unproven) = self.proof.confirm(dataset.clone()) {
            self.link.close();
            return Err(AttemptError::Unproven);
        }
        let connection = self.link.open().await?;
        (connection.clock, connection.dataset) = (clock, dataset);
        Ok(())
    }

    /// How long a new epoch has to wait.
    pub(super) fn epoch_pause(&mut self) -> Duration {
        self.allowance.take(Instant::now())
    }
}
