//! Tags under everything that can happen to the sets that they are found by.
//!
//! Owns: eviction, rules that name sets and generations, late fills, dead members, and version keys
//! beside a replay. Each case runs with the slot and with the outbox where both apply. Invariant: a
//! case asks by HTTP or by the lease protocol, as readers do.

use std::time::Duration;

use redis::Commands as _;
use unstale::change::Lsn;
use unstale::coherence::lease::{Envelope, Found, Leases, Token};
use unstale::coherence::watermark::Names;
use unstale::key::CacheKey;

use crate::api::Api;
use crate::support::{EVENT_MAX, World, in_outbox_mode, wait_until};

/// A value of `card` is found by its tag alone. The other rules name what they should not.
const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "v1:"}
rules:
  user: {table: users, tags: "user:{id}"}
  glob: {table: organizations, pattern: "t{name}:*"}
  key: {table: organizations, delete: ["t{name}:{slug}", "unst{name}:{slug}"]}
api: {max_staleness: 1h, timeout: 1h}
reads:
  card:
    path: /cards/{id}
    key: "card:{id}"
    tags: "user:{id}"
    ttl: 10h
    sql: select to_json(u.name) from users u where u.id = $1
"#;

const SET: &str = "v1:tag:user:u1";
const GENERATION: &str = "v1:unstale:{unstale}:tag:user:u1";

fn worlds() -> [World; 2] {
    let worlds = [World::with_rules(RULES), World::with(&in_outbox_mode(RULES), &["wal_level=replica"], &[])];
    worlds.iter().for_each(|world| drop(world.run_ok(&["setup"])));
    worlds
}

/// Asks until the answer is a hit, and returns it.
fn warm(api: &Api) -> String {
    api.warm("/cards/u1").text()
}

#[test]
fn whatever_is_evicted_of_a_tag_no_older_value_is_served() {
    for world in worlds() {
        let api = Api::run(world, &[]);
        for (round, evicted) in [&[][..], &[SET], &[GENERATION], &[SET, GENERATION]].into_iter().enumerate() {
            let before = warm(&api);
            let _: u64 = evicted.iter().map(|key| api.world.redis().del::<_, u64>(key).unwrap()).sum();
            let name = format!("\"round {round}\"");
            assert_ne!(before, name);
            api.world.sql(&format!("update users set name = 'round {round}' where id = 'u1'"));
            api.world.settle();
            assert_eq!(api.get("/cards/u1").text(), name, "without {evicted:?}");
        }
        // What has lost its generation is not served, and is filled again.
        assert_eq!(warm(&api), "\"round 3\"");
        let _: () = api.world.redis().del(GENERATION).unwrap();
        assert!(!api.get("/cards/u1").is_hit());
        warm(&api);
    }
}

/// Redis evicts the set by itself: it has the shortest time to live, and the value the longest.
#[test]
fn a_redis_that_evicts_sets_serves_no_older_value() {
    let api = Api::start(RULES);
    let mut redis = api.world.redis();
    warm(&api);
    let _: () = redis.expire(SET, 3600).unwrap();
    let used: u64 = info(&mut redis, "used_memory:");
    for (setting, value) in [("maxmemory-policy", "volatile-ttl"), ("maxmemory", &*(used + 2_000_000).to_string())] {
        redis::cmd("CONFIG").arg("SET").arg(setting).arg(value).exec(&mut redis).unwrap();
    }
    let mut filled = 0;
    wait_until(EVENT_MAX, "the set is evicted", || {
        filled += 1;
        let _: Option<()> = redis.set_ex(format!("other:{filled}"), "x".repeat(10_000), 7200).ok();
        !api.world.holds(SET)
    });
    assert!(api.world.holds("v1:card:u1"), "the value is still there");
    redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(0).exec(&mut redis).unwrap();
    api.world.sql("delete from users where id = 'u1'");
    api.world.settle();
    assert_eq!(api.get("/cards/u1").status, 404);
}

fn info(redis: &mut redis::Connection, field: &str) -> u64 {
    let info: String = redis::cmd("INFO").arg("memory").query(redis).unwrap();
    info.lines().find_map(|line| line.strip_prefix(field)).unwrap().parse().unwrap()
}

#[test]
fn a_rule_that_names_the_set_of_a_tag_hides_no_value_from_it() {
    for world in worlds() {
        let api = Api::run(world, &[]);
        let hostile = [
            "insert into organizations values ('x', 'ag', 'user:u1', 'free')",
            "truncate organizations cascade",
            "insert into organizations values ('y', 'ale:{unstale}', 'tag:user:u1', 'free')",
        ];
        for (round, sql) in hostile.into_iter().enumerate() {
            warm(&api);
            api.world.sql(sql);
            api.world.settle();
            assert!(api.world.holds(GENERATION), "{sql}");
            api.world.sql(&format!("update users set name = 'round {round}' where id = 'u1'"));
            api.world.settle();
            assert_eq!(api.get("/cards/u1").text(), format!("\"round {round}\""), "{sql}");
        }
    }
}

