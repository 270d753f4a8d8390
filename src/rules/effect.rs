//! What one rendered name adds to a plan, for each kind of action on keys.
//!
//! Owns what happens to a name that is not fully known. It must not know where its values come
//! from: a row, or a row that a lookup returned.

use super::rule::Rule;
use super::template::Rendered;
use crate::change::Lsn;
use crate::plan::{Plan, Removal};

/// Removes a key, or every key that it may be.
pub(super) fn remove(rule: &Rule, name: Rendered, plan: &mut Plan) {
    let removal = match name {
        Rendered::Key(key) => Removal::Key(key),
        Rendered::Glob(glob) => Removal::Keys(glob),
        Rendered::Nothing => return,
    };
    add(rule, removal, plan);
}

/// Removes every key that a pattern matches, also if it has no wildcard.
pub(super) fn remove_pattern(rule: &Rule, name: Rendered, plan: &mut Plan) {
    if let Some(glob) = name.into_glob() {
        add(rule, Removal::Keys(glob), plan);
    }
}

/// Removes every key of a set, or of every set that it may be.
pub(super) fn remove_tagged(rule: &Rule, name: Rendered, plan: &mut Plan) {
    match name {
        Rendered::Key(tag) => plan.tag(rule.id, tag),
        Rendered::Glob(glob) => plan.tags(rule.id, glob),
        Rendered::Nothing => {}
    }
}

/// Raises a version key. If it is not known which one, every version key that it may be is removed.
pub(super) fn bump(rule: &Rule, name: Rendered, lsn: Lsn, plan: &mut Plan) {
    match name {
        Rendered::Key(key) => plan.bump(rule.id, key, lsn),
        Rendered::Glob(glob) => plan.pattern(rule.id, glob),
        Rendered::Nothing => {}
    }
}

/// Removes now, and again later if the rule says so.
fn add(rule: &Rule, removal: Removal, plan: &mut Plan) {
    if let Some(after) = rule.again_after {
        plan.repeat(rule.id, after, removal.clone());
    }
    plan.remove(rule.id, removal);
}
