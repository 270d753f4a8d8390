//! Whether history has a gap between what Redis remembers and what the slot will send.
//!
//! Owns the judgement: what both sides say of themselves goes in, a [`HistoryGap`] or none comes
//! out. It must not ask either. Invariant: a history that is not proven counts as a gap. A gap that
//! is assumed costs a flush; one that is missed would leave stale values for ever.

use std::collections::HashMap;
use std::fmt;

use crate::change::Lsn;

/// Which history a position belongs to. Positions of different histories cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The identifier of the database cluster, made by `initdb`, a dot, and the OID of the
    /// database. Up to version 0.2 without the database.
    pub system: String,
    /// Its timeline. Each promotion and each point-in-time recovery begins a new one.
    pub timeline: String,
    /// When the server last recovered from an unclean stop, as its statistics say. Commits with
    /// `synchronous_commit = off` may have been visible before the stop and be lost since.
    pub recovered: String,
    /// Identifies the outbox that changes are read from, and the dataset they were applied to.
    /// Empty for a slot, which its positions identify.
    pub source: String,
}

impl Origin {
    /// The form in which Redis holds it.
    pub fn encode(&self) -> String {
        let Self { system, timeline, recovered, source } = self;
        match source.as_str() {
            "" => format!("{system}/{timeline}/{recovered}"),
            source => format!("{system}/{timeline}/{recovered}/{source}"),
        }
    }

    /// Reads what [`Origin::encode`] wrote.
    pub fn decode(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '/').map(ToOwned::to_owned);
        let (system, timeline, recovered) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { system, timeline, recovered, source: parts.next().unwrap_or_default() })
    }

    /// Whether it belongs to this system, `identifier.database`. An origin that names no database
    /// is of every database of its cluster.
    pub fn is_of_system(&self, system: &str) -> bool {
        let known = if self.system.contains('.') { system } else { cluster(system) };
        self.system == known
    }
}

/// The identifier of the database cluster in a system.
pub fn cluster(system: &str) -> &str {
    system.split_once('.').map_or(system, |(identifier, _)| identifier)
}

/// What the dataset in Redis remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Every invalidation up to this position is in force.
    pub applied: Option<Lsn>,
    /// Some invalidations up to this position may be in force.
    pub started: Option<Lsn>,
    /// The history that both positions belong to.
    pub origin: Option<Origin>,
    /// How many batches it counted. Only batches of an outbox are counted.
    pub batches: u64,
    /// The state of each table and view, as it was when its values were last complete.
    pub catalog: HashMap<String, String>,
}

/// What PostgreSQL says, and what this process saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// The history the slot belongs to.
    pub origin: Origin,
    /// The slot sends every commit that ends after this position.
    pub slot: Lsn,
    /// The end of the log.
    pub end: Lsn,
    /// What Redis told this process that it had recorded.
    pub recorded: Lsn,
    /// How many batches Redis had counted, as the outbox stores it. None for a slot.
    pub batches: Option<u64>,
}

/// Why history is not proven. Each begins a new epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HistoryGap {
    /// The operator requested a new epoch.
    Requested,
    /// Redis remembers nothing: it is new to this source, it was emptied, or an earlier flush was
    /// not finished.
    NothingRemembered,
    /// The source belongs to another database, or to one of another cluster.
    OtherSystem,
    /// Changes came from another source, the outbox was created again, or it was applied to another
    /// dataset meanwhile.
    OtherSource,
    /// The database was promoted or recovered to a point in time.
    OtherTimeline,
    /// The database server stopped uncleanly.
    UncleanRestart,
    /// The slot goes on after the position up to which Redis knows changes.
    ChangesMissed {
        /// Up to where Redis knows changes.
        applied: Lsn,
        /// Where the slot goes on.
        slot: Lsn,
    },
    /// Entries were deleted from the outbox that Redis does not hold.
    BatchesMissing {
        /// How many batches Redis counted.
        counted: u64,
        /// How many it had counted when entries were last deleted.
        confirmed: u64,
    },
    /// Redis holds less than it recorded: it lost writes.
    RedisWentBack {
        /// Up to where it is.
        applied: Lsn,
        /// Up to where it was.
        recorded: Lsn,
    },
    /// Redis holds positions that the log has not reached.
    LogWentBack {
        /// The highest of them.
        remembered: Lsn,
        /// Where the log ends.
        end: Lsn,
    },
    /// Another dataset took the place of the one in Redis during a connection.
    DatasetReplaced,
}

