//! Rate limits over HTTP: which caller they count, how exactly, and what happens when Redis cannot
//! be asked.

use redis::Commands as _;

use super::{Answer, Api};
use crate::support::{EVENT_MAX, wait_until};

/// Users and sessions; the `api:` section follows.
const READS: &str = r#"version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "v1:"}
rules:
  user: {table: users, delete: "user:{id}"}
  session: {table: sessions, delete: "session:{token_hash}"}
reads:
  user:
    path: /users/{id}
    key: "user:{id}"
    sql: select json_build_object('id', id, 'name', name) from users where id = $1
  session:
    path: /session
    key: "session:{token_hash}"
    sql: >-
      select json_build_object('user_id', user_id), expires_at from sessions
       where token_hash = $1 and expires_at > now()
"#;

/// The keys of the counts.
const COUNTS: &str = "v1:unstale:{unstale}:limit:*";

/// An API with this section, which contains the limits.
fn limited(section: &str) -> Api {
    Api::start(&format!("{READS}api:\n  session: session\n{section}"))
}

fn bearing(api: &Api, path: &str, token: &str) -> Answer {
    api.get_with(path, &[("Authorization", &format!("Bearer {token}"))])
}

fn forwarded(api: &Api, addresses: &str) -> u16 {
    api.get_with("/users/u1", &[("X-Forwarded-For", addresses)]).status
}

/// A parameter of an item in a `RateLimit` or `RateLimit-Policy` field.
fn parameter(answer: &Answer, field: &str, limit: &str, name: &str) -> u64 {
    let items = answer.header(field).unwrap_or_else(|| panic!("no {field}"));
    let item = items.split(", ").find_map(|item| item.strip_prefix(&format!("\"{limit}\";"))).expect(items);
    item.split(';').find_map(|parameter| parameter.strip_prefix(&format!("{name}="))).expect(item).parse().unwrap()
}

fn check_refusal(answer: &Answer) {
    assert_eq!(answer.status, 429);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let problem = answer.json();
    assert_eq!((&problem["type"], &problem["status"]), (&"urn:unstale:rate-limited".into(), &429.into()));
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
}

/// In a long window exactly `limit` requests pass.
fn check_exact(algorithm: &str) {
    let section = format!("  rate_limits: {{hourly: {{path: '/**', limit: 5, window: 1h, algorithm: {algorithm}}}}}\n");
    let api = limited(&section);
    for left in [4, 3, 2, 1, 0] {
        let answer = api.get("/users/u1");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("ratelimit-policy"), Some("\"hourly\";q=5;w=3600"));
        assert_eq!(parameter(&answer, "ratelimit", "hourly", "r"), left);
        assert!(parameter(&answer, "ratelimit", "hourly", "t") <= 3600);
        assert_eq!(answer.header("x-ratelimit-limit"), None, "only by setting");
    }
    for path in ["/users/u1", "/users/u2", "/users/u1"] {
        let refused = api.get(path);
        check_refusal(&refused);
        assert_eq!(parameter(&refused, "ratelimit-policy", "hourly", "q"), 5);
        assert_eq!(parameter(&refused, "ratelimit", "hourly", "r"), 0);
        let wait = parameter(&refused, "ratelimit", "hourly", "t").to_string();
        assert_eq!(refused.header("retry-after"), Some(&*wait), "both say when");
    }
}

#[test]
fn a_sliding_window_is_exact() {
    check_exact("sliding");
}

#[test]
fn a_fixed_window_is_exact() {
    check_exact("fixed");
}

/// Requests pass again after the window; refused ones do not count, and no key remains.
fn check_passing(algorithm: &str) {
    let section = format!("  rate_limits: {{short: {{path: '/**', limit: 2, window: 3s, algorithm: {algorithm}}}}}\n");
    let api = limited(&section);
    wait_until(EVENT_MAX, "the limit is reached", || api.get("/users/u1").status == 429);
    wait_until(EVENT_MAX, "the window has passed", || api.get("/users/u1").status == 200);
    wait_until(EVENT_MAX, "the counts have gone by themselves", || {
        api.world.redis().keys::<_, Vec<String>>(COUNTS).unwrap().is_empty()
    });
}

#[test]
fn requests_pass_again_after_a_sliding_window() {
    check_passing("sliding");
}

#[test]
fn requests_pass_again_after_a_fixed_window() {
    check_passing("fixed");
}

#[test]
fn refused_requests_take_no_memory() {
    let api = limited("  rate_limits: {hourly: {path: '/**', limit: 3, window: 1h}}\n");
    for _ in 0..20 {
        api.get("/users/u1");
    }
    let keys: Vec<String> = api.world.redis().keys(COUNTS).unwrap();
    let [key] = keys.as_slice() else { panic!("{keys:?}") };
    assert_eq!(api.world.redis().llen::<_, u64>(key).unwrap(), 3);
}

