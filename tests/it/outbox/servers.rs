//! Failures of PostgreSQL, the daemon and Redis.
//!
//! Each test fails when a claim is committed before Redis answered without an error.

use unstale::sandbox::signal;

use super::{ORDERED, USERS, card, check, wait_until_drained};
use crate::proxy::{Fault, Proxy};
use crate::support::{EVENT_MAX, World, wait_until};

#[test]
fn changes_made_without_a_daemon_are_applied_by_the_next() {
    let world = World::outbox(USERS, "");
    assert_eq!(world.daemon().stop(), Some(0));
    world.cache("v1:user:u1");
    world.cache("v1:user:u2");
    world.sql("update users set name = 'x' where id = 'u1'");
    let daemon = world.daemon();
    world.settle();
    assert!(!world.holds("v1:user:u1") && world.holds("v1:user:u2"));
    assert_eq!(world.epoch(), 1);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn entries_stay_while_redis_is_unavailable() {
    let mut world = World::outbox(USERS, "");
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    world.redis.stop();
    world.sql("update users set name = 'meanwhile' where id = 'u2'");
    daemon.wait_for_log("invalidations wait for Redis");
    assert_eq!(world.entries(), 1);
    world.redis.restart().unwrap();
    world.cache("v1:user:u2");
    daemon.wait_for_log("streaming");
    world.settle();
    assert!(!world.holds("v1:user:u2"));
    assert_eq!(world.epochs_because("nothing-remembered"), 1, "it came back empty");
    wait_until_drained(&world);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn entries_stay_while_redis_is_frozen() {
    let world = World::outbox(USERS, "");
    let daemon = world.daemon();
    world.cache("v1:user:u1");
    let redis = world.redis.pid().unwrap();
    assert!(signal(redis, "STOP"));
    world.sql("update users set name = 'frozen' where id = 'u1'");
    daemon.wait_for_log("did not answer in time");
    assert_eq!(world.entries(), 1);
    assert!(signal(redis, "CONT"));
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    wait_until_drained(&world);
    assert_eq!(world.epoch(), 1);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn entries_and_watermark_stay_while_redis_refuses() {
    let world = World::outbox(USERS, "");
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    let run = |words: &[&str]| redis::cmd(words[0]).arg(&words[1..]).exec(&mut world.redis()).unwrap();
    for (refuse, allow) in [("-unlink", "+unlink"), ("-publish", "+publish")] {
        world.cache("v1:user:u2");
        run(&["ACL", "SETUSER", "default", refuse]);
        world.sql("update users set name = name || '!' where id = 'u2'");
        let token = world.token();
        daemon.wait_for_log("ACL of the user");
        assert!(world.entries() == 1 && world.applied() < token, "{refuse}");
        run(&["ACL", "SETUSER", "default", allow]);
        world.settle();
        assert!(!world.holds("v1:user:u2"), "{refuse}");
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_full_redis_accepts_deletes_and_refuses_sets() {
    let world = World::outbox(ORDERED, "");
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    assert_eq!(card(&world, "u1").as_deref(), Some("before"));
    world.cache("v1:user:u1");
    let mut redis = world.redis();
    redis::cmd("CONFIG").arg(&["SET", "maxmemory-policy", "noeviction"]).exec(&mut redis).unwrap();
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).exec(&mut redis).unwrap();
    world.sql("update users set name = 'full' where id = 'u1'");
    world.settle();
    assert!(!world.holds("v1:user:u1") && !world.holds("v1:card:u1"), "{:?}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn the_daemon_waits_for_a_restarted_postgresql() {
    let mut world = World::outbox(USERS, "");
    let daemon = world.daemon();
    for (round, how) in ["INT", "QUIT", "INT"].into_iter().enumerate() {
        let before = world.epoch();
        let pid = world.postgres.pid().unwrap();
        assert!(signal(pid, how));
        wait_until(EVENT_MAX, "PostgreSQL ends", || !signal(pid, "0"));
        world.postgres.stop();
        world.postgres.restart().unwrap();
        world.reconnect();
        world.cache("v1:user:u1");
        world.sql(&format!("update users set name = 'round {round}' where id = 'u1'"));
        daemon.wait_for_log("streaming");
        world.settle();
        assert!(!world.holds("v1:user:u1"), "{how}: {:?}", daemon.log());
        assert_eq!(world.epoch() - before, u64::from(how == "QUIT"), "only after an unclean stop: {:?}", daemon.log());
    }
    assert_eq!(daemon.stop(), Some(0));
}

/// Its claim is rolled back, so the entries are free again.
#[test]
fn a_session_terminated_during_a_claim_loses_nothing() {
    let mut world = World::outbox(USERS, "");
    world.database_url.push_str("?application_name=daemon");
    let proxy = Proxy::start(world.redis.port());
    world.redis_url = format!("redis://127.0.0.1:{}", proxy.port());
    let daemon = world.daemon();
    for round in 0..4 {
        world.cache("v1:user:u1");
        proxy.set(Fault::HalfOpen);
        world.sql(&format!("update users set name = 'round {round}' where id = 'u1'"));
        wait_until(EVENT_MAX, "it is in the middle of a claim", || world.claimed() == 1);
        world.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'daemon'");
        proxy.set(Fault::None);
        if round % 2 == 1 {
            proxy.cut();
        }
        world.settle();
        assert!(!world.holds("v1:user:u1"), "round {round}");
        wait_until_drained(&world);
    }
    check(&world, "update users set name = 'x' where id = 'u2'", &["v1:user:u2"], &["v1:user:u3"]);
    assert_eq!(world.epoch(), 1);
    assert_eq!(daemon.stop(), Some(0));
}

/// A commit whose answer is lost may have happened or not; nothing is lost either way.
#[test]
fn lost_answers_lose_no_entry() {
    let mut world = World::outbox(USERS, "");
    let (to_postgres, to_redis) = (Proxy::start(world.postgres.port()), Proxy::start(world.redis.port()));
    world.database_url = format!("postgres://postgres@127.0.0.1:{}/postgres", to_postgres.port());
    world.redis_url = format!("redis://127.0.0.1:{}", to_redis.port());
    let daemon = world.daemon();
    for (round, proxy) in [&to_postgres, &to_redis, &to_postgres, &to_redis].into_iter().enumerate() {
        world.cache("v1:user:u1");
        let cuts = proxy.cuts();
        proxy.set(Fault::CutAfterRequest);
        world.sql(&format!("update users set name = 'round {round}' where id = 'u1'"));
        wait_until(EVENT_MAX, "an answer is lost", || proxy.cuts() > cuts);
        proxy.set(Fault::None);
        world.settle();
        assert!(!world.holds("v1:user:u1"), "round {round}");
    }
    wait_until_drained(&world);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_daemon_stopped_during_a_claim_finishes_it() {
    let world = World::outbox(USERS, "");
    let mut daemon = world.daemon();
    let redis = world.redis.pid().unwrap();
    world.cache("v1:user:u1");
    assert!(signal(redis, "STOP"));
    world.sql("update users set name = 'stopped' where id = 'u1'");
    wait_until(EVENT_MAX, "it is in the middle of a claim", || world.claimed() == 1);
    daemon.signal("TERM");
    assert!(signal(redis, "CONT"));
    assert_eq!(daemon.wait(), Some(0));
    assert!(!world.holds("v1:user:u1"));
    assert_eq!(world.entries(), 0);
}
