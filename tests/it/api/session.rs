//! A token is valid as long as the database says so, and is never revealed.

use redis::Commands as _;

use super::http::request;
use super::{Answer, Api, File};
use crate::support::{EVENT_MAX, wait_until};

const SESSIONS: File<'static> = File {
    tables: "create table moves (token_hash text)",
    rules: r#"
  session: {table: sessions, delete: "session:{token_hash}"}
"#,
    reads: r#"
  session:
    path: /session
    key: "session:{token}"
    sql: |
      select json_build_object('user_id', s.user_id), s.expires_at
        from sessions s
       where s.token_hash = $1 and s.expires_at > now()
"#,
    api: "  session: session\n",
};

fn with_token(api: &Api, path: &str, token: &str) -> Answer {
    api.get_with(path, &[("Authorization", &format!("Bearer {token}"))])
}

fn session(api: &Api, number: usize) -> Answer {
    with_token(api, "/session", &format!("token-{number}"))
}

fn assert_unauthorized(answer: &Answer) {
    assert_eq!((answer.status, answer.problem().as_str()), (401, "unauthorized"), "{answer:?}");
    assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"), "{answer:?}");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

/// Repeats the request until it is a hit.
fn warm(api: &Api, number: usize) {
    wait_until(EVENT_MAX, "the session comes from the cache", || {
        let answer = session(api, number);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.is_hit()
    });
}

#[test]
fn a_token_identifies_its_user() {
    let api = SESSIONS.start();
    for number in 1..=3 {
        for _ in 0..2 {
            let answer = session(&api, number);
            assert_eq!((answer.status, answer.json()), (200, serde_json::json!({"user_id": format!("u{number}")})));
            assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
        }
    }
    for scheme in ["bearer", "BEARER"] {
        let header = format!("{scheme} token-1");
        let answer = api.get_with("/session", &[("Authorization", &header)]);
        assert_eq!(answer.status, 200, "{header}");
    }
    assert_eq!(api.stat("session", "database_reads"), 3);
}

#[test]
fn without_a_valid_token_there_is_no_session() {
    let api = SESSIONS.start();
    api.world.sql("update sessions set expires_at = now() - interval '1 second' where user_id = 'u9'");
    api.world.settle();
    let long = format!("Bearer {}", "x".repeat(5000));
    let hash = api.world.value("select 'Bearer ' || token_hash from sessions where user_id = 'u1'");
    let bad = [
        "",
        "Bearer",
        "Bearer ",
        "token-1",
        "Basic token-1",
        "Bearer token-9",
        "Bearer token-11",
        "Bearer token-1 x",
        "Bearer token-1,",
        "Bearertoken-1",
        "Bearer TOKEN-1",
        "Bearer ' or 1=1 --",
        "Bearer é",
        &long,
        &hash,
    ];
    for header in bad {
        for _ in 0..2 {
            assert_unauthorized(&api.get_with("/session", &[("Authorization", header)]));
        }
    }
    assert_unauthorized(&api.get("/session"));
    assert_unauthorized(&api.get_with("/session?token=token-1&access_token=token-1", &[("Cookie", "token=token-1")]));
    for byte in [0x01, 0x7f, 0x80, 0xff] {
        let mut bytes =
            b"GET /session HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer token-1".to_vec();
        bytes.push(byte);
        bytes.extend(b"\r\n\r\n");
        for answer in Answer::all(&api.raw(&bytes), "GET") {
            assert!([400, 401].contains(&answer.status), "{byte}: {answer:?}");
        }
    }
    assert_eq!(session(&api, 1).status, 200);
}

#[test]
fn a_revoked_session_ends_once_that_is_in_force() {
    let api = SESSIONS.start();
    for number in 1..=5 {
        warm(&api, number);
        api.world.sql(&format!("delete from sessions where id = 's{number}'"));
        api.world.settle();
        assert_unauthorized(&session(&api, number));
    }
    assert_eq!(session(&api, 6).status, 200);
}

#[test]
fn deleting_a_user_ends_all_its_sessions() {
    let api = SESSIONS.start();
    api.world.sql(
        "insert into sessions (id, user_id, token_hash)
         select 'more' || n, 'u1', encode(sha256(('token-10' || n)::bytea), 'hex') from generate_series(1, 5) n",
    );
    api.world.settle();
    let numbers = [1, 101, 102, 103, 104, 105];
    numbers.iter().for_each(|number| warm(&api, *number));
    api.world.sql("delete from users where id = 'u1'");
    api.world.settle();
    numbers.iter().for_each(|number| assert_unauthorized(&session(&api, *number)));
    assert_eq!(session(&api, 2).status, 200);
}

#[test]
fn a_session_expires_without_any_change() {
    let api = SESSIONS.start();
    warm(&api, 1);
    api.world.sql("update sessions set expires_at = now() + interval '1 second' where id = 's1'");
    api.world.settle();
    wait_until(EVENT_MAX, "its time is over", || session(&api, 1).status == 401);
    assert_unauthorized(&session(&api, 1));
    let over = "select (expires_at <= now())::text from sessions where id = 's1'";
    assert_eq!(api.world.value(over), "true", "not before");
}

#[test]
fn a_new_session_is_valid_although_its_token_was_tried_before() {
    let api = SESSIONS.start();
    (0..3).for_each(|_| assert_unauthorized(&session(&api, 77)));
    api.world
        .sql("insert into sessions (id, user_id, token_hash) values ('s77', 'u1', encode(sha256('token-77'), 'hex'))");
    api.world.settle();
    assert_eq!(session(&api, 77).status, 200);
}

#[test]
fn a_path_that_requires_a_session_refuses_requests_without() {
    let api = "  session: {read: session, required: [\"/users/**\", \"/slow/*\", \"/nothing/**\"]}\n";
    let api = File { api, ..SESSIONS }.start();
    for path in ["/users/u1", "/users/missing", "/slow/u1"] {
        for _ in 0..2 {
            assert_unauthorized(&api.get(path));
            assert_unauthorized(&with_token(&api, path, "unknown"));
            assert_eq!(api.head(path).status, 401);
        }
    }
    assert_eq!(api.stat("user", "database_reads"), 0);
    assert_eq!(api.get("/counted/u1").status, 200, "there it is not required");
    for _ in 0..2 {
        let answer = with_token(&api, "/users/u1", "token-1");
        assert_eq!((answer.status, answer.header("cache-control")), (200, Some("private, no-cache")));
    }
    let etag = with_token(&api, "/users/u1", "token-1").etag().to_owned();
    assert_unauthorized(&api.get_with("/users/u1", &[("If-None-Match", &etag)]));
    // For every notation of the path.
    for path in ["/users/%75%31", "/%75sers/u1", "/users//u1", "//users/u1", "/users/./u1", "/users/u1/", "/users/u1?x"]
    {
        assert_ne!(api.get(path).status, 200, "{path}");
    }
    api.world.sql("delete from sessions where id = 's1'");
    api.world.settle();
    assert_unauthorized(&with_token(&api, "/users/u1", "token-1"));
}

#[test]
fn a_session_can_be_required_everywhere() {
    let api = File { api: "  session: {read: session, required: [\"/**\"]}\n", ..SESSIONS };
    let api = Api::run(api.world(), &[]);
    for path in ["/users/u1", "/probe/1", "/session", "/counted/u1"] {
        assert_unauthorized(&api.get(path));
        assert_eq!(with_token(&api, path, "token-1").status, 200, "{path}");
    }
}

#[test]
fn without_redis_the_database_resolves_sessions_and_without_both_there_are_none() {
    let api = "  session: {read: session, required: [\"/users/*\"]}\n";
    let mut api = File { api, ..SESSIONS }.start();
    warm(&api, 1);
    api.world.redis.stop();
    assert_eq!(with_token(&api, "/users/u1", "token-1").status, 200);
    assert_unauthorized(&with_token(&api, "/users/u1", "token-77"));
    assert_unauthorized(&api.get("/users/u1"));
    api.world.postgres.stop();
    for path in ["/users/u1", "/session"] {
        let answer = with_token(&api, path, "token-1");
        assert_eq!((answer.status, answer.problem().as_str()), (503, "unavailable"), "closed by default: {path}");
        assert_unauthorized(&api.get(path));
    }
}

#[test]
fn a_token_appears_in_no_key_value_or_log_line() {
    let world = SESSIONS.world();
    let secret = "q7Zk-secret-token-XyW9";
    world.sql(&format!(
        "insert into sessions (id, user_id, token_hash) values ('x', 'u1', encode(sha256('{secret}'), 'hex'))"
    ));
    let mut api = Api::run(world, &[("RUST_LOG", "debug")]);
    api.warm("/probe/1");
    let bearer = format!("Bearer {secret}");
    let answers = [
        with_token(&api, "/session", secret),
        with_token(&api, "/session", secret),
        with_token(&api, "/session", &format!("{secret}-unknown")),
        with_token(&api, "/nothing", secret),
        api.request("POST", "/session", &[("Authorization", &bearer)]),
        api.get_with("/session", &[("Authorization", &bearer), ("Consistency-Token", "x")]),
        api.get_with("/session", &[("Authorization", &bearer), ("X-Big", &"x".repeat(20_000))]),
    ];
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200, 401, 404, 405, 400, 431]);
    for answer in answers {
        assert!(!format!("{:?} {}", answer.headers, answer.text()).contains(secret), "{answer:?}");
    }
    // Compressed strings would not be found in the dump.
    redis::cmd("CONFIG").arg(&["SET", "rdbcompression", "no"]).exec(&mut api.world.redis()).unwrap();
    let keys: Vec<String> = api.world.redis().keys("*").unwrap();
    let hash = api.world.value("select token_hash from sessions where id = 'x'");
    assert!(keys.contains(&format!("v1:session:{hash}")), "{keys:?}");
    for key in &keys {
        assert!(!key.contains(secret), "{key}");
        let held: Option<Vec<u8>> = redis::cmd("DUMP").arg(key).query(&mut api.world.redis()).unwrap();
        let held = held.unwrap_or_default();
        assert!(!held.windows(secret.len()).any(|part| part == secret.as_bytes()), "{key}");
    }
    api.process.signal("TERM");
    assert_eq!(api.process.wait(), Some(0));
    let log = api.process.log();
    assert!(!log.is_empty());
    log.iter().for_each(|line| assert!(!line.contains(secret), "{line}"));
}

