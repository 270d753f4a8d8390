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
}

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
