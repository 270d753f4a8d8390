//! `invalidation.yaml`: from text to settings and the raw rules, with every problem at its place.
//!
//! Owns the file's shape, interpolation and how problems are shown. It must not know what a rule or a read
//! means; [`crate::rules`] and [`crate::reads`] compile them. Invariant: nothing past [`Document::parse`] sees YAML, and
//! a problem always has a position in the file.

pub mod api;
pub mod file;
mod interpolate;
mod node;
mod problem;
pub mod read;
pub mod rule;
pub mod test;

pub use api::Api;
pub use file::{Document, Mode, Settings, Truncate, Unknown};
pub use node::Spanned;
pub use problem::{Problem, Problems};
pub use read::RawRead;
pub use rule::RawRule;
pub use test::RawTest;