impl HistoryGap {
    /// The word under which epochs are counted and reported.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Requested => "asked",
            Self::NothingRemembered => "nothing-remembered",
            Self::OtherSystem => "other-system",
            Self::OtherSource => "other-source",
            Self::OtherTimeline => "other-timeline",
            Self::UncleanRestart => "unclean-restart",
            Self::ChangesMissed { .. } | Self::BatchesMissing { .. } => "gap",
            Self::RedisWentBack { .. } => "redis-went-back",
            Self::LogWentBack { .. } => "log-went-back",
            Self::DatasetReplaced => "dataset-replaced",
        }
    }
}

impl fmt::Display for HistoryGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => write!(f, "it was requested"),
            Self::NothingRemembered => write!(f, "Redis remembers nothing of this source"),
            Self::OtherSystem => write!(f, "the source belongs to another database than Redis remembers"),
            Self::OtherSource => {
                write!(
                    f,
                    "the outbox is not the one that Redis remembers: it was created again, or it was applied to another Redis"
                )
            }
            Self::BatchesMissing { counted, confirmed } => write!(
                f,
                "Redis counted {counted} batches, but had counted {confirmed} when entries were last deleted from \
                 the outbox: it lost writes"
            ),
            Self::OtherTimeline => write!(f, "PostgreSQL was promoted or recovered to a point in time"),
            Self::UncleanRestart => {
                write!(f, "PostgreSQL stopped uncleanly, so commits that were visible may be lost")
            }
            Self::ChangesMissed { applied, slot } => {
                write!(f, "Redis is at {applied} and the slot resumes at {slot}: changes were missed")
            }
            Self::RedisWentBack { applied, recorded } => {
                write!(f, "Redis is at {applied} but had recorded {recorded}: it lost writes")
            }
            Self::LogWentBack { remembered, end } => {
                write!(f, "Redis is at {remembered} but the log ends at {end}: PostgreSQL went back")
            }
            Self::DatasetReplaced => write!(f, "another dataset took the place of the one in Redis"),
        }
    }
}

