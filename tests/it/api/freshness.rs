//! A request that names a position gets nothing older; any other gets nothing older than the limit.

use std::time::Duration;

use redis::Commands as _;
use unstale::change::Lsn;
use unstale::sandbox::Postgres;

use super::{Answer, Api, File};
use crate::support::{EVENT_MAX, World, connect, wait_until};

/// Hits are served however long the daemon is away, and a position is not waited for.
const PATIENT: File<'static> =
    File { tables: "", rules: "", reads: "", api: "  max_staleness: 1h\n  consistency_wait: 50ms\n" };

fn rename(world: &World, user: &str, name: &str) -> String {
    world.sql(&format!("update users set name = '{name}' where id = '{user}'"));
    world.value("select pg_current_wal_insert_lsn()::text")
}

#[test]
fn a_reader_sees_its_own_write_without_a_daemon() {
    let world = PATIENT.world();
    let daemon = world.daemon();
    let api = Api::serve_alone(&world, "");
    let old = api.warm("/users/u1");
    assert_eq!(daemon.stop(), Some(0));
    let token = rename(&world, "u1", "Written");
    assert!(api.get("/users/u1").is_hit(), "no daemon runs");
    for header in ["Consistency-Token", "X-Min-LSN", "x-min-lsn"] {
        for etag in ["\"other\"", old.etag()] {
            let answer = api.get_with("/users/u1", &[(header, &token), ("If-None-Match", etag)]);
            assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some("Written")), "{header} {etag}");
            assert!(answer.token() >= token.parse::<Lsn>().unwrap(), "{answer:?} does not say that it has {token}");
        }
    }
    let cold = api.get_with("/users/u2", &[("Consistency-Token", &token)]);
    assert_eq!(cold.status, 200);
    assert!(cold.token() >= token.parse::<Lsn>().unwrap());
}

#[test]
fn a_reader_sees_its_own_write_while_the_daemon_applies_it() {
    let api = File::default().start();
    let other = Api::serve_alone(&api.world, "");
    for round in 0..200 {
        let user = format!("u{}", round % 2 + 1);
        let name = format!("round {round}");
        let token = rename(&api.world, &user, &name);
        for client in [api.client(), other.client()] {
            let answer = client.get_with(&format!("/users/{user}"), &[("Consistency-Token", &token)]);
            assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some(name.as_str())), "after {token}");
            assert!(answer.token() >= token.parse::<Lsn>().unwrap(), "{answer:?}");
        }
    }
}

#[test]
fn a_consistency_token_is_valid_at_every_instance() {
    let api = File::default().start();
    let other = Api::serve_alone(&api.world, "");
    other.warm("/probe/1");
    let mut token = api.get("/users/u1").token();
    for round in 0..20 {
        rename(&api.world, "u1", &format!("round {round}"));
        for client in [api.client(), other.client()] {
            for (path, status) in [("/users/u1", 200), ("/users/u1", 200), ("/users/missing", 404)] {
                let answer = client.get_with(path, &[("Consistency-Token", &token.to_string())]);
                assert_eq!(answer.status, status, "{answer:?}");
                assert!(answer.token() >= token, "{} is before {token}", answer.token());
                token = answer.token();
            }
        }
    }
    // The last change must be in force, otherwise the value may still be the one before.
    api.world.settle();
    let etag = api.get("/users/u1").etag().to_owned();
    let spared = api.get_with("/users/u1", &[("If-None-Match", &etag), ("Consistency-Token", &token.to_string())]);
    assert_eq!(spared.status, 304);
    assert!(spared.token() >= token);
}

#[test]
fn a_malformed_token_or_one_of_another_server_is_refused() {
    let api = File::default().start();
    api.warm("/users/u1");
    for token in ["x", "0", "/", "0/", "/0", "0/G", "0/16B3748x", "0/1/2", "-1/0", "0/123456789", "0x0/1", "é/0"] {
        for header in ["Consistency-Token", "X-Min-LSN"] {
            let answer = api.get_with("/users/u1", &[(header, token)]);
            assert_eq!((answer.status, answer.problem().as_str()), (400, "invalid-token"), "{header}: {token}");
        }
    }
    for path in ["/users/u1", "/users/u2", "/users/missing"] {
        for token in ["FFFFFFFF/FFFFFFFF", "7FFFFFFF/0"] {
            let answer = api.get_with(path, &[("Consistency-Token", token)]);
            assert_eq!((answer.status, answer.problem().as_str()), (400, "token-ahead"), "{path}: {token}");
        }
    }
    assert_eq!(api.get_with("/users/u1", &[("Consistency-Token", "0/0")]).status, 200);
    assert_eq!(api.get_with("/users/u1", &[("Consistency-Token", "0/1")]).status, 200);
}

