//! Servers that are not the ones they are taken for.
//!
//! Owns other databases, other histories, replicas in the place of primaries, and services that use
//! one name.

use redis::Commands as _;
use unstale::postgres::{self, Address};
use unstale::sandbox::{Redis, example};
use unstale::source::replication::connection::Connection;

use crate::api::{Api, File};
use crate::support::{EVENT_MAX, SHIPPED, World, connect, in_outbox_mode, promote, text, wait_until};

/// A database of the same server with the example domain, in which no daemon works.
fn other_database(world: &World) -> String {
    world.sql("create database other");
    let url = world.postgres.url("other");
    world.block_on(async { example::create(&connect(&url).await, 10).await.unwrap() });
    world.block_on(async {
        connect(&url).await.batch_execute("create table probes (id text primary key)").await.unwrap()
    });
    url
}

#[test]
fn the_api_stores_nothing_of_another_database() {
    let mut world = File::default().world();
    let (own, other) = (world.database_url.clone(), other_database(&world));
    world.database_url = other;
    // No daemon has worked yet, so nothing says that this is the wrong database.
    let strange = Api::serve_alone(&world, "");
    world.database_url = own;
    let api = Api::run(world, &[]);
    let answer = strange.wait_for("/users/u1", "it notices", |answer| {
        answer.cache_status().contains("fwd=bypass; detail=other-server")
    });
    assert_eq!((answer.status, answer.header("consistency-token")), (200, None), "{answer:?}");
    assert!(!api.world.holds("v1:user:u1"));
    let seen = api.world.token().to_string();
    let answer = strange.get_with("/users/u1", &[("Consistency-Token", &seen)]);
    assert_eq!((answer.status, answer.problem().as_str()), (503, "unavailable"), "{answer:?}");
    // A hit is the right database's.
    api.world.sql("update users set name = 'right' where id = 'u1'");
    api.world.settle();
    api.warm("/users/u1");
    assert_eq!(strange.warm("/users/u1").json()["name"], "right");
    drop(strange);
    let mut command = api.world.command(&["serve", "--config", "serve.yaml"]);
    let output = command.env("DATABASE_URL", api.world.postgres.url("other")).output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", text(&output));
    assert!(text(&output).contains("another database"), "{}", text(&output));
    let mut command = api.world.command(&["replay", "--table", "users", "--yes"]);
    let output = command.env("DATABASE_URL", api.world.postgres.url("other")).output().unwrap();
    assert!(text(&output).contains("another database"), "{}", text(&output));
}

#[test]
fn the_api_stores_nothing_of_the_old_primary_after_a_failover() {
    let mut world = File::default().world();
    let standby = world.postgres.standby(&[]).unwrap();
    world.reconnect();
    let pooled = Api::serve_alone(&world, "");
    // It has a connection to the primary, and keeps it.
    assert_eq!(pooled.get("/users/u1").status, 200);
    let old = promote(&mut world, standby);
    world.run_ok(&["setup"]);
    let api = Api::run(world, &[]);
    api.world.sql("update users set name = 'new' where id = 'u1'");
    api.world.settle();
    let answer = pooled.get("/users/u1");
    assert!(answer.cache_status().contains("fwd=bypass; detail=other-server"), "{answer:?}");
    assert!(!api.world.holds("v1:user:u1"));
    assert_eq!(api.warm("/users/u1").json()["name"], "new");
    drop(old);
}

#[test]
fn a_redis_that_is_demoted_serves_no_hits() {
    let api = File { api: "  max_staleness: 1h", ..File::default() }.start();
    api.warm("/users/u1");
    let primary = Redis::start(&[]).unwrap();
    let port = primary.port();
    drop(primary);
    let mut redis = api.world.redis();
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(port).exec(&mut redis).unwrap();
    api.world.sql("update users set name = 'new' where id = 'u1'");
    for _ in 0..3 {
        let answer = api.get("/users/u1");
        assert!(answer.cache_status().contains("fwd=bypass; detail=redis-away"), "{answer:?}");
        assert_eq!(answer.json()["name"], "new");
    }
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut redis).unwrap();
    api.world.settle();
    assert_eq!(api.warm("/users/u1").json()["name"], "new");
}

const OWNER: &str = "v1:unstale:{unstale}:owner";