/// The gap between what Redis remembers and what the source will send. None: history is proven.
pub fn find_gap(remembered: &Remembered, present: &Present) -> Option<HistoryGap> {
    let (Some(applied), Some(started), Some(origin)) = (remembered.applied, remembered.started, &remembered.origin)
    else {
        return Some(HistoryGap::NothingRemembered);
    };
    let Present { origin: now, slot, end, recorded, batches } = present;
    let (counted, confirmed) = (remembered.batches, batches.unwrap_or_default());
    let checks = [
        (!origin.is_of_system(&now.system), HistoryGap::OtherSystem),
        (origin.timeline != now.timeline, HistoryGap::OtherTimeline),
        (origin.source != now.source, HistoryGap::OtherSource),
        (applied < *recorded, HistoryGap::RedisWentBack { applied, recorded: *recorded }),
        (
            started.max(applied).record_boundary() > *end,
            HistoryGap::LogWentBack { remembered: started.max(applied), end: *end },
        ),
        (applied < *slot, HistoryGap::ChangesMissed { applied, slot: *slot }),
        (counted < confirmed, HistoryGap::BatchesMissing { counted, confirmed }),
        (origin.recovered != now.recovered, HistoryGap::UncleanRestart),
    ];
    checks.into_iter().find_map(|(is_gap, gap)| is_gap.then_some(gap))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::decode(text).unwrap()
    }

    fn check(applied: u64, remembered: &str, [slot, end, recorded]: [u64; 3], now: &str, expected: Option<&str>) {
        let remembered = Remembered {
            applied: Some(Lsn::new(applied)),
            started: Some(Lsn::new(applied)),
            origin: Some(origin(remembered)),
            batches: 0,
            ..Remembered::default()
        };
        let [slot, end, recorded] = [slot, end, recorded].map(Lsn::new);
        let present = Present { origin: origin(now), slot, end, recorded, batches: None };
        assert_eq!(find_gap(&remembered, &present).map(|gap| gap.word()), expected);
    }

    #[test]
    fn histories_that_fit_are_proven() {
        check(50, "s/1/0", [40, 90, 0], "s/1/0", None);
        check(50, "s/1/0", [50, 50, 50], "s/1/0", None);
        check(50, "s/1/0", [40, 90, 0], "s.5/1/0", None);
    }

    #[test]
    fn histories_that_do_not_fit_are_a_gap() {
        check(50, "s/1/0", [51, 90, 0], "s/1/0", Some("gap"));
        check(50, "s/1/0", [40, 90, 51], "s/1/0", Some("redis-went-back"));
        check(50, "s/1/0", [40, 47, 0], "s/1/0", Some("log-went-back"));
        let (applied, started) = (Some(Lsn::new(50)), Some(Lsn::new(96)));
        let ahead = Remembered { applied, started, origin: Some(origin("s/1/0")), batches: 0, ..Remembered::default() };
        let [slot, end, recorded] = [40, 90, 0].map(Lsn::new);
        let present = Present { origin: origin("s/1/0"), slot, end, recorded, batches: None };
        assert_eq!(find_gap(&ahead, &present).map(|gap| gap.word()), Some("log-went-back"));
        check(50, "s/1/0", [40, 90, 0], "t/1/0", Some("other-system"));
        check(50, "s.1/1/0", [40, 90, 0], "s.2/1/0", Some("other-system"));
        check(50, "s/1/0", [40, 90, 0], "s/2/0", Some("other-timeline"));
        check(50, "s/1/0", [40, 90, 0], "s/1/7", Some("unclean-restart"));
        check(50, "s/1/0", [40, 90, 0], "s/1/0/outbox 7", Some("other-source"));
        check(50, "s/1/0/outbox 7", [0, 90, 0], "s/1/0/outbox 8", Some("other-source"));
    }

    #[test]
    fn an_outbox_that_was_emptied_further_than_redis_knows_is_a_gap() {
        let check = |counted, confirmed, expected: Option<&str>| {
            let (applied, origin) = (Some(Lsn::new(5)), origin("s/1/0/outbox 7"));
            let remembered = Remembered {
                applied,
                started: applied,
                origin: Some(origin.clone()),
                batches: counted,
                ..Remembered::default()
            };
            let [slot, end, recorded] = [0, 9, 0].map(Lsn::new);
            let present = Present { origin, slot, end, recorded, batches: Some(confirmed) };
            assert_eq!(find_gap(&remembered, &present).map(|gap| gap.word()), expected);
        };
        check(7, 7, None);
        check(8, 7, None);
        check(6, 7, Some("gap"));
    }

    #[test]
    fn what_is_missing_is_a_gap() {
        let zero = Lsn::ZERO;
        let present = Present { origin: origin("s/1/0"), slot: zero, end: zero, recorded: zero, batches: None };
        let origin = Some(present.origin.clone());
        let whole =
            Remembered { applied: Some(zero), started: Some(zero), origin, batches: 0, ..Remembered::default() };
        assert_eq!(find_gap(&whole, &present), None);
        for missing in [
            Remembered { applied: None, ..whole.clone() },
            Remembered { started: None, ..whole.clone() },
            Remembered { origin: None, ..whole },
        ] {
            assert_eq!(find_gap(&missing, &present), Some(HistoryGap::NothingRemembered));
        }
    }

    #[test]
    fn an_origin_survives_redis() {
        for text in ["7382/3/1763.25", "7382/3/", "7382/3/1763.25/outbox 16390"] {
            assert_eq!(origin(text).encode(), text);
        }
        assert_eq!(Origin::decode("7382/3"), None);
    }
}
