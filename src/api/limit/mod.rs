//! Rate limits: how often somebody may ask.
//!
//! Owns which limits a request must pass, where each counts whom, and the header fields that say so. The counting is
//! one script in Redis, `limit/check.lua` behind `limit/sliding.lua` and `limit/fixed.lua`, on the clock of Redis: it
//! is exact however many instances ask at once. It must not know sessions or how an address is found. Invariants: a
//! request that one limit refuses counts against none of its step; no address, token or user is readable in Redis.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use redis::aio::ConnectionLike;
use redis::{ErrorKind, RedisError, Script};
use sha2::{Digest as _, Sha256};

use super::caller;
use crate::coherence::watermark::Names;
use crate::config::api::{Algorithm, Api, By, OnError, RateLimit};

/// Without `allow-oom`: a full Redis refuses to count, which is for [`Limits::on_error`] to judge. What callers could
/// make it store must not push out, or stop, what makes the cache coherent.
const CHECK: &str =
    concat!("#!lua\n", include_str!("sliding.lua"), include_str!("fixed.lua"), include_str!("check.lua"));

/// How much of the hash of who asks becomes part of a key, in bytes.
const WHO_BYTES: usize = 16;

/// The largest integer of a structured field: RFC 9651, section 3.3.1.
const INTEGER_MAX: u64 = 999_999_999_999_999;

// As of draft-ietf-httpapi-ratelimit-headers-11.
static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static STANDING: HeaderName = HeaderName::from_static("ratelimit");
// As many servers write them: of the limit that is closest, the reset in seconds from now.
static X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
static X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
static X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The limits of `api.rate_limits`.
#[derive(Debug)]
pub(super) struct Limits {
    limits: Vec<RateLimit>,
    names: Names,
    script: Script,
    x_ratelimit: bool,
}

/// Who asks, by all that is known of him.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The client's address.
    pub(super) ip: IpAddr,
    /// What stands for the session, if there is one: the token's hash. Not of a token that names no session: whoever
    /// made one up would have a window of its own.
    pub(super) session: Option<String>,
    /// The user of the session.
    pub(super) user: Option<String>,
}

/// When a limit is asked: a token that is made up costs a look at the database, which those by address spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Before it is known whose session it is.
    ByAddress,
    /// After that.
    BySession,
}

impl Step {
    fn includes(self, by: By) -> bool {
        (by == By::Ip) == (self == Self::ByAddress)
    }
}

/// What the limits say of a request.
#[derive(Debug)]
pub(super) struct Verdict {
    /// All of them let it pass, and have counted it.
    pub(super) allowed: bool,
    /// What to tell the client about its limits, with any answer. Without `Retry-After`.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// When all of those that refused it let something pass again: whole seconds, at least one.
    pub(super) retry_after: Duration,
}

/// Where somebody stands with one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    allowed: bool,
    /// How many more requests pass now.
    remaining: u64,
    /// How long it stays at that.
    reset: Duration,
}

impl Limits {
    /// The limits of an API whose state has these names.
    pub(super) fn new(api: &Api, names: &Names) -> Self {
        Self {
            limits: api.rate_limits.clone(),
            names: names.clone(),
            script: Script::new(CHECK),
            x_ratelimit: api.x_ratelimit,
        }
    }

    /// Whether any limit holds for a path; if not, there is nothing to [`Limits::check`].
    pub(super) fn applies(&self, path: &str) -> bool {
        self.of(path).next().is_some()
    }

    /// Whether any of them is one of this step.
    pub(super) fn applies_in(&self, path: &str, step: Step) -> bool {
        self.of(path).any(|limit| step.includes(limit.by))
    }

    /// What becomes of a request to a path when its limits cannot be asked: the strictest of them decides.
    pub(super) fn on_error(&self, path: &str) -> OnError {
        let closed = self.of(path).any(|limit| matches!(limit.on_error, OnError::Closed));
        if closed { OnError::Closed } else { OnError::Open }
    }

    /// Counts a request against every limit of its path, if all of them let it pass.
    ///
    /// # Errors
    ///
    /// Redis's, also that it is full; [`Limits::on_error`] says what becomes of the request. It may have been counted.
    pub(super) async fn check(
        &self,
        redis: &mut impl ConnectionLike,
        (path, step): (&str, Step),
        caller: &Caller,
    ) -> Result<Verdict, RedisError> {
        let limits: Vec<&RateLimit> = self.of(path).filter(|limit| step.includes(limit.by)).collect();
        if limits.is_empty() {
            return Ok(verdict(&[], self.x_ratelimit));
        }
        let mut ask = self.script.prepare_invoke();
        for limit in &limits {
            ask.key(self.names.limit(&limit.name, &who(limit, caller)).as_bytes());
            ask.arg(word(limit.algorithm)).arg(limit.limit).arg(micros(limit.window));
        }
        let answer: Vec<u64> = ask.invoke_async(redis).await?;
        if answer.len() != limits.len() * 3 {
            return Err((ErrorKind::UnexpectedReturnType, "the rate limits were not all answered").into());
        }
        let standings: Vec<_> = limits.into_iter().zip(answer.chunks_exact(3).map(Standing::read)).collect();
        Ok(verdict(&standings, self.x_ratelimit))
    }

