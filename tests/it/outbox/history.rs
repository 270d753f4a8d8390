//! Proven history: after everything that PostgreSQL or Redis can lose, the cache is emptied, and
//! only then.

use unstale::sandbox::{Redis, signal};

use super::{USERS, stop_between_claims};
use crate::support::{EVENT_MAX, World, in_outbox_mode, template, wait_until};

/// Stops the daemon, changes something on the servers, and starts the daemon again with a value in
/// the cache that no invalidation will delete. If there was a reason to empty the cache, the value
/// must be gone and the epoch counted; otherwise the value must stay.
fn check(meanwhile: impl FnOnce(&mut World), reason: Option<&str>) {
    let mut world = World::outbox(USERS, "");
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    assert_eq!(daemon.stop(), Some(0));
    world.cache("v1:user:u9");
    world.cache("v1:other:x");
    meanwhile(&mut world);
    let daemon = world.daemon();
    world.sql("update users set name = 'after' where id = 'u2'");
    world.settle();
    assert_eq!(world.holds("v1:user:u9"), reason.is_none(), "{:?}", daemon.log());
    match reason {
        None => assert_eq!(world.epoch(), 1),
        Some(reason) => assert_eq!(world.epochs_because(reason), 1, "{:?}", daemon.log()),
    }
    assert_eq!(daemon.stop(), Some(0));
}

fn restart(world: &mut World, how: &str) {
    let pid = world.postgres.pid().unwrap();
    assert!(signal(pid, how));
    wait_until(EVENT_MAX, "PostgreSQL ends", || !signal(pid, "0"));
    world.postgres.stop();
    world.postgres.restart().unwrap();
    world.reconnect();
}

#[test]
fn an_ordinary_restart_keeps_the_cache() {
    check(|_| {}, None);
}

#[test]
fn another_setup_keeps_the_cache() {
    check(|world| drop(world.run_ok(&["setup"])), None);
}

#[test]
fn a_clean_restart_of_postgresql_keeps_the_cache() {
    check(|world| restart(world, "INT"), None);
}

/// With `synchronous_commit = off` a commit is visible before it is durable, so the value that a
/// reader cached may be lost.
#[test]
fn an_unclean_restart_of_postgresql_empties_the_cache() {
    let crash = |world: &mut World| {
        // A crash that loses log would show as well: our own commits need not be durable.
        world.sql("checkpoint");
        restart(world, "QUIT");
    };
    check(crash, Some("unclean-restart"));
}

/// Only the outbox's identity shows it: the log position continues, and the table has the same
/// name.
#[test]
fn a_recreated_outbox_empties_the_cache() {
    let remake = |world: &mut World| {
        world.run_ok(&["teardown"]);
        world.sql("update users set name = 'missed' where id = 'u9'");
        world.run_ok(&["setup"]);
    };
    check(remake, Some("other-source"));
}

/// Entries disappeared without being put into force. Only the count of batches and the outbox's
/// identity show it.
#[test]
fn an_outbox_recreated_while_the_daemon_runs_empties_the_cache() {
    let mut world = World::outbox(USERS, "");
    world.database_url.push_str("?application_name=daemon");
    let mut daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    // Teardown waits for transactions.
    stop_between_claims(&world, &daemon);
    world.run_ok(&["teardown"]);
    world.cache("v1:user:u9");
    world.sql("update users set name = 'missed' where id = 'u9'");
    world.run_ok(&["setup"]);
    daemon.signal("CONT");
    wait_until(EVENT_MAX, "the cache is emptied", || {
        // The daemon may exit and report what is missing; its supervisor starts it again.
        if daemon.has_ended() {
            daemon = world.daemon_unready();
        }
        !world.holds("v1:user:u9")
    });
    world.settle();
    assert_eq!(world.epoch(), 2, "{:?}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn an_emptied_redis_begins_a_new_epoch() {
    let flush = |world: &mut World| {
        redis::cmd("FLUSHALL").exec(&mut world.redis()).unwrap();
        world.cache("v1:user:u9");
    };
    check(flush, Some("nothing-remembered"));
}

#[test]
fn another_redis_begins_a_new_epoch() {
    let swap = |world: &mut World| {
        world.redis = Redis::start(&[]).unwrap();
        world.redis_url = world.redis.url();
        world.cache("v1:user:u9");
    };
    check(swap, Some("nothing-remembered"));
}

/// Redis returns to its state before the last batch, whose entries are gone. Only the count of
/// batches shows it: no running daemon remembers what Redis had.
#[test]
fn a_redis_restarted_from_an_older_snapshot_empties_the_cache() {
    let mut world = World::outbox(USERS, "");
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    world.cache("v1:user:u9");
    redis::cmd("SAVE").exec(&mut world.redis()).unwrap();
    world.sql("update users set name = 'after the snapshot' where id = 'u9'");
    world.settle();
    wait_until(EVENT_MAX, "it is confirmed", || world.entries() == 0);
    assert_eq!(daemon.stop(), Some(0));
    world.redis.stop();
    world.redis.restart().unwrap();
    assert!(world.holds("v1:user:u9"), "it came back");
    let daemon = world.daemon();
    assert!(!world.holds("v1:user:u9"));
    assert_eq!(world.epochs_because("gap"), 1, "{:?}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_redis_restarted_with_everything_confirmed_keeps_the_cache() {
    let snapshot = |world: &mut World| {
        redis::cmd("SAVE").exec(&mut world.redis()).unwrap();
        world.redis.stop();
        world.redis.restart().unwrap();
    };
    check(snapshot, None);
}

/// A running daemon notices it too; the count of batches keeps it from continuing.
#[test]
fn a_redis_that_loses_writes_while_the_daemon_runs_empties_the_cache() {
    let mut world = World::outbox(USERS, "");
    let daemon = world.daemon();
    world.cache("v1:user:u9");
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    redis::cmd("SAVE").exec(&mut world.redis()).unwrap();
    world.sql("update users set name = 'after the snapshot' where id = 'u9'");
    world.settle();
    world.redis.stop();
    world.redis.restart().unwrap();
    wait_until(EVENT_MAX, "the value that came back is gone again", || !world.holds("v1:user:u9"));
    daemon.wait_for_log("streaming");
    world.settle();
    assert_eq!(world.epoch(), 2, "{:?}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_promoted_standby_empties_the_cache() {
    let promote = |world: &mut World| {
        let standby = world.postgres.standby(&["hot_standby=on", "wal_level=replica"]).unwrap();
        world.postgres = standby;
        world.database_url = world.postgres.url("postgres");
        world.reconnect();
        world.sql("select pg_promote()");
    };
    check(promote, Some("other-timeline"));
}

#[test]
fn another_database_cluster_empties_the_cache() {
    let swap = |world: &mut World| {
        let postgres = template::start_another_system(&["wal_level=replica"]);
        let mut other = World::on(postgres, &in_outbox_mode(USERS), &[]);
        other.run_ok(&["setup"]);
        std::mem::swap(&mut world.postgres, &mut other.postgres);
        world.database_url.clone_from(&other.database_url);
        world.reconnect();
        // Far enough that the positions alone would look right.
        world.sql("select pg_switch_wal()");
    };
    check(swap, Some("other-system"));
}
