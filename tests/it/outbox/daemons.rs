//! Several daemons on one outbox.

use redis::Commands as _;
use unstale::sandbox::signal;

use super::{ORDERED, USERS, card, check, streamed, wait_until_drained};
use crate::proxy::{Fault, Proxy};
use crate::support::{Daemon, EVENT_MAX, World, in_outbox_mode, wait_until};

/// What happens to a daemon that stopped during a claim.
#[derive(Clone, Copy, Debug)]
enum Then {
    Killed,
    Thawed,
}

/// Without SKIP LOCKED the second daemon waits for the first one's locks. With a watermark that
/// considers only its own claims, it passes what the first one holds.
#[test]
fn an_unfinished_claim_blocks_no_other_daemon() {
    for then in [Then::Killed, Then::Thawed] {
        let mut world = World::outbox(USERS, "");
        let proxy = Proxy::start(world.redis.port());
        let direct = std::mem::replace(&mut world.redis_url, format!("redis://127.0.0.1:{}", proxy.port()));
        let first = world.daemon();
        world.redis_url = direct;
        world.cache("v1:user:u1");
        proxy.set(Fault::HalfOpen);
        world.sql("update users set name = 'held' where id = 'u1'");
        let token = world.token();
        wait_until(EVENT_MAX, "the first one is in the middle of a claim", || world.claimed() == 1);
        first.signal("STOP");
        assert_eq!(world.claimed(), 1, "it still has it");

        let second = world.daemon();
        for round in 0..3 {
            world.cache("v1:user:u2");
            world.sql(&format!("update users set name = 'round {round}' where id = 'u2'"));
            wait_until(EVENT_MAX, "the second one goes on with the rest", || !world.holds("v1:user:u2"));
        }
        assert!(world.holds("v1:user:u1") && world.applied() < token, "{then:?}: {:?}", second.log());
        match then {
            Then::Killed => first.signal("KILL"),
            Then::Thawed => {
                proxy.set(Fault::None);
                first.signal("CONT");
            }
        }
        world.settle();
        assert!(!world.holds("v1:user:u1"), "{then:?}");
        wait_until_drained(&world);
        assert_eq!(world.epoch(), 1, "{then:?}");
        assert_eq!(second.stop(), Some(0));
        if let Then::Thawed = then {
            assert_eq!(first.stop(), Some(0));
        }
    }
}

/// If rules need the order of commits, two daemons at work would break it.
#[test]
fn if_order_matters_the_second_daemon_stands_by_and_takes_over() {
    let world = World::outbox(ORDERED, "");
    let first = world.daemon();
    let second = world.daemon_unready();
    for round in 0..5 {
        check(&world, &format!("update users set name = 'round {round}' where id = 'u1'"), &["v1:user:u1"], &[]);
    }
    assert!(!second.log().iter().any(|line| line.contains("streaming")), "{:?}", second.log());
    first.signal("KILL");
    drop(first);
    second.wait_for_log("streaming");
    check(&world, "update users set name = 'taken over' where id = 'u1'", &["v1:user:u1"], &[]);
    assert_eq!(second.stop(), Some(0));
}

/// Applied again without a guard, an entry would come twice, or an old value would return. The
/// kills come at any time, also during a takeover.
#[test]
fn repeated_kills_cause_no_duplicates_reordering_or_old_values() {
    let world = World::outbox(ORDERED, "");
    let mut daemons = vec![world.daemon(), world.daemon_unready()];
    let mut written = Vec::new();
    for round in 0..12 {
        for number in 0..20 {
            let name = format!("{round}.{number}");
            world.sql(&format!("update users set name = '{name}' where id = 'u1'"));
            written.push(name);
            if number == round {
                let killed: Daemon = daemons.remove(0);
                killed.signal("KILL");
                daemons.push(world.daemon_unready());
            }
        }
        world.settle();
        let (held, last) = (card(&world, "u1"), written.last().unwrap());
        assert!(held.is_none() || held.as_ref() == Some(last), "round {round}: {held:?}, not {last}");
        assert_eq!(streamed(&world), written, "round {round}");
    }
    assert_eq!(world.epoch(), 1);
    drop(daemons);
}

/// A daemon was frozen before it sent anything, and sends it when other daemons have put later
/// changes into force.
#[test]
fn a_daemon_that_resumes_late_restores_no_old_value() {
    let mut world = World::outbox(ORDERED, "");
    let proxy = Proxy::start(world.redis.port());
    let direct = std::mem::replace(&mut world.redis_url, format!("redis://127.0.0.1:{}", proxy.port()));
    let first = world.daemon();
    world.redis_url = direct;
    world.sql("update users set name = 'in force' where id = 'u1'");
    world.settle();
    // What it sends is delayed in the proxy.
    proxy.set(Fault::HalfOpen);
    world.sql("update users set name = 'old' where id = 'u1'");
    wait_until(EVENT_MAX, "it is in the middle of a claim", || world.claimed() == 1);
    first.signal("STOP");
    // The server considers it dead, which ends its claim and its turn.
    world.sql("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname is not null and application_name = 'unstale'");
    let second = world.daemon();
    world.sql("update users set name = 'new' where id = 'u1'");
    world.settle();
    assert_eq!(card(&world, "u1").as_deref(), Some("new"));
    proxy.set(Fault::None);
    first.signal("CONT");
    // It has noticed at the latest when it waits for its turn again.
    assert_eq!(second.stop(), Some(0));
    first.wait_for_log("streaming");
    world.settle();
    let held = card(&world, "u1");
    assert!(held.is_none() || held.as_deref() == Some("new"), "{held:?}");
    assert_eq!(streamed(&world), ["in force", "old", "new"]);
    assert_eq!(first.stop(), Some(0));
}

