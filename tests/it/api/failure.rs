//! What still works when Redis, PostgreSQL or the process itself is unavailable.

use std::net::Shutdown;
use std::thread;

use redis::Commands as _;
use unstale::sandbox::signal;

use super::http::request;
use super::{Answer, Api, File, Hold};
use crate::support::{EVENT_MAX, wait_until};

fn assert_unavailable(answer: &Answer) {
    assert_eq!((answer.status, answer.problem().as_str()), (503, "unavailable"), "{answer:?}");
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!(wait >= 1, "{answer:?}");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

/// Every client gets the database's value, although there is no cache.
fn assert_reads_from_the_database(api: &Api, round: usize) {
    for user in ["u1", "u2"] {
        let name = format!("round {round}");
        api.world.sql(&format!("update users set name = '{name}' where id = '{user}'"));
        let answer = api.get(&format!("/users/{user}"));
        assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some(name.as_str())));
        assert!(answer.cache_status().contains("fwd=bypass; detail=redis-away"), "{answer:?}");
    }
}

#[test]
fn without_redis_reads_continue_and_hits_return_with_it() {
    let mut api = File::default().start();
    for round in 0..3 {
        api.warm("/users/u1");
        api.world.redis.stop();
        (0..5).for_each(|_| assert_reads_from_the_database(&api, round));
        assert_eq!(api.get("/users/missing").status, 404);
        api.world.redis.restart().unwrap();
        assert_eq!(api.warm("/users/u1").json()["name"], format!("round {round}"));
        api.world.sql("update users set name = 'after' where id = 'u1'");
        api.world.settle();
        assert_eq!(api.get("/users/u1").json()["name"], "after");
    }
}

#[test]
fn a_redis_that_hangs_counts_as_unavailable() {
    let api = File::default().start();
    api.warm("/users/u1");
    let redis = api.world.redis.pid().unwrap();
    assert!(signal(redis, "STOP"));
    (0..5).for_each(|_| assert_reads_from_the_database(&api, 1));
    assert!(signal(redis, "CONT"));
    api.world.settle();
    // The old value was in Redis all the time.
    for user in ["u1", "u2"] {
        assert_eq!(api.warm(&format!("/users/{user}")).json()["name"], "round 1");
    }
}

#[test]
fn a_full_redis_serves_hits_and_stores_nothing() {
    let api = File::default().start();
    api.warm("/users/u1");
    let mut redis = api.world.redis();
    let mut set = |name: &str, value: &str| {
        redis::cmd("CONFIG").arg(&["SET", name, value]).exec(&mut redis).unwrap();
    };
    set("maxmemory-policy", "noeviction");
    set("maxmemory", "1");
    assert!(api.get("/users/u1").is_hit());
    for _ in 0..3 {
        let answer = api.get("/users/u2");
        assert!(answer.status == 200 && !answer.is_stored(), "{answer:?}");
    }
    api.world.sql("update users set name = 'New' where id = 'u1'");
    api.world.settle();
    assert_eq!(api.get("/users/u1").json()["name"], "New");
    set("maxmemory", "0");
    api.warm("/users/u1");
    api.warm("/users/u2");
}

#[test]
fn without_postgresql_hits_continue_and_misses_get_503() {
    // Without PostgreSQL no value can be proven fresh for long, although nothing can be written
    // either.
    let mut api = File { api: "  max_staleness: 1s\n", ..File::default() }.start();
    let before = api.warm("/users/u1");
    api.world.postgres.stop();
    let too_old = |api: &Api| {
        let asof: u64 = api.world.redis().get("v1:unstale:{unstale}:asof").unwrap();
        let (seconds, _): (u64, u64) = redis::cmd("TIME").query(&mut api.world.redis()).unwrap();
        seconds * 1000 > asof + 2000
    };
    wait_until(EVENT_MAX, "the last proof is older than is asked for", || too_old(&api));
    for _ in 0..5 {
        let hit = api.get("/users/u1");
        assert_eq!((hit.status, &hit.body), (200, &before.body), "{hit:?}");
        assert_unavailable(&api.get("/users/u2"));
    }
    assert_eq!(api.get("/healthz").status, 204, "it serves");
    api.world.postgres.restart().unwrap();
    api.world.reconnect();
    api.wait_for("/users/u2", "misses are read again", |answer| answer.status == 200);
    api.world.sql("update users set name = 'After' where id = 'u1'");
    api.wait_for("/users/u1", "the change is seen", |answer| answer.status == 200 && answer.json()["name"] == "After");
    api.warm("/users/u1");
}

#[test]
fn a_value_older_than_stale_if_error_is_not_served() {
    let mut api = File { api: "  max_staleness: 1s\n  stale_if_error: 1s\n", ..File::default() }.start();
    api.warm("/users/u1");
    api.world.postgres.stop();
    let last = api.wait_for("/users/u1", "the value is served no longer", |answer| answer.status != 200);
    assert_unavailable(&last);
}

