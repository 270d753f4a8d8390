//! Switches that break the protocol on purpose, so that the tests can show that they would notice.
//!
//! Owns their names. For each, `tests/it/mutants` has a script that finds it. Invariant: a release
//! build contains none of them; there [`is`] is the constant `false`.

/// One rule of the protocol, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// What arrives counts as visible.
    NoGate,
    /// A value is stored whether or not the key still holds the lease.
    NoLease,
    /// The slot is told that a transaction is in force before Redis was.
    AckBeforeRedis,
    /// A keepalive's position counts although work is pending.
    EagerKeepalive,
    /// A claim is committed before Redis has what it asks for.
    CommitBeforeRedis,
    /// Entries are taken for done by their number: what was committed late under a lower one is
    /// lost.
    CursorOverIds,
    /// The watermark follows the log although entries are left.
    EagerWatermark,
    /// The database is observed once, at the beginning.
    NoWatch,
    /// The replica is asked how far it has replayed only after the value was read.
    ReplicaCheckTooLate,
    /// The replica is not asked to which history its position belongs.
    ReplicaWithoutHistory,
    /// A hit does not compare the generations of its tags: only a tag's set finds a value.
    TagsBySet,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::NoGate,
        Self::NoLease,
        Self::AckBeforeRedis,
        Self::EagerKeepalive,
        Self::CommitBeforeRedis,
        Self::CursorOverIds,
        Self::EagerWatermark,
        Self::NoWatch,
        Self::ReplicaCheckTooLate,
        Self::ReplicaWithoutHistory,
        Self::TagsBySet,
    ];

    /// Its name: the value of the environment variable `UNSTALE_MUTANT` that brings it to life.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoGate => "no-gate",
            Self::NoLease => "no-lease",
            Self::AckBeforeRedis => "ack-before-redis",
            Self::EagerKeepalive => "eager-keepalive",
            Self::CommitBeforeRedis => "commit-before-redis",
            Self::CursorOverIds => "cursor-over-ids",
            Self::EagerWatermark => "eager-watermark",
            Self::NoWatch => "no-watch",
            Self::ReplicaCheckTooLate => "replica-check-too-late",
            Self::ReplicaWithoutHistory => "replica-without-history",
            Self::TagsBySet => "tags-by-set",
        }
    }
}

/// Whether this process is this mutant.
#[cfg(debug_assertions)]
pub fn is(mutant: Mutant) -> bool {
    static NAME: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("UNSTALE_MUTANT").ok());
    NAME.as_deref() == Some(mutant.name())
}

/// A release build has no mutants.
#[cfg(not(debug_assertions))]
pub const fn is(_: Mutant) -> bool {
    false
}
