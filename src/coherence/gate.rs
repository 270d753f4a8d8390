//! When a commit is visible.
//!
//! Owns the judgement of a snapshot, and the times at which to ask for another. PostgreSQL streams
//! a commit to a slot *before* new snapshots see it: `ProcArrayEndTransaction` runs after the log
//! is flushed and the synchronous standbys have answered. An invalidation that is applied earlier
//! would make readers cache the old value again. Synchronous; asks no server and no clock.
//! Invariant: visibility is monotone: what one snapshot sees, every later one sees.

use std::time::{Duration, Instant};

use crate::change::Xid;

/// The shortest time between two snapshots.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(1);

/// The longest time between two snapshots, when a transaction has been stuck for long: a
/// synchronous standby is not available.
const ASK_AGAIN_MAX: Duration = Duration::from_millis(50);

/// The time between two snapshots is this fraction of the time that the transaction has waited.
const WAIT_DIVISOR: u32 = 16;

/// What is known of visibility: one snapshot, shared by all transactions that wait.
#[derive(Debug, Default)]
pub struct Gate {
    latest: Option<Snapshot>,
    /// When a snapshot was last asked for.
    asked: Option<Instant>,
    /// When a transaction last began to wait.
    waiting_since: Option<Instant>,
}

impl Gate {
    /// Whether a transaction that is known to have committed is also known to be visible.
    pub fn sees(&self, xid: Xid) -> bool {
        self.latest.as_ref().is_some_and(|snapshot| snapshot.sees(xid))
    }

    /// A transaction begins to wait.
    pub fn wait(&mut self, now: Instant) {
        self.waiting_since = Some(now);
    }

    /// When the next snapshot may be asked for while a transaction waits: at once, then at growing
    /// intervals.
    pub fn ask_at(&self, now: Instant) -> Instant {
        let waited = self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let pause = (waited / WAIT_DIVISOR).clamp(ASK_AGAIN_MIN, ASK_AGAIN_MAX);
        self.asked.map_or(now, |asked| asked + pause)
    }

    /// A snapshot was asked for.
    pub fn asked(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// The snapshot arrived.
    pub fn learn(&mut self, snapshot: Snapshot) {
        self.latest = Some(snapshot);
    }

    /// Forgets the snapshot. Transaction ids wrap around, so a snapshot that was kept for 2^31
    /// transactions would see the future. Must be called from time to time.
    pub fn forget(&mut self) {
        self.latest = None;
    }
}

/// Which transactions a snapshot of the primary sees, from the text of `pg_current_snapshot()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u32,
    xmax: u32,
    in_progress: Vec<u32>,
}

impl Snapshot {
    /// Reads `xmin:xmax:xip,xip,…`. The 64-bit ids are cut to the 32 bits that pgoutput sends.
    pub fn parse(text: &str) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "the epoch is cut off on purpose")]
        let number = |digits: &str| digits.parse::<u64>().ok().map(|id| id as u32);
        let mut parts = text.splitn(3, ':');
        let (xmin, xmax, running) = (number(parts.next()?)?, number(parts.next()?)?, parts.next()?);
        let in_progress = running.split(',').filter(|digits| !digits.is_empty()).map(number).collect::<Option<_>>()?;
        Some(Self { xmin, xmax, in_progress })
    }

    /// Whether every transaction that began to write before this one had ended by then.
    pub fn is_past_all_before(&self, xid: Xid) -> bool {
        !precedes(self.xmin, xid.number())
    }

    /// Whether it sees the effects of a transaction that is known to have committed.
    pub fn sees(&self, xid: Xid) -> bool {
        precedes(xid.number(), self.xmax) && !self.in_progress.contains(&xid.number())
    }
}

/// Order on a circle of 2^32, as PostgreSQL's `TransactionIdPrecedes`.
fn precedes(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) > u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_ended_before_it() {
        let check = |text: &str, xid: u32, expected: bool| {
            assert_eq!(Snapshot::parse(text).unwrap().sees(Xid::new(xid)), expected, "{text} {xid}");
        };
        check("10:20:10,12", 9, true);
        check("10:20:10,12", 10, false);
        check("10:20:10,12", 11, true);
        check("10:20:10,12", 12, false);
        check("10:20:10,12", 19, true);
        check("10:20:10,12", 20, false);
        check("20:20:", 19, true);
        // The second turn of the circle: ids of 64 bits, of which the log sends 32.
        check("4294967300:4294967310:", 5, true);
        check("4294967300:4294967310:4294967301", 5, false);
        check("4294967300:4294967310:", u32::MAX, true);
        check("4294967290:4294967294:", 3, false);
    }

    #[test]
    fn the_first_question_is_asked_at_once_and_the_next_ones_at_growing_intervals() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut gate = Gate::default();
        gate.wait(start);
        assert_eq!(gate.ask_at(start), start);
        gate.asked(start);
        assert_eq!(gate.ask_at(start), after(1));
        gate.asked(after(160));
        assert_eq!(gate.ask_at(after(160)), after(170));
        gate.asked(after(60_000));
        assert_eq!(gate.ask_at(after(60_000)), after(60_050));
        // Another transaction begins to wait: the next snapshot comes soon.
        gate.wait(after(60_010));
        assert_eq!(gate.ask_at(after(60_010)), after(60_001));
    }

    #[test]
    fn a_forgotten_snapshot_sees_nothing() {
        let mut gate = Gate::default();
        gate.learn(Snapshot::parse("10:10:").unwrap());
        assert!(gate.sees(Xid::new(9)) && !gate.sees(Xid::new(10)));
        gate.forget();
        assert!(!gate.sees(Xid::new(9)));
    }

    #[test]
    fn a_snapshot_is_past_what_had_ended() {
        let check = |snapshot: &str, xid: u32, expected: bool| {
            assert_eq!(Snapshot::parse(snapshot).unwrap().is_past_all_before(Xid::new(xid)), expected, "{snapshot}");
        };
        // 20 is committed and stuck, and the latest of all: no snapshot lists it.
        check("20:20:", 21, false);
        check("20:22:20", 21, false);
        check("22:22:", 21, true);
        check("21:22:21", 21, true);
        check("4294967290:4294967294:", 3, false);
        check("4294967300:4294967310:", u32::MAX, true);
    }

    #[test]
    fn an_invalid_snapshot_is_refused() {
        for text in ["", "1", "1:2", "a:2:", "1:2:x", "1:-2:"] {
            assert_eq!(Snapshot::parse(text), None, "{text}");
        }
    }
}
