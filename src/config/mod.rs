//! `invalidation.yaml`: from text to settings and the raw rules, with every problem at its place.
//!
//! Owns the file's shape, interpolation and how problems are shown. It must not know what a rule
//! means; [`crate::rules`] compiles the raw rules. Invariant: nothing past [`Document::parse`] sees YAML, and
//! a problem always has a position in the file.

pub mod file;
mod interpolate;
mod node;
mod problem;

pub use file::{Document, Mode, RawPublish, RawRule, Settings, Truncate, Unknown};
pub use node::Spanned;
pub use problem::{Problem, Problems, nearest};
