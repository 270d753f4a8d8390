//! The mode `outbox`, through the running daemon, on servers whose log is not logical.
//!
//! Owns what its parts share: rules, and ways to check the outcome. Where it is not obvious, a
//! test's comment says without which mechanism the test fails.

mod daemons;
mod fences;
mod history;
mod servers;
mod steps;
mod transactions;
mod wakeup;
mod writes;

use redis::Commands as _;
use redis::streams::StreamRangeReply;

use crate::support::{Daemon, EVENT_MAX, World, wait_until};

/// Rules that let several daemons share the work.
const USERS: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  user:
    table: users
    delete: [\"user:{id}\", \"user-email:{email|lower}\"]
    publish: {channel: users, data: {id: \"{id}\"}}
";

/// Rules that need the order of commits: one daemon works at a time.
const ORDERED: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  user:
    table: users
    delete: \"user:{id}\"
    set: {key: \"card:{id}\", columns: [name]}
    stream: {name: changes, data: {name: \"{name}\"}, maxlen: 100000}
";

/// Runs statements with these keys in the cache. Once they are in force, the first keys are gone
/// and the others stay.
fn check(world: &World, sql: &str, gone: &[&str], stays: &[&str]) {
    gone.iter().chain(stays).for_each(|key| world.cache(key));
    world.sql(sql);
    world.settle();
    let held: Vec<_> = gone.iter().filter(|key| world.holds(key)).collect();
    assert!(held.is_empty(), "{sql}: still there: {held:?}");
    let lost: Vec<_> = stays.iter().filter(|key| !world.holds(key)).collect();
    assert!(lost.is_empty(), "{sql}: wrongly gone: {lost:?}");
}

/// Waits until the outbox is empty.
fn wait_until_drained(world: &World) {
    wait_until(EVENT_MAX, "the outbox is empty", || world.entries() == 0);
}

/// Stops a daemon at a moment when none of its sessions has a transaction. The sessions must be
/// named `daemon`.
pub(crate) fn stop_between_claims(world: &World, daemon: &Daemon) {
    let busy = "select count(*)::text from pg_stat_activity where application_name = 'daemon' and state <> 'idle'";
    wait_until(EVENT_MAX, "the daemon is stopped between two claims", || {
        daemon.signal("STOP");
        let is_idle = world.value(busy) == "0";
        if !is_idle {
            daemon.signal("CONT");
        }
        is_idle
    });
}

/// The names in the stream of [`ORDERED`], in the order of its entries.
fn streamed(world: &World) -> Vec<String> {
    let entries: StreamRangeReply = world.redis().xrange_all("v1:changes").unwrap();
    let name = |data: String| {
        let data: serde_json::Value = serde_json::from_str(&data).unwrap();
        data["name"].as_str().unwrap().to_owned()
    };
    entries.ids.iter().map(|entry| name(entry.get("data").unwrap())).collect()
}

/// The name in a card of [`ORDERED`], if it is cached.
fn card(world: &World, id: &str) -> Option<String> {
    let held: Option<Vec<u8>> = world.redis().get(format!("v1:card:{id}")).unwrap();
    let card = unstale::coherence::lease::Envelope::decode(&held?)?;
    let card: serde_json::Value = serde_json::from_slice(&card.body).unwrap();
    Some(card["name"].as_str().unwrap().to_owned())
}
