//! When a commit is visible.
//!
//! Owns the judgement of a snapshot. PostgreSQL streams a commit to a slot *before* new snapshots see it
//! (`ProcArrayEndTransaction` runs after the log is flushed), so whoever reads the database because of a
//! change must first know that it reads the change. Synchronous; asks no server. Invariant: visibility
//! is monotone: what one snapshot sees, every later one sees.

use crate::change::Xid;

/// Which transactions a snapshot of the primary sees, from the text of `pg_current_snapshot()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    xmax: u32,
    in_progress: Vec<u32>,
}

impl Snapshot {
    /// Reads `xmin:xmax:xip,xip,…`. The 64-bit ids are cut to the 32 bits that pgoutput sends.
    pub fn parse(text: &str) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "the epoch is cut off on purpose")]
        let number = |digits: &str| digits.parse::<u64>().ok().map(|id| id as u32);
        let mut parts = text.splitn(3, ':');
        let (_xmin, xmax, running) = (number(parts.next()?)?, number(parts.next()?)?, parts.next()?);
        let in_progress = running.split(',').filter(|digits| !digits.is_empty()).map(number).collect::<Option<_>>()?;
        Some(Self { xmax, in_progress })
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
    fn what_is_no_snapshot_is_refused() {
        for text in ["", "1", "1:2", "a:2:", "1:2:x", "1:-2:"] {
            assert_eq!(Snapshot::parse(text), None, "{text}");
        }
    }
}