#[test]
fn concurrent_requests_are_counted_exactly() {
    for algorithm in ["sliding", "fixed"] {
        let section =
            format!("  rate_limits: {{burst: {{path: '/**', limit: 20, window: 1h, algorithm: {algorithm}}}}}\n");
        let api = limited(&section);
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..50).map(|_| scope.spawn(|| api.get("/users/u1").status)).collect();
            asking.into_iter().map(|asking| asking.join().unwrap()).collect()
        });
        let count = |status: u16| statuses.iter().filter(|found| **found == status).count();
        assert_eq!((count(200), count(429)), (20, 30), "{algorithm}: {statuses:?}");
    }
}

#[test]
fn each_session_has_its_own_count() {
    let api = limited("  rate_limits: {each: {path: '/users/*', limit: 2, window: 1h, by: session}}\n");
    let statuses: Vec<_> = (0..3).map(|_| bearing(&api, "/users/u1", "token-1").status).collect();
    assert_eq!(statuses, [200, 200, 429]);
    assert_eq!(bearing(&api, "/users/u1", "token-2").status, 200);
    assert_eq!(api.get("/users/u1").status, 200, "without a session it is the address that counts");
}

/// A client that guesses tokens, or invents them to evade the limit, is counted by its address.
#[test]
fn an_invalid_token_is_counted_by_its_address() {
    let api = limited("  rate_limits: {each: {path: '/users/*', limit: 2, window: 1h, by: session}}\n");
    for guess in ["a", "b"] {
        assert_ne!(bearing(&api, "/users/u1", guess).status, 429);
    }
    check_refusal(&bearing(&api, "/users/u1", "c"));
    assert_eq!(bearing(&api, "/users/u1", "token-1").status, 200);
}

/// A limit by address is checked before the session is resolved.
#[test]
fn a_request_over_its_address_limit_costs_no_database_read() {
    let api = limited(
        "  rate_limits:
    all: {path: '/users/**', limit: 3, window: 1h}
    each: {path: '/users/*', limit: 100, window: 1h, by: user_or_ip}\n",
    );
    let statuses: Vec<_> = (0..8).map(|n| bearing(&api, "/users/u1", &format!("made-up-{n}")).status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429, 429, 429]);
    let refused = bearing(&api, "/users/u1", "made-up-9");
    check_refusal(&refused);
    assert_eq!(parameter(&refused, "ratelimit", "all", "r"), 0);
    assert_eq!(api.stat("session", "database_reads"), 3);
    let keys: Vec<String> = api.world.redis().keys(COUNTS).unwrap();
    assert_eq!(keys.len(), 2, "one window for the address in each: {keys:?}");
}

#[test]
fn the_sessions_of_a_user_share_one_count() {
    let api = limited("  rate_limits: {each: {path: '/users/*', limit: 2, window: 1h, by: user_or_ip}}\n");
    let hash = "encode(sha256('another'::bytea), 'hex')";
    api.world.sql(&format!("insert into sessions (id, user_id, token_hash) values ('another', 'u1', {hash})"));
    let statuses = ["token-1", "another", "token-1", "another"].map(|token| bearing(&api, "/users/u1", token).status);
    assert_eq!(statuses, [200, 200, 429, 429]);
    assert_eq!(bearing(&api, "/users/u1", "token-2").status, 200);
    assert_eq!(api.get("/users/u1").status, 200);
}

#[test]
fn an_untrusted_peer_cannot_choose_its_address() {
    let api = limited("  rate_limits: {each: {path: '/**', limit: 1, window: 1h}}\n");
    assert_eq!(forwarded(&api, "203.0.113.1"), 200);
    assert_eq!(forwarded(&api, "203.0.113.2"), 429);
    assert_eq!(forwarded(&api, "garbage"), 429);
}

#[test]
fn a_trusted_proxy_names_the_client_address() {
    let api = limited(
        "  trusted_proxies: [127.0.0.1, 10.0.0.0/8]\n  rate_limits: {each: {path: '/**', limit: 1, window: 1h}}\n",
    );
    assert_eq!(forwarded(&api, "203.0.113.1"), 200);
    assert_eq!(forwarded(&api, "203.0.113.2"), 200);
    assert_eq!(forwarded(&api, "203.0.113.1"), 429);
    assert_eq!(forwarded(&api, "203.0.113.7, 203.0.113.1"), 429, "what the client wrote before the proxy did");
    assert_eq!(forwarded(&api, "203.0.113.1, 10.1.1.1"), 429, "one proxy behind another");
    assert_eq!(forwarded(&api, "2001:db8::1"), 200);
    assert_eq!(forwarded(&api, "[2001:db8::2]:4711"), 429, "the same customer");
    assert_eq!(forwarded(&api, "garbage"), 200, "counts as the proxy");
    assert_eq!(forwarded(&api, "more garbage"), 429);
}

