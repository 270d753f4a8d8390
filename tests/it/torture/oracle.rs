//! What is stale.
//!
//! Owns the two comparisons. At rest every cached value must be what the database says. While the
//! run goes on, no value may be older than what the watermark says is in force. It must not know
//! what the daemon says of itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinHandle;
use unstale::change::Lsn;
use unstale::coherence::lease::Envelope;

use super::cluster::Cluster;
use super::query::{self, GROUPS, ITEMS, Query};
use super::state::RunState;

/// How many values were compared, and which are stale. Writers and fillers must be paused.
pub(super) async fn compare(cluster: &Cluster) -> (u64, Vec<String>) {
    let admin = cluster.targets.admin().await;
    let mut redis = cluster.targets.state.redis_at_rest().await;
    let mut queries: Vec<Query> = (1..=ITEMS).map(query::item).collect();
    queries.extend((1..=ITEMS).flat_map(|id| [query::alias('a', id), query::alias('b', id)]));
    queries.extend((1..=ITEMS).flat_map(|id| [query::peer(id), query::card(id), query::part(id)]));
    queries.extend((0..GROUPS).flat_map(|group| [query::group(group), query::tagged(group), query::listed(group)]));
    for group in 0..GROUPS {
        let version: Option<String> = redis.get(query::version_key(group).as_bytes()).await.unwrap();
        queries.extend(version.map(|version| query::versioned(group, &version)));
    }
    let keys: Vec<_> = queries.iter().map(|query| query.key.as_bytes()).collect();
    let held: Vec<Option<Vec<u8>>> = redis.mget(keys).await.unwrap();
    let decoded = queries.iter().zip(held).filter_map(|(query, held)| Some((query, Envelope::decode(&held?)?)));
    let mut cached = Vec::new();
    for (query, value) in decoded {
        if is_servable(&cluster.targets.state, &mut redis, &value).await {
            cached.push((query, value));
        }
    }
    let all: Vec<_> = cached.iter().map(|(query, _)| format!("({})", query.sql)).collect();
    if all.is_empty() {
        return (0, Vec::new());
    }
    let sql = format!("select array[{}]", all.join(", "));
    let truth: Vec<String> = admin.query_one(&sql, &[]).await.unwrap().get(0);
    let mut stale = Vec::new();
    for ((query, value), truth) in cached.iter().zip(truth) {
        let body = String::from_utf8_lossy(&value.body);
        if body != truth {
            stale.push(format!("{} holds {body} (as of {}), and the database says {truth}", query.key, value.lo));
        }
    }
    (cached.len() as u64, stale)
}

/// Whether each tag of a value still has the generation that the value names.
async fn is_servable(state: &RunState, redis: &mut MultiplexedConnection, value: &Envelope) -> bool {
    for tag in &value.tags {
        let held: Option<String> = redis.get(state.names.generation(&tag.tag).as_bytes()).await.unwrap();
        if held.as_ref() != Some(&tag.generation) {
            return false;
        }
    }
    true
}

/// Compares cached values while the run goes on: none may be older than what `applied` or `asof`
/// says is in force.
pub(super) fn start_sampler(state: &Arc<RunState>) -> JoinHandle<()> {
    let state = Arc::clone(state);
    tokio::spawn(async move {
        let mut redis = None;
        while !state.is_over() {
            if redis.is_none() {
                redis = state.redis_connection().await.ok();
            }
            if let Some(connection) = &mut redis
                && state.samples.load(Ordering::SeqCst)
                && sample(&state, connection).await.is_none()
            {
                redis = None;
            }
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    })
}

async fn sample(state: &RunState, redis: &mut MultiplexedConnection) -> Option<()> {
    let mut look = redis::pipe();
    // The watermarks are read first, so the values are at least as new.
    look.cmd("MGET").arg(state.names.applied.as_bytes()).arg(state.names.asof.as_bytes()).cmd("MGET");
    for id in 1..=ITEMS {
        look.arg(query::item(id).key.as_bytes());
    }
    type Looked = ((Option<String>, Option<u64>), Vec<Option<Vec<u8>>>);
    let ((applied, asof), held): Looked = look.query_async(redis).await.ok()?;
    let applied = Lsn::from_fixed_hex(&applied?)?;
    let committed = state.committed.lock().unwrap();
    for (id, held) in (1..=ITEMS).zip(held) {
        let Some(value) = held.and_then(|held| Envelope::decode(&held)) else { continue };
        state.sampled.fetch_add(1, Ordering::Relaxed);
        let version: Option<i64> = String::from_utf8_lossy(&value.body).parse().ok();
        let in_force = committed
            .get(&id)
            .into_iter()
            .flatten()
            .filter(|commit| commit.position <= applied || asof.is_some_and(|asof| commit.at < asof));
        let newest = in_force.map(|commit| commit.version).max();
        if let (Some(version), Some(newest)) = (version, newest)
            && version < newest
            && state.samples.load(Ordering::SeqCst)
        {
            state.found(format!(
                "item {id} holds version {version} though {newest} is in force: applied {applied}, asof {asof:?}"
            ));
        }
    }
    Some(())
}
