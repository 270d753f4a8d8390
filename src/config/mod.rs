//! `invalidation.yaml`: from text to settings and the raw rules, with every problem at its place.
//!
//! Owns the file's shape, interpolation and how problems are shown. It must not know what a rule
//! means; [`crate::rules`] compiles the raw rules. Invariant: nothing past [`Document::parse`] sees YAML, and
//! a problem always has a position in the file.

pub mod draft;
pub mod file;
mod interpolate;
mod node;
mod problem;
pub mod rule;
pub mod test;

pub use file::{Document, Mode, Settings, Truncate, Unknown};
pub use node::Spanned;
pub use problem::{Problem, Problems, nearest};
pub use rule::RawRule;
pub use test::RawTest;
