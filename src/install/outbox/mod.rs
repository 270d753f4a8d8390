//! The outbox in PostgreSQL: what the rules need of it, what is there, and the statements between the two.
//!
//! Owns the comparison, which `setup` carries out, `check` prints and `run` insists on. It must not read entries.
//! Invariants: what is as it should be is not touched, and no table of an application is locked for it; a table whose
//! triggers are new gets an entry that says so, because what they missed is not known (an outbox that is new itself
//! needs none: the daemon begins a new epoch with it).

mod captured;
mod comparison;
mod difference;
mod function;
mod install;
mod installed;
pub mod locks;
mod quoting;
mod shape;
mod surplus;
mod table;
mod trigger;

pub use comparison::{Comparison, compare, is_installed, is_ours, powerless_owners};
pub use difference::{OutboxDifference, OutboxPart};
pub use install::{InstallError, REMOVE, install, is_locked, remove};
