//! Slow and late work: lookups that lag, second deletes, lookups that see later commits, cascades,
//! and names that fold as PostgreSQL folds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::Commands as _;

use crate::support::{EVENT_MAX, World, connect, wait_until};

const HEAD: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
";

/// A world with these tables, set up with these rules, for a slot and for an outbox.
fn in_both_modes(rules: &str, tables: &str) -> impl Iterator<Item = World> {
    let text = format!("{HEAD}{rules}");
    let tables = tables.to_owned();
    [false, true].into_iter().map(move |outbox| {
        if outbox {
            return World::outbox(&text, &tables);
        }
        let world = World::with_rules(&text);
        world.sql(&tables);
        world.run_ok(&["setup"]);
        world
    })
}

impl World {
    /// Everything committed before this time is in force: milliseconds by the clock of Redis.
    fn asof(&self) -> u64 {
        self.redis().get::<_, Option<u64>>("v1:unstale:{unstale}:asof").unwrap().unwrap_or(0)
    }

    /// The second deletes that wait in Redis, each without the id of its rule.
    fn second_deletes(&self) -> Vec<String> {
        let members: Vec<String> = self.redis().zrange(AGAIN, 0, -1).unwrap();
        members.iter().map(|member| member.split_once(' ').unwrap().1.to_owned()).collect()
    }
}

/// Where second deletes wait.
const AGAIN: &str = "v1:unstale:{unstale}:again";

/// Commits without a pause until it is dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(world: &World, sql: &'static str) -> Self {
        let (url, stop) = (world.postgres.url("postgres"), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = connect(&url).await;
                while !stopped.load(Ordering::Relaxed) {
                    client.batch_execute(sql).await.unwrap();
                }
            });
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
fn with_a_steady_lag_it_is_known_up_to_when_everything_is_in_force() {
    const RULES: &str = "
lookups:
  slow: {sql: 'select $1::text as id from pg_sleep(1.2)'}
rules:
  organization: {table: organizations, for_each: 'slow({id}) as s', delete: ['org:{s.id}']}
reads:
  organization:
    path: /organizations/{id}
    key: 'org:{id}'
    sql: select to_json(o.name) from organizations o where o.id = $1
";
    for world in in_both_modes(RULES, "") {
        let daemon = world.daemon();
        wait_until(EVENT_MAX, "an idle daemon is current", || world.asof() > 0);
        let writer =
            Writer::start(&world, "update organizations set name = name || 'x' where id = 'o1'; select pg_sleep(0.05)");
        // Each lookup takes longer than the time between two heartbeats.
        let mut last = world.asof();
        for _ in 0..3 {
            wait_until(EVENT_MAX, "the heart beats under load", || world.asof() > last);
            last = world.asof();
        }
        drop(writer);
        drop(daemon);
    }
}

#[test]
fn a_second_delete_waits_in_redis_and_holds_no_transaction_open() {
    const RULES: &str = "rules: {r: {table: users, delete: 'user:{id}', again_after: 1m}}";
    for world in in_both_modes(RULES, "") {
        let daemon = world.daemon();
        world.cache("v1:user:u1");
        world.sql("update users set name = 'x' where id = 'u1'");
        wait_until(EVENT_MAX, "the first delete", || !world.holds("v1:user:u1"));
        assert_eq!(world.second_deletes(), ["k v1:user:u1"], "stored with the first delete");
        world.settle();
        if world.value("select (to_regclass('unstale.outbox') is not null)::text") == "true" {
            wait_until(EVENT_MAX, "the claim is committed", || world.entries() == 0);
        } else {
            wait_until(EVENT_MAX, "the slot goes on", || world.confirmed() >= world.applied());
        }
        assert_eq!(world.second_deletes(), ["k v1:user:u1"]);
        // A slow reader stores the old value, and the daemon is killed.
        drop(daemon);
        world.cache("v1:user:u1");
        let daemon = world.daemon();
        world.settle();
        assert!(world.holds("v1:user:u1"), "it is not due");
        let waiting: Vec<String> = world.redis().zrange(AGAIN, 0, -1).unwrap();
        let () = world.redis().zadd(AGAIN, &waiting[0], 1).unwrap();
        wait_until(EVENT_MAX, "the second delete", || !world.holds("v1:user:u1"));
        wait_until(EVENT_MAX, "Redis forgets it", || world.second_deletes().is_empty());
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn too_many_second_deletes_become_one_by_pattern() {
    const FILL: &str = "for i = 1, 100000 do redis.call('ZADD', KEYS[1], 1e15, 'x' .. i) end";
    let world =
        World::with_rules(&format!("{HEAD}rules: {{r: {{table: users, delete: 'user:{{id}}', again_after: 1m}}}}"));
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    redis::cmd("EVAL").arg(FILL).arg(1).arg(AGAIN).exec(&mut world.redis()).unwrap();
    world.cache("v1:user:u1");
    world.sql("update users set name = 'x' where id in ('u1', 'u2')");
    wait_until(EVENT_MAX, "the first delete", || !world.holds("v1:user:u1"));
    let first: Vec<String> = world.redis().zrange(AGAIN, 0, 0).unwrap();
    assert!(first[0].ends_with(" p v1:user:*"), "{first:?}");
    assert_eq!(world.redis().zcard::<_, usize>(AGAIN).unwrap(), 100_001);
    world.cache("v1:user:u1");
    let () = world.redis().zadd(AGAIN, &first[0], 1).unwrap();
    wait_until(EVENT_MAX, "the second delete", || !world.holds("v1:user:u1"));
    assert_eq!(daemon.stop(), Some(0));
}