#[test]
fn a_session_in_use_is_prolonged_and_not_too_often() {
    let api = r#"
  session:
    read: session
    sliding:
      every: 1h
      sql: >-
        with moved as (update sessions set expires_at = now() + interval '60 days' where token_hash = $1
        returning token_hash) insert into moves select token_hash from moved
"#;
    let api = File { api, ..SESSIONS }.start();
    let moves = |number: usize| {
        let sql = "select count(*)::text from moves m join sessions s using (token_hash) where s.id = 's";
        api.world.value(&format!("{sql}{number}'")).parse::<u64>().unwrap()
    };
    for number in [1, 2] {
        assert_eq!(session(&api, number).status, 200);
        wait_until(EVENT_MAX, "its end moves", || moves(number) > 0);
        let left =
            format!("select (expires_at > now() + interval '59 days')::text from sessions where id = 's{number}'");
        assert_eq!(api.world.value(&left), "true");
    }
    api.world.settle();
    for _ in 0..20 {
        assert_eq!(session(&api, 1).status, 200);
    }
    assert_unauthorized(&session(&api, 77));
    // A later use by another session shows that none of the twenty is still in progress.
    assert_eq!(session(&api, 3).status, 200);
    wait_until(EVENT_MAX, "its end moves", || moves(3) > 0);
    assert_eq!((moves(1), moves(2), moves(3)), (1, 1, 1));
}

#[test]
fn many_unknown_tokens_take_little_memory_and_block_no_client() {
    let api = SESSIONS.start();
    for number in 0..300 {
        let mut connection = api.connect();
        let token = format!("Bearer guess-{number}");
        connection.send(&request("GET", "/session", &[("Authorization", &token), ("Connection", "close")]));
        assert_unauthorized(&connection.answer("GET").unwrap());
    }
    assert_eq!(session(&api, 1).status, 200);
    let kept: Vec<String> = api.world.redis().keys("v1:session:*").unwrap();
    assert!(kept.len() < 10, "no more than what is under way: {kept:?}");
}