/// A fill may arrive at any time: Redis was frozen, or the filler.
#[test]
fn a_fill_that_arrives_after_its_tag_is_gone_is_not_served() {
    let world = World::with_rules(RULES);
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    let mut filler = LateFiller::new(&world);
    // The lease has ended with the generation and the set. The old value is replaced by its nonce.
    for invalidates in [false, true] {
        let first = filler.fill("old", Duration::from_secs(3600));
        let grant = filler.refresh(&first);
        let joined = filler.join(&grant, Duration::from_millis(1));
        if invalidates {
            world.sql("update users set name = 'new' where id = 'u1'");
            world.settle();
        } else {
            let _: () = world.redis().del(&[SET, GENERATION][..]).unwrap();
        }
        filler.store(&grant, "late", joined);
        let found = filler.read();
        assert!(matches!(found, Found::Granted(_)), "{invalidates}: {found:?}");
        let _: () = world.redis().del("v1:card:u1").unwrap();
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn sets_do_not_keep_dead_members_for_ever() {
    const MEMBERS: usize = 2000;
    let world = World::with_rules(RULES);
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    let filler = LateFiller::new(&world);
    let mut redis = world.redis();
    for n in 0..MEMBERS {
        let key = CacheKey::from(format!("v1:card:{n}").as_str());
        filler.fill_key(&key, "x", Duration::from_secs(3600));
        let _: () = redis.del(key.as_bytes()).unwrap();
    }
    let left: usize = redis.scard(SET).unwrap();
    assert!(left < MEMBERS / 10, "{left} of {MEMBERS} dead members are left");
    assert_eq!(daemon.stop(), Some(0));
}

/// A reader, as a client in another language would be.
struct LateFiller<'a> {
    world: &'a World,
    leases: Leases,
    key: CacheKey,
}

impl<'a> LateFiller<'a> {
    fn new(world: &'a World) -> Self {
        let leases = Leases::new(Names::new("v1:", "unstale"), Duration::from_secs(60));
        Self { world, leases, key: CacheKey::from("v1:card:u1") }
    }

    fn with<T>(&self, step: impl AsyncFnOnce(&Leases, &mut redis::aio::MultiplexedConnection) -> T) -> T {
        self.world.block_on(async {
            let client = redis::Client::open(self.world.redis.url()).unwrap();
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            step(&self.leases, &mut connection).await
        })
    }

    fn read(&self) -> Found {
        self.with(async |leases, redis| leases.read(redis, &self.key, None).await.unwrap())
    }

    fn fill(&self, body: &str, ttl: Duration) -> Envelope {
        self.fill_key(&self.key, body, ttl)
    }

    fn fill_key(&self, key: &CacheKey, body: &str, ttl: Duration) -> Envelope {
        self.with(async |leases, redis| {
            let Found::Granted(grant) = leases.read(redis, key, None).await.unwrap() else { panic!("{key} is held") };
            let joined = leases.join(redis, &grant, &[SET.into()], ttl).await.unwrap();
            leases.prune(redis, &joined).await.unwrap();
            let value = envelope(grant.lo, body, joined.tags);
            assert!(leases.fill(redis, &grant, &value, ttl).await.unwrap());
            value
        })
    }

    fn refresh(&self, value: &Envelope) -> unstale::coherence::lease::Grant {
        self.with(async |leases, redis| leases.refresh(redis, &self.key, value).await.unwrap())
    }

    fn join(
        &self,
        grant: &unstale::coherence::lease::Grant,
        ttl: Duration,
    ) -> Vec<unstale::coherence::lease::TagGeneration> {
        self.with(async |leases, redis| leases.join(redis, grant, &[SET.into()], ttl).await.unwrap().tags)
    }

    /// Stores it for longer than its tag lives.
    fn store(
        &mut self,
        grant: &unstale::coherence::lease::Grant,
        body: &str,
        tags: Vec<unstale::coherence::lease::TagGeneration>,
    ) {
        let value = envelope(grant.lo, body, tags);
        self.with(async |leases, redis| {
            let _ = leases.fill(redis, grant, &value, Duration::from_secs(3600)).await.unwrap();
        });
    }
}

fn envelope(lo: Lsn, body: &str, tags: Vec<unstale::coherence::lease::TagGeneration>) -> Envelope {
    let (nonce, etag, body) = (Token::of_new_value(), String::new(), body.as_bytes().to_vec());
    Envelope { nonce, lo, stored_at: 0, soft_ttl: 0, etag, tags, body }
}

/// 1. A transaction commits and waits for a synchronous standby. The daemon has it, and waits.
/// 2. `replay` bumps other keys, which raises `started` beyond the transaction.
/// 3. A reader makes the version from `started`, reads the old name, and stores it.
/// 4. The transaction becomes visible, and the daemon bumps the version.
#[test]
fn a_bump_that_waits_beside_a_replay_is_not_ignored() {
    let rules = RULES
        .replace(r#"tags: "user:{id}"}"#, r#"bump: "version:{id}"}"#)
        .replace(r#"    tags: "user:{id}""#, r#"    version: "version:{id}""#);
    let world = World::with_rules(&rules);
    world.run_ok(&["setup"]);
    let api = Api::run(world, &[]);
    api.warm("/cards/u1");
    api.world.hold_commits();
    let stuck = api.world.stuck("update users set name = 'new' where id = 'u1'");
    api.world.wait_until_sent();
    let version: Vec<String> = api.world.redis().keys("v1:version:*").unwrap();
    let _: () = api.world.redis().del(version).unwrap();
    let other = r#"{"table":"users","op":"insert","new":{"id":"u9","name":"n"}}"#;
    std::fs::write(api.world.directory.path().join("changes.ndjson"), other).unwrap();
    let replayed = api.world.run_ok(&["replay", "--file", "changes.ndjson", "--yes"]);
    assert_ne!(api.warm("/cards/u1").text(), "\"new\"", "{replayed}");
    api.world.release_commits();
    stuck.join().unwrap();
    api.world.settle();
    assert_eq!(api.get("/cards/u1").text(), "\"new\"");
}
