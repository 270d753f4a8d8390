//! Units of time for the limits of durations.
//!
//! Owns these constants only.

use std::time::Duration;

pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub(super) const HOUR: Duration = Duration::from_secs(60 * 60);
pub(super) const SECOND: Duration = Duration::from_secs(1);