/// Each daemon takes what the others left; whatever the mix, everything is in force in the end.
#[test]
fn daemons_share_a_long_queue_although_some_are_killed() {
    let world = World::outbox(
        USERS,
        "insert into users (id, email, name) select 'n' || n, 'n' || n, 'n' from generate_series(1, 20000) n",
    );
    let mut daemons: Vec<_> = (0..3).map(|_| world.daemon()).collect();
    for round in 0..4 {
        for number in (1..=20_000).step_by(97) {
            world.cache(&format!("v1:user:n{number}"));
        }
        world.sql(&format!("update users set name = 'round {round}'"));
        let killed = daemons.remove(0);
        wait_until(EVENT_MAX, "a daemon has claimed entries", || world.claimed() > 0 || world.entries() == 0);
        assert!(signal(killed.pid(), "KILL"));
        drop(killed);
        daemons.push(world.daemon_unready());
        world.settle();
        let left: Vec<String> = world.redis().keys("v1:user:n*").unwrap();
        assert_eq!(left, [""; 0], "round {round}");
    }
    wait_until_drained(&world);
    assert_eq!(world.epoch(), 1);
}

/// A rolling change of the rules: entries that the old daemon removes under its own rules are not
/// lost for the new ones, whether it does so before or after the new daemon starts. Fails without
/// `consumer.rules`.
#[test]
fn a_takeover_with_new_rules_misses_nothing() {
    let world = World::outbox(USERS, "");
    let before = world.daemon();
    let rules = USERS.replace("delete: [", "delete: [\"profile:{id}\", ")
        + "  org: {table: organizations, delete: \"org:{id}\"}\n";
    world.write_rules(&in_outbox_mode(&rules));
    world.run_ok(&["setup"]);
    for key in ["v1:profile:u1", "v1:org:o1"] {
        world.cache(key);
    }
    world.sql("update users set name = 'by the rules of before' where id = 'u1'; update organizations set name = 'x'");
    wait_until_drained(&world);
    assert!(world.holds("v1:profile:u1") && world.holds("v1:org:o1"), "the daemon of before knows nothing of them");
    let after = world.daemon();
    world.settle();
    assert!(!world.holds("v1:profile:u1") && !world.holds("v1:org:o1"), "{:?}", after.log());
    for round in 0..30 {
        world.cache("v1:profile:u1");
        world.cache("v1:org:o1");
        world.sql(&format!(
            "update users set name = 'round {round}' where id = 'u1'; update organizations set name = 'y'"
        ));
        world.settle();
        assert!(!world.holds("v1:profile:u1") && !world.holds("v1:org:o1"), "round {round}: {:?}", before.log());
    }
    before.wait_for_log("this daemon stands by");
    assert_eq!(world.epoch(), 1);
    // It works again when no other daemon does.
    assert_eq!(after.stop(), Some(0));
    world.cache("v1:user:u1");
    world.sql("update users set name = 'again by those of before' where id = 'u1'");
    wait_until(EVENT_MAX, "the daemon of before works again", || !world.holds("v1:user:u1"));
    assert_eq!(before.stop(), Some(0));
}

/// What went into another namespace is missing in this one. Fails if the namespace is not part of
/// what distinguishes daemons, or if the dataset is not part of the origin: its own count would
/// have continued as if nothing had happened.
#[test]
fn changing_the_namespace_and_back_empties_the_cache() {
    let world = World::outbox(USERS, "");
    let first = world.daemon();
    world.sql("update users set name = 'first' where id = 'u1'");
    world.settle();
    world.write_rules(&in_outbox_mode(&USERS.replace("\"v1:\"", "\"v2:\"")));
    let second = world.daemon();
    wait_until(EVENT_MAX, "the first one stands by", || {
        world.sql("update users set name = 'second' where id = 'u1'");
        first.log().iter().any(|line| line.contains("this daemon stands by"))
    });
    world.cache("v2:user:u1");
    world.sql("update users set name = 'second alone' where id = 'u1'");
    wait_until(EVENT_MAX, "the second one works", || !world.holds("v2:user:u1"));
    assert!(signal(first.pid(), "KILL"));
    drop(first);
    world.cache("v1:user:u9");
    world.sql("update users set name = 'for the second only' where id = 'u9'");
    wait_until_drained(&world);
    assert_eq!(second.stop(), Some(0));
    world.write_rules(&in_outbox_mode(USERS));
    let first = world.daemon();
    world.settle();
    assert!(!world.holds("v1:user:u9"), "{:?}", first.log());
    assert_eq!(world.epochs_because("other-source"), 1, "{:?}", first.log());
    assert_eq!(first.stop(), Some(0));
}
