//! Rate limits.
//!
//! Owns which limits a request must pass and under which keys each counts. The counting is one
//! script in Redis, `check.lua` behind `sliding.lua` and `fixed.lua`, on the clock of Redis, so it
//! is exact for any number of instances. It must not know sessions or how an address is found.
//! Invariants: a request that one limit refuses is not counted by the other limits of its phase; no
//! address, token or user is readable in Redis.

mod headers;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use redis::aio::ConnectionLike;
use redis::{ErrorKind, RedisError, Script};
use sha2::{Digest as _, Sha256};

use self::headers::{LimitState, whole_seconds};
use super::caller;
use crate::coherence::watermark::Names;
use crate::config::api::{Algorithm, Api, By, OnError, RateLimit};

/// Without `allow-oom`: a full Redis refuses to count, and [`Limits::on_error`] decides. What
/// clients make Redis store must not displace or block what keeps the cache coherent.
const CHECK: &str =
    concat!("#!lua\n", include_str!("sliding.lua"), include_str!("fixed.lua"), include_str!("check.lua"));

/// How many bytes of the hash of a caller are part of a key.
const CALLER_BYTES: usize = 16;

/// The limits of `api.rate_limits`.
#[derive(Debug)]
pub(super) struct Limits {
    limits: Vec<RateLimit>,
    names: Names,
    script: Script,
    x_ratelimit: bool,
}

/// The client of a request, as far as it is known.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The client's address.
    pub(super) ip: IpAddr,
    /// The hash of the token, if its session is valid. An invented token must not get a window of
    /// its own.
    pub(super) session: Option<String>,
    /// The user of the session.
    pub(super) user: Option<String>,
}

/// When a limit is checked. The limits by address come first, because an invented token costs a
/// query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitPhase {
    /// Before the session is resolved.
    ByAddress,
    /// After the session is resolved.
    BySession,
}

impl LimitPhase {
    fn includes(self, by: By) -> bool {
        (by == By::Ip) == (self == Self::ByAddress)
    }
}

/// The decision of the limits of one phase.
#[derive(Debug)]
pub(super) struct LimitDecision {
    /// All of them let the request pass, and have counted it.
    pub(super) allowed: bool,
    /// The header fields for any answer. Without `Retry-After`.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// When all limits that refused it let a request pass again: whole seconds, at least one.
    pub(super) retry_after: Duration,
}

impl Limits {
    /// The limits of the settings.
    pub(super) fn new(api: &Api, names: &Names) -> Self {
        Self {
            limits: api.rate_limits.clone(),
            names: names.clone(),
            script: Script::new(CHECK),
            x_ratelimit: api.x_ratelimit,
        }
    }

    /// Whether any limit applies to a path. If not, [`Limits::check`] is not needed.
    pub(super) fn applies(&self, path: &str) -> bool {
        self.of(path).next().is_some()
    }

    /// Whether any limit of this phase applies to a path.
    pub(super) fn applies_in(&self, path: &str, phase: LimitPhase) -> bool {
        self.of(path).any(|limit| phase.includes(limit.by))
    }

    /// What happens to a request if its limits cannot be checked. The strictest limit decides.
    pub(super) fn on_error(&self, path: &str) -> OnError {
        let closed = self.of(path).any(|limit| matches!(limit.on_error, OnError::Closed));
        if closed { OnError::Closed } else { OnError::Open }
    }

    /// Counts a request against every limit of its path and phase, if all of them let it pass.
    ///
    /// # Errors
    ///
    /// Redis failed or is full; [`Limits::on_error`] decides. The request may have been counted.
    pub(super) async fn check(
        &self,
        redis: &mut impl ConnectionLike,
        (path, phase): (&str, LimitPhase),
        caller: &Caller,
    ) -> Result<LimitDecision, RedisError> {
        let limits: Vec<&RateLimit> = self.of(path).filter(|limit| phase.includes(limit.by)).collect();
        if limits.is_empty() {
            return Ok(decide(&[], self.x_ratelimit));
        }
        let mut invocation = self.script.prepare_invoke();
        for limit in &limits {
            invocation.key(self.names.limit(&limit.name, &caller_hash(limit, caller)).as_bytes());
            invocation.arg(word(limit.algorithm)).arg(limit.limit).arg(micros(limit.window));
        }
        let answer: Vec<u64> = invocation.invoke_async(redis).await?;
        if answer.len() != limits.len() * 3 {
            return Err((ErrorKind::UnexpectedReturnType, "the script did not answer for every limit").into());
        }
        let states: Vec<_> = limits.into_iter().zip(answer.chunks_exact(3).map(LimitState::parse)).collect();
        Ok(decide(&states, self.x_ratelimit))
    }

