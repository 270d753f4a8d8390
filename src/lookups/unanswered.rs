//! What replaces the answer of a call that failed.
//!
//! Owns that. Invariant: everything that the call's rule may ever have made is removed, and the
//! change becomes a dead letter.

use crate::plan::{CallOrigin, DeadLetter, LookupCall, Plan};
use crate::rules::RuleSet;

/// The plan for one call without an answer.
pub(super) fn without_answer(rules: &RuleSet, call: &(LookupCall, CallOrigin), reason: String) -> Plan {
    let mut plan = Plan::default();
    rules.expand_all(&call.0, &mut plan);
    plan.dead_letter(dead_letter(call, reason));
    plan
}

/// The dead letter of a call.
pub(super) fn dead_letter((call, origin): &(LookupCall, CallOrigin), reason: String) -> DeadLetter {
    DeadLetter { rule: call.rule, reason, change: origin.change.clone() }
}

/// The plan for calls that cannot be asked, because there is no connection.
pub fn unanswered(rules: &RuleSet, calls: &[(LookupCall, CallOrigin)], reason: &str) -> Plan {
    let mut plan = Plan::default();
    for call in calls {
        plan.append(without_answer(rules, call, reason.to_owned()));
    }
    plan
}
