//! Up to where every commit is in force that went through an outbox.
//!
//! Owns the judgement; surveys of the outbox go in, positions come out. The numbers of entries are
//! not in commit order, and a commit is in the log before it is visible, so neither says by itself
//! what is in force. Together they do: the entries that a survey saw are applied when none of them
//! is left. Synchronous; asks no server and no clock. Invariants: the position that a survey gives
//! is past every transaction that was visible before the survey asked for it; a reader that sees a
//! transaction that the survey did not see finds the log at that position or later.

use std::time::Instant;

use super::marks::Marks;
use crate::change::Lsn;

/// Up to where every commit is in force.
#[derive(Clone, Debug, Default)]
pub struct Horizon {
    /// Surveys that found entries: the highest number of the entries, the position of the log, and
    /// when that was asked for.
    waiting: Marks<i64, (Lsn, Instant)>,
    /// The position of the log at the last survey.
    seen: Lsn,
    /// The highest position that was given.
    given: Lsn,
}

impl Horizon {
    /// Takes a survey: the position of the log before it, when that was asked for, whether no
    /// transaction was about to commit then (`calm`), and the lowest and highest number of the
    /// entries that were left. Returns up to where every commit is in force, and a moment since
    /// when it is. None: the survey proves nothing new.
    pub fn survey(
        &mut self,
        position: Lsn,
        asked: Instant,
        calm: bool,
        entries: Option<(i64, i64)>,
    ) -> Option<(Lsn, Instant)> {
        self.seen = position;
        let (proven, asked) = match entries {
            None => {
                self.waiting = Marks::default();
                (if calm { position } else { position.just_before() }, asked)
            }
            Some((first, last)) => {
                let gone = self.waiting.take(&first.saturating_sub(1));
                self.waiting.set(last, (position, asked));
                gone.map(|(position, asked)| (position.just_before(), asked))?
            }
        };
        self.given = self.given.max(proven);
        Some((self.given, asked))
    }

    /// Whether only a commit in progress can keep the last survey's position from being in force.
    /// Then it is worth asking whether there is one.
    pub fn wants_calm(&self) -> bool {
        self.waiting.is_empty() && self.seen > self.given
    }
}

/// The number below which no entry can appear any more. A transaction has its id before it draws a
/// number for an entry. So a number that was drawn before some transaction began belongs to a
/// transaction with a lower id, and once all of those have ended, their entries are visible. A
/// search that begins at the floor skips the dead rows of deleted entries, which PostgreSQL cannot
/// remove while a snapshot is old.
#[derive(Clone, Copy, Debug, Default)]
pub struct Floor {
    at: i64,
    /// The highest number that was drawn, when that was last asked.
    given: i64,
    /// The same at an earlier moment, and the id of a transaction that began later.
    waiting: Option<(i64, u64)>,
}

impl Floor {
    /// The floor: search from this number on.
    pub fn at(&self) -> i64 {
        self.at
    }

    /// The highest number that is known to have been drawn.
    pub fn given(&self) -> i64 {
        self.given
    }

    /// A transaction of this daemon began to write when only numbers up to `given` were known.
    pub fn began(&mut self, given: i64, xid: u64) {
        self.waiting.get_or_insert((given, xid));
    }

    /// Takes a survey: the highest number drawn so far, then the oldest transaction that has not
    /// ended, and the lowest number of a visible entry.
    pub fn survey(&mut self, given: i64, oldest: u64, first: Option<i64>) {
        if let Some((known, _)) = self.waiting.take_if(|(_, xid)| oldest >= *xid) {
            let next = known.saturating_add(1);
            self.at = self.at.max(first.map_or(next, |first| first.min(next)));
        }
        self.given = given;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_must_have_gone() {
        let mut horizon = Horizon::default();
        let mut survey = |position: u64, calm: bool, entries: Option<(i64, i64)>| {
            horizon.survey(Lsn::new(position), Instant::now(), calm, entries).map(|(position, _)| position.offset())
        };
        assert_eq!(survey(100, false, None), Some(99));
        assert_eq!(survey(100, true, None), Some(100));
        assert_eq!(survey(100, false, None), Some(100), "it never goes back");
        assert_eq!(survey(200, false, Some((5, 9))), None);
        assert_eq!(survey(210, false, Some((8, 12))), None, "8 and 9 were there");
        assert_eq!(survey(220, false, Some((10, 14))), Some(199));
        // Each of the surveys since then waits for what it found.
        assert_eq!(survey(230, false, Some((13, 20))), Some(209));
        assert_eq!(survey(240, false, Some((15, 21))), Some(219));
        assert_eq!(survey(250, false, Some((21, 30))), Some(229));
        assert_eq!(survey(260, false, None), Some(259));
    }

    #[test]
    fn the_floor_rises_only_over_what_has_ended() {
        let mut floor = Floor::default();
        floor.survey(10, 100, Some(3));
        floor.began(floor.given(), 120);
        floor.survey(20, 119, None);
        assert_eq!(floor.at(), 0, "119 may have drawn 10, and write it yet");
        floor.survey(30, 120, None);
        assert_eq!(floor.at(), 11, "20 and 30 may have been drawn by a transaction that began since");
        floor.began(floor.given(), 200);
        floor.survey(40, 300, Some(15));
        assert_eq!(floor.at(), 15, "it is still there");
        floor.survey(50, 400, None);
        assert_eq!(floor.at(), 15);
    }

    #[test]
    fn late_numbers_only_hold_it_up() {
        let (mut horizon, start) = (Horizon::default(), Instant::now());
        let later = start + std::time::Duration::from_secs(1);
        assert_eq!(horizon.survey(Lsn::new(10), start, false, Some((5, 5))), None);
        // 3 was not visible then, and is now.
        assert_eq!(horizon.survey(Lsn::new(20), later, false, Some((3, 3))), None);
        assert!(!horizon.wants_calm());
        assert_eq!(horizon.survey(Lsn::new(25), later, false, Some((6, 6))), Some((Lsn::new(19), later)));
        assert_eq!(horizon.survey(Lsn::new(30), later, false, None), Some((Lsn::new(29), later)));
        assert!(horizon.wants_calm());
        assert_eq!(horizon.survey(Lsn::new(30), later, true, None), Some((Lsn::new(30), later)));
        assert!(!horizon.wants_calm());
    }
}