#[test]
fn a_request_refused_by_one_limit_is_not_counted_by_others() {
    let api = limited(
        "  x_ratelimit: true
  rate_limits:
    all: {path: '/**', limit: 100, window: 1h}
    strict: {path: /users/u1, limit: 1, window: 1m, algorithm: fixed}\n",
    );
    let first = api.get("/users/u1");
    assert_eq!(first.status, 200);
    assert_eq!(first.header("ratelimit-policy"), Some("\"all\";q=100;w=3600, \"strict\";q=1;w=60"));
    assert_eq!(parameter(&first, "ratelimit", "all", "r"), 99);
    assert_eq!(first.header("x-ratelimit-limit"), Some("1"), "the closest");
    assert_eq!(first.header("x-ratelimit-remaining"), Some("0"));
    assert!(first.header("x-ratelimit-reset").unwrap().parse::<u64>().unwrap() <= 60);
    for _ in 0..3 {
        let refused = api.get("/users/u1");
        check_refusal(&refused);
        assert_eq!(parameter(&refused, "ratelimit", "all", "r"), 99);
    }
    let other = api.get("/users/u2");
    assert_eq!((other.status, parameter(&other, "ratelimit", "all", "r")), (200, 98));
    assert_eq!(other.header("ratelimit-policy"), Some("\"all\";q=100;w=3600"));
}

#[test]
fn without_redis_an_open_limit_lets_everything_pass() {
    let mut api = limited("  rate_limits: {each: {path: '/**', limit: 1, window: 1h}}\n");
    assert_eq!(api.get("/users/u1").status, 200);
    assert_eq!(api.get("/users/u1").status, 429);
    api.world.redis.stop();
    for _ in 0..3 {
        assert_eq!(api.get("/users/u1").status, 200);
    }
    api.world.redis.restart().unwrap();
    wait_until(EVENT_MAX, "it counts again", || api.get("/users/u1").status == 429);
}

#[test]
fn without_redis_a_closed_limit_lets_nothing_pass() {
    let mut api = limited(
        "  rate_limits:
    all: {path: '/**', limit: 1000, window: 1h}
    each: {path: '/users/u1', limit: 1000, window: 1h, on_error: closed}\n",
    );
    assert_eq!(api.get("/users/u1").status, 200);
    api.world.redis.stop();
    let refused = api.get("/users/u1");
    assert_eq!((refused.status, &refused.json()["type"]), (503, &"urn:unstale:unavailable".into()));
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(api.get("/users/u2").status, 200, "its limits are open");
    api.world.redis.restart().unwrap();
    wait_until(EVENT_MAX, "it counts again", || api.get("/users/u1").status == 200);
}

/// Nothing was counted while Redis was full; each limit's `on_error` decided.
#[test]
fn on_error_decides_if_redis_is_full() {
    let api = limited(
        "  rate_limits:
    all: {path: '/**', limit: 1, window: 1h}
    each: {path: '/users/u1', limit: 1, window: 1h, on_error: closed}\n",
    );
    let set = |maxmemory: &str| {
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(maxmemory).exec(&mut api.world.redis()).unwrap();
    };
    set("1");
    assert_eq!(api.get("/users/u1").status, 503);
    assert_eq!(["/users/u2", "/users/u3"].map(|path| api.get(path).status), [200, 200]);
    set("0");
    wait_until(EVENT_MAX, "it counts", || api.get("/users/u1").status == 200);
    assert_eq!(api.get("/users/u2").status, 429);
}

#[test]
fn the_counts_reveal_no_caller_and_expire() {
    let api = limited(
        "  trusted_proxies: [127.0.0.1]
  rate_limits:
    address: {path: '/**', limit: 9, window: 1h, algorithm: fixed}
    session: {path: '/**', limit: 9, window: 1h, by: session}
    person: {path: '/**', limit: 9, window: 1h, by: user_or_ip}\n",
    );
    assert_eq!(forwarded(&api, "203.0.113.9"), 200);
    assert_eq!(bearing(&api, "/users/u1", "token-1").status, 200);
    let hash = api.world.value("select encode(sha256('token-1'::bytea), 'hex')");
    let keys: Vec<String> = api.world.redis().keys(COUNTS).unwrap();
    assert_eq!(keys.len(), 6, "three limits, for an address and for a session: {keys:?}");
    for key in keys {
        assert!(!["203.0.113.9", "127.0.0.1", "token-1", "u1", &hash].iter().any(|who| key.contains(who)), "{key}");
        assert!(!key.contains(&hash[..16]), "{key}");
        let ttl: i64 = api.world.redis().pttl(&key).unwrap();
        assert!(ttl > 0 && ttl <= 3_600_001, "{key}: {ttl}");
        let kind: String = redis::cmd("TYPE").arg(&key).query(&mut api.world.redis()).unwrap();
        let held: Vec<String> = match &*kind {
            "list" => api.world.redis().lrange(&key, 0, -1).unwrap(),
            _ => vec![api.world.redis().get(&key).unwrap()],
        };
        assert!(held.iter().all(|held| held.bytes().all(|byte| byte.is_ascii_digit())), "{held:?}");
    }
}
