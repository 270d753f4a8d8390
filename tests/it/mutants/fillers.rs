//! Mutants of a reader that fills the cache: the lease, and the check of a replica.
//!
//! The reader is `unstale run --serve`. Its query waits for a lock after its snapshot was taken.

use std::thread;

use redis::Commands as _;
use unstale::mutant::Mutant;

use super::{Finding, LOCK, RULES, UNLOCK, WAITS, check, epochs, findings, world};
use crate::api::{Api, Hold};
use crate::support::{EVENT_MAX, World, connect, promote, wait_until};

/// The value of the key `held:u1`.
const HELD: &str = "select to_json(name)::text from users where id = 'u1'";

/// 1. A reader misses u1, gets the lease, and reads the primary: the query has its snapshot and
///    waits for a lock.
/// 2. A writer changes u1. When the change is in force, the lease is gone.
/// 3. The lock is free. The query gives the old name, and the reader wants to store it.
///
/// The mutant stores it without the lease.
#[test]
fn no_lease() {
    check(Mutant::NoLease, &Finding::Stale("v1:held:u1"), |mutant| {
        let api = Api::run(world(mutant), &[]);
        let before = epochs(&api.world);
        let hold = Hold::new(&api.world);
        let client = api.client();
        let reading = thread::spawn(move || client.get("/held/u1"));
        hold.wait_for(1);
        api.world.sql("update users set name = 'new' where id = 'u1'");
        api.world.settle();
        hold.release();
        assert_eq!(reading.join().unwrap().status, 200);
        findings(&api.world, &before, "v1:held:u1", HELD)
    });
}

/// 1. The replica does not replay. A writer changes u1, and the change is in force.
/// 2. A reader misses u1 and gets the lease. The replica has not replayed enough, so it reads the
///    primary.
/// 3. If it reads the replica all the same, the query has its snapshot there and waits for a lock.
/// 4. The replica replays everything. The lock is free.
///
/// The mutant reads the replica first and asks then how far it has come: far enough, but only since
/// the snapshot. It stores the old name.
#[test]
fn replica_check_too_late() {
    check(Mutant::ReplicaCheckTooLate, &Finding::Stale("v1:held:u1"), |mutant| {
        let mut world = World::with_rules(&RULES.replace(", REPLICA", ""));
        world.mutant = mutant;
        world.run_ok(&["setup"]);
        let replica = world.postgres.standby(&["hot_standby=on"]).unwrap();
        world.reconnect();
        let url = replica.url("postgres");
        world.write_rules(&RULES.replace("REPLICA", &format!("replica_url: \"{url}\"")));
        let api = Api::run(world, &[]);
        let before = epochs(&api.world);
        let [replay, locked] = [&url; 2].map(|url| api.world.block_on(connect(url)));
        api.world.sql_on(&locked, LOCK);
        api.world.sql_on(&replay, "select pg_wal_replay_pause()");
        let ask = |sql: &str| api.world.value_on(&replay, sql);
        wait_until(EVENT_MAX, "replay is paused", || ask("select pg_get_wal_replay_pause_state()") == "paused");
        api.world.sql("update users set name = 'new' where id = 'u1'");
        api.world.settle();
        let client = api.client();
        let reading = thread::spawn(move || client.get("/held/u1"));
        wait_until(EVENT_MAX, "it has answered, or waits", || reading.is_finished() || ask(WAITS) == "true");
        let position = api.world.value("select pg_current_wal_flush_lsn()::text");
        api.world.sql_on(&replay, "select pg_wal_replay_resume()");
        let replayed = format!("select (pg_last_wal_replay_lsn() >= '{position}')::text");
        wait_until(EVENT_MAX, "everything is replayed", || ask(&replayed) == "true");
        api.world.sql_on(&locked, UNLOCK);
        assert_eq!(reading.join().unwrap().status, 200);
        findings(&api.world, &before, "v1:held:u1", HELD)
    });
}

/// 1. The primary has two standbys. One is promoted, which begins timeline 2, and the application
///    and the daemon go on with it. The other goes on with the old primary, and replays more of
///    timeline 1 than timeline 2 has.
/// 2. A writer changes u1, and the change is in force.
/// 3. A reader misses u1, gets the lease, and asks the replica how far it has replayed: further
///    than the change, by the number alone.
///
/// The mutant reads the replica, which does not have the change, and stores the old name.
#[test]
fn replica_without_history() {
    check(Mutant::ReplicaWithoutHistory, &Finding::Stale("v1:held:u1"), |mutant| {
        let mut world = World::with_rules(&RULES.replace(", REPLICA", ""));
        let promoted = world.postgres.standby(&[]).unwrap();
        let replica = world.postgres.standby(&[]).unwrap();
        let url = replica.url("postgres");
        let old = promote(&mut world, promoted);
        world.mutant = mutant;
        world.write_rules(&RULES.replace("REPLICA", &format!("replica_url: \"{url}\"")));
        world.run_ok(&["setup"]);
        let left = world.block_on(connect(&old.url("postgres")));
        world.sql_on(&left, "select pg_logical_emit_message(false, 'left', repeat('x', 50000000))");
        let api = Api::run(world, &[]);
        let before = epochs(&api.world);
        api.world.sql("update users set name = 'new' where id = 'u1'");
        api.world.settle();
        let position = api.world.value("select pg_current_wal_insert_lsn()::text");
        let behind = api.world.block_on(connect(&url));
        let replayed = format!("select (pg_last_wal_replay_lsn() > '{position}')::text");
        wait_until(EVENT_MAX, "it is ahead", || api.world.value_on(&behind, &replayed) == "true");
        assert_eq!(api.get("/held/u1").status, 200);
        findings(&api.world, &before, "v1:held:u1", HELD)
    });
}

/// 1. A reader fills a value that only its tag finds.
/// 2. Redis evicts the set of the tag.
/// 3. A writer changes u1, and the change is in force.
///
/// The mutant serves the value, although a rule removes it by its tag: it does not ask for the
/// generation that the value names.
#[test]
fn tags_by_set() {
    const TAGGED: &str = r#"
  tagged:
    path: /tagged/{id}
    key: "tagged:{id}"
    tags: "user:{id}"
    sql: select to_json(u.name) from users u where u.id = $1
"#;
    let rules = RULES.replace(", REPLICA", "").replace("\"held:{id}\"]}", "\"held:{id}\"], tags: \"user:{id}\"}");
    check(Mutant::TagsBySet, &Finding::ServedTooOld("v1:tagged:u1"), |mutant| {
        let mut world = World::with_rules(&format!("{rules}{TAGGED}"));
        world.mutant = mutant;
        world.run_ok(&["setup"]);
        let api = Api::run(world, &[]);
        let before = epochs(&api.world);
        api.warm("/tagged/u1");
        let _: () = api.world.redis().del("v1:tag:user:u1").unwrap();
        api.world.sql("update users set name = 'new' where id = 'u1'");
        api.world.settle();
        let is_old = api.get("/tagged/u1").text() != "\"new\"";
        let found = findings(&api.world, &before, "v1:held:u1", HELD);
        is_old.then_some(Finding::ServedTooOld("v1:tagged:u1")).into_iter().chain(found).collect()
    });
}
