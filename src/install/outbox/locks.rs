//! The advisory locks of an outbox.
//!
//! Owns their keys. Key 5 is used only by `unstale.take_over` and `unstale.confirm`. Invariant: the
//! first key is unlikely to be used by applications.

/// The first key of all of them: `unst` in ASCII.
pub const LOCKS: i32 = 0x756E_7374;

/// Held by a daemon that works on the outbox: shared, or exclusive if rules need order.
pub const WORK: i32 = 1;

/// Held while a daemon compares history or begins a new epoch.
pub const HISTORY: i32 = 2;

/// Held during installation.
pub const INSTALL: i32 = 3;

/// Held, shared, by every connection that claims entries: it may outlive the one that holds
/// [`WORK`].
pub const LANES: i32 = 4;