#[test]
fn without_a_daemon_hits_stop_and_with_it_they_resume() {
    let file = File { api: "  max_staleness: 2s\n", ..File::default() };
    let world = file.world();
    let daemon = world.daemon();
    let api = Api::serve_alone(&world, "");
    api.warm("/users/u1");
    daemon.signal("KILL");
    drop(daemon);
    rename(&world, "u1", "Meanwhile");
    let seen =
        api.wait_for("/users/u1", "the old value is served no longer", |answer| answer.json()["name"] == "Meanwhile");
    assert!(seen.cache_status().contains("fwd=bypass; detail=daemon-behind"), "{seen:?}");
    assert!(!seen.is_stored());
    rename(&world, "u1", "Again");
    assert_eq!(api.get("/users/u1").json()["name"], "Again", "every answer is the database's now");
    let daemon = world.daemon();
    assert_eq!(api.warm("/users/u1").json()["name"], "Again");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_read_can_require_fresher_hits() {
    let file = File {
        rules: "  hasty: {table: users, delete: \"hasty:{id}\"}\n",
        reads: r#"
  hasty:
    path: /hasty/{id}
    key: "hasty:{id}"
    max_staleness: 2s
    sql: select to_json(u.name) from users u where u.id = $1
"#,
        ..PATIENT
    };
    let world = file.world();
    let daemon = world.daemon();
    let api = Api::serve_alone(&world, "");
    api.warm("/hasty/u1");
    let before = api.warm("/users/u1");
    daemon.signal("KILL");
    drop(daemon);
    rename(&world, "u1", "Meanwhile");
    api.wait_for("/hasty/u1", "the old value is served no longer", |answer| answer.json() == "Meanwhile");
    let after = api.get("/users/u1");
    assert!(after.is_hit() && after.body == before.body, "{after:?}");
}

#[test]
fn without_any_progress_in_redis_the_database_answers() {
    let world = File::default().world();
    let api = Api::serve_alone(&world, "");
    for round in 0..3 {
        let token = rename(&world, "u1", &format!("round {round}"));
        for headers in [&[][..], &[("Consistency-Token", token.as_str())]] {
            let answer = api.get_with("/users/u1", headers);
            assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some(format!("round {round}").as_str())));
            assert!(!answer.is_hit(), "{answer:?}");
        }
    }
}

/// A standby whose replay can be paused.
struct Replica {
    session: tokio_postgres::Client,
    runtime: tokio::runtime::Runtime,
    server: Postgres,
}

impl Replica {
    /// Restarts the world's primary.
    fn of(world: &mut World) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = world.postgres.standby(&["hot_standby=on", "max_standby_streaming_delay=-1"]).unwrap();
        world.reconnect();
        let session = runtime.block_on(connect(&server.url("postgres")));
        Self { session, runtime, server }
    }

    fn sql(&self, sql: &str) {
        self.runtime.block_on(self.session.batch_execute(sql)).unwrap();
    }

    fn value(&self, sql: &str) -> String {
        self.runtime.block_on(self.session.query_one(sql, &[])).unwrap().get(0)
    }

    fn pause(&self) {
        self.sql("select pg_wal_replay_pause()");
        let state = "select pg_get_wal_replay_pause_state()";
        wait_until(EVENT_MAX, "replay stops", || self.value(state) == "paused");
    }

    /// Waits until it has replayed everything that is committed on the primary.
    fn catch_up(&self, world: &World) {
        let end = world.value("select pg_current_wal_lsn()::text");
        let sql = format!("select (pg_last_wal_replay_lsn() >= '{end}')::text");
        wait_until(EVENT_MAX, "the replica catches up", || self.value(&sql) == "true");
    }
}

const WHERE: File<'static> = File {
    tables: "",
    rules: "  where: {table: users, delete: [\"where:{id}\", \"primary:{id}\"]}\n",
    reads: r#"
  where:
    path: /where/{id}
    key: "where:{id}"
    sql: select json_build_object('name', u.name, 'replica', pg_is_in_recovery()) from users u where u.id = $1
  primary:
    path: /primary/{id}
    key: "primary:{id}"
    replica: false
    sql: select json_build_object('name', u.name, 'replica', pg_is_in_recovery()) from users u where u.id = $1
