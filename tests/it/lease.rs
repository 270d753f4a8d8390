//! The filler's side, step by step, on a real Redis and a real replica.

use std::time::Duration;

use redis::Commands as _;
use redis::aio::MultiplexedConnection;
use unstale::change::Lsn;
use unstale::coherence::history::Origin;
use unstale::coherence::lease::{Envelope, Found, Grant, Leases, Token};
use unstale::coherence::server::ServerIdentity;
use unstale::coherence::watermark::Names;
use unstale::key::CacheKey;
use unstale::sandbox::Redis;

use crate::support::{EVENT_MAX, template};

const TTL: Duration = Duration::from_secs(60);

struct Cache {
    server: Redis,
    leases: Leases,
    runtime: tokio::runtime::Runtime,
    connection: MultiplexedConnection,
}

impl Cache {
    fn start(lease: Duration) -> Self {
        let server = Redis::start(&[]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = redis::Client::open(server.url()).unwrap();
        let connection = runtime.block_on(client.get_multiplexed_async_connection()).unwrap();
        let cache = Self { server, leases: Leases::new(Names::new("v1:", "unstale"), lease), runtime, connection };
        cache.set("v1:unstale:{unstale}:applied", "0000000000000064");
        cache.set("v1:unstale:{unstale}:started", "0000000000000070");
        cache
    }

    fn plain(&self) -> redis::Connection {
        redis::Client::open(self.server.url()).unwrap().get_connection().unwrap()
    }

    fn set(&self, key: &str, value: &str) {
        let _: () = self.plain().set(key, value).unwrap();
    }

    fn read_from(&self, min: u64) -> Found {
        let mut connection = self.connection.clone();
        self.runtime.block_on(self.leases.read(&mut connection, &key(), Some(Lsn::new(min)))).unwrap()
    }

    fn read(&self) -> Found {
        self.read_from(0)
    }

    fn grant(&self) -> Grant {
        match self.read() {
            Found::Granted(grant) => grant,
            other => panic!("{other:?}"),
        }
    }

    fn fill(&self, grant: &Grant, value: &Envelope) -> bool {
        let mut connection = self.connection.clone();
        self.runtime.block_on(self.leases.fill(&mut connection, grant, value, TTL)).unwrap()
    }

    fn release(&self, grant: Grant) {
        let mut connection = self.connection.clone();
        self.runtime.block_on(self.leases.release(&mut connection, grant)).unwrap();
    }

    fn refresh(&self, value: &Envelope) -> Grant {
        let mut connection = self.connection.clone();
        self.runtime.block_on(self.leases.refresh(&mut connection, &key(), value)).unwrap()
    }

    fn version(&self, name: &str) -> Option<String> {
        let mut connection = self.connection.clone();
        self.runtime
            .block_on(self.leases.version(&mut connection, &CacheKey::from(name), Duration::from_secs(60)))
            .unwrap()
    }
}

fn key() -> CacheKey {
    CacheKey::from("v1:user:u1")
}

fn value(body: &str, lo: Lsn) -> Envelope {
    let (stored_at, soft_ttl, etag) = (1_700_000_000_000, 5_000, "abc".to_owned());
    Envelope {
        nonce: Token::of_new_value(),
        lo,
        stored_at,
        soft_ttl,
        etag,
        tags: Vec::new(),
        body: body.as_bytes().to_vec(),
    }
}

#[test]
fn one_reader_is_granted_the_lease_and_its_value_is_served() {
    let cache = Cache::start(TTL);
    let grant = cache.grant();
    assert_eq!((grant.lo, grant.started), (Lsn::new(0x64), Some(Lsn::new(0x70))));
    assert_eq!(cache.read(), Found::Busy);
    let ann = value("Ann", grant.lo);
    assert!(cache.fill(&grant, &ann));
    assert_eq!(cache.read(), Found::Value(ann.clone()));
    assert!(cache.plain().pttl::<_, i64>("v1:user:u1").unwrap() > 50_000);
    assert!(!cache.fill(&grant, &value("Bob", grant.lo)), "a grant is good for one fill");
    assert_eq!(cache.read(), Found::Value(ann));
}

/// `SET … IFEQ` if the server has it, which saves the script; otherwise the script.
#[test]
fn a_fill_is_one_command_if_the_server_supports_ifeq() {
    let cache = Cache::start(TTL);
    let compared = redis::cmd("SET").arg(&["x", "new", "IFEQ", "old"]).exec(&mut cache.plain());
    for _ in 0..3 {
        let grant = cache.grant();
        assert!(cache.fill(&grant, &value("Ann", grant.lo)));
        let _: () = cache.plain().del("v1:user:u1").unwrap();
    }
    let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut cache.plain()).unwrap();
    let scripts = stats.lines().find_map(|line| line.strip_prefix("cmdstat_eval:calls=")?.split(',').next());
    assert_eq!(scripts, if compared.is_ok() { None } else { Some("3") });
    let failed = stats.lines().find(|line| line.starts_with("cmdstat_set:")).unwrap();
    let once = if compared.is_ok() { "failed_calls=0" } else { "failed_calls=2" };
    assert!(failed.contains(once), "tried once here, and once by the library: {failed}");
}

