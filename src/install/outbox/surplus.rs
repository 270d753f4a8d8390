//! Triggers and capture functions that no rule needs.
//!
//! Owns finding them. It must not query a server.

use super::captured::CapturedTable;
use super::difference::{OutboxDifference, OutboxPart};
use super::function::function_name;
use super::installed::{Installed, InstalledTrigger};
use super::trigger::{CaptureTrigger, drop_trigger};
use crate::catalog::quote;

/// Finds triggers and functions that no rule needs. They only cost writers time.
pub(super) fn find(installed: &Installed, tables: &[CapturedTable]) -> Option<OutboxDifference> {
    let watched_by = |function: &str| tables.iter().find(|t| function_name(&t.capture.table) == function);
    let is_needed = |trigger: &InstalledTrigger| {
        trigger.is_inherited
            || watched_by(&trigger.function).is_some_and(|watched| {
                let (row, truncate) =
                    (CaptureTrigger::row(&watched.capture), CaptureTrigger::truncate(&watched.capture));
                let is_named = row.iter().chain(&truncate).any(|wanted| wanted.name == trigger.name);
                is_named && watched.members.iter().any(|member| member.oid == trigger.relation)
            })
    };
    let triggers: Vec<&InstalledTrigger> = installed.triggers.iter().filter(|trigger| !is_needed(trigger)).collect();
    let functions = installed.functions.iter().filter(|function| watched_by(&function.name).is_none());
    let drops = functions.map(|function| format!("DROP FUNCTION IF EXISTS unstale.{}();", quote(&function.name)));
    let statements: Vec<String> =
        triggers.iter().map(|trigger| drop_trigger(&trigger.table, &trigger.name)).chain(drops).collect();
    if statements.is_empty() {
        return None;
    }
    let mut tables: Vec<String> = triggers.iter().map(|trigger| trigger.table.to_string()).collect();
    tables.dedup();
    let (wrong, cost) = if tables.is_empty() {
        ("there are functions that no trigger calls".to_owned(), "locks no table".to_owned())
    } else {
        let tables = tables.join(", ");
        let cost = format!("locks {tables} (ACCESS EXCLUSIVE) briefly, after waiting for transactions that use it");
        (format!("no rule needs the triggers of {tables}; they slow down every write"), cost)
    };
    Some(OutboxDifference { part: OutboxPart::Surplus, wrong: vec![wrong], statements, cost, is_minor: false })
}