#[test]
fn a_hit_from_before_the_named_position_is_not_served_instead() {
    let mut api = File::default().start();
    api.warm("/users/u1");
    let token = api.world.token().to_string();
    api.world.sql("update users set name = 'Unseen' where id = 'u1'");
    let later = api.world.token().to_string();
    api.world.settle();
    api.warm("/users/u1");
    api.world.postgres.stop();
    assert_eq!(api.get_with("/users/u1", &[("Consistency-Token", &token)]).status, 200);
    let answer = api.get_with("/users/u1", &[("Consistency-Token", &later)]);
    assert!(answer.status == 503 || answer.json()["name"] == "Unseen", "{answer:?}");
    // The position may be past the end of the log; that cannot be known now.
    let unknown = api.get_with("/users/u1", &[("Consistency-Token", "FFFFFFFF/0")]);
    assert!([400, 503].contains(&unknown.status), "{unknown:?}");
    assert_eq!(api.get("/users/u1").status, 200);
}

#[test]
fn without_both_every_read_gets_503() {
    let mut api = File::default().start();
    api.warm("/users/u1");
    api.world.postgres.stop();
    api.world.redis.stop();
    for path in ["/users/u1", "/users/u2", "/slow/u1"] {
        assert_unavailable(&api.get(path));
    }
    assert_eq!(api.get("/healthz").status, 204);
    assert_eq!(api.get("/stats").status, 200);
    assert_eq!(api.get("/nothing").status, 404);
    api.world.postgres.restart().unwrap();
    api.wait_for("/users/u1", "PostgreSQL is enough", |answer| answer.status == 200);
    api.world.redis.restart().unwrap();
    api.warm("/users/u1");
}

#[test]
fn a_broken_database_connection_is_replaced() {
    let api = File::default().start();
    for round in 0..5 {
        api.world.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity
              where pid <> pg_backend_pid() and backend_type = 'client backend'",
        );
        let path = format!("/users/u{}", round + 1);
        api.wait_for(&path, "it is read", |answer| {
            assert!([200, 503].contains(&answer.status), "{answer:?}");
            answer.status == 200
        });
    }
}

#[test]
fn a_query_over_its_timeout_is_cancelled_and_releases_its_lease() {
    let file = File {
        rules: "  brief: {table: users, delete: \"brief:{id}\"}\n",
        reads: r#"
  brief:
    path: /brief/{id}
    key: "brief:{id}"
    timeout: 200ms
    sql: select to_json(u.name) from users u, (select pg_advisory_xact_lock_shared(7)) held where u.id = $1
"#,
        ..File::default()
    };
    let api = file.start();
    let hold = Hold::new(&api.world);
    for _ in 0..3 {
        let answer = api.get("/brief/u1");
        assert!([503, 504].contains(&answer.status), "{answer:?}");
        answer.problem();
    }
    assert_eq!(api.get("/users/u1").status, 200, "no session of the pool is stuck");
    let stuck = "select count(*)::text from pg_locks where locktype = 'advisory' and not granted";
    wait_until(EVENT_MAX, "the server runs no query", || api.world.value(stuck) == "0");
    hold.release();
    assert!(api.get("/brief/u1").is_stored());
}

#[test]
fn a_stopped_server_finishes_requests_and_closes_idle_connections() {
    for alone in [false, true] {
        let mut api = File::default().start();
        let mut other = alone.then(|| Api::serve_alone(&api.world, ""));
        let client = other.as_ref().map_or(api.client(), |other| other.client());
        let mut idle = client.connect();
        idle.send(&request("GET", "/users/u1", &[]));
        assert_eq!(idle.answer("GET").unwrap().status, 200);
        let hold = Hold::new(&api.world);
        let slow = thread::spawn(move || client.get("/slow/u1"));
        hold.wait_for(1);
        other.as_ref().map_or(&api.instance.process, |other| &other.process).signal("TERM");
        assert_eq!(idle.answer("GET"), None, "no request is open there");
        wait_until(EVENT_MAX, "no new connection is accepted", || {
            client.try_connect().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        });
        hold.release();
        assert_eq!(slow.join().unwrap().status, 200);
        let process = other.as_mut().map_or(&mut api.instance.process, |other| &mut other.process);
        assert_eq!(process.wait(), Some(0));
    }
}

/// As many requests as the database has connections: if each waited in turn, other reads would get
/// none.
#[test]
fn clients_that_disconnect_do_not_exhaust_database_connections() {
    let api = File { api: "  database_connections: 4\n", ..File::default() }.start();
    let hold = Hold::new(&api.world);
    let leaving: Vec<_> = (1..=4)
        .map(|user| {
            let mut connection = api.connect();
            connection.send(&request("GET", &format!("/slow/u{user}"), &[("Cache-Control", "no-store")]));
            connection
        })
        .collect();
    hold.wait_for(4);
    drop(leaving);
    let other = api.wait_for("/users/u1", "there is a connection", |answer| answer.status == 200);
    assert_eq!(other.json()["name"], "User 1");
    hold.release();
}

#[test]
fn a_leader_that_disconnects_does_not_fail_its_followers() {
    let api = File::default().start();
    let hold = Hold::new(&api.world);
    let mut leaving = api.connect();
    leaving.send(&request("GET", "/slow/u1", &[]));
    hold.wait_for(1);
    leaving.shut(Shutdown::Both);
    drop(leaving);
    let client = api.client();
    let waiting = thread::spawn(move || client.get("/slow/u1"));
    hold.release();
    assert_eq!(waiting.join().unwrap().status, 200);
    assert!(api.warm("/slow/u1").is_hit());
}
