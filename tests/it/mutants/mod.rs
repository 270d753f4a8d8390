//! Each mutant of the protocol, found by a script.
//!
//! A script is one interleaving of the daemon, a writer and a reader, made with real servers. It
//! runs twice: the unbroken build passes it, and the mutant leaves the finding that the script
//! names. Owns the rules that all scripts use and what counts as a finding; the files beside it own
//! the scripts. Invariant: a step waits for the event that the next step needs, and never for a
//! time. So the outcome does not depend on the speed of the machine.

mod fillers;
mod outbox;
mod slot;

use std::collections::BTreeMap;
use std::time::Duration;

use redis::Commands as _;
use redis::aio::MultiplexedConnection;
use unstale::change::Lsn;
use unstale::coherence::lease::{Envelope, Found, Leases, Token};
use unstale::coherence::watermark::Names;
use unstale::key::CacheKey;
use unstale::mutant::Mutant;

use crate::support::{EVENT_MAX, World, wait_until};

/// `held` waits for [`LOCK`] after its snapshot was taken, and so does the lookup of
/// `organization`. The limits are as long as they may be: a limit that ends a step would change the
/// interleaving.
const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "v1:"}
lookups:
  waiting: {sql: "select $1::text as id from pg_advisory_xact_lock_shared(7)", timeout: 60s}
rules:
  user: {table: users, delete: ["user:{id}", "held:{id}"]}
  organization: {table: organizations, for_each: "waiting({id}) as o", delete: "organization:{o.id}"}
api: {max_staleness: 1h, timeout: 1h, REPLICA}
reads:
  held:
    path: /held/{id}
    key: "held:{id}"
    timeout: 60s
    sql: select to_json(u.name) from users u, (select pg_advisory_xact_lock_shared(7)) held where u.id = $1
"#;

/// Takes the lock that `held` and `waiting` wait for.
const LOCK: &str = "select pg_advisory_lock(7)";
const UNLOCK: &str = "select pg_advisory_unlock(7)";

/// Whether a query waits for it.
const WAITS: &str = "select (count(*) > 0)::text from pg_locks where locktype = 'advisory' and classid = 0 \
     and objid = 7 and not granted";

/// The value of the key `user:u1`.
const NAME: &str = "select name from users where id = 'u1'";

/// What a script found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    /// At rest, this key holds a value that is not the database's.
    Stale(&'static str),
    /// A reader that named a position was served a value from before it.
    ServedTooOld(&'static str),
    /// An epoch began for this reason, although nothing was lost: the flush hides what the mutant
    /// did.
    Epoch(String),
}

/// Runs a script with the unbroken build, then with the mutant.
fn check(mutant: Mutant, expected: &Finding, script: impl Fn(Option<Mutant>) -> Vec<Finding>) {
    assert_eq!(script(None), [], "the unbroken build passes");
    if cfg!(debug_assertions) {
        assert_eq!(script(Some(mutant)), std::slice::from_ref(expected), "{} is found", mutant.name());
    }
}

/// The example domain and everything set up for the slot; nothing runs.
fn world(mutant: Option<Mutant>) -> World {
    let mut world = World::with_rules(&RULES.replace(", REPLICA", ""));
    world.mutant = mutant;
    world.run_ok(&["setup"]);
    world
}

/// Fills a key as a reader of the cache does: by the lease protocol, from the primary.
fn fill(world: &World, key: &str, sql: &str) {
    let (leases, key) = (leases(), CacheKey::from(key));
    world.block_on(async {
        let mut redis = redis_connection(world).await;
        match leases.read(&mut redis, &key, None).await.unwrap() {
            Found::Granted(grant) => {
                let body = world.client.query_one(sql, &[]).await.unwrap().get::<_, String>(0).into_bytes();
                let nonce = Token::of_new_value();
                let (etag, tags) = (String::new(), Vec::new());
                let value = Envelope { nonce, lo: grant.lo, stored_at: 0, soft_ttl: 0, etag, tags, body };
                assert!(leases.fill(&mut redis, &grant, &value, Duration::from_secs(3600)).await.unwrap());
            }
            Found::Value(_) => {}
            other => panic!("{key}: {other:?}"),
        }
    });
}

/// Reads a key as a reader does that has seen this position.
fn read(world: &World, key: &str, min: Lsn) -> Found {
    let key = CacheKey::from(key);
    world.block_on(async { leases().read(&mut redis_connection(world).await, &key, Some(min)).await.unwrap() })
}

fn leases() -> Leases {
    Leases::new(Names::new("v1:", "unstale"), EVENT_MAX)
}

async fn redis_connection(world: &World) -> MultiplexedConnection {
    let client = redis::Client::open(world.redis.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Changes a row in a transaction of its own and waits until that is in force. Twice, since one
/// batch is in flight at a time: when the second change is in force, the daemon knows that the
/// batch of the first one is, and with it everything that it had received before.
fn pass_another(world: &World) {
    for _ in 0..2 {
        world.cache("v1:user:u2");
        world.sql("update users set name = name || '.' where id = 'u2'");
        wait_until(EVENT_MAX, "another change is in force", || !world.holds("v1:user:u2"));
    }
}

/// How many epochs began, by reason.
fn epochs(world: &World) -> BTreeMap<String, u64> {
    world.redis().hgetall("v1:unstale:{unstale}:epochs").unwrap()
}

/// What is wrong at rest: the value under a key, and epochs that began since.
fn findings(world: &World, before: &BTreeMap<String, u64>, key: &'static str, sql: &str) -> Vec<Finding> {
    let held: Option<Vec<u8>> = world.redis().get(key).unwrap();
    let held = held.and_then(|held| Envelope::decode(&held));
    let is_stale = held.is_some_and(|value| value.body != world.value(sql).into_bytes());
    let begun = epochs(world).into_iter().filter(|(reason, count)| before.get(reason).unwrap_or(&0) < count);
    is_stale.then_some(Finding::Stale(key)).into_iter().chain(begun.map(|(reason, _)| Finding::Epoch(reason))).collect()
}
