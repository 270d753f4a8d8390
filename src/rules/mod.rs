//! What the file says should happen: rules, compiled once, and the plans they make of changes.
//!
//! Owns templates and the deciding code, which every verb shares. It must not know sources, Redis
//! commands, sockets or clocks. Invariant: what a rule cannot know it over-invalidates, never the reverse.

mod compile;
mod filter;
mod message;
mod planner;
mod requirements;
mod template;

pub use compile::{Rule, RuleSet};
pub use filter::Filter;
pub use planner::{PlanError, Planner};
pub use requirements::Widening;
pub use template::{Image, InvalidTemplate, Part, Reference, Rendered, Resolved, Template};
