//! The triggers of a captured table.
//!
//! Owns their names, types and statements. It must not query a server.

use super::captured::digest;
use super::quoting::identifier;
use crate::catalog::quote_table;
use crate::change::{Operation, TableName};
use crate::rules::Capture;

/// The prefix of the triggers' names. PostgreSQL fires triggers in the order of their names. Ours
/// come first, so that a change is captured before the changes that other triggers make in
/// response.
const FIRST: &str = "!";

/// The bits of `pg_trigger.tgtype`, from PostgreSQL's `catalog/pg_trigger.h`.
const ROW: i16 = 1;
const INSERT: i16 = 4;
const DELETE: i16 = 8;
const UPDATE: i16 = 16;
pub(super) const TRUNCATE: i16 = 32;

/// A trigger of a captured table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CaptureTrigger {
    pub(super) name: String,
    /// As in `pg_trigger.tgtype`.
    pub(super) kind: i16,
}

impl CaptureTrigger {
    /// The row trigger, if a rule acts on inserts, updates or deletes.
    pub(super) fn row(capture: &Capture) -> Option<CaptureTrigger> {
        let bit = |operation: &Operation| match operation {
            Operation::Insert => INSERT,
            Operation::Update => UPDATE,
            Operation::Delete => DELETE,
            Operation::Truncate | Operation::Event => 0,
        };
        let bits = capture.operations.iter().map(bit).fold(0, |bits, bit| bits | bit);
        let name = format!("{FIRST}unstale_row_{}", digest(&capture.table));
        (bits != 0).then_some(CaptureTrigger { name, kind: ROW | bits })
    }

    /// The truncate trigger, if a rule acts on truncates.
    pub(super) fn truncate(capture: &Capture) -> Option<CaptureTrigger> {
        let name = format!("{FIRST}unstale_truncate_{}", digest(&capture.table));
        capture.operations.contains(&Operation::Truncate).then_some(CaptureTrigger { name, kind: TRUNCATE })
    }

    /// Creates or replaces it, and enables it for all writers, replication included.
    pub(super) fn statements(&self, table: &TableName, function: &str) -> Vec<String> {
        let words = [(INSERT, "INSERT"), (UPDATE, "UPDATE"), (DELETE, "DELETE"), (TRUNCATE, "TRUNCATE")];
        let operations: Vec<_> =
            words.into_iter().filter(|(bit, _)| self.kind & bit != 0).map(|(_, word)| word).collect();
        let each = if self.kind & ROW == 0 { "STATEMENT" } else { "ROW" };
        let create = format!(
            "CREATE OR REPLACE TRIGGER {} AFTER {} ON {}\n  FOR EACH {each} EXECUTE FUNCTION unstale.{function}();",
            identifier(&self.name),
            operations.join(" OR "),
            quote_table(table)
        );
        vec![create, enable(table, &self.name)]
    }
}

/// Enables a trigger for every `session_replication_role`.
pub(super) fn enable(table: &TableName, trigger: &str) -> String {
    format!("ALTER TABLE {} ENABLE ALWAYS TRIGGER {};", quote_table(table), identifier(trigger))
}

/// Removes a trigger.
pub(super) fn drop_trigger(table: &TableName, trigger: &str) -> String {
    format!("DROP TRIGGER IF EXISTS {} ON {};", identifier(trigger), quote_table(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_are_called_for_what_rules_want_to_know() {
        let check = |operations: &[Operation], row: Option<i16>, truncate: bool| {
            let (table, operations) = (TableName::new("public", "t"), operations.to_vec());
            let capture = Capture { table, columns: Vec::new(), operations, only_changed: false };
            assert_eq!(CaptureTrigger::row(&capture).map(|trigger| trigger.kind), row);
            assert_eq!(CaptureTrigger::truncate(&capture).is_some(), truncate);
        };
        check(&Operation::ALL, Some(29), true);
        check(&[Operation::Update], Some(17), false);
        check(&[Operation::Truncate], None, true);
        let trigger = CaptureTrigger { name: "unstale_row_1".to_owned(), kind: 17 };
        let statements = trigger.statements(&TableName::new("public", "T"), "capture_t_1");
        assert_eq!(
            statements,
            [
                "CREATE OR REPLACE TRIGGER \"unstale_row_1\" AFTER UPDATE ON public.\"T\"\n  FOR EACH ROW EXECUTE FUNCTION unstale.capture_t_1();",
                "ALTER TABLE public.\"T\" ENABLE ALWAYS TRIGGER \"unstale_row_1\";"
            ]
        );
    }
}