#[test]
fn an_invalidation_ends_the_grant() {
    let cache = Cache::start(TTL);
    let late = cache.grant();
    let _: () = cache.plain().del("v1:user:u1").unwrap();
    assert!(!cache.fill(&late, &value("old", late.lo)), "nothing is there");
    let next = cache.grant();
    assert!(!cache.fill(&late, &value("old", late.lo)), "another's lease is there");
    assert!(cache.fill(&next, &value("new", next.lo)));
    assert!(!cache.fill(&late, &value("old", late.lo)), "a value is there");
}

#[test]
fn a_lease_ends_by_expiry_and_by_release() {
    let cache = Cache::start(Duration::from_millis(50));
    let lost = cache.grant();
    crate::support::wait_until(EVENT_MAX, "the lease ends", || matches!(cache.read(), Found::Granted(_)));
    assert!(!cache.fill(&lost, &value("late", lost.lo)));

    let cache = Cache::start(TTL);
    let grant = cache.grant();
    let stale = grant.clone();
    cache.release(grant);
    let next = cache.grant();
    cache.release(stale);
    assert!(cache.fill(&next, &value("kept", next.lo)), "what is released is one's own");
}

#[test]
fn a_value_is_replaced_by_its_own_nonce() {
    let cache = Cache::start(TTL);
    let grant = cache.grant();
    let first = value("first", grant.lo);
    assert!(cache.fill(&grant, &first));
    let (one, other) = (cache.refresh(&first), cache.refresh(&first));
    let second = value("second", one.lo);
    assert!(cache.fill(&one, &second));
    assert!(!cache.fill(&other, &value("third", other.lo)), "the first to fill wins");
    cache.release(other);
    assert_eq!(cache.read(), Found::Value(second.clone()), "releasing a refresh leaves the value");
    let late = cache.refresh(&second);
    let _: () = cache.plain().del("v1:user:u1").unwrap();
    assert!(!cache.fill(&late, &value("late", late.lo)));
}

#[test]
fn a_reader_with_a_position_gets_nothing_older() {
    let cache = Cache::start(TTL);
    let grant = cache.grant();
    let old = value("old", grant.lo);
    assert!(cache.fill(&grant, &old));
    assert_eq!(cache.read_from(0x64), Found::Value(old.clone()));
    assert_eq!(cache.read_from(0x65), Found::TooOld(old.clone()));
    cache.set("v1:unstale:{unstale}:applied", "0000000000000065");
    assert_eq!(cache.read_from(0x65), Found::Value(old), "it is still there, so it is not affected");
}

#[test]
fn a_foreign_value_is_neither_served_nor_replaced() {
    let cache = Cache::start(TTL);
    for held in ["", "{\"name\":\"Ann\"}", "V:short 0 0 0 \nbody", "L:short"] {
        cache.set("v1:user:u1", held);
        assert_eq!(cache.read(), Found::Foreign, "{held:?}");
    }
}

#[test]
fn without_a_watermark_no_replica_is_read() {
    let cache = Cache::start(TTL);
    let _: () = cache.plain().del("v1:unstale:{unstale}:started").unwrap();
    assert_eq!(cache.grant().started, None);
    assert_eq!(cache.version("v1:version:a"), None);
}

#[test]
fn a_version_key_created_by_a_reader_expires() {
    let cache = Cache::start(Duration::from_secs(10));
    cache.version("v1:version:a");
    let left: i64 = cache.plain().pttl("v1:version:a").unwrap();
    assert!((1..=60_000).contains(&left), "{left}");
}

#[test]
fn the_set_of_a_tag_outlives_its_members() {
    let lease = Duration::from_secs(10);
    let cache = Cache::start(lease);
    let (grant, tag) = (cache.grant(), CacheKey::from("v1:tag:t"));
    let join = |ttl: u64| {
        let mut connection = cache.connection.clone();
        let joined = cache.leases.join(&mut connection, &grant, std::slice::from_ref(&tag), Duration::from_secs(ttl));
        cache.runtime.block_on(joined).unwrap();
        cache.plain().pttl::<_, i64>("v1:tag:t").unwrap()
    };
    let first = join(600);
    assert!((600_001..=610_000).contains(&first), "with the lease: {first}");
    assert!(join(5) > 600_000, "never shorter");
    assert!(join(1200) > 1_200_000);
    let members: Vec<String> = cache.plain().smembers("v1:tag:t").unwrap();
    assert_eq!(members, ["v1:user:u1"]);
    let _: () = cache.plain().persist("v1:tag:t").unwrap();
    assert_eq!(join(600), -1, "a set without a limit keeps none");
}

#[test]
fn a_missing_version_begins_at_started() {
    let cache = Cache::start(TTL);
    for position in [0, 9, 10, 0x70, (1 << 53) + 1, u64::MAX] {
        cache.set("v1:unstale:{unstale}:started", &Lsn::new(position).to_fixed_hex());
        let name = format!("v1:version:{position}");
        assert_eq!(cache.version(&name), Some(position.to_string()));
        cache.set(&name, "7");
        assert_eq!(cache.version(&name), Some("7".to_owned()), "and stays what it is");
    }
}

