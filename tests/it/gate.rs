//! The gate: what is committed and not yet visible stays in the cache, and holds up nothing else.
//!
//! `synchronous_standby_names = 'missing'` makes the race of every server with a synchronous
//! standby last as long as a test wants: a commit is in the log and on the slot, and no snapshot
//! sees it.

use std::time::{Duration, Instant};

use redis::Commands as _;
use unstale::change::Lsn;

use crate::proxy::{Fault, Proxy};
use crate::support::{Daemon, EVENT_MAX, SHIPPED, World, wait_until};

/// Milliseconds since 1970 by the clock of Redis.
fn now(world: &World) -> u64 {
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query(&mut world.redis()).unwrap();
    seconds * 1000 + micros / 1000
}

#[test]
fn a_commit_that_is_not_visible_stays_in_the_cache_and_holds_up_no_other() {
    let world = World::shipped();
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u3'");
    world.settle();
    let confirmed = world.confirmed();
    for id in ["u1", "u2"] {
        world.cache(&format!("v1:user:{id}"));
    }
    world.hold_commits();
    let committing = world.stuck("update users set name = 'stuck' where id = 'u1'");
    // What wrote the commit wrote no less, so this is behind its record.
    let behind: Lsn = world.value("select pg_current_wal_insert_lsn()::text").parse().unwrap();
    assert_eq!(world.value("select name from users where id = 'u1'"), "User 1", "no snapshot sees it");
    world.wait_until_sent();
    world.sql("update users set name = 'after' where id = 'u2'");
    wait_until(EVENT_MAX, "the later commit, which is visible, is in force", || !world.holds("v1:user:u2"));
    assert!(world.holds("v1:user:u1"), "deleted now, a reader would bring the old value back");
    world.sql("create table unpublished (n int); insert into unpublished select generate_series(1, 1000)");
    world.wait_until_sent();
    assert!(world.applied() < behind, "the watermark does not pass what is stuck");
    assert!(world.confirmed() < behind && world.confirmed() >= confirmed);
    world.release_commits();
    committing.join().unwrap();
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn what_was_stuck_is_not_lost_with_the_daemon() {
    let world = World::shipped();
    let daemon = world.daemon();
    world.cache("v1:user:u1");
    world.cache("v1:user:u2");
    world.hold_commits();
    let committing = world.stuck("update users set name = 'stuck' where id = 'u1'");
    world.sql("update users set name = 'after' where id = 'u2'");
    wait_until(EVENT_MAX, "the later one is in force", || !world.holds("v1:user:u2"));
    daemon.signal("KILL");
    drop(daemon);
    let daemon = world.daemon();
    world.cache("v1:user:u2");
    world.sql("update users set name = 'after again' where id = 'u2'");
    wait_until(EVENT_MAX, "what came after it was received again", || !world.holds("v1:user:u2"));
    assert!(world.holds("v1:user:u1"));
    world.release_commits();
    committing.join().unwrap();
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    assert_eq!(world.epoch(), 1);
    assert_eq!(daemon.stop(), Some(0));
}

/// A reader that finds the version key missing makes it from `started`, which may have passed the
/// stuck commit.
#[test]
fn a_version_key_rises_for_what_was_stuck_even_above_a_later_commit() {
    let world = World::shipped();
    let daemon = world.daemon();
    let version = || world.redis().get::<_, Option<u64>>("v1:flags-version:o1").unwrap();
    world.hold_commits();
    let committing = world.stuck("update feature_flags set enabled = not enabled where id = 'f1-1'");
    world.sql("update feature_flags set enabled = not enabled where id = 'f1-2'");
    wait_until(EVENT_MAX, "the later one is in force", || version().is_some());
    let later = version();
    world.release_commits();
    committing.join().unwrap();
    world.settle();
    assert!(version() > later, "{later:?}, then {:?}", version());
    assert_eq!(daemon.stop(), Some(0));
}

/// More than may be kept waits for its visibility: what its rules match is deleted then instead of
/// its own keys.
#[test]
fn a_large_transaction_that_is_stuck_does_not_fill_memory() {
    let world = World::shipped();
    let daemon = world.daemon();
    world.cache("v1:user:x300000");
    world.cache("v1:user:u2");
    world.hold_commits();
    let committing = world.stuck(
        "insert into users (id, email, name) select 'x' || n, 'x' || n, repeat('n', 200) from generate_series(200001, 300000) n",
    );
    world.sql("update users set name = 'after' where id = 'u2'");
    wait_until(EVENT_MAX, "the later one is in force", || !world.holds("v1:user:u2"));
    assert!(world.holds("v1:user:x300000"));
    assert!(daemon.memory() < 64, "{} MB", daemon.memory());
    world.release_commits();
    committing.join().unwrap();
    world.settle();
    assert!(!world.holds("v1:user:x300000"));
    assert_eq!(daemon.stop(), Some(0));
}

/// The question what is visible cannot be asked of a server that shuts down, and it may not wait
/// for the answer.
#[test]
fn postgresql_can_be_shut_down_while_something_is_stuck() {
    let mut world = World::shipped();
    let daemon = world.daemon();
    world.cache("v1:user:u1");
    world.hold_commits();
    let committing = world.stuck("update users set name = 'stuck' where id = 'u1'");
    world.wait_until_sent();
    let pid = world.postgres.pid().unwrap();
    assert!(unstale::sandbox::signal(pid, "INT"));
    wait_until(EVENT_MAX, "PostgreSQL ends", || !unstale::sandbox::signal(pid, "0"));
    // The server gave the wait up, and its client saw the connection end.
    let _ = committing.join();
    world.postgres.stop();
    world.postgres.restart().unwrap();
    world.reconnect();
    daemon.wait_for_log("streaming");
    // The setting is still there, so only what does not wait can be written.
    world.sql("set synchronous_commit = local");
    world.sql("update users set name = 'after' where id = 'u2'");
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    assert_eq!(daemon.stop(), Some(0));
}

/// A daemon that has just begun knows no partition yet, and the catalog is asked about the stuck
/// one first.
#[test]
fn a_stuck_commit_to_a_partition_holds_up_no_other() {
    let world = crate::invalidation::partitioned();
    world.hold_commits();
    let committing = world.stuck("insert into events values (1, 5)");
    let daemon = world.daemon();
    world.cache("v1:event:1");
    world.cache("v1:event:2");
    world.sql("insert into events values (2, 15)");
    wait_until(EVENT_MAX, "the later one is in force", || !world.holds("v1:event:2"));
    assert!(world.holds("v1:event:1"));
    world.release_commits();
    committing.join().unwrap();
    world.settle();
    assert!(!world.holds("v1:event:1"));
    assert_eq!(daemon.stop(), Some(0));
}

/// What is stuck keeps the watermark from moving, and Redis is asked all the same.
#[test]
fn an_emptied_redis_is_noticed_while_something_is_stuck() {
    let world = World::shipped();
    let daemon = world.daemon();
    world.hold_commits();
    let committing = world.stuck("update users set name = 'stuck' where id = 'u1'");
    world.wait_until_sent();
    let beat = || world.redis().get::<_, Option<u64>>("v1:unstale:{unstale}:asof").unwrap().unwrap_or(0);
    wait_until(EVENT_MAX, "no heartbeat is left", || now(&world) > beat() + 3000);
    let () = redis::cmd("FLUSHALL").query(&mut world.redis()).unwrap();
    world.cache("v1:user:u9");
    wait_until(EVENT_MAX, "the cache is emptied", || !world.holds("v1:user:u9"));
    world.release_commits();
    committing.join().unwrap();
    world.settle();
    assert_eq!(world.epochs_because("nothing-remembered"), 1);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_standby_is_refused() {
    let mut world = World::shipped();
    let standby = world.postgres.standby(&["hot_standby=on"]).unwrap();
    world.database_url = standby.url("postgres");
    let mut daemon = Daemon::start(world.command(&["run"]));
    assert_eq!(daemon.wait(), Some(78), "{:?}", daemon.log());
    assert!(daemon.log().join("\n").contains("the server is a standby"), "{:?}", daemon.log());
    let output = world.run(&["check"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(crate::support::text(&output).contains("name the primary in source.url"));
}

/// With Redis away for longer than `redis_down_max`, PostgreSQL can shut down although nothing is
/// confirmed.
#[test]
fn redis_that_is_away_for_long_does_not_keep_postgresql_from_shutting_down() {
    let rules = SHIPPED.replace("  namespace:", "  redis_down_max: 1s\n  namespace:");
    let mut world = World::with_rules(&rules);
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    world.redis.stop();
    world.sql("update users set name = 'meanwhile' where id = 'u1'");
    daemon.wait_for_log("invalidations wait for Redis");
    let walsenders = "select count(*)::text from pg_stat_replication";
    wait_until(EVENT_MAX, "the replication connection is closed", || world.value(walsenders) == "0");
    let pid = world.postgres.pid().unwrap();
    assert!(unstale::sandbox::signal(pid, "INT"));
    wait_until(EVENT_MAX, "PostgreSQL ends", || !unstale::sandbox::signal(pid, "0"));
    world.postgres.stop();
    world.postgres.restart().unwrap();
    world.reconnect();
    world.redis.restart().unwrap();
    world.cache("v1:user:u1");
    daemon.wait_for_log("streaming");
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    assert_eq!(daemon.stop(), Some(0));
}

/// A batch that takes long is no Redis that is away: otherwise it would be begun again for ever.
#[test]
fn a_long_scan_does_not_count_as_redis_being_away() {
    let rules = SHIPPED.replace("  namespace:", "  redis_down_max: 1s\n  namespace:");
    let mut world = World::with_rules(&rules);
    world.run_ok(&["setup"]);
    let proxy = Proxy::start(world.redis.port());
    world.redis_url = format!("redis://127.0.0.1:{}", proxy.port());
    let daemon = world.daemon();
    const MANY: &str = "for i = 1, 60000 do redis.call('SET', 'v1:user:x' .. i, 'cached') end return 1";
    let () = redis::cmd("EVAL").arg(MANY).arg(0).query(&mut world.redis()).unwrap();
    // Some 60 steps of a scan, each with two round trips there and back.
    proxy.set(Fault::Delay(Duration::from_millis(10)));
    let began = Instant::now();
    world.sql("truncate users cascade");
    world.settle();
    assert!(began.elapsed() > Duration::from_millis(1500), "the batch was not long: {:?}", began.elapsed());
    assert!(!world.holds("v1:user:x1") && !world.holds("v1:user:x60000"));
    proxy.set(Fault::None);
    assert_eq!(daemon.log().iter().filter(|line| line.contains("no replication")).count(), 0, "{:?}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn redis_hears_how_current_it_is() {
    let world = World::shipped();
    let daemon = world.daemon();
    let asof = || world.redis().get::<_, Option<u64>>("v1:unstale:{unstale}:asof").unwrap().unwrap_or(0);
    let begin = now(&world);
    wait_until(EVENT_MAX, "an idle database is current", || asof() >= begin);
    assert!(asof() <= now(&world));
    // And one that is never at rest.
    let begin = now(&world);
    wait_until(EVENT_MAX, "a busy database is current, too", || {
        world.sql("update users set name = name || 'x' where id = 'u2'");
        asof() >= begin + 1000
    });
    // What is stuck is not in force, so nothing is current.
    world.hold_commits();
    let committing = world.stuck("update users set name = 'stuck' where id = 'u1'");
    world.wait_until_sent();
    let stuck_at = now(&world);
    world.sql("create table unpublished (n int); insert into unpublished select generate_series(1, 1000)");
    let said: serde_json::Value = serde_json::from_str(&daemon.wait_for_log("lag behind")).unwrap();
    assert!(said["bytes"].as_u64() > Some(10_000) && said["seconds"].as_u64() >= Some(10), "{said}");
    assert!(said["xid"].is_u64() && said["message"].as_str().unwrap().contains("synchronous_standby_names"), "{said}");
    assert!(asof() < stuck_at);
    world.release_commits();
    committing.join().unwrap();
    daemon.wait_for_log("caught up");
    wait_until(EVENT_MAX, "it is current again", || asof() > stuck_at);
    assert_eq!(daemon.stop(), Some(0));
}
