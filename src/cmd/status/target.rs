//! What Redis says of the invalidations that are in force.
//!
//! Owns the questions and how their answers are read. It must not judge them. Invariant: nothing is
//! written.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{Cmd, ConnectionInfo, Pipeline, RedisError};

use crate::change::Lsn;
use crate::coherence::watermark::Names;
use crate::key::CacheKey;
use crate::sink::SinkError;

/// How long to wait for a connection, and for each answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How many streams are named.
const STREAMS_NAMED: usize = 100;

/// Up to where invalidations are in force, and what failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TargetStatus {
    /// Every invalidation up to this position is in force.
    pub(super) applied: Option<Lsn>,
    /// Some invalidations up to this position may be in force.
    pub(super) started: Option<Lsn>,
    /// The epoch.
    pub(super) epoch: Option<u64>,
    /// How many epochs began, by the word for the reason.
    pub(super) epochs: BTreeMap<String, u64>,
    /// Everything that was durably committed this long ago is in force.
    pub(super) asof: Option<Duration>,
    /// How many dead letters there are.
    pub(super) dead: u64,
    /// How many dead letters there were, by rule.
    pub(super) failures: BTreeMap<String, u64>,
    /// How many streams were written to.
    pub(super) streams: u64,
    /// Some of their names.
    pub(super) stream_names: Vec<CacheKey>,
    /// How often what a rule names was above a limit, by rule.
    pub(super) widened: BTreeMap<String, u64>,
    /// How many changes of the database's catalog there were, by kind.
    pub(super) catalog_changes: BTreeMap<String, u64>,
    /// The tables whose changes do not arrive, each with the reason.
    pub(super) blind: BTreeMap<String, String>,
    /// How many batches of an outbox are in force.
    pub(super) batches: Option<u64>,
}

/// Reads how far invalidations are in force, and what failed.
///
/// # Errors
///
/// Redis is unreachable, or refuses one of the commands.
pub(super) async fn read(info: &ConnectionInfo, names: &Names) -> Result<TargetStatus, SinkError> {
    let address = info.addr().to_string();
    try_read(info, names).await.map_err(|error| SinkError::unusable(&address, error))
}

async fn try_read(info: &ConnectionInfo, names: &Names) -> Result<TargetStatus, RedisError> {
    let mut connection = crate::redis::connect(&crate::redis::open_client(info)?, ANSWER_MAX).await?;
    let mut state = redis::cmd("MGET");
    for key in [&names.applied, &names.started, &names.epoch, &names.asof, &names.batches] {
        state.arg(key.as_bytes());
    }
    let mut of_state = Pipeline::new();
    of_state.add_command(redis::cmd("TIME")).add_command(state);
    let ((seconds, micros), state): ((u64, u64), Vec<Option<String>>) = of_state.query_async(&mut connection).await?;

    let mut of_counts = Pipeline::new();
    of_counts.add_command(command("HGETALL", &names.epochs)).add_command(command("HGETALL", &names.failures));
    of_counts.add_command(command("XLEN", &names.dead)).add_command(command("HLEN", &names.streams));
    of_counts.add_command(command("HGETALL", &names.catalog_changes)).add_command(command("HGETALL", &names.blind));
    of_counts.add_command(command("HGETALL", &names.widened));
    type Counts = (HashOfCounts, HashOfCounts, u64, u64, HashOfCounts, BTreeMap<String, String>, HashOfCounts);
    let (epochs, failures, dead, streams, catalog_changes, blind, widened): Counts =
        of_counts.query_async(&mut connection).await?;

    let mut stream_names = command("HSCAN", &names.streams);
    stream_names.arg(0).arg("COUNT").arg(STREAMS_NAMED);
    type Page = (u64, Vec<(Vec<u8>, Vec<u8>)>);
    let (_, found): Page = stream_names.query_async(&mut connection).await?;

    let text = |at: usize| state.get(at).and_then(Option::as_deref);
    let number = |at: usize| text(at).and_then(|number| number.parse::<u64>().ok());
    let now = seconds.saturating_mul(1000).saturating_add(micros / 1000);
    Ok(TargetStatus {
        applied: text(0).and_then(Lsn::from_fixed_hex),
        started: text(1).and_then(Lsn::from_fixed_hex),
        epoch: number(2),
        epochs: counted(epochs),
        asof: number(3).map(|asof| Duration::from_millis(now.saturating_sub(asof))),
        dead,
        failures: counted(failures),
        streams,
        stream_names: found.into_iter().take(STREAMS_NAMED).map(|(name, _)| CacheKey::new(name)).collect(),
        batches: number(4),
        widened: counted(widened),
        catalog_changes: counted(catalog_changes),
        blind,
    })
}

/// A hash of counts, as it comes.
type HashOfCounts = BTreeMap<String, String>;

fn counted(counts: HashOfCounts) -> BTreeMap<String, u64> {
    counts.into_iter().filter_map(|(name, count)| Some((name, count.parse().ok()?))).collect()
}

fn command(name: &str, key: &CacheKey) -> Cmd {
    redis::cmd(name).arg(key.as_bytes()).clone()
}
