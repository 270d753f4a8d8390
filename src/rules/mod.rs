//! Rules, compiled once, and the plans that they make of changes.
//!
//! Owns templates, conditions and the decision which rule acts; every verb shares them. It must not
//! know sources, Redis commands, sockets or clocks. Invariant: if a value is not known, more is
//! invalidated, never less.

mod act;
mod action;
mod bind;
mod compile;
mod condition;
mod decide;
mod effect;
mod expand;
mod filter;
mod folding;
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
mod widening;

pub use condition::{ColumnOperand, ColumnUse, Condition, ConditionError, InvalidCondition};
pub use decide::{Decision, PlanError};
pub use filter::Filter;
pub use folding::{Folding, LetterCase};
pub use for_each::ForEach;
pub use inverse::ReferenceValue;
pub use lint::{Lint, lint};
pub use planner::Planner;
pub use requirements::Capture;
pub use rule::{Lookup, Rule, Trigger};
pub use rule_set::{FoldedValues, RuleSet};
pub use template::{Image, InvalidTemplate, Reference, Rendered, Resolved, Template, TemplatePart};
pub use trace::{ComparedColumn, ReadColumn, RenderedAction, RenderedName, Verdict, trace};
pub use widening::{FULL_FAILS_SINCE, Remedy, WidenedLeaf, Widening};
