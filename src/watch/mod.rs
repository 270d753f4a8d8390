//! What changes in the database without a row change: tables, types, publications, triggers.
//!
//! Owns what is watched, what its state is, and what differs between two states. It must not know
//! rules, or what follows from a difference. Invariant: two observations of the same state are
//! equal.
//!
//! - [`Watched`]: what is watched. [`Observer`]: asks PostgreSQL for an [`Observation`].
//! - [`TableState`]: what is remembered of a table. [`Difference`]: what changed since.

mod difference;
mod observer;
mod state;
mod watched;

pub use difference::{CatalogChangeKind, Difference};
pub use observer::{Observation, Observer};
pub use state::{TableState, ViewState};
pub use watched::{Carrier, Watched, WatchedTable, WatchedView};
