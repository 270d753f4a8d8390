//! Redis servers that refuse some commands, and batches of any size.
//!
//! Owns the refusals and the sizes. Each case runs with the slot and with the outbox. Invariant:
//! what removes is applied, whatever else is refused.

use std::collections::BTreeSet;

use redis::Commands as _;
use unstale::sink::Broadcast;

use crate::support::{EVENT_MAX, World, in_outbox_mode, next_message, text, wait_until};

const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "v1:"}
rules:
  user:
    table: users
    delete: "user:{id}"
    stream: {name: log, data: {id: "{id}"}}
    publish: {channel: users, data: {id: "{id}"}}
"#;

fn worlds(redis: &[&str]) -> [World; 2] {
    let worlds = [World::with(RULES, &[], redis), World::with(&in_outbox_mode(RULES), &["wal_level=replica"], redis)];
    worlds.iter().for_each(|world| drop(world.run_ok(&["setup"])));
    worlds
}

fn failures(world: &World) -> u64 {
    let failures: Option<u64> = world.redis().hget("v1:unstale:{unstale}:failures", "user").unwrap();
    failures.unwrap_or(0)
}

fn acl(world: &World, rules: &[&str]) {
    redis::cmd("ACL").arg("SETUSER").arg("default").arg(rules).exec(&mut world.redis()).unwrap();
}

#[test]
fn without_a_command_that_one_rule_needs_the_other_invalidations_go_on() {
    for world in worlds(&["--rename-command", "XADD", ""]) {
        let said = text(&world.run(&["check"]));
        assert!(said.contains("does not have the command XADD"), "{said}");
        let daemon = world.daemon();
        for id in ["u1", "u2", "u3"] {
            world.cache(&format!("v1:user:{id}"));
            world.sql(&format!("update users set name = 'new' where id = '{id}'"));
            world.settle();
            assert!(!world.holds(&format!("v1:user:{id}")));
        }
        let line = daemon.wait_for_log("stream entries become dead letters");
        assert!(line.contains("\"rule\":\"user\"") && line.contains("Unknown Redis command"), "{line}");
        assert_eq!(failures(&world), 3, "each is counted, although there is no stream to keep it in");
        assert!(world.run_ok(&["status"]).contains("user 3"));
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn messages_that_the_user_may_not_send_become_dead_letters() {
    for world in worlds(&[]) {
        let daemon = world.daemon();
        acl(&world, &["resetchannels", "&v1:invalidations"]);
        world.cache("v1:user:u1");
        world.sql("update users set name = 'new' where id = 'u1'");
        world.settle();
        assert!(!world.holds("v1:user:u1"));
        daemon.wait_for_log("messages become dead letters");
        let letters = world.dead_letters();
        assert!(letters[0]["reason"].contains("v1:users") && letters[0]["reason"].contains("NOPERM"), "{letters:?}");
        assert_eq!(world.redis().xlen::<_, u64>("v1:log").unwrap(), 1, "the entry of the same change was added");
        // Once it may, nothing is given up any more.
        acl(&world, &["allchannels"]);
        world.sql("update users set name = 'newer' where id = 'u1'");
        world.settle();
        assert_eq!((failures(&world), world.dead_letters().len()), (1, 1));
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn a_delete_that_the_user_may_not_make_waits_and_is_made() {
    for world in worlds(&[]) {
        let daemon = world.daemon();
        world.cache("v1:user:u1");
        acl(&world, &["-unlink"]);
        world.sql("update users set name = 'new' where id = 'u1'");
        daemon.wait_for_log("invalidations wait for Redis");
        assert!(world.holds("v1:user:u1") && failures(&world) == 0);
        acl(&world, &["+unlink"]);
        world.settle();
        assert!(!world.holds("v1:user:u1"));
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn broadcasts_of_any_batch_fit_into_what_followers_keep() {
    const ROWS: usize = 1500;
    let world = World::with_rules(RULES);
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    let mut connection = world.redis();
    connection.set_read_timeout(Some(EVENT_MAX)).unwrap();
    let mut subscriber = connection.as_pubsub();
    subscriber.subscribe("v1:invalidations").unwrap();
    world.sql(&format!(
        "insert into users (id, email, name) select n || repeat('x', 1900), n, 'n' from generate_series(1, {ROWS}) n"
    ));
    let (mut keys, mut last) = (BTreeSet::new(), None);
    while keys.len() < ROWS {
        let message = next_message(&mut subscriber);
        assert!(message.get_payload_bytes().len() < 1 << 20);
        let broadcast: Broadcast = serde_json::from_slice(message.get_payload_bytes()).unwrap();
        assert!(last.is_none() || broadcast.prev == last, "no message is missing");
        last = Some(broadcast.id);
        keys.extend(broadcast.ops.into_iter().map(|op| op.key));
    }
    wait_until(EVENT_MAX, "it is in force", || {
        world.applied() >= world.value("select pg_current_wal_lsn()::text").parse().unwrap()
    });
    assert_eq!(daemon.stop(), Some(0));
}
