//! The units in which limits of durations are written.

use std::time::Duration;

pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub(super) const HOUR: Duration = Duration::from_secs(60 * 60);
pub(super) const SECOND: Duration = Duration::from_secs(1);
