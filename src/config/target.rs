//! The section `target:`: the Redis server.
//!
//! Owns its fields and their defaults. It must not connect.

use std::time::Duration;

use redis::IntoConnectionInfo as _;

use super::fields::{Fields, Section};
use super::problem::Problems;
use super::span::Spanned;

const DEFAULT_URL: &str = "redis://127.0.0.1:6379";
const REDIS_DOWN_MAX: Duration = Duration::from_secs(30);
const REDIS_DOWN_MAX_LEAST: Duration = Duration::from_secs(1);

pub(super) fn read_target(
    section: Section,
    problems: &mut Problems,
) -> (Option<redis::ConnectionInfo>, String, Duration) {
    let Some(mut fields) = Fields::of_section(section, problems) else { return (None, String::new(), REDIS_DOWN_MAX) };
    let url = fields.text("url").unwrap_or(Spanned { value: DEFAULT_URL.to_owned(), span: 0..0 });
    // The library's message may repeat the URL with its password, so it is not shown.
    let info = url.value.as_str().into_connection_info().ok();
    if info.is_none() {
        fields.problems().push(
            url.span,
            "`target.url` is not a Redis URL",
            "expected redis://host:6379/0, rediss://… or unix:///path",
        );
    }
    let namespace = fields.text("namespace").map_or_else(String::new, |text| text.value);
    let redis_down_max =
        fields.duration("redis_down_max", REDIS_DOWN_MAX_LEAST..=Duration::MAX).unwrap_or(REDIS_DOWN_MAX);
    fields.finish();
    (info, namespace, redis_down_max)
}
