//! Replica identities: the columns of the old row that the log carries.
//!
//! Owns the costs of widening one. It must not decide which need it. Invariant: an interrupted
//! attempt can be repeated.

use super::step::{PlannedStatement, PlannedStep};
use crate::change::TableName;
use crate::rules::{Remedy, WidenedLeaf, Widening};

/// The step that widens the replica identity of a table and of its partitions and children.
pub(super) fn plan(widening: &Widening) -> PlannedStep {
    let subject = format!("replica identity of {}", widening.table);
    if let Remedy::Nothing(reason) = &widening.remedy {
        let reason = format!("{reason}; rules delete by pattern what they do not know");
        return PlannedStep::Skipped { subject, reason };
    }
    PlannedStep::of(subject, statements(widening))
}

/// The statements, with their costs.
pub fn statements(widening: &Widening) -> Vec<PlannedStatement> {
    let of_leaf = |leaf: &WidenedLeaf| {
        let name = leaf.name.clone();
        widening.statements_for(leaf).into_iter().map(move |sql| planned(sql, &name, &widening.remedy))
    };
    widening.leaves.iter().flat_map(of_leaf).collect()
}

fn planned(sql: String, leaf: &TableName, remedy: &Remedy) -> PlannedStatement {
    if sql.starts_with("CREATE") {
        let cost = format!(
            "reads {leaf} once; reads and writes continue; not inside a transaction block; the values of the columns \
             together must fit into an index entry of about 2,700 bytes"
        );
        return PlannedStatement::patient(sql, cost);
    }
    if sql.starts_with("DROP") {
        let cost =
            "removes what an interrupted attempt left; reads and writes continue; not inside a transaction block";
        return PlannedStatement::patient(sql, cost);
    }
    let cost = match remedy {
        Remedy::Full => format!("locks {leaf} (ACCESS EXCLUSIVE) briefly; from then on, updates log the whole old row"),
        Remedy::Index(_) | Remedy::Nothing(_) => format!("locks {leaf} (ACCESS EXCLUSIVE) briefly"),
    };
    PlannedStatement::new(sql, cost)
}
