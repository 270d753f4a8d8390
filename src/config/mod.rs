//! `invalidation.yaml`: from text to settings and raw rules, every problem with its position.
//!
//! Owns the shape of the file, interpolation, and how problems are shown. It must not know what
//! rules and reads mean; [`crate::rules`] and [`crate::reads`] compile them. Invariants: YAML is
//! not visible outside of this room; every problem has a position in the file.

pub mod api;
mod defaults;
mod document;
mod fields;
mod interpolate;
pub mod lookup;
mod node;
mod problem;
pub mod read;
pub mod rule;
mod settings;
mod source;
mod span;
mod target;
pub mod test;
mod units;
mod yaml;

pub use api::Api;
pub use document::Document;
pub use problem::{Problem, Problems};
pub use read::RawRead;
pub use rule::RawRule;
pub use settings::{Mode, Settings, Truncate, Unknown};
pub use span::Spanned;
pub use test::RawTest;