    fn of<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a RateLimit> {
        self.limits.iter().filter(move |limit| limit.path.matches(path))
    }
}

/// What identifies the caller in the key of a limit: 32 hexadecimal digits. The kind of the name is
/// hashed too, so that no user is confused with an address; and the algorithm, because each has its
/// own format.
fn caller_hash(limit: &RateLimit, caller: &Caller) -> String {
    let ip = || ("ip", Cow::<str>::Owned(caller::customer(caller.ip).to_string()));
    let session = caller.session.as_deref().map(|session| ("session", Cow::Borrowed(session)));
    let user = caller.user.as_deref().map(|user| ("user", Cow::Borrowed(user)));
    let (kind, name) = match limit.by {
        By::Ip => ip(),
        By::Session => session.unwrap_or_else(ip),
        By::UserOrIp => user.unwrap_or_else(ip),
    };
    let digest = Sha256::digest(format!("{}\0{kind}\0{name}", word(limit.algorithm)));
    digest.iter().take(CALLER_BYTES).fold(String::with_capacity(2 * CALLER_BYTES), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn decide(states: &[(&RateLimit, LimitState)], x_ratelimit: bool) -> LimitDecision {
    let refusing = states.iter().filter(|(_, state)| !state.allowed);
    let wait = refusing.map(|(_, state)| state.reset).max();
    LimitDecision {
        allowed: wait.is_none(),
        headers: headers::fields(states, x_ratelimit),
        retry_after: Duration::from_secs(whole_seconds(wait.unwrap_or_default()).max(1)),
    }
}

fn word(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Sliding => "sliding",
        Algorithm::Fixed => "fixed",
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(yaml: &str) -> Limits {
        let text = format!(
            "version: 1\nrules: {{u: {{table: users, delete: 'user:{{id}}'}}}}\napi:\n  session: s\n  rate_limits:\n{yaml}"
        );
        let document = crate::config::Document::parse(&text, &|_| None).unwrap();
        Limits::new(&document.settings.api, &Names::new("v1:", "unstale"))
    }

    fn three() -> Limits {
        compiled(
            "    all: {path: '/**', limit: 100, window: 1m}
    users: {path: '/users/*', limit: 5, window: 1500ms, by: session}
    org: {path: '/organizations/*/members', limit: 7, window: 1h, by: user_or_ip, algorithm: fixed}\n",
        )
    }

    fn caller(ip: &str, session: Option<&str>, user: Option<&str>) -> Caller {
        Caller { ip: ip.parse().unwrap(), session: session.map(str::to_owned), user: user.map(str::to_owned) }
    }

    fn state(allowed: bool, remaining: u64, reset: u64) -> LimitState {
        LimitState { allowed, remaining, reset: Duration::from_millis(reset) }
    }

    #[test]
    fn every_limit_whose_glob_matches_applies() {
        let limits = three();
        let check = |path: &str, expected: &[&str]| {
            let names: Vec<_> = limits.of(path).map(|limit| limit.name.as_str()).collect();
            assert_eq!(names, expected, "{path}");
            assert_eq!(limits.applies(path), !expected.is_empty());
        };
        check("/users/u1", &["all", "users"]);
        check("/users/u1/x", &["all"]);
        check("/organizations/o1/members", &["all", "org"]);
        let few = compiled("    users: {path: '/users/*', limit: 5, window: 1m}\n");
        assert!(!few.applies("/flags/f1"));
    }

    #[test]
    fn the_strictest_limit_decides_if_redis_is_unavailable() {
        let limits = three();
        assert!(matches!(limits.on_error("/users/u1"), OnError::Closed), "a limit by session is closed by default");
        assert!(matches!(limits.on_error("/organizations/o1/members"), OnError::Open));
        assert!(matches!(limits.on_error("/"), OnError::Open));
    }

    #[test]
    fn each_limit_counts_its_callers() {
        let limits = three();
        let [all, users, org] = limits.limits.as_slice() else { panic!("{:?}", limits.limits) };
        let ann = caller("203.0.113.9", Some("aa"), Some("u1"));
        let ann_again = caller("203.0.113.10", Some("bb"), Some("u1"));
        let anonymous = caller("203.0.113.9", None, None);
        assert_eq!(caller_hash(all, &ann), caller_hash(all, &anonymous));
        assert_ne!(caller_hash(all, &ann), caller_hash(all, &ann_again));
        assert_ne!(caller_hash(users, &ann), caller_hash(users, &ann_again));
        assert_ne!(caller_hash(users, &ann), caller_hash(users, &anonymous));
        assert_eq!(caller_hash(users, &anonymous), caller_hash(all, &anonymous), "without a session it is the address");
        assert_eq!(caller_hash(org, &ann), caller_hash(org, &ann_again));
        assert_ne!(caller_hash(org, &ann), caller_hash(org, &anonymous));
        assert_ne!(caller_hash(org, &anonymous), caller_hash(all, &anonymous), "another algorithm counts elsewhere");
        let posing = caller("203.0.113.10", Some("203.0.113.9"), None);
        assert_ne!(
            caller_hash(users, &posing),
            caller_hash(users, &anonymous),
            "a session is never confused with an address"
        );
        let (one, other) = (caller("2001:db8::1", None, None), caller("2001:db8::2:1", None, None));
        assert_eq!(caller_hash(all, &one), caller_hash(all, &other), "one customer's network");
        assert_eq!(caller_hash(all, &one).len(), 32);
    }

    #[test]
    fn a_key_reveals_nothing_about_the_caller() {
        let limits = three();
        let [_, users, org] = limits.limits.as_slice() else { panic!("{:?}", limits.limits) };
        let ann = caller("203.0.113.9", Some("deadbeef"), Some("ann"));
        for limit in [users, org] {
            let key = limits.names.limit(&limit.name, &caller_hash(limit, &ann));
            let text = key.to_string();
            assert!(text.starts_with(&format!("v1:unstale:{{unstale}}:limit:{}:", limit.name)), "{text}");
            assert!(!["203.0.113.9", "deadbeef", "ann"].iter().any(|secret| text.contains(secret)), "{text}");
            assert!(limits.names.owns(key.as_bytes()), "no rule can delete it");
        }
    }

    #[test]
    fn headers_name_every_limit_and_the_closest() {
        let limits = three();
        let [all, users, _] = limits.limits.as_slice() else { panic!("{:?}", limits.limits) };
        let check = |states: &[(&RateLimit, LimitState)], x: bool, expected: &[(&str, &str)]| {
            let headers = headers::fields(states, x);
            let found: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
            assert_eq!(found, expected);
        };
        check(&[], true, &[]);
        check(
            &[(all, state(true, 50, 29_001))],
            false,
            &[("ratelimit-policy", "\"all\";q=100;w=60"), ("ratelimit", "\"all\";r=50;t=30")],
        );
        check(
            &[(all, state(true, 99, 60_000)), (users, state(true, 4, 1_500))],
            true,
            &[
                ("ratelimit-policy", "\"all\";q=100;w=60, \"users\";q=5;w=2"),
                ("ratelimit", "\"all\";r=99;t=60, \"users\";r=4;t=2"),
                ("x-ratelimit-limit", "5"),
                ("x-ratelimit-remaining", "4"),
                ("x-ratelimit-reset", "2"),
            ],
        );
    }

    #[test]
    fn a_refused_request_waits_for_all_limits_that_refused_it() {
        let limits = three();
        let [all, users, org] = limits.limits.as_slice() else { panic!("{:?}", limits.limits) };
        let check = |states: &[(&RateLimit, LimitState)], allowed: bool, retry_after: u64| {
            let decision = decide(states, false);
            assert_eq!((decision.allowed, decision.retry_after), (allowed, Duration::from_secs(retry_after)));
        };
        check(&[], true, 1);
        check(&[(all, state(true, 0, 9_000))], true, 1);
        check(&[(all, state(false, 0, 0))], false, 1);
        check(&[(all, state(false, 0, 1))], false, 1);
        check(&[(all, state(false, 0, 1_001))], false, 2);
        let mixed = [(all, state(true, 3, 50_000)), (users, state(false, 0, 1_200)), (org, state(false, 0, 30_000))];
        check(&mixed, false, 30);
    }
}
