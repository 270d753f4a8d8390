//! HTTP caching by the lease protocol: hits, conditional requests, one database read for many
//! clients.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use redis::Commands as _;

use super::http::request;
use super::{Answer, Api, Client, File, Hold};
use crate::support::{EVENT_MAX, World, wait_until};

#[test]
fn the_first_answer_is_stored_and_the_next_comes_from_the_cache() {
    let api = File::default().start();
    let first = api.get("/users/u1");
    assert_eq!((first.status, first.header("content-type")), (200, Some("application/json")));
    assert!(first.is_stored() && !first.is_hit(), "{first:?}");
    assert!(first.cache_status().starts_with("unstale; fwd=miss"), "{first:?}");
    let second = api.get("/users/u1");
    assert!(second.is_hit() && second.cache_status().contains("ttl="), "{second:?}");
    second.header("age").unwrap().parse::<u64>().unwrap();
    assert_eq!((&first.body, first.etag()), (&second.body, second.etag()));
    assert_eq!(second.header("cache-control"), Some("no-cache"), "who keeps it must ask again");
    assert!(second.header("server-timing").is_some() && second.header("x-request-id").is_some(), "{second:?}");
    assert_eq!(second.header("x-cache"), None, "behind a setting");
    assert!(!second.cache_status().contains("u1"), "the key in the cache is not shown");
    assert_eq!((api.stat("user", "misses"), api.stat("user", "hits"), api.stat("user", "fills")), (1, 1, 1));
    assert_eq!(api.stat("user", "database_reads"), 1);
}

#[test]
fn x_cache_is_sent_if_configured() {
    let api = File { api: "  x_cache: true\n", ..File::default() }.start();
    assert_eq!(api.get("/users/u1").header("x-cache"), Some("MISS"));
    assert_eq!(api.get("/users/u1").header("x-cache"), Some("HIT"));
}

#[test]
fn a_matching_etag_gets_304_without_a_body() {
    let api = File::default().start();
    let sql =
        "select left(encode(sha256(convert_to(json_build_object('id', id, 'name', name)::text, 'UTF8')), 'hex'), 32)
               from users where id = 'u1'";
    let etag = format!("\"{}\"", api.world.value(sql));
    for _ in 0..2 {
        assert_eq!(api.get("/users/u1").etag(), etag);
    }
    for condition in [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}"), "*".to_owned()] {
        let spared = api.get_with("/users/u1", &[("If-None-Match", &condition)]);
        assert_eq!((spared.status, spared.body.len(), spared.etag()), (304, 0, etag.as_str()), "{condition}");
        assert_eq!(spared.header("cache-control"), Some("no-cache"));
        spared.token();
    }
    assert_eq!(api.stat("user", "not_modified"), 4);
    for condition in ["\"other\"", "other", "", "\"", &etag[1..]] {
        assert_eq!(api.get_with("/users/u1", &[("If-None-Match", condition)]).status, 200, "{condition}");
    }
    let missing = api.get_with("/users/missing", &[("If-None-Match", "*")]);
    assert_eq!(missing.status, 404);
    api.world.sql("update users set name = 'Another' where id = 'u1'");
    api.world.settle();
    let changed = api.get_with("/users/u1", &[("If-None-Match", &etag)]);
    assert_eq!(changed.status, 200);
    assert_ne!(changed.etag(), etag);
}

