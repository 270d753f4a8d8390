//! The section `api:`: settings of the read API.
//!
//! Owns the settings and their defaults. It must not know HTTP, Redis or what a read is. Invariant:
//! every duration and count has a limit, so that sums cannot overflow.

mod cors;
mod on_error;
mod path_glob;
mod rate_limit;
mod session;

use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use self::cors::read_cors;
use self::rate_limit::read_limits;
use self::session::read_session;
use super::fields::Fields;
use super::units::{DAY, HOUR, SECOND};
use crate::postgres::Address;
pub use cors::Cors;
pub use on_error::OnError;
pub use path_glob::PathGlob;
pub use rate_limit::{Algorithm, By, RateLimit};
pub use session::{SessionSettings, Sliding};

/// Settings of the read API.
#[derive(Clone, Debug)]
pub struct Api {
    /// The listen address: `host:port` or `[v6]:port`.
    pub listen: String,
    /// A replica for reads, if any.
    pub replica: Option<Address>,
    /// Cached values are served only if the daemon's last heartbeat is younger.
    pub max_staleness: Duration,
    /// How much older they may be while PostgreSQL is unreachable.
    pub stale_if_error: Duration,
    /// How long to wait for the commits that a `Consistency-Token` requires, before reading the
    /// primary.
    pub consistency_wait: Duration,
    /// How long to wait for a value that another request is filling.
    pub fill_wait: Duration,
    /// The time limit of one request.
    pub timeout: Duration,
    /// Connections to each PostgreSQL server, and so the most concurrent reads on it.
    pub database_connections: usize,
    /// The most concurrent HTTP connections.
    pub connections: usize,
    /// Whether responses also have `X-Cache`.
    pub x_cache: bool,
    /// Whether responses also have `X-RateLimit-*`.
    pub x_ratelimit: bool,
    /// Which other origins may read, if any.
    pub cors: Option<Cors>,
    /// The proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Rate limits. Every limit whose path matches applies.
    pub rate_limits: Vec<RateLimit>,
    /// How bearer tokens are resolved; none: there are no sessions.
    pub session: Option<SessionSettings>,
}

/// The daemon's heartbeat comes once a second.
pub(super) const STALENESS_LEAST: Duration = SECOND;
pub(super) const STALENESS_MAX: Duration = DAY;

/// The longest wait of a request.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The most connections of either kind: the default limit of open files on large servers.
const CONNECTIONS_MAX: u64 = 1 << 20;

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            replica: None,
            max_staleness: Duration::from_secs(10),
            stale_if_error: Duration::from_secs(5 * 60),
            consistency_wait: Duration::from_millis(500),
            fill_wait: Duration::from_secs(5),
            timeout: Duration::from_secs(15),
            database_connections: 8,
            connections: 4096,
            x_cache: false,
            x_ratelimit: false,
            cors: None,
            trusted_proxies: Vec::new(),
            rate_limits: Vec::new(),
            session: None,
        }
    }
}

