//! The gate: a commit that is not yet visible leaves the cache as it is, and delays nothing else.
//!
//! `synchronous_standby_names = 'missing'` prolongs a race that every server with a synchronous
//! standby has: a commit is in the log and on the slot, but no snapshot sees it.

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
fn an_invisible_commit_is_not_applied_and_delays_no_other() {
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
    // The commit record is written already, so this position is past it.
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
fn a_stuck_commit_survives_a_kill_of_the_daemon() {
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

/// A reader that finds no version key creates it from `started`, which may be past the stuck
/// commit.
#[test]
fn a_stuck_commit_raises_its_version_key_above_a_later_commit() {
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

/// A commit with more changes than may be kept waits to become visible. Everything that its rules
/// match is deleted then, instead of its own keys.
#[test]
fn a_large_stuck_transaction_takes_bounded_memory() {
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

/// A server that shuts down cannot be asked what is visible, and must not wait for the answer.
#[test]
fn postgresql_can_be_shut_down_with_a_stuck_commit() {
    let mut world = World::shipped();
    let daemon = world.daemon();
    world.cache("v1:user:u1");
    world.hold_commits();
    let committing = world.stuck("update users set name = 'stuck' where id = 'u1'");
    world.wait_until_sent();
    let pid = world.postgres.pid().unwrap();
    assert!(unstale::sandbox::signal(pid, "INT"));
    wait_until(EVENT_MAX, "PostgreSQL ends", || !unstale::sandbox::signal(pid, "0"));
    // The server gave up the wait, and its client lost the connection.
    let _ = committing.join();
    world.postgres.stop();
    world.postgres.restart().unwrap();
    world.reconnect();
    daemon.wait_for_log("streaming");
    // The setting is still active, so only writes that do not wait are possible.
    world.sql("set synchronous_commit = local");
    world.sql("update users set name = 'after' where id = 'u2'");
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    assert_eq!(daemon.stop(), Some(0));
}

/// A daemon that has just started knows no partition yet, and looks up the stuck one first.
#[test]
fn a_stuck_commit_to_a_partition_delays_no_other() {
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

/// A stuck commit keeps the watermark from moving; Redis is checked all the same.
#[test]
fn an_emptied_redis_is_noticed_despite_a_stuck_commit() {
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

/// If Redis is unavailable for longer than `redis_down_max`, PostgreSQL can shut down although
/// nothing is confirmed.
#[test]
fn a_long_redis_outage_does_not_block_a_shutdown_of_postgresql() {
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

/// A batch that takes long does not mean that Redis is unavailable; otherwise it would be retried
/// forever.
#[test]
fn a_long_scan_does_not_count_as_a_redis_outage() {
    let rules = SHIPPED.replace("  namespace:", "  redis_down_max: 1s\n  namespace:");
    let mut world = World::with_rules(&rules);
    world.run_ok(&["setup"]);
    let proxy = Proxy::start(world.redis.port());
    world.redis_url = format!("redis://127.0.0.1:{}", proxy.port());
    let daemon = world.daemon();
    const MANY: &str = "for i = 1, 60000 do redis.call('SET', 'v1:user:x' .. i, 'cached') end return 1";
    let () = redis::cmd("EVAL").arg(MANY).arg(0).query(&mut world.redis()).unwrap();
    // About 60 steps of a scan, each with two round trips there and back.
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
fn the_heartbeat_reports_how_current_redis_is() {
    let world = World::shipped();
    let daemon = world.daemon();
    let asof = || world.redis().get::<_, Option<u64>>("v1:unstale:{unstale}:asof").unwrap().unwrap_or(0);
    let begin = now(&world);
    wait_until(EVENT_MAX, "an idle database is current", || asof() >= begin);
    assert!(asof() <= now(&world));
    // The same on a server that is never idle.
    let begin = now(&world);
    wait_until(EVENT_MAX, "a busy database is current, too", || {
        world.sql("update users set name = name || 'x' where id = 'u2'");
        asof() >= begin + 1000
    });
    // A stuck commit is not in force, so `asof` must not pass it.
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
