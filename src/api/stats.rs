//! How often what happened, read by read.
//!
//! Owns the counters and the form of `/stats`. It must not know when something counts. Invariant: counting never waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde_json::{Map, Value, json};

/// What is counted of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Served from Redis within its ttl.
    Hit,
    /// Served from Redis past its ttl, while it was refreshed or the database was away. `/stats` has it under `hits` too.
    StaleHit,
    /// Not in Redis.
    Miss,
    /// Stored in Redis.
    Fill,
    /// Read to be stored, and not stored: it was invalidated meanwhile, or nothing would ever have removed it.
    RefusedFill,
    /// A request waited for what another one was reading.
    Wait,
    /// The client had it already: 304.
    NotModified,
    /// There is no such thing: 404.
    Negative,
    /// The database was asked.
    DatabaseRead,
    /// Served past Redis: it was away, too old, or the request asked for that.
    Bypass,
    /// Answered with a problem that is not the client's.
    Error,
}

impl Event {
    const COUNT: usize = 11;

    /// All of them, in their order, with their names in `/stats`.
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
pub(super) struct Counters([AtomicU64; Event::COUNT]);

impl Counters {
    /// Counts one.
    pub(super) fn count(&self, event: Event) {
        if let Some(counter) = self.0.get(event as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (count, counter) in counts.0.iter_mut().zip(&self.0) {
            *count = counter.load(Ordering::Relaxed);
        }
        let stale = counts.of(Event::StaleHit);
        if let Some(hits) = counts.0.get_mut(Event::Hit as usize) {
            *hits = hits.saturating_add(stale);
        }
        counts
    }
}

/// What counters stood at; stale hits are among the hits.
#[derive(Clone, Copy, Debug, Default)]
struct Counts([u64; Event::COUNT]);

impl Counts {
    fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(more);
        }
    }

    fn of(&self, event: Event) -> u64 {
        self.0.get(event as usize).copied().unwrap_or_default()
    }

    /// Hits among everything that Redis could have answered; null if there was nothing.
    fn hit_rate(&self) -> Value {
        let all = [Event::Hit, Event::Miss, Event::Bypass].map(|event| self.of(event)).iter().sum::<u64>();
        match all {
            0 => Value::Null,
            // Counts are far below 2^53, where f64 begins to skip.
            all => json!((self.of(Event::Hit) as f64 / all as f64 * 1e4).round() / 1e4),
        }
    }

    fn to_json(self) -> Value {
        let counts = Event::ALL.map(|(event, name)| (name.to_owned(), self.of(event).into()));
        let mut object: Map<String, Value> = counts.into_iter().collect();
        object.insert("hit_rate".to_owned(), self.hit_rate());
        object.into()
    }
}

/// The counters of every read, since the process began.
#[derive(Debug)]
pub(super) struct Stats {
    reads: Vec<(String, Counters)>,
    /// What belongs to no read.
    others: Counters,
    rate_limited: AtomicU64,
    since: SystemTime,
}

impl Stats {
    /// All at zero. The names of the reads, in their order.
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

    /// What `/stats` answers.
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
        for (position, (event, name)) in Event::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, position, "{name}");
            let stats = Stats::new(["user".to_owned()].into_iter());
            stats.of(0).count(event);
            let json = stats.to_json(SystemTime::now());
            for (_, other) in Event::ALL {
                let expected = u64::from(other == name || (other == "hits" && name == "stale_hits"));
                assert_eq!(json["reads"]["user"][other], expected, "{name}, {other}");
                assert_eq!(json["total"][other], expected, "{name}, {other}");
            }
        }
    }

    #[test]
    fn the_rate_is_of_what_redis_could_have_answered() {
        let stats = Stats::new(["user", "org", "flag"].map(str::to_owned).into_iter());
        for event in [Event::Hit, Event::StaleHit, Event::Miss, Event::Fill] {
            stats.of(0).count(event);
        }
        stats.of(1).count(Event::Bypass);
        stats.of(99).count(Event::Error);
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
