//! Servers that are not the ones they are taken for.
//!
//! Owns other databases, other histories, replicas in the place of primaries, and services that use
//! one name.

use unstale::sandbox::{Redis, example};

use crate::api::{Api, File};
use crate::support::{World, connect, promote, text};

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
