//! `rate_limits:`: how many requests are allowed.
//!
//! Owns its fields. It must not know how requests are counted.

use std::time::Duration;

use super::on_error::{ON_ERROR, OnError};
use super::path_glob::PathGlob;
use crate::config::fields::Fields;
use crate::config::node::Node;
use crate::config::problem::Problems;
use crate::config::span::Spanned;
use crate::config::units::{DAY, SECOND};

/// The largest integer in a header (RFC 9651, Integers).
const LIMIT_MAX: u64 = 999_999_999_999_999;

/// How many requests are allowed.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// The key in `rate_limits:`.
    pub name: String,
    /// The paths that it applies to.
    pub path: PathGlob,
    /// The most requests within the window.
    pub limit: u64,
    /// The length of the window.
    pub window: Duration,
    /// Which requests are counted together.
    pub by: By,
    /// How they are counted.
    pub algorithm: Algorithm,
    /// What happens if they cannot be counted.
    pub on_error: OnError,
}

/// Which requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Those from one address.
    Ip,
    /// Those with one token; without a valid token, those from one address.
    Session,
    /// Those of one user; without a user, those from one address.
    UserOrIp,
}

/// How requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Within the window that ends now.
    Sliding,
    /// Within consecutive windows.
    Fixed,
}

pub(super) fn read_limits(node: Spanned<Node>, has_session: bool, problems: &mut Problems) -> Vec<RateLimit> {
    let entries = Fields::of(node, "`rate_limits`", problems).map(Fields::rest).unwrap_or_default();
    entries.into_iter().filter_map(|(name, node)| read_limit(name, node, has_session, problems)).collect()
}

fn read_limit(
    name: Spanned<String>,
    node: Spanned<Node>,
    has_session: bool,
    problems: &mut Problems,
) -> Option<RateLimit> {
    let mut fields = Fields::of(node, format!("rate limit `{}`", name.value), problems)?;
    if !is_limit_name(&name.value) {
        let advice = "expected 1 to 64 letters, digits, `_` and `-`";
        fields.problems().push(name.span.clone(), "the name of a rate limit is sent in headers", advice);
    }
    for (field, example) in [("path", "/**"), ("limit", "600"), ("window", "1m")] {
        if !fields.has_any(&[field]) {
            let message = format!("rate limit `{}` has no `{field}`", name.value);
            fields.problems().push(name.span.clone(), message, format!("add `{field}: {example}`"));
        }
    }
    let path = fields.text("path").and_then(|text| PathGlob::read(text, "path", fields.problems()));
    let limit = fields.count_at_most("limit", LIMIT_MAX);
    let window = fields.duration("window", SECOND..=DAY);
    let kinds = [("ip", By::Ip), ("session", By::Session), ("user_or_ip", By::UserOrIp)];
    let by = fields.word("by", &kinds).unwrap_or(By::Ip);
    let algorithms = [("sliding", Algorithm::Sliding), ("fixed", Algorithm::Fixed)];
    let algorithm = fields.word("algorithm", &algorithms).unwrap_or(Algorithm::Sliding);
    let by_default = if by == By::Session { OnError::Closed } else { OnError::Open };
    let on_error = fields.word("on_error", &ON_ERROR).unwrap_or(by_default);
    if by == By::Session && !has_session {
        let message = format!("rate limit `{}` counts by session, and `api` has no `session`", name.value);
        fields.problems().push(name.span.clone(), message, "add `session: NAME` to `api`, or write `by: ip`");
    }
    fields.finish();
    Some(RateLimit { name: name.value, path: path?, limit: limit?, window: window?, by, algorithm, on_error })
}

fn is_limit_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}
