//! Replica identities: the columns of the old row that the log carries.
//!
//! Owns the costs of widening one. It must not decide which need it. Invariant: an interrupted
//! attempt can be repeated.

use super::step::{PlannedStatement, PlannedStep};
use crate::rules::{Remedy, Widening};

/// The step that widens the replica identity of a table and of its partitions and children.
pub(super) fn plan(widening: &Widening) -> PlannedStep {
    let subject = format!("replica identity of {}", widening.table);
    if let Remedy::Nothing(reason) = &widening.remedy {
        let reason = format!("{reason}; rules delete by pattern what they do not know");
        return PlannedStep::Skipped { subject, reason };
    }
    PlannedStep::of(subject, widening.leaves.iter().flat_map(|leaf| statements(widening, leaf)).collect())
}

/// The statements for one of the tables to alter.
fn statements(widening: &Widening, leaf: &crate::change::TableName) -> Vec<PlannedStatement> {
    let planned = |sql: String| {
        if sql.starts_with("CREATE") {
            let cost = format!("reads {leaf} once; reads and writes continue; not inside a transaction block");
            return PlannedStatement::patient(sql, cost);
        }
        let cost = match widening.is_full() {
            true => format!("locks {leaf} (ACCESS EXCLUSIVE) briefly; from then on, updates log the whole old row"),
            false => format!("locks {leaf} (ACCESS EXCLUSIVE) briefly"),
        };
        PlannedStatement::new(sql, cost)
    };
    widening.statements_for(leaf).into_iter().map(planned).collect()
}
