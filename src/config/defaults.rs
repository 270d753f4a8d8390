//! The section `defaults:`: defaults of all rules, and limits.
//!
//! Owns its fields and their defaults. It must not know rules.

use std::time::Duration;

use super::fields::{Fields, Section};
use super::problem::Problems;
use super::settings::{Truncate, Unknown};

const TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// A shorter TTL would remove version keys while readers use them.
const TTL_LEAST: Duration = Duration::from_secs(60);
const MAX_KEYS: u64 = 1_000_000;

/// The section `defaults`.
pub(super) struct Defaults {
    pub(super) truncate: Truncate,
    pub(super) unknown: Unknown,
    pub(super) ttl: Duration,
    pub(super) max_keys: usize,
}

pub(super) fn read_defaults(section: Section, problems: &mut Problems) -> Defaults {
    let mut defaults =
        Defaults { truncate: Truncate::Pattern, unknown: Unknown::Match, ttl: TTL, max_keys: to_usize(MAX_KEYS) };
    let Some(mut fields) = Fields::of_section(section, problems) else { return defaults };
    let truncate = [("pattern", Truncate::Pattern), ("ignore", Truncate::Ignore), ("fail", Truncate::Fail)];
    let unknown = [("match", Unknown::Match), ("skip", Unknown::Skip), ("fail", Unknown::Fail)];
    defaults.truncate = fields.word("truncate", &truncate).unwrap_or(defaults.truncate);
    defaults.unknown = fields.word("unknown", &unknown).unwrap_or(defaults.unknown);
    defaults.ttl = fields.duration("ttl", TTL_LEAST..=Duration::MAX).unwrap_or(defaults.ttl);
    defaults.max_keys = fields.count("max_keys").map_or(defaults.max_keys, to_usize);
    fields.finish();
    defaults
}

fn to_usize(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
