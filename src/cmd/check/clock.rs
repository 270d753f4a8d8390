//! Whether the clocks agree, and how long an answer takes.
//!
//! Owns the comparison of clocks that this machine read. It must not ask a server. Invariant: a
//! difference counts only as far as the round trip cannot explain it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::finding::{Finding, Findings};

/// How many answers a latency is measured with.
pub(super) const SAMPLES: usize = 5;

/// Clocks that differ by more are a finding.
const SKEW_MAX: Duration = Duration::from_secs(1);

/// A server that answers slower than this is a finding. It may be in another region.
const LATENCY_MAX: Duration = Duration::from_millis(100);

/// A server's clock, as this machine read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// How far it is ahead of this machine, in milliseconds.
    ahead: i64,
    /// How much of that the round trip may explain, in milliseconds.
    uncertain: i64,
}

impl Reading {
    /// A clock that showed `millis` since 1970 at some moment between the question and the answer.
    pub(super) fn new(millis: i64, asked: SystemTime, answered: SystemTime) -> Self {
        let (asked, answered) = (since_1970(asked), since_1970(answered));
        let round_trip = answered.saturating_sub(asked).max(0);
        Self { ahead: millis.saturating_sub(asked.saturating_add(round_trip / 2)), uncertain: round_trip / 2 + 1 }
    }

    /// The same reading, relative to another clock.
    fn since(self, other: Self) -> Self {
        let ahead = self.ahead.saturating_sub(other.ahead);
        Self { ahead, uncertain: self.uncertain.saturating_add(other.uncertain) }
    }

    /// The part of the difference that the round trip cannot explain.
    fn certain(self) -> Duration {
        let certain = self.ahead.saturating_abs().saturating_sub(self.uncertain).max(0);
        Duration::from_millis(u64::try_from(certain).unwrap_or(0))
    }
}

fn since_1970(time: SystemTime) -> i64 {
    let millis = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    i64::try_from(millis).unwrap_or(i64::MAX)
}

/// Compares the servers' clocks with this machine's and with one another.
pub(super) fn compare(postgres: Option<Reading>, redis: Option<Reading>, findings: &mut Findings) {
    let mut pairs = Vec::new();
    pairs.extend(postgres.map(|reading| ("PostgreSQL", "this machine", reading)));
    pairs.extend(redis.map(|reading| ("Redis", "this machine", reading)));
    pairs.extend(postgres.zip(redis).map(|(one, other)| ("PostgreSQL", "Redis", one.since(other))));
    if pairs.is_empty() {
        return;
    }
    let skewed: Vec<_> = pairs
        .iter()
        .filter(|(_, _, reading)| reading.certain() > SKEW_MAX)
        .map(|(clock, other, reading)| {
            let certain = Duration::from_millis(reading.ahead.unsigned_abs()).as_secs_f64();
            let word = if reading.ahead > 0 { "ahead of" } else { "behind" };
            format!("{clock} is {certain:.1} s {word} {other}")
        })
        .collect();
    let finding = (!skewed.is_empty()).then(|| {
        Finding::warning("clock-skew", format!("the clocks differ: {}", skewed.join(", ")))
            .why("invalidation does not depend on clocks, but printed ages, lags and latencies do")
            .fix("synchronize the clocks with NTP")
    });
    findings.pass_or("the clocks agree to a second", finding);
}

/// Reports how long a server takes to answer the smallest command.
pub(super) fn latency(server: &str, mut samples: Vec<Duration>, findings: &mut Findings) {
    samples.sort_unstable();
    let Some(&median) = samples.get(samples.len() / 2) else { return };
    let millis = median.as_secs_f64() * 1000.0;
    let finding = (median > LATENCY_MAX).then(|| {
        Finding::warning("latency", format!("{server} takes {millis:.0} ms to answer the smallest command"))
            .why("every invalidation waits for both servers, so none is faster than that")
            .fix("run unstale next to the servers")
    });
    findings.pass_or(format!("latency {millis:.1} ms"), finding);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(millis)
    }

    #[test]
    fn only_a_certain_difference_is_reported() {
        let check = |postgres: i64, redis: i64, answered: u64, expected: &[&str]| {
            let reading = |millis| Some(Reading::new(millis, at(10_000), at(answered)));
            let mut findings = Findings::default();
            compare(reading(postgres), reading(redis), &mut findings);
            assert_eq!(findings.found.is_empty(), expected.is_empty(), "{findings:?}");
            for part in expected {
                assert!(findings.found.iter().any(|finding| finding.message.contains(part)), "{part}: {findings:?}");
            }
        };
        check(10_001, 10_000, 10_002, &[]);
        check(10_900, 9_100, 10_000, &["PostgreSQL is 1.8 s ahead of Redis"]);
        check(15_000, 15_000, 10_000, &["PostgreSQL is 5.0 s ahead of this machine", "Redis is 5.0 s ahead of"]);
        check(12_500, 12_500, 15_000, &[]);
        check(8_000, 10_000, 10_000, &["PostgreSQL is 2.0 s behind this machine", "2.0 s behind Redis"]);
    }

    #[test]
    fn the_median_is_reported_and_a_slow_one_is_a_finding() {
        let mut findings = Findings::default();
        latency("Redis", [9, 1, 2, 300, 3].map(Duration::from_millis).to_vec(), &mut findings);
        assert_eq!(findings.passed, ["ok  latency 3.0 ms"]);
        latency("Redis", vec![Duration::from_millis(250)], &mut findings);
        assert!(findings.found.iter().any(|finding| finding.message.contains("250 ms")), "{findings:?}");
    }
}
