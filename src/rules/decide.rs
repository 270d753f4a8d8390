//! Whether a rule acts on a change, and why.
//!
//! Owns the decision of every verb: planning, dry runs, tests and `explain` share it. It must not
//! know what the rule does then. Invariant: a value that is not known never keeps a rule from
//! acting, unless the file says so.

use super::bind::BoundRule;
use super::condition::{ColumnOperand, ConditionError};
use super::rule::Rule;
use super::rule_set::RuleSet;
use crate::change::{Cell, Change, Commit, Operation, TableName};
use crate::config::{Truncate, Unknown};

/// Why a change cannot be planned: the file says to stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The table was truncated, with `truncate: fail`.
    #[error(
        "table {table} was truncated, and the file says `truncate: fail` (rule `{rule}`); flush what it caches, or choose `pattern`"
    )]
    Truncated {
        /// The table.
        table: TableName,
        /// The first rule of the table.
        rule: String,
    },
    /// An old value is not known, with `unknown: fail`.
    #[error(
        "rule `{rule}` needs the old value of {table}.{column}, which the log does not carry, and the file says `unknown: fail`; widen the replica identity, or choose `match`"
    )]
    Unknown {
        /// The table.
        table: TableName,
        /// The column.
        column: String,
        /// The rule.
        rule: String,
    },
}

/// Whether a rule acts on a change, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It acts.
    Fires,
    /// It acts, because a value on which the decision depends is not known.
    FiresUnknown,
    /// It acts, because its condition could not be evaluated, for this reason.
    FiresFailed(String),
    /// The operation does not trigger it.
    OtherOperation,
    /// None of the columns in `changed` differs.
    Unchanged,
    /// Its condition is false.
    ConditionFalse,
    /// The table was truncated, and the file says to ignore that.
    TruncateIgnored,
}

/// Decides whether a rule acts on a change. Nothing else decides this.
pub(super) fn decide(
    bound: &BoundRule,
    rule: &Rule,
    change: &Change,
    commit: &Commit,
    rules: &RuleSet,
) -> Result<Decision, PlanError> {
    if !rule.triggers_on(change.operation) {
        return Ok(Decision::OtherOperation);
    }
    let unknown = |column: &str| PlanError::Unknown {
        table: change.relation.name.clone(),
        column: column.to_owned(),
        rule: rule.name.clone(),
    };
    let mut decision = Decision::Fires;
    match change.operation {
        Operation::Truncate => match rules.truncate {
            Truncate::Pattern => {}
            Truncate::Ignore => return Ok(Decision::TruncateIgnored),
            Truncate::Fail => {
                let table = change.relation.name.clone();
                return Err(PlanError::Truncated { table, rule: rule.name.clone() });
            }
        },
        Operation::Update if !bound.changed.is_empty() => match any_changed(&bound.changed, change, rules.unknown) {
            Ok(Changed::Yes) => {}
            Ok(Changed::Unknown) => decision = Decision::FiresUnknown,
            Ok(Changed::No) => return Ok(Decision::Unchanged),
            Err(at) => return Err(unknown(rule.changed.get(at).map_or("", |column| &column.value))),
        },
        Operation::Insert | Operation::Update | Operation::Delete | Operation::Event => {}
    }
    let Some(condition) = rule.condition.as_ref().map(|condition| &condition.value) else { return Ok(decision) };
    if change.operation == Operation::Truncate && !condition.columns().is_empty() {
        // There is no row to read, and all rows are gone.
        return Ok(decision);
    }
    let operand = |at: usize| bound.operand(at, change);
    let table = change.relation.name.to_string();
    match condition.evaluate(operand, change.operation.word(), &table, commit.at) {
        Ok(true) => Ok(decision),
        Ok(false) => Ok(Decision::ConditionFalse),
        Err(ConditionError::Failed(reason)) => Ok(Decision::FiresFailed(reason)),
        Err(ConditionError::Unknown) => match rules.unknown {
            Unknown::Match => Ok(Decision::FiresUnknown),
            Unknown::Skip => Ok(Decision::ConditionFalse),
            Unknown::Fail => {
                let uses = condition.columns().iter().enumerate();
                let mut absent = uses.filter(|(at, _)| matches!(operand(*at), ColumnOperand::Absent));
                Err(unknown(absent.next().map_or("", |(_, column)| &column.column)))
            }
        },
    }
}

enum Changed {
    Yes,
    No,
    Unknown,
}

/// Whether one of the columns differs between the images. The error is the index of a column whose
/// value is not known, if the file says `unknown: fail`.
fn any_changed(columns: &[Option<usize>], change: &Change, unknown: Unknown) -> Result<Changed, usize> {
    let mut unsure = false;
    for (at, column) in columns.iter().enumerate() {
        let cell = |row: &Option<crate::change::Row>| match (row, column) {
            (Some(row), Some(position)) => row.cell(*position).clone(),
            _ => Cell::Absent,
        };
        match (cell(&change.old), cell(&change.new)) {
            (Cell::Absent, _) | (_, Cell::Absent) => match unknown {
                Unknown::Match => unsure = true,
                Unknown::Skip => {}
                Unknown::Fail => return Err(at),
            },
            (old, new) if old != new => return Ok(Changed::Yes),
            _ => {}
        }
    }
    Ok(if unsure { Changed::Unknown } else { Changed::No })
}
