//! The counters of `/stats`, for each read.
//!
//! Owns the counters and the JSON of `/stats`. It must not know when an event happens. Invariant:
//! counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde_json::{Map, Value, json};

/// An event that is counted for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadEvent {
    /// Served from Redis within its ttl.
    Hit,
    /// Served from Redis past its ttl: while it was refreshed, or because the database was
    /// unavailable. `/stats` also counts it in `hits`.
    StaleHit,
    /// Not in Redis.
    Miss,
    /// Stored in Redis.
    Fill,
    /// Read but not stored: it was invalidated meanwhile, or no rule could have removed it.
    RefusedFill,
    /// A request waited for another one's fill.
    Wait,
    /// The client already had the value: 304.
    NotModified,
    /// There is no such row: 404.
    Negative,
    /// The database was queried.
    DatabaseRead,
    /// Served past Redis: Redis was unavailable or too old, or the client asked for it.
    Bypass,
    /// The database failed, through no fault of the client.
    Error,
}

impl ReadEvent {
    const COUNT: usize = 11;

    /// All events in their order, with their names in `/stats`.
    const ALL: [(Self, &str); Self::COUNT] = [
        (Self::Hit, "hits"),
        (Self::StaleHit, "stale_hits"),
        (Self::Miss, "misses"),
        (Self::Fill, "fills"),
        (Self::RefusedFill, "refused_fills"),
        (Self::Wait, "waits"),
        (Self::NotModified, "not_modified"),
        (Self::Negative, "negative"),
        (Self::DatabaseRead, "database_reads"),
        (Self::Bypass, "bypassed"),
        (Self::Error, "errors"),
    ];
}

/// The counters of one read.
#[derive(Debug, Default)]
pub(super) struct Counters([AtomicU64; ReadEvent::COUNT]);

impl Counters {
    /// Adds one to the counter of this event.
    pub(super) fn count(&self, event: ReadEvent) {
        if let Some(counter) = self.0.get(event as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counts(&self) -> CounterValues {
        let mut counts = CounterValues::default();
        for (count, counter) in counts.0.iter_mut().zip(&self.0) {
            *count = counter.load(Ordering::Relaxed);
        }
        let stale = counts.of(ReadEvent::StaleHit);
        if let Some(hits) = counts.0.get_mut(ReadEvent::Hit as usize) {
            *hits = hits.saturating_add(stale);
        }
        counts
    }
}

/// The values of counters at one time. Hits include stale hits.
#[derive(Clone, Copy, Debug, Default)]
struct CounterValues([u64; ReadEvent::COUNT]);

impl CounterValues {
    fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(more);
        }
    }

    fn of(&self, event: ReadEvent) -> u64 {
        self.0.get(event as usize).copied().unwrap_or_default()
    }

    /// The share of hits in what Redis could have answered; null if there were no such requests.
    fn hit_rate(&self) -> Value {
        let all = [ReadEvent::Hit, ReadEvent::Miss, ReadEvent::Bypass].map(|event| self.of(event)).iter().sum::<u64>();
        match all {
            0 => Value::Null,
            // Counts stay far below 2^53, above which f64 is not exact.
            all => json!((self.of(ReadEvent::Hit) as f64 / all as f64 * 1e4).round() / 1e4),
        }
    }

    fn to_json(self) -> Value {
        let counts = ReadEvent::ALL.map(|(event, name)| (name.to_owned(), self.of(event).into()));
        let mut object: Map<String, Value> = counts.into_iter().collect();
        object.insert("hit_rate".to_owned(), self.hit_rate());
        object.into()
    }
}

/// The counters of every read since the process started.
#[derive(Debug)]
pub(super) struct Stats {
    reads: Vec<(String, Counters)>,
    /// For events of no read.
    others: Counters,
    rate_limited: AtomicU64,
    since: SystemTime,
}

impl Stats {
    /// Takes the names of the reads, in their order. Every counter is zero.
    pub(super) fn new(names: impl Iterator<Item = String>) -> Self {
        Self {
            reads: names.map(|name| (name, Counters::default())).collect(),
            others: Counters::default(),
            rate_limited: AtomicU64::default(),
            since: SystemTime::now(),
        }
    }

    /// The counters of the read at this position.
    pub(super) fn of(&self, read: usize) -> &Counters {
        self.reads.get(read).map_or(&self.others, |(_, counters)| counters)
    }

    /// Counts a request that a limit refused.
    pub(super) fn count_rate_limited(&self) {
        self.rate_limited.fetch_add(1, Ordering::Relaxed);
    }

    /// The body of `/stats`.
    pub(super) fn to_json(&self, now: SystemTime) -> Value {
        let mut total = self.others.counts();
        let mut reads = Map::new();
        for (name, counters) in &self.reads {
            let counts = counters.counts();
            total.add(&counts);
            reads.insert(name.clone(), counts.to_json());
        }
        let time = |time| humantime::format_rfc3339_millis(time).to_string();
        json!({
            "reads": reads,
            "total": total.to_json(),
            "rate_limited": self.rate_limited.load(Ordering::Relaxed),
            "since": time(self.since),
            "at": time(now),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_a_counter_of_its_own() {
        for (position, (event, name)) in ReadEvent::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, position, "{name}");
            let stats = Stats::new(["user".to_owned()].into_iter());
            stats.of(0).count(event);
            let json = stats.to_json(SystemTime::now());
            for (_, other) in ReadEvent::ALL {
                let expected = u64::from(other == name || (other == "hits" && name == "stale_hits"));
                assert_eq!(json["reads"]["user"][other], expected, "{name}, {other}");
                assert_eq!(json["total"][other], expected, "{name}, {other}");
            }
        }
    }

    #[test]
    fn the_rate_is_of_what_redis_could_have_answered() {
        let stats = Stats::new(["user", "org", "flag"].map(str::to_owned).into_iter());
        for event in [ReadEvent::Hit, ReadEvent::StaleHit, ReadEvent::Miss, ReadEvent::Fill] {
            stats.of(0).count(event);
        }
        stats.of(1).count(ReadEvent::Bypass);
        stats.of(99).count(ReadEvent::Error);
        stats.count_rate_limited();
        let json = stats.to_json(stats.since);
        assert_eq!(json["reads"]["user"]["hit_rate"], 0.6667);
        assert_eq!(json["reads"]["org"]["hit_rate"], 0.0);
        assert_eq!(json["reads"]["flag"]["hit_rate"], Value::Null);
        assert_eq!(json["total"]["hit_rate"], 0.5);
        assert_eq!((&json["total"]["errors"], &json["rate_limited"]), (&json!(1), &json!(1)));
        assert_eq!(json["since"], json["at"]);
    }
}
