//! Proven history: after everything that PostgreSQL or Redis can lose, the cache is emptied, and
//! only then.

use redis::Commands as _;

use crate::support::{Daemon, EVENT_MAX, SHIPPED, World, next_message, wait_until};

/// Stops the daemon, changes something on the servers, and starts the daemon again with a value in
/// the cache that no invalidation will delete. If there was a reason to empty the cache, the value
/// must be gone and the epoch counted; otherwise the value must stay.
fn check(mut world: World, meanwhile: impl FnOnce(&mut World), reason: Option<&str>) {
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    assert_eq!(daemon.stop(), Some(0));
    let active = "select count(active_pid)::text from pg_replication_slots";
    wait_until(EVENT_MAX, "PostgreSQL sees that it left", || world.value(active) == "0");
    let before = world.epoch();
    world.cache("v1:user:u9");
    world.cache("v1:other:x");
    meanwhile(&mut world);
    let daemon = world.daemon();
    world.sql("update users set name = 'after' where id = 'u2'");
    world.settle();
    assert_eq!(world.holds("v1:user:u9"), reason.is_none(), "{:?}", daemon.log());
    assert!(world.holds("v1:other:x"), "a key that no rule names is not ours");
    match reason {
        None => assert_eq!(world.epoch(), before),
        Some(reason) => assert_eq!(world.epochs_because(reason), 1, "{:?}", daemon.log()),
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn an_ordinary_restart_keeps_the_cache() {
    check(World::shipped(), |_| {}, None);
}

#[test]
fn a_clean_restart_of_postgresql_keeps_the_cache() {
    let restart = |world: &mut World| {
        let pid = world.postgres.pid().unwrap();
        assert!(unstale::sandbox::signal(pid, "INT"));
        wait_until(EVENT_MAX, "PostgreSQL ends", || !unstale::sandbox::signal(pid, "0"));
        world.postgres.stop();
        world.postgres.restart().unwrap();
        world.reconnect();
    };
    check(World::shipped(), restart, None);
}

/// With `synchronous_commit = off` a commit is visible before it is durable, so the value that a
/// reader cached may be lost.
#[test]
fn an_unclean_restart_of_postgresql_empties_the_cache() {
    let crash = |world: &mut World| {
        world.sql("set synchronous_commit = off; update users set name = 'phantom' where id = 'u9'");
        world.postgres.stop();
        world.postgres.restart().unwrap();
        world.reconnect();
    };
    check(World::shipped(), crash, Some("unclean-restart"));
}

/// If a backend crashes, the server restarts in place; its start time stays.
#[test]
fn a_crashed_backend_empties_the_cache() {
    let crash = |world: &mut World| {
        let backend = world.value("select pg_backend_pid()::text");
        let recovered = "select stats_reset::text from pg_stat_archiver";
        let before = world.value(recovered);
        assert!(unstale::sandbox::signal(backend.parse().unwrap(), "KILL"));
        let again = || world.try_value(recovered).is_some_and(|now| now != before);
        wait_until(EVENT_MAX, "PostgreSQL recovered", again);
        world.reconnect();
    };
    check(World::shipped(), crash, Some("unclean-restart"));
}

#[test]
fn a_recreated_slot_empties_the_cache() {
    let recreate = |world: &mut World| {
        world.sql("select pg_drop_replication_slot('unstale')");
        world.sql("update users set name = 'missed' where id = 'u9'");
        world.run_ok(&["setup"]);
    };
    check(World::shipped(), recreate, Some("gap"));
}

#[test]
fn a_slot_that_was_advanced_empties_the_cache() {
    let advance = |world: &mut World| {
        world.sql("update users set name = 'missed' where id = 'u9'");
        world.sql("select pg_replication_slot_advance('unstale', pg_current_wal_lsn())");
    };
    check(World::shipped(), advance, Some("gap"));
}

/// Makes the server remove log that the slot needs.
fn lose_slot(world: &World) {
    world.sql("update users set name = 'missed' where id = 'u9'");
    for _ in 0..3 {
        world.sql("create table if not exists ballast (n int); insert into ballast values (1)");
        world.sql("select pg_switch_wal()");
        world.sql("checkpoint");
    }
    assert_eq!(world.value("select wal_status from pg_replication_slots"), "lost");
}

#[test]
fn a_lost_slot_is_recreated_and_the_cache_emptied() {
    let world = World::with(SHIPPED, &["max_slot_wal_keep_size=1MB"], &[]);
    world.run_ok(&["setup"]);
    check(world, |world| lose_slot(world), Some("gap"));
}

/// Redis delays everything, and PostgreSQL runs out of room: it ends the walsender and invalidates
/// the slot.
#[test]
fn a_slot_lost_while_streaming_is_recreated() {
    let world = World::with(SHIPPED, &["max_slot_wal_keep_size=1MB"], &[]);
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    world.cache("v1:user:u9");
    let redis = world.redis.pid().unwrap();
    assert!(unstale::sandbox::signal(redis, "STOP"));
    world.sql("update users set name = 'held up' where id = 'u9'");
    lose_slot(&world);
    assert!(unstale::sandbox::signal(redis, "CONT"));
    daemon.wait_for_log("created again");
    daemon.wait_for_log("streaming");
    assert!(!world.holds("v1:user:u9"));
    assert_eq!(world.epochs_because("gap"), 1, "{:?}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
}

/// The address leads to a server that has become a replica: the daemon must not write there, nor
/// confirm anything.
#[test]
fn the_daemon_waits_while_redis_is_a_replica() {
    let world = World::shipped();
    let daemon = world.daemon();
    let other = unstale::sandbox::Redis::start(&[]).unwrap();
    world.cache("v1:user:u9");
    let () = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(other.port()).query(&mut world.redis()).unwrap();
    world.sql("update users set name = 'meanwhile' where id = 'u9'");
    daemon.wait_for_log("this is a replica");
    let () = redis::cmd("REPLICAOF").arg("NO").arg("ONE").query(&mut world.redis()).unwrap();
    daemon.wait_for_log("streaming");
    world.settle();
    assert!(!world.holds("v1:user:u9"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_slot_dropped_while_the_daemon_runs_is_recreated() {
    let world = World::shipped();
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    world.cache("v1:user:u9");
    world.sql(
        "do $$ begin perform pg_terminate_backend(pid) from pg_stat_replication;
         loop begin perform pg_drop_replication_slot('unstale'); exit;
         exception when object_in_use then perform pg_terminate_backend(pid) from pg_stat_replication; end; end loop; end $$;
         update users set name = 'missed' where id = 'u9'",
    );
    daemon.wait_for_log("created again");
    daemon.wait_for_log("streaming");
    assert!(!world.holds("v1:user:u9"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn without_slot_and_publication_the_daemon_exits_with_advice() {
    let world = World::shipped();
    let mut daemon = world.daemon();
    world.sql("drop publication unstale");
    world.sql("select pg_terminate_backend(pid) from pg_stat_replication");
    assert_eq!(daemon.wait(), Some(78), "{:?}", daemon.log());
    assert!(daemon.log().join("\n").contains("unstale setup"), "{:?}", daemon.log());
}

/// Log from before the publication existed cannot be decoded: PostgreSQL 15 to 17 always fail on
/// it, 18 skips it with a warning.
#[test]
fn a_recreated_publication_empties_the_cache() {
    let gone = |world: &mut World| {
        world.sql("drop publication unstale");
        world.sql("update users set name = 'missed' where id = 'u9'");
        world.run_ok(&["setup"]);
    };
    check(World::shipped(), gone, Some("gap"));
}

#[test]
fn another_database_cluster_empties_the_cache() {
    let swap = |world: &mut World| {
        let mut other = World::shipped_on_another_system();
        std::mem::swap(&mut world.postgres, &mut other.postgres);
        world.database_url.clone_from(&other.database_url);
        world.reconnect();
        // Far enough that the positions alone would look right.
        world.sql("select pg_switch_wal()");
    };
    check(World::shipped(), swap, Some("other-system"));
}

#[test]
fn a_promoted_standby_empties_the_cache() {
    let promote = |world: &mut World| {
        let standby = world.postgres.standby(&["hot_standby=on"]).unwrap();
        world.postgres = standby;
        world.database_url = world.postgres.url("postgres");
        world.reconnect();
        world.sql("select pg_promote()");
        world.run_ok(&["setup"]);
    };
    check(World::shipped(), promote, Some("other-timeline"));
}

/// The server's files are restored: the same cluster, the same timeline, an older log.
#[test]
fn a_postgresql_restored_from_a_copy_empties_the_cache() {
    let mut world = World::shipped();
    let data = world.postgres.data_directory();
    let copy = data.with_extension("copy");
    let run = |arguments: &[&std::path::Path]| {
        assert!(std::process::Command::new("cp").arg("-a").args(arguments).status().unwrap().success());
    };
    world.postgres.stop();
    run(&[&data, &copy]);
    world.postgres.restart().unwrap();
    world.reconnect();
    let restore = |world: &mut World| {
        world.postgres.stop();
        std::fs::remove_dir_all(&data).unwrap();
        run(&[&copy, &data]);
        world.postgres.restart().unwrap();
        world.reconnect();
    };
    world.sql("insert into users (id, email, name) select 'x' || n, 'x' || n, '' from generate_series(1, 20000) n");
    check(world, restore, Some("log-went-back"));
}

/// A Redis that keeps losing its data must not make the daemon empty the cache, and load the
/// database, all the time.
#[test]
fn new_epochs_are_rate_limited() {
    let world = World::shipped();
    let daemon = world.daemon();
    for _ in 0..4 {
        redis::cmd("FLUSHALL").exec(&mut world.redis()).unwrap();
        daemon.wait_for_log("a new epoch");
        daemon.wait_for_log("streaming");
    }
    redis::cmd("FLUSHALL").exec(&mut world.redis()).unwrap();
    daemon.wait_for_log("too many new epochs");
    world.cache("v1:user:u1");
    world.sql("update users set name = 'x' where id = 'u1'");
    world.wait_until_sent();
    assert!(world.holds("v1:user:u1"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn an_emptied_redis_begins_an_epoch_with_a_new_number() {
    let world = World::shipped();
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    redis::cmd("FLUSHALL").exec(&mut world.redis()).unwrap();
    world.cache("v1:user:u9");
    world.sql("update users set name = 'after' where id = 'u2'");
    daemon.wait_for_log("a new epoch");
    world.settle();
    assert!(!world.holds("v1:user:u9"));
    assert_eq!(world.epoch(), 2);
    assert_eq!(daemon.stop(), Some(0));
}

/// Redis restarts with the dataset of a snapshot that is older than what was recorded.
#[test]
fn a_redis_restarted_from_an_older_snapshot_empties_the_cache() {
    let mut world = World::shipped();
    let daemon = world.daemon();
    world.cache("v1:user:u9");
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    redis::cmd("SAVE").exec(&mut world.redis()).unwrap();
    world.sql("update users set name = 'after the snapshot' where id = 'u9'");
    world.settle();
    assert!(!world.holds("v1:user:u9"));
    world.redis.stop();
    world.redis.restart().unwrap();
    daemon.wait_for_log("lost writes");
    daemon.wait_for_log("streaming");
    assert!(!world.holds("v1:user:u9"), "the value that came back is gone again");
    assert_eq!(world.epochs_because("redis-went-back"), 1);
    assert_eq!(daemon.stop(), Some(0));
}

/// Ops that were answered but not recorded are lost; the watermark does not include them, so they
/// are sent again.
#[test]
fn a_redis_restarted_with_everything_recorded_keeps_the_cache() {
    let mut world = World::shipped();
    let daemon = world.daemon();
    world.cache("v1:user:u9");
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    wait_until(EVENT_MAX, "what is applied is confirmed", || world.confirmed() >= world.applied());
    daemon.signal("STOP");
    redis::cmd("SAVE").exec(&mut world.redis()).unwrap();
    world.redis.stop();
    world.redis.restart().unwrap();
    daemon.signal("CONT");
    daemon.wait_for_log("streaming");
    world.sql("update users set name = 'after' where id = 'u2'");
    world.settle();
    assert!(world.holds("v1:user:u9"));
    assert_eq!(world.epoch(), 1);
    assert_eq!(daemon.stop(), Some(0));
}

/// A replica that is promoted may lack the last writes that the old primary had recorded.
#[test]
fn a_redis_failover_empties_the_cache_only_if_writes_were_lost() {
    for lossy in [false, true] {
        let mut world = World::shipped();
        let replica = unstale::sandbox::Redis::start(&[]).unwrap();
        let mut on_replica = redis::Client::open(replica.url()).unwrap().get_connection().unwrap();
        redis::cmd("REPLICAOF").arg("127.0.0.1").arg(world.redis.port()).exec(&mut on_replica).unwrap();
        let proxy = crate::proxy::Proxy::start(world.redis.port());
        world.redis_url = format!("redis://127.0.0.1:{}", proxy.port());
        let daemon = world.daemon();
        world.cache("v1:user:u9");
        world.cache("v1:user:u8");
        world.sql("update users set name = 'before' where id = 'u1'");
        world.settle();
        wait_until(EVENT_MAX, "what is applied is confirmed", || world.confirmed() >= world.applied());
        let applied = "v1:unstale:{unstale}:applied";
        let has_all = |connection: &mut redis::Connection| {
            let copied: Option<String> = connection.get(applied).unwrap_or_default();
            copied.is_some_and(|copied| copied == world.redis().get::<_, String>(applied).unwrap())
        };
        wait_until(EVENT_MAX, "the replica has everything", || has_all(&mut on_replica));
        if lossy {
            redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut on_replica).unwrap();
            world.sql("update users set name = 'lost in the failover' where id = 'u9'");
            world.settle();
        }
        // The old primary fails, and its address leads to the new one.
        daemon.signal("STOP");
        redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut on_replica).unwrap();
        proxy.retarget(replica.port());
        proxy.cut();
        daemon.signal("CONT");
        daemon.wait_for_log("Redis was replaced");
        world.redis = replica;
        daemon.wait_for_log("streaming");
        assert_eq!(world.holds("v1:user:u8"), !lossy);
        assert!(!lossy || !world.holds("v1:user:u9"));
        assert_eq!(world.epochs_because("redis-went-back"), u64::from(lossy));
        assert_eq!(daemon.stop(), Some(0));
    }
}

/// Redis then takes a new replication id, although it is the same server with the same values.
#[test]
fn the_first_replica_of_redis_keeps_the_cache() {
    let world = World::shipped();
    let daemon = world.daemon();
    world.cache("v1:user:u9");
    let replid = || {
        let info: String = redis::cmd("INFO").arg("replication").query(&mut world.redis()).unwrap();
        info.lines().find_map(|line| line.strip_prefix("master_replid:")).unwrap().to_owned()
    };
    let before = replid();
    let replica = unstale::sandbox::Redis::start(&[]).unwrap();
    let mut on_replica = redis::Client::open(replica.url()).unwrap().get_connection().unwrap();
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(world.redis.port()).exec(&mut on_replica).unwrap();
    wait_until(EVENT_MAX, "Redis takes a new id", || replid() != before);
    // Twice, so that the daemon has queried Redis in between.
    for _ in 0..2 {
        let asof = || world.redis().get::<_, Option<u64>>("v1:unstale:{unstale}:asof").unwrap();
        let last = asof();
        wait_until(EVENT_MAX, "the heart beats", || asof() > last);
    }
    assert!(world.holds("v1:user:u9"));
    assert_eq!(world.epoch(), 1, "{:?}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_flush_can_be_requested() {
    let world = World::shipped();
    let daemon = world.daemon();
    assert_eq!(daemon.stop(), Some(0));
    world.cache("v1:user:u9");
    for number in 0..2500 {
        world.cache(&format!("v1:flags:o{number}"));
    }
    let daemon = Daemon::start(world.command(&["run", "--flush"]));
    daemon.wait_for_log("streaming");
    assert_eq!(world.redis().keys::<_, Vec<String>>("v1:[^u]*").unwrap(), [""; 0]);
    assert!(!world.holds("v1:user:u9"));
    assert_eq!(world.epochs_because("asked"), 1);
    assert_eq!(daemon.stop(), Some(0));
}

/// A flush that was interrupted has left Redis without the proof of history.
#[test]
fn an_interrupted_flush_is_repeated() {
    let world = World::shipped();
    assert_eq!(world.daemon().stop(), Some(0));
    world.cache("v1:user:u9");
    // `begin` has run and `prove` has not.
    let _: () = world.redis().del(&["v1:unstale:{unstale}:applied", "v1:unstale:{unstale}:origin"]).unwrap();
    let daemon = world.daemon();
    assert!(!world.holds("v1:user:u9"));
    assert_eq!(world.epoch(), 2);
    assert_eq!(daemon.stop(), Some(0));
}

/// A rule's glob may match the names of our own state, and so may a value.
#[test]
fn no_rule_can_delete_our_own_state() {
    const RULES: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  user: {table: users, delete: 'u{id}', bump: 'unst{id}', publish: {channel: 'inv{id}', data: {id: '{id}'}}}
";
    let world = World::with_rules(RULES);
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    world.cache("v1:ux");
    let mut connection = world.redis();
    connection.set_read_timeout(Some(EVENT_MAX)).unwrap();
    let mut subscriber = connection.as_pubsub();
    subscriber.subscribe("v1:invalidations").unwrap();
    world.sql("insert into users (id, email, name) values ('nstale:{unstale}:applied', 'x', 'x'), ('ale:{unstale}:epoch', 'y', 'y'), ('alidations', 'z', 'z')");
    world.settle();
    let message: String = next_message(&mut subscriber).get_payload().unwrap();
    assert!(message.contains("\"epoch\""), "the first that is heard is our own: {message}");
    world.sql("truncate users cascade");
    world.settle();
    assert!(!world.holds("v1:ux"));
    assert_eq!(world.epoch(), 1, "{:?}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
    let daemon = Daemon::start(world.command(&["run", "--flush"]));
    daemon.wait_for_log("streaming");
    assert_eq!((world.epoch(), world.epochs_because("asked")), (2, 1));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_new_epoch_is_broadcast() {
    let world = World::shipped();
    assert_eq!(world.daemon().stop(), Some(0));
    let mut connection = world.redis();
    connection.set_read_timeout(Some(EVENT_MAX)).unwrap();
    let mut subscriber = connection.as_pubsub();
    subscriber.subscribe("v1:invalidations").unwrap();
    let daemon = Daemon::start(world.command(&["run", "--flush"]));
    let payload: String = next_message(&mut subscriber).get_payload().unwrap();
    let message: serde_json::Value = serde_json::from_str(&payload).unwrap();
    assert_eq!(message["epoch"], 2);
    let globs: Vec<_> = message["ops"].as_array().unwrap().iter().map(|op| op["key"].as_str().unwrap()).collect();
    assert!(globs.contains(&"v1:user:*") && globs.contains(&"v1:flags-version:*"), "{globs:?}");
    daemon.wait_for_log("streaming");
    assert_eq!(daemon.stop(), Some(0));
}
