//! Failures between PostgreSQL, the daemon and Redis; each test causes one.

use redis::Commands as _;
use unstale::sandbox::signal;

use crate::support::{EVENT_MAX, World, wait_until};

#[test]
fn a_killed_daemon_loses_nothing() {
    let world = World::shipped();
    for round in 0..10 {
        let daemon = world.daemon();
        let key = format!("v1:user:u{}", round % 10 + 1);
        world.cache(&key);
        // Killed immediately, so in some rounds before the change was applied and in some after it.
        world.sql(&format!("update users set name = 'round {round}' where id = 'u{}'", round % 10 + 1));
        daemon.signal("KILL");
        drop(daemon);
        let daemon = world.daemon();
        world.settle();
        assert!(!world.holds(&key), "round {round}");
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn nothing_is_confirmed_during_a_redis_outage_and_all_is_applied_after_it() {
    let mut world = World::shipped();
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    world.redis.stop();
    world.sql("update users set name = 'meanwhile' where id = 'u2'");
    let behind = world.value("select pg_current_wal_lsn()::text").parse().unwrap();
    daemon.wait_for_log("invalidations wait for Redis");
    world.wait_until_sent();
    assert!(world.confirmed() < behind);
    world.redis.restart().unwrap();
    world.cache("v1:user:u2");
    daemon.wait_for_log("streaming");
    world.settle();
    assert!(!world.holds("v1:user:u2"));
    assert_eq!(world.epochs_because("nothing-remembered"), 1, "it came back empty, and with it the count");
    let said = daemon.log().iter().filter(|line| line.contains("invalidations wait")).count();
    assert_eq!(said, 1, "said once, not at every try");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_frozen_redis_is_retried_while_keepalives_continue() {
    let world = World::with(crate::support::SHIPPED, &["wal_sender_timeout=3s"], &[]);
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    let walsender = "select pid::text from pg_stat_replication";
    let before = world.value(walsender);
    world.cache("v1:user:u1");
    let redis = world.redis.pid().unwrap();
    assert!(signal(redis, "STOP"));
    world.sql("update users set name = 'frozen' where id = 'u1'");
    // Redis does not answer for longer than our timeout and three times the walsender's.
    daemon.wait_for_log("did not answer in time");
    assert!(signal(redis, "CONT"));
    // Either connection may have timed out.
    daemon.wait_for_log("Redis accepts");
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    assert_eq!(world.value(walsender), before, "the connection was never dropped");
    assert_eq!(daemon.stop(), Some(0));
}

/// `applied` must not pass an op that was refused, so it cannot be sent in the same pipeline.
#[test]
fn a_refused_command_holds_back_the_watermark() {
    let world = World::shipped();
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    let applied = world.applied();
    let refusals: &[(&[&str], &[&str], &str)] = &[
        (&["ACL", "SETUSER", "default", "-unlink"], &["ACL", "SETUSER", "default", "+unlink"], "ACL of the user"),
        (&["ACL", "SETUSER", "default", "-publish"], &["ACL", "SETUSER", "default", "+publish"], "ACL of the user"),
        (
            &["CONFIG", "SET", "min-replicas-to-write", "3"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
            "replicas",
        ),
    ];
    let mut applied = applied;
    for (refuse, allow, advice) in refusals {
        let run = |words: &[&str]| {
            let mut command = redis::cmd(words[0]);
            command.arg(&words[1..]);
            command.exec(&mut world.redis()).unwrap();
        };
        world.cache("v1:user:u2");
        run(refuse);
        world.sql("update users set name = name || '!' where id = 'u2'");
        daemon.wait_for_log(advice);
        assert_eq!(world.applied(), applied, "{refuse:?}");
        run(allow);
        world.settle();
        assert!(!world.holds("v1:user:u2"), "{refuse:?}");
        applied = world.applied();
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_full_redis_still_accepts_deletes_bumps_and_watermarks() {
    let world = World::shipped();
    let daemon = world.daemon();
    world.cache("v1:user:u1");
    world.cache("v1:flags:o1");
    let mut redis = world.redis();
    redis::cmd("CONFIG").arg(&["SET", "maxmemory-policy", "noeviction"]).exec(&mut redis).unwrap();
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).exec(&mut redis).unwrap();
    let refused: redis::RedisResult<()> = redis.set("x", "y");
    assert_eq!(refused.unwrap_err().code(), Some("OOM"));
    world.sql("update users set name = 'x' where id = 'u1'; update feature_flags set enabled = not enabled");
    world.settle();
    assert!(!world.holds("v1:user:u1") && !world.holds("v1:flags:o1") && world.holds("v1:flags-version:o1"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn flushed_scripts_are_reloaded() {
    let world = World::shipped();
    let daemon = world.daemon();
    redis::cmd("SCRIPT").arg("FLUSH").exec(&mut world.redis()).unwrap();
    world.cache("v1:user:u1");
    world.sql("update users set name = 'x' where id = 'u1'");
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn the_daemon_waits_for_a_crashed_postgresql() {
    let mut world = World::shipped();
    let daemon = world.daemon();
    for round in 0..3 {
        world.postgres.stop();
        daemon.wait_for_log("no replication");
        world.postgres.restart().unwrap();
        world.reconnect();
        daemon.wait_for_log("streaming");
        world.cache("v1:user:u1");
        world.sql(&format!("update users set name = 'round {round}' where id = 'u1'"));
        world.settle();
        assert!(!world.holds("v1:user:u1"));
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_terminated_walsender_is_replaced() {
    let world = World::shipped();
    let daemon = world.daemon();
    for round in 0..5 {
        world.cache("v1:user:u1");
        world.sql(&format!(
            "select pg_terminate_backend(pid) from pg_stat_replication; update users set name = 'round {round}' where id = 'u1'"
        ));
        world.settle();
        assert!(!world.holds("v1:user:u1"), "round {round}");
        daemon.wait_for_log("streaming");
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_long_backlog_is_drained_without_losing_the_connection() {
    let world = World::with(crate::support::SHIPPED, &["wal_sender_timeout=3s"], &[]);
    world.run_ok(&["setup"]);
    world.sql(
        "insert into users (id, email, name) select 'b' || n, 'b' || n, 'n' from generate_series(1, 400000) n;
         insert into users (id, email, name) values ('last', 'last', 'n')",
    );
    world.cache("v1:user:last");
    let daemon = world.daemon();
    world.settle_within(4 * EVENT_MAX);
    assert!(!world.holds("v1:user:last"));
    let log = daemon.log();
    assert!(!log.iter().any(|line| line.contains("no replication")), "{log:?}");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_second_daemon_stands_by_and_takes_over() {
    let world = World::shipped();
    let first = world.daemon();
    let second = world.daemon_unready();
    second.wait_for_log("another process is reading this slot");
    first.signal("KILL");
    drop(first);
    second.wait_for_log("streaming");
    world.cache("v1:user:u1");
    world.sql("update users set name = 'x' where id = 'u1'");
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    assert_eq!(second.stop(), Some(0));
}

#[test]
fn a_stopped_daemon_applies_what_it_received() {
    let world = World::shipped();
    let mut daemon = world.daemon();
    let redis = world.redis.pid().unwrap();
    for number in 1..=10 {
        world.cache(&format!("v1:user:u{number}"));
    }
    assert!(signal(redis, "STOP"));
    world.sql("update users set name = 'stopped'");
    world.wait_until_sent();
    daemon.signal("TERM");
    assert!(signal(redis, "CONT"));
    assert_eq!(daemon.wait(), Some(0));
    let left: Vec<String> = world.redis().keys("v1:user:*").unwrap();
    assert_eq!(left, [""; 0]);
    // The daemon sent the confirmation before it exited; the walsender may process it later.
    wait_until(EVENT_MAX, "what is applied is confirmed", || world.confirmed() >= world.applied());
}

#[test]
fn a_daemon_stopped_during_a_redis_outage_exits_within_its_limit() {
    let mut world = World::shipped();
    let mut daemon = crate::support::Daemon::start(world.command(&["run", "--drain-max", "200ms"]));
    daemon.wait_for_log("streaming");
    world.redis.stop();
    world.sql("update users set name = 'x'");
    daemon.wait_for_log("invalidations wait for Redis");
    daemon.signal("INT");
    assert_eq!(daemon.wait(), Some(0));
    assert!(daemon.log().join("\n").contains("it will be sent again"), "{:?}", daemon.log());
    world.redis.restart().unwrap();
    world.cache("v1:user:u1");
    let daemon = world.daemon();
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    assert_eq!(daemon.stop(), Some(0));
}