    fn of<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a RateLimit> {
        self.limits.iter().filter(move |limit| limit.path.matches(path))
    }
}

impl Standing {
    /// From what `check.lua` answers of one limit. What is not that answer lets nothing pass.
    fn read(answer: &[u64]) -> Self {
        let &[allowed, remaining, reset] = answer else {
            return Self { allowed: false, remaining: 0, reset: Duration::ZERO };
        };
        Self { allowed: allowed == 1, remaining, reset: Duration::from_millis(reset) }
    }
}

/// What stands for whom a limit counts, in a key: 32 hexadecimal digits. What kind of name it is goes into the hash, so
/// that no user is called like an address; and the algorithm, because each keeps its counts in its own form.
fn who(limit: &RateLimit, caller: &Caller) -> String {
    let ip = || ("ip", Cow::<str>::Owned(caller::customer(caller.ip).to_string()));
    let session = caller.session.as_deref().map(|session| ("session", Cow::Borrowed(session)));
    let user = caller.user.as_deref().map(|user| ("user", Cow::Borrowed(user)));
    let (kind, name) = match limit.by {
        By::Ip => ip(),
        By::Session => session.unwrap_or_else(ip),
        By::UserOrIp => user.unwrap_or_else(ip),
    };
    let digest = Sha256::digest(format!("{}\0{kind}\0{name}", word(limit.algorithm)));
    digest.iter().take(WHO_BYTES).fold(String::with_capacity(2 * WHO_BYTES), |mut hex, byte| {
        // Writing to a text cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn verdict(standings: &[(&RateLimit, Standing)], x_ratelimit: bool) -> Verdict {
    let refusing = standings.iter().filter(|(_, standing)| !standing.allowed);
    let wait = refusing.map(|(_, standing)| standing.reset).max();
    Verdict {
        allowed: wait.is_none(),
        headers: headers(standings, x_ratelimit),
        retry_after: Duration::from_secs(whole_seconds(wait.unwrap_or_default()).max(1)),
    }
}

fn headers(standings: &[(&RateLimit, Standing)], x_ratelimit: bool) -> Vec<(HeaderName, HeaderValue)> {
    // Of two that are as close, the one that stays so for longer.
    let closest = standings.iter().min_by_key(|(_, standing)| (standing.remaining, Reverse(standing.reset)));
    let Some((closest, standing)) = closest else { return Vec::new() };
    let policies: Vec<_> = standings.iter().map(|(limit, _)| policy(limit)).collect();
    let states: Vec<_> = standings.iter().map(|(limit, standing)| state(limit, *standing)).collect();
    let mut headers = Vec::with_capacity(5);
    let mut push = |name: &HeaderName, value: &str| {
        // [`quoted`] and numbers make nothing that a header may not hold.
        headers.extend(HeaderValue::from_str(value).ok().map(|value| (name.clone(), value)));
    };
    push(&POLICY, &policies.join(", "));
    push(&STANDING, &states.join(", "));
    if x_ratelimit {
        push(&X_LIMIT, &closest.limit.to_string());
        push(&X_REMAINING, &standing.remaining.to_string());
        push(&X_RESET, &whole_seconds(standing.reset).to_string());
    }
    headers
}

fn policy(limit: &RateLimit) -> String {
    let window = whole_seconds(limit.window).clamp(1, INTEGER_MAX);
    format!("{};q={};w={window}", quoted(&limit.name), limit.limit.min(INTEGER_MAX))
}

fn state(limit: &RateLimit, standing: Standing) -> String {
    let reset = whole_seconds(standing.reset).min(INTEGER_MAX);
    format!("{};r={};t={reset}", quoted(&limit.name), standing.remaining.min(INTEGER_MAX))
}

/// A name as the string of a structured field, which knows printable ASCII only: RFC 9651, section 3.3.3.
fn quoted(name: &str) -> String {
    let mut quoted = String::from('"');
    for character in name.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            _ => quoted.push('?'),
        }
    }
    quoted.push('"');
    quoted
}

fn word(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Sliding => "sliding",
        Algorithm::Fixed => "fixed",
    }
}