/// A batch that timed out may arrive after it was sent again, and after later batches. `replay`
/// raises `started` beside the daemon.
#[test]
fn a_bump_goes_beyond_what_a_reader_may_have_made_of_a_higher_started() {
    let cache = Cache::start(TTL);
    let script = concat!(include_str!("../../src/coherence/decimal.lua"), include_str!("../../src/sink/bump.lua"));
    let bump = |started: u64, key: &str, position: u64| {
        let mut bump = redis::cmd("EVAL");
        bump.arg(script).arg(2).arg("v1:unstale:{unstale}:started").arg(key);
        bump.arg(Lsn::new(started).to_fixed_hex()).arg(position).arg(60_000).exec(&mut cache.plain()).unwrap();
        cache.plain().get::<_, u64>(key).unwrap()
    };
    assert_eq!(bump(0x70, "v1:version:a", 100), 100, "its own position");
    assert_eq!(bump(0x70, "v1:version:a", 90), 100, "never back");
    assert_eq!(bump(0x65, "v1:version:a", 101), 0x71, "beyond what a reader may have made");
    assert_eq!(bump(0x65, "v1:version:b", 101), 0x72, "also if there is none");
    assert_eq!(cache.version("v1:version:c"), Some(0x72.to_string()), "`started` rises with it");
    for (started, expected) in
        [(0x76, 0x77), (0x77, 0x79), (0xFFFF_FFFF, 0x1_0000_0001), ((1 << 62) + 2, (1 << 62) + 3)]
    {
        cache.set("v1:unstale:{unstale}:started", &Lsn::new(started).to_fixed_hex());
        assert_eq!(bump(0x70, &format!("v1:version:{started}"), 0x70), expected, "no record ends there");
    }
}

#[test]
fn a_replica_is_read_only_when_it_is_of_the_history_and_has_replayed_enough() {
    let mut primary = template::start(&[]);
    let standby = primary.standby(&["hot_standby=on"]).unwrap();
    let cache = Cache::start(TTL);
    cache.runtime.block_on(async {
        let writer = crate::support::connect(&primary.url("postgres")).await;
        let replica = crate::support::connect(&standby.url("postgres")).await;
        replica.batch_execute("select pg_wal_replay_pause()").await.unwrap();
        let paused = "select pg_get_wal_replay_pause_state() = 'paused'";
        let is_paused = async { while !replica.query_one(paused, &[]).await.unwrap().get::<_, bool>(0) {} };
        tokio::time::timeout(EVENT_MAX, is_paused).await.unwrap();
        writer.batch_execute("create table t (n int); insert into t values (1)").await.unwrap();
        let end: String = writer.query_one("select pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
        let end: Lsn = end.parse().unwrap();
        let mut connection = cache.connection.clone();
        let _: () = redis::AsyncCommands::set(&mut connection, "v1:unstale:{unstale}:started", end.to_fixed_hex())
            .await
            .unwrap();
        let server = ServerIdentity::read(&writer).await.unwrap();
        let origin = Origin {
            system: server.system.clone(),
            timeline: server.timeline.clone(),
            recovered: String::new(),
            source: String::new(),
        };
        let _: () =
            redis::AsyncCommands::set(&mut connection, "v1:unstale:{unstale}:origin", origin.encode()).await.unwrap();
        let Found::Granted(grant) = cache.leases.read(&mut connection, &key(), None).await.unwrap() else { panic!() };
        assert!(server.is_of(grant.origin.as_ref().unwrap()));
        let sql = "select count(*) from t";
        assert!(grant.read_replica(&replica, None, sql, &[]).await.unwrap().is_none(), "it lags");
        assert!(grant.read_replica(&writer, None, sql, &[]).await.unwrap().is_none(), "a primary is no replica");
        replica.batch_execute("select pg_wal_replay_resume()").await.unwrap();
        let caught_up = async {
            loop {
                if let Some(row) = grant.read_replica(&replica, None, sql, &[]).await.unwrap() {
                    break row;
                }
            }
        };
        let row = tokio::time::timeout(EVENT_MAX, caught_up).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), 1);
        let strange = [
            Origin { system: "7.5".to_owned(), ..origin.clone() },
            Origin { system: format!("{}0", origin.system), ..origin.clone() },
            Origin { timeline: "2".to_owned(), ..origin.clone() },
        ];
        for strange in strange {
            let mut other = grant.clone();
            other.origin = Some(strange.clone());
            assert!(other.read_replica(&replica, None, sql, &[]).await.unwrap().is_none(), "{strange:?}");
        }
        let earlier = Origin { system: origin.system.split('.').next().unwrap().to_owned(), ..origin };
        let mut other = grant.clone();
        other.origin = Some(earlier);
        assert!(other.read_replica(&replica, None, sql, &[]).await.unwrap().is_some(), "as version 0.2 wrote it");
        let later = Some(Lsn::new(end.offset() + 1_000_000));
        assert!(grant.read_replica(&replica, later, sql, &[]).await.unwrap().is_none(), "the reader has seen more");
    });
}
