//! The outbox in PostgreSQL: what the rules need, what is installed, and the statements that make
//! up the difference.
//!
//! Owns the comparison, which `setup` applies, `check` prints and `run` requires to be empty. It
//! must not read entries. Invariants: what is up to date is not touched, and no table of an
//! application is locked for it; a table with new triggers gets an entry for an unknown change,
//! because earlier changes were not captured (a new outbox needs none: the daemon begins a new
//! epoch with it).

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

pub use comparison::{Comparison, compare, consumer, has_table, is_installed, is_ours, powerless_owners};
pub use difference::{OutboxDifference, OutboxPart};
pub use install::{REMOVE, install, plan};