"#,
    api: "",
};

#[test]
fn a_replica_is_read_only_if_it_has_replayed_enough() {
    let mut world = World::with_rules(&WHERE.text());
    let replica = Replica::of(&mut world);
    let api = format!("  replica_url: {}\n  consistency_wait: 50ms\n", replica.server.url("postgres"));
    world.write_rules(&File { api: &api, ..WHERE }.text());
    WHERE.set_up(&world);
    replica.catch_up(&world);
    let api = Api::run(world, &[]);
    api.warm("/probe/1");
    for round in 0..5 {
        let name = format!("lagging {round}");
        replica.pause();
        let token = rename(&api.world, "u1", &name);
        for headers in [&[("Consistency-Token", token.as_str())][..], &[]] {
            api.world.settle();
            let _: () = api.world.redis().del("v1:where:u1").unwrap();
            let answer = api.get_with("/where/u1", headers).json();
            assert_eq!(answer, serde_json::json!({"name": name, "replica": false}), "it has not replayed {token}");
        }
        replica.sql("select pg_wal_replay_resume()");
        replica.catch_up(&api.world);
        // The watermark rises with the primary's log, so the replica may briefly be behind again.
        let from_replica = || {
            let _: () = api.world.redis().del("v1:where:u1").unwrap();
            let answer = api.get("/where/u1").json();
            assert_eq!(answer["name"], name.as_str());
            answer["replica"] == true
        };
        wait_until(EVENT_MAX, "the replica is read again", from_replica);
        assert_eq!(api.get("/primary/u1").json(), serde_json::json!({"name": name, "replica": false}));
    }
}

#[test]
fn without_its_replica_the_api_reads_the_primary() {
    let mut world = World::with_rules(&WHERE.text());
    let mut replica = Replica::of(&mut world);
    let api = format!("  replica_url: {}\n", replica.server.url("postgres"));
    world.write_rules(&File { api: &api, ..WHERE }.text());
    WHERE.set_up(&world);
    replica.catch_up(&world);
    let api = Api::run(world, &[]);
    api.warm("/probe/1");
    assert_eq!(api.get("/where/u1").status, 200);
    replica.server.stop();
    for user in ["u2", "u3", "u4"] {
        let answer = api.get(&format!("/where/{user}"));
        assert_eq!((answer.status, &answer.json()["replica"]), (200, &serde_json::json!(false)), "{answer:?}");
    }
    replica.server.restart().unwrap();
    let from_replica = || {
        let _: () = api.world.redis().del("v1:where:u2").unwrap();
        api.get("/where/u2").json()["replica"] == true
    };
    wait_until(EVENT_MAX + Duration::from_secs(30), "the replica is read again", from_replica);
}

/// A server must not cache what a daemon with other rules does not delete.
#[test]
fn an_api_with_other_rules_than_the_daemon_serves_nothing_from_redis() {
    let world = File::default().world();
    let daemon = world.daemon();
    let api = Api::serve_alone(&world, "");
    api.warm("/users/u1");
    let newer = File {
        rules: "  titled: {table: users, delete: \"titled:{id}\"}\n",
        reads: "
  titled:
    path: /titled/{id}
    key: \"titled:{id}\"
    sql: select to_json(u.name) from users u where u.id = $1
",
        ..File::default()
    };
    world.write_rules(&newer.text());
    let other = Api::serve_alone(&world, "");
    let is_past = |answer: &Answer| answer.cache_status().contains("detail=other-rules");
    // At first the API may not have reached Redis yet.
    other.wait_for("/titled/u1", "it is read past Redis", is_past);
    for path in ["/titled/u1", "/users/u1"] {
        let answer = other.get(path);
        assert!(answer.status == 200 && is_past(&answer), "{answer:?}");
    }
    assert!(!world.holds("v1:titled:u1"));
    other.process.wait_for_log("has other rules");
    assert!(api.get("/users/u1").is_hit(), "its rules are those of the daemon");
    assert_eq!(daemon.stop(), Some(0));
    let daemon = world.daemon();
    other.warm("/titled/u1");
    api.wait_for("/users/u1", "now it is the other one", is_past);
    assert_eq!(daemon.stop(), Some(0));
}
