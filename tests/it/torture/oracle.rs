//! What is stale.
//!
//! Owns the two verdicts: at rest every cached value is what the database says, and in flight no value is older
//! than what the watermark says is in force.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::AsyncCommands as _;
use tokio::task::JoinHandle;
use unstale::change::Lsn;
use unstale::coherence::lease::Envelope;

use super::filler::{self, Query};
use super::stage::{GROUPS, ITEMS, Setting, Stage};

/// How many values were compared, and which are stale. Nobody may act meanwhile.
pub(super) async fn compare(stage: &Stage) -> (u64, Vec<String>) {
    let admin = stage.ground.admin().await;
    let mut redis = stage.ground.setting.redis_connection().await.unwrap();
    let mut queries: Vec<Query> = (1..=ITEMS).map(filler::item).collect();
    queries.extend((1..=ITEMS).flat_map(|id| [filler::alias('a', id), filler::alias('b', id)]));
    queries.extend((1..=ITEMS).flat_map(|id| [filler::peer(id), filler::card(id)]));
    queries.extend((0..GROUPS).flat_map(|group| [filler::group(group), filler::tagged(group), filler::listed(group)]));
    for group in 0..GROUPS {
        let version: Option<String> = redis.get(filler::version_key(group).as_bytes()).await.unwrap();
        queries.extend(version.map(|version| filler::versioned(group, &version)));
    }
    let keys: Vec<_> = queries.iter().map(|query| query.key.as_bytes()).collect();
    let held: Vec<Option<Vec<u8>>> = redis.mget(keys).await.unwrap();
    let cached: Vec<_> =
        queries.iter().zip(held).filter_map(|(query, held)| Some((query, Envelope::decode(&held?)?))).collect();
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

/// Compares cached values in flight: what `applied` or `asof` says is in force, no value may be older than.
pub(super) fn start_sampler(setting: &Arc<Setting>) -> JoinHandle<()> {
    let setting = Arc::clone(setting);
    tokio::spawn(async move {
        let mut redis = None;
        while !setting.is_over() {
            if redis.is_none() {
                redis = setting.redis_connection().await.ok();
            }
            if let Some(connection) = &mut redis
                && setting.samples.load(Ordering::SeqCst)
                && sample(&setting, connection).await.is_none()
            {
                redis = None;
            }
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    })
}

async fn sample(setting: &Setting, redis: &mut redis::aio::MultiplexedConnection) -> Option<()> {
    let mut look = redis::pipe();
    // The watermarks first: what is read after them is at least as new.
    look.cmd("MGET").arg(setting.names.applied.as_bytes()).arg(setting.names.asof.as_bytes()).cmd("MGET");
    for id in 1..=ITEMS {
        look.arg(filler::item(id).key.as_bytes());
    }
    type Looked = ((Option<String>, Option<u64>), Vec<Option<Vec<u8>>>);
    let ((applied, asof), held): Looked = look.query_async(redis).await.ok()?;
    let applied = Lsn::from_fixed_hex(&applied?)?;
    let committed = setting.committed.lock().unwrap();
    for (id, held) in (1..=ITEMS).zip(held) {
        let Some(value) = held.and_then(|held| Envelope::decode(&held)) else { continue };
        setting.sampled.fetch_add(1, Ordering::Relaxed);
        let version: Option<i64> = String::from_utf8_lossy(&value.body).parse().ok();
        let in_force = committed
            .get(&id)
            .into_iter()
            .flatten()
            .filter(|commit| commit.position <= applied || asof.is_some_and(|asof| commit.at < asof));
        let newest = in_force.map(|commit| commit.version).max();
        if let (Some(version), Some(newest)) = (version, newest)
            && version < newest
            && setting.samples.load(Ordering::SeqCst)
        {
            setting.found(format!(
                "item {id} holds version {version} though {newest} is in force: applied {applied}, asof {asof:?}"
            ));
        }
    }
    Some(())
}
