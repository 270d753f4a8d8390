//! The header fields that tell a client about its rate limits.
//!
//! Owns their form: `RateLimit-Policy` and `RateLimit` as of
//! draft-ietf-httpapi-ratelimit-headers-11, and `X-RateLimit-*`. It must not know how requests are
//! counted.

use std::cmp::Reverse;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};

use crate::config::api::RateLimit;

/// The largest integer of a structured field: RFC 9651, section 3.3.1.
const INTEGER_MAX: u64 = 999_999_999_999_999;

static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static STATE: HeaderName = HeaderName::from_static("ratelimit");
// No standard. As many servers write them: for the closest limit, the reset in seconds from now.
static X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
static X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
static X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The state of one limit for one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LimitState {
    pub(super) allowed: bool,
    /// How many more requests pass now.
    pub(super) remaining: u64,
    /// How long until more requests pass.
    pub(super) reset: Duration,
}

impl LimitState {
    /// Parses what `check.lua` returns for one limit. Anything else lets no request pass.
    pub(super) fn parse(reply: &[u64]) -> Self {
        let &[allowed, remaining, reset] = reply else {
            return Self { allowed: false, remaining: 0, reset: Duration::ZERO };
        };
        Self { allowed: allowed == 1, remaining, reset: Duration::from_millis(reset) }
    }
}

/// The header fields for these limits; with `X-RateLimit-*` if `x_ratelimit`.
pub(super) fn fields(states: &[(&RateLimit, LimitState)], x_ratelimit: bool) -> Vec<(HeaderName, HeaderValue)> {
    // Of two that are equally close, the one with the later reset.
    let closest = states.iter().min_by_key(|(_, state)| (state.remaining, Reverse(state.reset)));
    let Some((closest, state)) = closest else { return Vec::new() };
    let policies: Vec<_> = states.iter().map(|(limit, _)| policy_item(limit)).collect();
    let items: Vec<_> = states.iter().map(|(limit, state)| state_item(limit, *state)).collect();
    let mut fields = Vec::with_capacity(5);
    let mut push = |name: &HeaderName, value: &str| {
        // Cannot fail: numbers and quoted names are valid header values.
        fields.extend(HeaderValue::from_str(value).ok().map(|value| (name.clone(), value)));
    };
    push(&POLICY, &policies.join(", "));
    push(&STATE, &items.join(", "));
    if x_ratelimit {
        push(&X_LIMIT, &closest.limit.to_string());
        push(&X_REMAINING, &state.remaining.to_string());
        push(&X_RESET, &whole_seconds(state.reset).to_string());
    }
    fields
}

fn policy_item(limit: &RateLimit) -> String {
    let window = whole_seconds(limit.window).clamp(1, INTEGER_MAX);
    format!("{};q={};w={window}", quoted(&limit.name), limit.limit.min(INTEGER_MAX))
}

fn state_item(limit: &RateLimit, state: LimitState) -> String {
    let reset = whole_seconds(state.reset).min(INTEGER_MAX);
    format!("{};r={};t={reset}", quoted(&limit.name), state.remaining.min(INTEGER_MAX))
}

/// A name as the string of a structured field, which is printable ASCII: RFC 9651, section 3.3.3.
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

/// Rounded up, so that a retry after so many seconds does not come too early.
pub(super) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_quoted_so_that_any_client_can_parse_it() {
        assert_eq!(quoted("per minute"), "\"per minute\"");
        assert_eq!(quoted("a\"b\\c"), "\"a\\\"b\\\\c\"");
        assert_eq!(quoted("ü\n"), "\"??\"");
    }

    #[test]
    fn an_unknown_reply_lets_nothing_pass() {
        let state = |allowed, remaining, reset| LimitState { allowed, remaining, reset: Duration::from_millis(reset) };
        assert_eq!(LimitState::parse(&[1, 4, 250]), state(true, 4, 250));
        assert_eq!(LimitState::parse(&[0, 0, 250]), state(false, 0, 250));
        assert!(!LimitState::parse(&[1, 4]).allowed);
    }
}
