//! What the file says should happen: rules, compiled once, and the plans they make of changes.
//!
//! Owns templates and the deciding code, which every verb shares. It must not know sources, Redis
//! commands, sockets or clocks. Invariant: what a rule cannot know it over-invalidates, never the reverse.

mod bind;
mod compile;
mod condition;
mod expand;
mod filter;
mod for_each;
mod inverse;
mod lint;
mod message;
mod planner;
mod requirements;
mod rule;
mod template;
mod trace;

pub use compile::RuleSet;
pub use condition::{ColumnUse, Condition, ConditionError, InvalidCondition, Operand};
pub use filter::Filter;
pub use for_each::ForEach;
pub use inverse::Given;
pub use lint::{Lint, lint};
pub use planner::{Decision, PlanError, Planner};
pub(crate) use requirements::place;
pub use requirements::{Capture, Widening};
pub use rule::{Lookup, Rule, Trigger};
pub use template::{Image, InvalidTemplate, Part, Reference, Rendered, Resolved, Template};
pub use trace::{Compared, Made, Named, Read, Verdict, trace};