/// Rounded up: who comes back after so many seconds does not come too early.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
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

    fn standing(allowed: bool, remaining: u64, reset: u64) -> Standing {
        Standing { allowed, remaining, reset: Duration::from_millis(reset) }
    }

    #[test]
    fn a_request_must_pass_every_limit_whose_glob_matches() {
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
    fn the_strictest_decides_when_redis_cannot_be_asked() {
        let limits = three();
        assert!(matches!(limits.on_error("/users/u1"), OnError::Closed), "a limit by session is closed by default");
        assert!(matches!(limits.on_error("/organizations/o1/members"), OnError::Open));
        assert!(matches!(limits.on_error("/"), OnError::Open));
    }

    #[test]
    fn each_limit_counts_whom_it_is_for() {
        let limits = three();
        let [all, users, org] = limits.limits.as_slice() else { panic!("{:?}", limits.limits) };
        let ann = caller("203.0.113.9", Some("aa"), Some("u1"));
        let ann_again = caller("203.0.113.10", Some("bb"), Some("u1"));
        let nobody = caller("203.0.113.9", None, None);
        assert_eq!(who(all, &ann), who(all, &nobody));
        assert_ne!(who(all, &ann), who(all, &ann_again));
        assert_ne!(who(users, &ann), who(users, &ann_again));
        assert_ne!(who(users, &ann), who(users, &nobody));
        assert_eq!(who(users, &nobody), who(all, &nobody), "without a session it is the address");
        assert_eq!(who(org, &ann), who(org, &ann_again));
        assert_ne!(who(org, &ann), who(org, &nobody));
        assert_ne!(who(org, &nobody), who(all, &nobody), "another algorithm counts elsewhere");
        let posing = caller("203.0.113.10", Some("203.0.113.9"), None);
        assert_ne!(who(users, &posing), who(users, &nobody), "no session is called like an address");
        let (one, other) = (caller("2001:db8::1", None, None), caller("2001:db8::2:1", None, None));
        assert_eq!(who(all, &one), who(all, &other), "one customer's network");
        assert_eq!(who(all, &one).len(), 32);
    }

    #[test]
    fn a_key_says_nothing_about_who_asked() {
        let limits = three();
        let [_, users, org] = limits.limits.as_slice() else { panic!("{:?}", limits.limits) };
        let ann = caller("203.0.113.9", Some("deadbeef"), Some("ann"));
        for limit in [users, org] {
            let key = limits.names.limit(&limit.name, &who(limit, &ann));
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
        let check = |standings: &[(&RateLimit, Standing)], x: bool, expected: &[(&str, &str)]| {
            let headers = headers(standings, x);
            let found: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
            assert_eq!(found, expected);
        };
        check(&[], true, &[]);
        check(
            &[(all, standing(true, 50, 29_001))],
            false,
            &[("ratelimit-policy", "\"all\";q=100;w=60"), ("ratelimit", "\"all\";r=50;t=30")],
        );
        check(
            &[(all, standing(true, 99, 60_000)), (users, standing(true, 4, 1_500))],
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
    fn a_refused_request_waits_for_all_that_refused_it() {
        let limits = three();
        let [all, users, org] = limits.limits.as_slice() else { panic!("{:?}", limits.limits) };
        let check = |standings: &[(&RateLimit, Standing)], allowed: bool, retry_after: u64| {
            let verdict = verdict(standings, false);
            assert_eq!((verdict.allowed, verdict.retry_after), (allowed, Duration::from_secs(retry_after)));
        };
        check(&[], true, 1);
        check(&[(all, standing(true, 0, 9_000))], true, 1);
        check(&[(all, standing(false, 0, 0))], false, 1);
        check(&[(all, standing(false, 0, 1))], false, 1);
        check(&[(all, standing(false, 0, 1_001))], false, 2);
        let mixed =
            [(all, standing(true, 3, 50_000)), (users, standing(false, 0, 1_200)), (org, standing(false, 0, 30_000))];
        check(&mixed, false, 30);
    }

    #[test]
    fn a_name_is_quoted_so_that_any_client_can_read_it() {
        assert_eq!(quoted("per minute"), "\"per minute\"");
        assert_eq!(quoted("a\"b\\c"), "\"a\\\"b\\\\c\"");
        assert_eq!(quoted("ü\n"), "\"??\"");
    }

    #[test]
    fn an_answer_that_is_none_lets_nothing_pass() {
        assert_eq!(Standing::read(&[1, 4, 250]), standing(true, 4, 250));
        assert_eq!(Standing::read(&[0, 0, 250]), standing(false, 0, 250));
        assert!(!Standing::read(&[1, 4]).allowed);
    }
}
