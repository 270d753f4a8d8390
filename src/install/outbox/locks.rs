//! The advisory locks of an outbox.
//!
//! Owns their keys, but for 5: `unstale.take_over` and `unstale.confirm` hold that among themselves. Invariant: the first key is ours alone, so nobody else's locks are in our way.

/// The first key of all of them: `unst` in ASCII.
pub const LOCKS: i32 = 0x756E_7374;

/// Held by whoever works on the outbox: shared, or alone where rules need order.
pub const WORK: i32 = 1;

/// Held while history is compared, or begun anew.
pub const HISTORY: i32 = 2;

/// Held while something is installed.
pub const INSTALL: i32 = 3;

/// Held, shared, by every connection that takes entries: they may outlive the one that has [`WORK`].
pub const LANES: i32 = 4;
