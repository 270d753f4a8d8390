//! `kill -9` between every two steps of a claim.
//!
//! Every step that matters is a message to a server or its answer, so it is visible from outside. A
//! proxy between the daemon and one of the servers forwards `n` chunks and then nothing, for every
//! possible `n`. The daemon is killed there, and another takes over. Nothing in the daemon knows of
//! this.

use std::collections::BTreeSet;

use super::{ORDERED, USERS, card, streamed};
use crate::proxy::{Fault, Proxy};
use crate::support::{EVENT_MAX, World, wait_until};

/// More than the number of steps in a claim and in the polling after it.
const CHUNKS_MAX: usize = 80;

/// How often everything is repeated until every [`Killed`] has occurred: other traffic shifts the
/// steps.
const ROUNDS_MAX: usize = 5;

/// Where the daemon was killed, as far as the servers show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Killed {
    /// Redis does not have the change yet.
    BeforeRedis,
    /// Redis has it, and PostgreSQL still has the entry.
    BetweenTheTwo,
    /// Both are done.
    AfterPostgres,
}

fn between(world: &World) -> (Proxy, Proxy) {
    (Proxy::start(world.postgres.port()), Proxy::start(world.redis.port()))
}

/// Kills the daemon at every point where the connection to one server can be cut between two
/// chunks.
fn kill_everywhere(rules: &str, on_the_way_to_redis: bool) {
    let mut world = World::outbox(rules, "");
    let (to_postgres, to_redis) = between(&world);
    world.database_url = format!("postgres://postgres@127.0.0.1:{}/postgres", to_postgres.port());
    world.redis_url = format!("redis://127.0.0.1:{}", to_redis.port());
    let held = if on_the_way_to_redis { &to_redis } else { &to_postgres };
    let is_ordered = rules == ORDERED;
    let mut seen = BTreeSet::new();
    let mut written = Vec::new();
    let mut done_in_a_row = 0;
    let all = [Killed::BeforeRedis, Killed::BetweenTheTwo, Killed::AfterPostgres];
    let (mut chunks, mut rounds) = (0, 1);
    while chunks < CHUNKS_MAX {
        let daemon = world.daemon();
        world.cache("v1:user:u1");
        held.set(Fault::HoldAfter(chunks));
        let name = format!("after {chunks} in round {rounds}");
        world.sql(&format!("update users set name = '{name}' where id = 'u1'"));
        written.push(name.clone());
        let token = world.token();
        wait_until(EVENT_MAX, "it is held, or done", || held.holds() || world.applied() >= token);
        done_in_a_row = if world.applied() >= token { done_in_a_row + 1 } else { 0 };
        daemon.signal("KILL");
        drop(daemon);
        // Nothing it sent arrives from now on, so both servers show where it stopped.
        for proxy in [&to_postgres, &to_redis] {
            proxy.cut();
            proxy.set(Fault::None);
        }
        // In this order, because a message that arrives in between would look as if it came too
        // early.
        let is_in_force = world.applied() >= token;
        let is_there = world.entries() > 0;
        let is_stale = world.holds("v1:user:u1");
        assert!(is_there || !is_stale, "{chunks} chunks: the entry is gone, and Redis was never told");
        seen.insert(match (is_stale, is_there) {
            (true, _) => Killed::BeforeRedis,
            (false, true) => Killed::BetweenTheTwo,
            (false, false) => Killed::AfterPostgres,
        });
        assert!(!is_in_force || !is_stale, "{chunks} chunks: the watermark came first");

        let daemon = world.daemon();
        world.settle();
        assert!(!world.holds("v1:user:u1"), "{chunks} chunks: {:?}", daemon.log());
        wait_until(EVENT_MAX, "the entry is gone", || world.entries() == 0);
        if is_ordered {
            assert_eq!(streamed(&world), written, "{chunks} chunks: each once, and in order");
            let held = card(&world, "u1");
            assert!(held.is_none() || held.as_ref() == Some(&name), "{chunks} chunks: {held:?}");
        }
        assert_eq!(world.epoch(), 1, "{chunks} chunks: no history is doubted: {:?}", daemon.log());
        assert_eq!(daemon.stop(), Some(0));
        // A daemon that polls sends chunks forever.
        chunks += 1;
        if done_in_a_row == 3 {
            if seen == all.into() || rounds == ROUNDS_MAX {
                break;
            }
            (chunks, rounds, done_in_a_row) = (0, rounds + 1, 0);
        }
    }
    assert_eq!(done_in_a_row, 3, "there were more steps than expected");
    assert_eq!(seen, all.into(), "each of these was met");
}

#[test]
fn a_kill_between_postgresql_messages_loses_nothing() {
    kill_everywhere(USERS, false);
}

#[test]
fn a_kill_between_redis_messages_loses_nothing() {
    kill_everywhere(USERS, true);
}

#[test]
fn a_kill_between_postgresql_messages_keeps_order_without_duplicates() {
    kill_everywhere(ORDERED, false);
}

#[test]
fn a_kill_between_redis_messages_keeps_order_without_duplicates() {
    kill_everywhere(ORDERED, true);
}
