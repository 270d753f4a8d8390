//! What the file says should happen: rules, compiled once, and the plans they make of changes.
//!
//! Owns templates and the deciding code, which every verb shares. It must not know sources, Redis
//! commands, sockets or clocks. Invariant: what a rule cannot know it over-invalidates, never the reverse.

mod act;
mod action;
mod bind;
mod compile;
mod condition;
mod decide;
mod effect;
mod expand;
mod filter;
mod for_each;
mod inverse;
mod lint;
mod lookup_calls;
mod message;
mod planner;
mod requirements;
mod rule;
mod rule_set;
mod spelling;
mod template;
mod trace;

pub use condition::{ColumnUse, Condition, ConditionError, InvalidCondition, Operand};
pub use decide::{Decision, PlanError};
pub use filter::Filter;
pub use for_each::ForEach;
pub use inverse::ReferenceValue;
pub use lint::{Lint, lint};
pub use planner::Planner;
pub use requirements::{Capture, Widening};
pub use rule::{Lookup, Rule, Trigger};
pub use rule_set::RuleSet;
pub use template::{Image, InvalidTemplate, Reference, Rendered, Resolved, Template, TemplatePart};
pub use trace::{ComparedColumn, ReadColumn, RenderedAction, RenderedName, Verdict, trace};