/// Reads the section. Missing and invalid settings have their defaults.
pub(super) fn read_api(mut fields: Fields<'_>, environment: &impl Fn(&str) -> Option<String>) -> Api {
    let mut api = Api::default();
    if let Some(text) = fields.text("listen") {
        if is_host_and_port(&text.value) {
            api.listen = text.value;
        } else {
            fields.problems().push(
                text.span,
                "`listen` is not an address with a port",
                "expected `host:port` or `[::1]:port`",
            );
        }
    }
    api.replica = read_replica(&mut fields, environment);
    read_durations(&mut api, &mut fields);
    let counts: [(&'static str, &mut usize); 2] =
        [("database_connections", &mut api.database_connections), ("connections", &mut api.connections)];
    for (field, count) in counts {
        let given = fields.count_at_most(field, CONNECTIONS_MAX);
        *count = given.and_then(|given| usize::try_from(given).ok()).unwrap_or(*count);
    }
    api.x_cache = fields.flag("x_cache").unwrap_or(api.x_cache);
    api.x_ratelimit = fields.flag("x_ratelimit").unwrap_or(api.x_ratelimit);
    api.cors = fields.take("cors").and_then(|node| read_cors(node, fields.problems()));
    for text in fields.texts("trusted_proxies") {
        match network(&text.value) {
            Some(network) => api.trusted_proxies.push(network),
            None => fields.problems().push(
                text.span,
                "`trusted_proxies` has something other than addresses and networks",
                "expected `10.0.0.1` or `10.0.0.0/8`",
            ),
        }
    }
    let has_session = fields.has_any(&["session"]);
    api.session = fields.take("session").and_then(|node| read_session(node, fields.problems()));
    if let Some(node) = fields.take("rate_limits") {
        api.rate_limits = read_limits(node, has_session, fields.problems());
    }
    fields.finish();
    api
}

fn read_replica(fields: &mut Fields<'_>, environment: &impl Fn(&str) -> Option<String>) -> Option<Address> {
    let url = fields.text("replica_url")?;
    match Address::parse(&url.value, environment) {
        Ok(address) => Some(address),
        Err(error) => {
            let message = format!("`api.replica_url`: {error}");
            fields.problems().push(url.span, message, "expected postgres://user@host:5432/database");
            None
        }
    }
}

fn read_durations(api: &mut Api, fields: &mut Fields<'_>) {
    let settings: [(&'static str, RangeInclusive<Duration>, &mut Duration); 5] = [
        ("max_staleness", STALENESS_LEAST..=STALENESS_MAX, &mut api.max_staleness),
        ("stale_if_error", Duration::ZERO..=DAY, &mut api.stale_if_error),
        ("consistency_wait", Duration::ZERO..=WAIT_MAX, &mut api.consistency_wait),
        ("fill_wait", Duration::ZERO..=WAIT_MAX, &mut api.fill_wait),
        ("timeout", Duration::from_millis(100)..=HOUR, &mut api.timeout),
    ];
    for (field, limits, setting) in settings {
        *setting = fields.duration(field, limits).unwrap_or(*setting);
    }
}

/// Whether a string is `host:port`, with an IPv6 address in brackets.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_is_right = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    host_is_right && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

fn network(text: &str) -> Option<IpNet> {
    let address = |text: &str| text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(|| address(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    const RULE: &str = "version: 1\nrules: {r: {table: t, delete: 'k:{a}'}}\n";

    fn read(api: &str) -> Api {
        let text = format!("{RULE}api: {api}\n");
        Document::parse(&text, &|_| None).unwrap_or_else(|found| panic!("{api}: {found:?}")).settings.api
    }

    /// Every problem as `text of the span: advice`.
    fn problems(api: &str) -> Vec<String> {
        let text = format!("{RULE}api: {api}\n");
        let found = Document::parse(&text, &|_| None).expect_err("the section has problems");
        found.iter().map(|problem| format!("{}: {}", &text[problem.span.clone()], problem.advice)).collect()
    }

    #[test]
    fn defaults_fill_what_is_missing() {
        for api in [Document::parse(RULE, &|_| None).unwrap().settings.api, read("")] {
            assert_eq!((api.listen.as_str(), api.max_staleness.as_secs()), ("127.0.0.1:8080", 10));
            assert!(api.replica.is_none() && api.session.is_none() && api.rate_limits.is_empty() && api.cors.is_none());
            assert!(!api.x_cache && !api.x_ratelimit && api.trusted_proxies.is_empty());
        }
    }

    #[test]
    fn every_field_is_read() {
        let api = read(
            "{listen: '[::]:0', replica_url: 'postgres://replica:5433/app', max_staleness: 3s, stale_if_error: 0s, \
             consistency_wait: 1s, fill_wait: 0s, timeout: 5s, database_connections: 2, connections: 10, x_cache: true, \
             x_ratelimit: true, cors: {origins: ['https://a.io', 'http://localhost:3000'], max_age: 1m}, \
             trusted_proxies: [10.0.0.1, 10.1.0.0/16, 'fd00::/8']}",
        );
        assert_eq!((api.listen.as_str(), api.replica.unwrap().database.as_str()), ("[::]:0", "app"));
        assert_eq!((api.max_staleness.as_secs(), api.stale_if_error.as_secs(), api.timeout.as_secs()), (3, 0, 5));
        assert_eq!((api.consistency_wait.as_secs(), api.fill_wait.as_secs()), (1, 0));
        assert_eq!((api.database_connections, api.connections, api.x_cache, api.x_ratelimit), (2, 10, true, true));
        let cors = api.cors.unwrap();
        assert_eq!((cors.origins.len(), cors.max_age.as_secs()), (2, 60));
        let proxies: Vec<_> = api.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(proxies, ["10.0.0.1/32", "10.1.0.0/16", "fd00::/8"]);
    }

    #[test]
    fn a_rate_limit_is_open_by_default_and_one_by_session_is_closed() {
        let api = read(
            "{session: s, rate_limits: {all: {path: '/**', limit: 600, window: 1m}, \
             mine: {path: /me, limit: 1, window: 1s, by: session, algorithm: fixed}, \
             user: {path: /me, limit: 1, window: 1s, by: user_or_ip, on_error: closed}}}",
        );
        let [all, mine, user] = &*api.rate_limits else { panic!("{api:?}") };
        assert_eq!((all.name.as_str(), all.limit, all.window.as_secs()), ("all", 600, 60));
        assert_eq!((all.by, all.algorithm, all.on_error), (By::Ip, Algorithm::Sliding, OnError::Open));
        assert_eq!((mine.by, mine.algorithm, mine.on_error), (By::Session, Algorithm::Fixed, OnError::Closed));
        assert_eq!((user.by, user.on_error), (By::UserOrIp, OnError::Closed));
    }

    #[test]
    fn a_session_has_a_short_form() {
        let session = read("{session: current}").session.unwrap();
        assert_eq!((session.read.value.as_str(), session.user.as_deref()), ("current", Some("user_id")));
        assert!(session.on_error == OnError::Closed && session.required.is_empty() && session.sliding.is_none());
        let session = read(
            "{session: {read: s, required: ['/me', '/users/**'], user: null, on_error: open, \
             sliding: {sql: update, every: 1h}}}",
        )
        .session
        .unwrap();
        assert_eq!((session.required.len(), session.user, session.on_error), (2, None, OnError::Open));
        let sliding = session.sliding.unwrap();
        assert_eq!((sliding.sql.value.as_str(), sliding.every.as_secs()), ("update", 3600));
    }

    #[test]
    fn every_problem_is_found_at_once() {
        let check = |api: &str, expected: &[&str]| assert_eq!(problems(api), expected, "{api}");
        check(
            "{listn: x, max_staleness: 1ms, timeout: 1ms, connections: 0, x_cache: 1}",
            &[
                "listn: did you mean `listen`?",
                "1ms: expected at least `1s`",
                "1ms: expected at least `100ms`",
                "0: expected a whole number, 1 or more",
                "1: write `true` or `false`",
            ],
        );
        for listen in ["8080", ":8080", "localhost", "::1:80", "[::1:80", "[x]:80", "a:65536", "a:+1", "a b:1"] {
            let expected = format!("{listen}: expected `host:port` or `[::1]:port`");
            check(&format!("{{listen: '{listen}'}}"), &[expected.as_str()]);
        }
        check("{replica_url: 'http://x'}", &["http://x: expected postgres://user@host:5432/database"]);
        check("{trusted_proxies: [10.0.0.0/33]}", &["10.0.0.0/33: expected `10.0.0.1` or `10.0.0.0/8`"]);
        check("{cors: {max_age: 1s}}", &["{: add `origins: [\"https://app.example.com\"]`, or `\"*\"`"]);
        check(
            "{cors: {origins: ['*', 'https://a.io/']}}",
            &["*: remove the others, or this one", "https://a.io/: expected `https://app.example.com`, without a path"],
        );
        check(
            "{rate_limits: {a: {path: users, window: 1ms}, b b: {path: '/{id}', limit: 0, window: 1m, by: user}}}",
            &[
                "a: add `limit: 600`",
                "users: begin it with `/`, as in `/users/*` or `/**`",
                "1ms: expected at least `1s`",
                "b b: expected 1 to 64 letters, digits, `_` and `-`",
                "/{id}: write `*` for a segment, as in `/users/*`",
                "0: expected a whole number, 1 or more",
                "user: expected one of `ip`, `session`, `user_or_ip`",
            ],
        );
        check(
            "{rate_limits: {a: {path: /a, limit: 1, window: 1m, by: session}}}",
            &["a: add `session: NAME` to `api`, or write `by: ip`"],
        );
        check(
            "{session: {requird: /, required: x, on_error: opn, sliding: {}}}",
            &[
                "{: add `read: NAME`, the read that resolves a token",
                "requird: did you mean `required`?",
                "x: begin it with `/`, as in `/users/*` or `/**`",
                "opn: did you mean `open`?",
                "{: add `sql: update … where … = $1`; $1 is the token's SHA-256 in hexadecimal",
            ],
        );
    }
}