/// What `run` prints when it refuses to start.
fn refused(world: &World) -> String {
    let output = world.run(&["run"]);
    assert_eq!(output.status.code(), Some(78), "{}", text(&output));
    text(&output)
}

#[test]
fn a_second_service_under_one_name_does_not_start() {
    let first = World::shipped();
    let mut second = World::shipped_on_another_system();
    second.redis_url = first.redis.url();
    let daemon = first.daemon();
    let said = refused(&second);
    for part in [&format!(":{}", first.postgres.port()), &format!("process {}", daemon.pid()), "source.slot"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(text(&second.run(&["check", "--json"])).contains("\"name-taken\""));
    assert!(!text(&first.run(&["check", "--json"])).contains("\"name-taken\""));
    // The same database, followed in the other mode, is another service, too.
    first.write_rules(&in_outbox_mode(SHIPPED));
    first.run_ok(&["setup"]);
    assert!(refused(&first).contains("by its slot"));
    first.cache("v1:user:u1");
    first.sql("update users set name = 'new' where id = 'u1'");
    first.settle();
    assert!(!first.holds("v1:user:u1"), "the first goes on");
    assert_eq!(first.epoch(), 1);
    assert_eq!(daemon.stop(), Some(0));
    assert!(!first.holds(OWNER), "it says that it has stopped");
    let daemon = second.daemon();
    assert_eq!((first.epoch(), first.epochs_because("other-system")), (2, 1));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_service_that_was_killed_is_waited_for() {
    let world = World::shipped();
    let other = r#"{"system":"1.5","mode":"slot","address":"elsewhere","host":"h","pid":7,"instance":"i","at":1}"#;
    let _: () = world.redis().pset_ex(OWNER, other, 1500).unwrap();
    let daemon = world.daemon();
    assert!(daemon.log().iter().any(|line| line.contains("another service used this name")), "{:?}", daemon.log());
    wait_until(EVENT_MAX, "it has the name", || {
        world.redis().get::<_, Option<String>>(OWNER).unwrap().is_some_and(|held| !held.contains("elsewhere"))
    });
    // It is frozen for so long that another service takes the name, and finds that out.
    let _: () = world.redis().pset_ex(OWNER, other, 3_600_000).unwrap();
    daemon.wait_for_log("another daemon writes to it");
    let mut beats = 1;
    wait_until(EVENT_MAX, "it stands by", || {
        beats += 1;
        let record = other.replace(r#""at":1"#, &format!(r#""at":{beats}"#));
        let _: () = world.redis().pset_ex(OWNER, record, 3_600_000).unwrap();
        daemon.log().iter().any(|line| line.contains("this daemon stands by"))
    });
    let _: () = world.redis().del(OWNER).unwrap();
    daemon.wait_for_log("streaming");
}

#[test]
fn a_slot_that_was_dropped_while_the_daemon_was_down_is_created_again() {
    let world = World::shipped();
    let missing = "there is no replication slot `unstale`";
    world.sql("select pg_drop_replication_slot('unstale')");
    assert!(refused(&world).contains(missing), "Redis remembers nothing");
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    world.settle();
    world.cache("v1:user:u1");
    assert_eq!(daemon.stop(), Some(0));
    world.sql("select pg_drop_replication_slot('unstale')");
    world.sql("update users set name = 'new' where id = 'u1'");
    let said = text(&world.run(&["check"]));
    assert!(said.contains("a daemon has read") && said.contains("empties the cache"), "{said}");
    let daemon = world.daemon();
    assert!(!world.holds("v1:user:u1"));
    assert_eq!((world.epoch(), world.epochs_because("gap")), (2, 1));
    assert!(daemon.log().iter().any(|line| line.contains("was created again")), "{:?}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
    // Redis remembers another database.
    let mut other = World::shipped_on_another_system();
    other.redis_url = world.redis.url();
    other.sql("select pg_drop_replication_slot('unstale')");
    assert!(refused(&other).contains(missing));
}

#[test]
fn of_several_hosts_the_one_with_the_wanted_role_is_used() {
    let mut world = World::with_rules(SHIPPED);
    let standby = world.postgres.standby(&[]).unwrap();
    let (first, second) = (standby.port(), world.postgres.port());
    let dead = Redis::start(&[]).unwrap().port();
    let url = |target: &str| {
        let hosts = format!("127.0.0.1:{dead},127.0.0.1:{first},127.0.0.1:{second}");
        format!("postgres://postgres@{hosts}/postgres?target_session_attrs={target}")
    };
    let check = |target: &str, expected: Option<u16>| {
        let address = Address::parse(&url(target), &|_| None).unwrap();
        const PORT: &str = "select current_setting('port')";
        let (sql, log) = world.block_on(async {
            let sql = match postgres::connect(&address).await {
                Ok(client) => Ok(client.query_one(PORT, &[]).await.unwrap().get::<_, String>(0)),
                Err(error) => Err(error.to_string()),
            };
            let log = match Connection::open(&address).await {
                Ok(mut connection) => Ok(connection.query(PORT).await.unwrap()[0][0].clone().unwrap()),
                Err(error) => Err(error.to_string()),
            };
            (sql, log)
        });
        for (way, reached) in [("SQL", sql), ("replication", log)] {
            match (expected, reached) {
                (Some(port), reached) => assert_eq!(reached, Ok(port.to_string()), "{way} {target}"),
                (None, Ok(port)) => panic!("{way} {target} reached {port}"),
                (None, Err(error)) => assert!(error.contains("hot standby"), "{way} {target}: {error}"),
            }
        }
    };
    for (target, port) in [
        ("any", first),
        ("primary", second),
        ("read-write", second),
        ("standby", first),
        ("read-only", first),
        ("prefer-standby", first),
    ] {
        check(target, Some(port));
    }
    drop(standby);
    check("prefer-standby", Some(second));
    check("standby", None);
}

#[test]
fn a_daemon_with_two_hosts_follows_a_failover() {
    for source in ["slot", "outbox"] {
        let rules = if source == "slot" { SHIPPED.to_owned() } else { in_outbox_mode(SHIPPED) };
        let mut world = World::with_rules(&rules);
        world.run_ok(&["setup"]);
        let standby = world.postgres.standby(&[]).unwrap();
        world.reconnect();
        let hosts = format!("127.0.0.1:{},127.0.0.1:{}", standby.port(), world.postgres.port());
        let url = format!("postgres://postgres@{hosts}/postgres?target_session_attrs=primary");
        world.database_url = url.clone();
        let daemon = world.daemon();
        world.settle();
        let old = promote(&mut world, standby);
        drop(old);
        assert_eq!(daemon.wait_for_log("streaming").matches(&format!(":{}", world.postgres.port())).count(), 1);
        assert_eq!(world.epochs_because("other-timeline"), 1, "{source}: {:?}", daemon.log());
        world.cache("v1:user:u1");
        world.sql("update users set name = 'new' where id = 'u1'");
        world.settle();
        assert!(!world.holds("v1:user:u1"), "{source}");
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn check_looks_at_the_replica_and_at_what_redis_remembers() {
    let mut world = File::default().world();
    let rules = File::default().text();
    let replica = world.postgres.standby(&[]).unwrap();
    world.reconnect();
    let check = |world: &World, url: &str, expected: &str| {
        world.write_rules(&rules.replace("\napi:\n", &format!("\napi:\n  replica_url: \"{url}\"\n")));
        let said = text(&world.run(&["check", "--json"]));
        match expected {
            "" => assert!(!said.contains("replica-") && !said.contains("other-database"), "{said}"),
            expected => assert!(said.contains(&format!("\"{expected}\"")), "{expected}: {said}"),
        }
    };
    let url = replica.url("postgres");
    wait_until(EVENT_MAX, "the replica streams", || {
        world.value("select count(*)::text from pg_stat_replication") == "1"
    });
    check(&world, &url, "");
    world.sql("create role reader login");
    let reader = url.replace("postgres@", "reader@");
    wait_until(EVENT_MAX, "the role is there", || {
        let address = Address::parse(&reader, &|_| None).unwrap();
        world.block_on(postgres::connect(&address)).is_ok()
    });
    check(&world, &reader, "replica-statistics");
    check(&world, &world.postgres.url("postgres"), "replica-primary");
    check(&world, &replica.url("template1"), "replica-other");
    check(&world, "postgres://postgres@127.0.0.1:1/postgres", "replica-unreachable");
    let daemon = world.daemon();
    world.settle();
    assert_eq!(daemon.stop(), Some(0));
    world.database_url = other_database(&world);
    check(&world, &url, "other-database");
}
