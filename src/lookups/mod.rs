//! Lookups: the rows of the database for which a rule with `for_each` acts.
//!
//! Owns the queries of `lookups:`. It must not decide when it is safe to ask: the caller does, once
//! the change is visible. Invariant: a call is answered with all of its rows; or everything that
//! its rule may ever have made is removed, and the change becomes a dead letter.

mod check;
mod error;
mod output;
mod prepared;
mod runner;
mod unanswered;

pub use check::check;
pub use output::LookupOutput;
pub use runner::LookupRunner;
pub use unanswered::unanswered;