#[test]
fn head_has_the_headers_and_no_body() {
    let api = File::default().start();
    api.warm("/users/u1");
    let (get, head) = (api.get("/users/u1"), api.head("/users/u1"));
    assert_eq!((head.status, head.body.len()), (200, 0));
    for name in ["content-type", "content-length", "etag", "cache-control", "vary"] {
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
    assert_eq!(Answer::all(&api.raw(&request("HEAD", "/users/u1", &[("Connection", "close")])), "HEAD").len(), 1);
    assert_eq!(api.head("/users/missing").status, 404);
    let cold = api.head("/users/u2");
    assert!(cold.status == 200 && cold.is_stored(), "{cold:?}");
    assert!(api.get("/users/u2").is_hit());
}

#[test]
fn a_compressed_body_has_its_own_etag() {
    let api = File::default().start();
    api.world.sql("update users set name = repeat('long ', 2000) where id = 'u1'");
    api.world.settle();
    let plain = api.warm("/users/u1");
    assert_eq!(plain.header("content-encoding"), None);
    let packed = api.get_with("/users/u1", &[("Accept-Encoding", "br, gzip")]);
    assert_eq!((packed.status, packed.header("content-encoding")), (200, Some("gzip")));
    assert!(packed.body.len() < plain.body.len() / 2, "{} bytes", packed.body.len());
    assert!(packed.all_of("vary").to_ascii_lowercase().contains("accept-encoding"), "{packed:?}");
    let etag = packed.etag();
    assert_eq!(etag, format!("{}-gzip\"", plain.etag().trim_end_matches('"')));
    let spared = api.get_with("/users/u1", &[("Accept-Encoding", "gzip"), ("If-None-Match", etag)]);
    assert_eq!((spared.status, spared.body.len(), spared.etag()), (304, 0, etag));
    assert_eq!(api.get("/users/u1").body, plain.body);
}

#[test]
fn the_next_answer_contains_what_is_in_force() {
    let api = File::default().start();
    for round in 0..200 {
        let user = round % 3 + 1;
        api.world.sql(&format!("update users set name = 'round {round}' where id = 'u{user}'"));
        api.world.settle();
        for _ in 0..2 {
            assert_eq!(api.get(&format!("/users/u{user}")).json()["name"], format!("round {round}"));
        }
    }
    assert!(api.stat("user", "hits") > 0, "the cache was in use");
}

/// Many clients request the same key at once; the leader's query is held until all have asked.
/// Returns their answers.
fn crowd(clients: &[Client], path: &str, hold: Hold<'_>) -> Vec<Answer> {
    let sent = AtomicUsize::new(0);
    let ask = &|client: Client| {
        let mut connection = client.connect();
        connection.send(&request("GET", path, &[("Connection", "close")]));
        sent.fetch_add(1, Ordering::SeqCst);
        connection.answer("GET").expect("an answer")
    };
    thread::scope(|scope| {
        let first = scope.spawn(move || ask(clients[0]));
        hold.wait_for(1);
        let others: Vec<_> = clients[1..].iter().map(|client| scope.spawn(move || ask(*client))).collect();
        wait_until(EVENT_MAX, "every client has asked", || sent.load(Ordering::SeqCst) == clients.len());
        hold.release();
        let first = std::iter::once(first.join().unwrap());
        first.chain(others.into_iter().map(|other| other.join().unwrap())).collect()
    })
}

fn assert_one_read(instances: &[Client], world: &World) {
    let clients: Vec<_> = instances.iter().cycle().take(200).copied().collect();
    let answers = crowd(&clients, "/slow/u1", Hold::new(world));
    let expected = world.value("select to_json(name)::text from users where id = 'u1'");
    for answer in answers {
        assert_eq!((answer.status, answer.text()), (200, expected.clone()));
    }
    let reads: u64 = instances.iter().map(|instance| instance.stat("slow", "database_reads")).sum();
    assert_eq!(reads, 1);
}

#[test]
fn a_cold_key_with_many_clients_costs_one_database_read() {
    let api = File { api: "  fill_wait: 20s\n", ..File::default() }.start();
    assert_one_read(&[api.client()], &api.world);
}

#[test]
fn a_cold_key_at_two_instances_costs_one_database_read() {
    let api = File { api: "  fill_wait: 20s\n", ..File::default() }.start();
    let other = Api::serve_alone(&api.world, "");
    other.warm("/probe/1");
    assert_one_read(&[api.client(), other.client()], &api.world);
}

#[test]
fn a_request_that_waited_too_long_for_a_fill_reads_the_database() {
    let api = File { api: "  fill_wait: 50ms\n", ..File::default() }.start();
    let hold = Hold::new(&api.world);
    thread::scope(|scope| {
        let filling = scope.spawn(|| api.client().get("/slow/u1"));
        hold.wait_for(1);
        let waiting = scope.spawn(|| api.client().get("/slow/u1"));
        hold.wait_for(2);
        hold.release();
        let (filling, waiting) = (filling.join().unwrap(), waiting.join().unwrap());
        assert_eq!((filling.status, waiting.status), (200, 200));
        assert!(filling.is_stored() && !waiting.is_stored(), "{filling:?} {waiting:?}");
    });
}

#[test]
fn a_value_read_before_its_invalidation_is_not_stored() {
    let api = File::default().start();
    for round in 0..5 {
        let old = api.world.value("select name from users where id = 'u1'");
        let hold = Hold::new(&api.world);
        thread::scope(|scope| {
            let slow = scope.spawn(|| api.client().get("/slow/u1"));
            hold.wait_for(1);
            api.world.sql(&format!("update users set name = 'round {round}' where id = 'u1'"));
            api.world.settle();
            hold.release();
            let slow = slow.join().unwrap();
            // The query began before the commit, so its own client, and only that one, may get the
            // old value.
            let text = slow.json().as_str().unwrap().to_owned();
            assert!(slow.status == 200 && [old, format!("round {round}")].contains(&text), "{slow:?}");
            assert!(!slow.is_stored() || text == format!("round {round}"), "{slow:?}");
        });
        for _ in 0..2 {
            assert_eq!(api.get("/slow/u1").json(), format!("round {round}"));
        }
        api.world.sql("update users set name = 'between' where id = 'u1'");
        api.world.settle();
    }
    assert!(api.stat("slow", "refused_fills") >= 5);
}

#[test]
fn an_error_is_not_cached_and_the_next_reader_fills_at_once() {
    let file = File {
        tables: "create function shown(name text) returns json language plpgsql stable as
                 $$ begin raise exception 'internal secret'; end $$",
        rules: "  shown: {table: users, delete: \"shown:{id}\"}\n",
        reads: r#"
  shown:
    path: /shown/{id}
    key: "shown:{id}"
    sql: select shown(u.name) from users u where u.id = $1
"#,
        // If a lease were left behind, this reader would wait for longer than the test does.
        api: "  fill_wait: 1m\n  timeout: 2m\n",
    };
    let api = file.start();
    for _ in 0..3 {
        let answer = api.get("/shown/u1");
        assert!(answer.status >= 500, "{answer:?}");
        answer.problem();
        assert!(!answer.text().contains("internal secret"), "{answer:?}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    assert!(!api.world.holds("v1:shown:u1"));
    api.world.sql(
        "create or replace function shown(name text) returns json language plpgsql stable as
         $$ begin return to_json(name); end $$",
    );
    let answer = api.get("/shown/u1");
    assert!(answer.status == 200 && answer.is_stored(), "{answer:?}");
    assert!(api.stat("shown", "errors") >= 3);
}

/// `refreshed` gives a higher number at every read, and waits for a [`Hold`].
const REFRESHED: File<'static> = File {
    tables: "",
    rules: "  refreshed: {table: users, delete: \"refreshed:{id}\"}\n",
    reads: r#"
  refreshed:
    path: /refreshed/{id}
    key: "refreshed:{id}"
    ttl: 1s
    stale_while_revalidate: 1h
    timeout: 30s
    sql: >-
      select to_json((extract(epoch from clock_timestamp()) * 1e6)::bigint)
      from users u, (select pg_advisory_xact_lock_shared(7)) held where u.id = $1
"#,
    api: "",
};

#[test]
fn a_soft_expired_value_is_served_while_it_is_refreshed() {
    let api = REFRESHED.start();
    let number = |answer: &Answer| answer.json().as_u64().unwrap();
    let first = number(&api.get("/refreshed/u1"));
    let hold = Hold::new(&api.world);
    // No request waits for the query that is held, however often the key is requested.
    let stale = |api: &Api| {
        assert_eq!(api.get("/refreshed/u1").status, 200);
        api.stat("refreshed", "stale_hits") >= 10
    };
    wait_until(EVENT_MAX, "the value is served though its time is over", || stale(&api));
    hold.wait_for(1);
    hold.release();
    api.wait_for("/refreshed/u1", "it is refreshed", |answer| number(answer) > first);
}

#[test]
fn a_soft_expired_value_is_deleted_by_its_invalidation() {
    let api = REFRESHED.start();
    let first = api.get("/refreshed/u1").json().as_u64().unwrap();
    let hold = Hold::new(&api.world);
    let stale = || {
        api.get("/refreshed/u1");
        api.stat("refreshed", "stale_hits") > 0
    };
    wait_until(EVENT_MAX, "the value is served though its time is over", stale);
    // The refresh has read the value and must not store it.
    hold.wait_for(1);
    api.world.sql("update users set name = 'New' where id = 'u1'");
    api.world.settle();
    assert!(!api.world.holds("v1:refreshed:u1"));
    hold.release();
    assert!(api.get("/refreshed/u1").json().as_u64().unwrap() > first);
}

#[test]
fn a_client_can_bypass_the_cache() {
    let api = File::default().start();
    let number = |headers: &[(&str, &str)]| {
        let answer = api.get_with("/counted/u1", headers);
        (answer.json().as_u64().unwrap(), answer)
    };
    let (first, _) = number(&[]);
    assert_eq!(number(&[]).0, first);
    let (second, revalidated) = number(&[("Cache-Control", "no-cache")]);
    assert!(second > first && revalidated.cache_status().contains("fwd=request"), "{revalidated:?}");
    let (third, kept) = number(&[]);
    assert!(third == second && kept.is_hit(), "what the client had read is there for all: {kept:?}");
}

#[test]
fn a_client_can_prevent_storing() {
    let api = File::default().start();
    let unstored = api.get_with("/counted/u1", &[("Cache-Control", "no-store")]);
    assert!(unstored.status == 200 && !unstored.is_stored(), "{unstored:?}");
    assert!(!api.world.holds("v1:counted:u1"));
    let next = api.get("/counted/u1");
    assert!(next.is_stored(), "{next:?}");
    assert_ne!(next.body, unstored.body);
}

#[test]
fn a_foreign_value_is_neither_served_nor_replaced() {
    let api = File::default().start();
    for held in ["cached", "", "{\"id\":\"u1\",\"name\":\"Forged\"}", "V:x", "L:x"] {
        let _: () = api.world.redis().set("v1:user:u1", held).unwrap();
        for headers in [&[][..], &[("Cache-Control", "no-cache")]] {
            let answer = api.get_with("/users/u1", headers);
            assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some("User 1")), "{held:?}");
            assert!(!answer.is_hit() && !answer.is_stored(), "{held:?}: {answer:?}");
        }
        assert_eq!(api.world.redis().get::<_, String>("v1:user:u1").unwrap(), held);
    }
    let _: () = api.world.redis().del("v1:user:u1").unwrap();
    let _: () = api.world.redis().lpush("v1:user:u1", "of another type").unwrap();
    assert_eq!(api.get("/users/u1").json()["name"], "User 1");
    assert!(api.world.holds("v1:user:u1"));
}
