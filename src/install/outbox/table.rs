//! Compares the capture function and the triggers of one table with what the rules need.
//!
//! Owns that comparison. It must not query a server.

use super::captured::CapturedTable;
use super::difference::{OutboxDifference, OutboxPart};
use super::function::CaptureFunction;
use super::installed::{Installed, InstalledFunction, InstalledTrigger};
use super::shape::Shape;
use super::trigger::{CaptureTrigger, TRUNCATE, enable};

/// What is wrong with the function and the triggers of a table; none if they are up to date.
pub(super) fn compare(installed: &Installed, watched: &CapturedTable, notify: bool) -> Option<OutboxDifference> {
    let table = &watched.capture.table;
    let shape = watched.shape();
    let id = shape_id(installed, &shape);
    let function = CaptureFunction::of(watched, id, notify);
    let mut wrong = Vec::new();
    let mut statements = Vec::new();
    let is_written = !installed.readable || installed.shapes.get(&id) == Some(&shape);
    if !is_written {
        statements.push(shape.statement(id));
    }
    let found = installed.functions.iter().find(|found| found.name == function.name);
    match found {
        None => wrong.push(format!("there is no function unstale.{}()", function.name)),
        Some(found) => {
            wrong.extend(unlike(found, &function).map(|reason| format!("unstale.{}() {reason}", function.name)))
        }
    }
    if !wrong.is_empty() {
        statements.extend(function.statements());
    } else if !is_written {
        wrong.push("unstale.shape does not say which columns it captures".to_owned());
    }
    let (before, is_sound) = (statements.len(), wrong.is_empty());
    let only_partitions = compare_triggers(installed, watched, &function.name, &mut wrong, &mut statements);
    if statements.len() > before && installed.base {
        statements.push(format!("INSERT INTO unstale.outbox (op, shape) VALUES ('r', {id});"));
    }
    let cost = if statements.len() > before {
        format!(
            "locks {table} and its partitions or children against writes (SHARE ROW EXCLUSIVE) briefly, after waiting for \
             transactions that write to it"
        )
    } else {
        format!("locks no table; the next write to {table} uses it")
    };
    let (part, is_minor) = (OutboxPart::Table(table.clone()), is_sound && only_partitions);
    (!wrong.is_empty()).then_some(OutboxDifference { part, wrong, statements, cost, is_minor })
}

/// The id of a shape: the preferred one, or the next free one.
fn shape_id(installed: &Installed, shape: &Shape) -> i32 {
    let mut id = shape.preferred_id();
    while installed.shapes.get(&id).is_some_and(|other| other != shape) {
        id = id.checked_add(1).unwrap_or(0);
    }
    id
}

/// How an installed function differs from the wanted one; none if it does not.
fn unlike(found: &InstalledFunction, wanted: &CaptureFunction) -> Option<&'static str> {
    let setting = |name: &str, value: &str| format!("{}={value}", name.to_lowercase());
    let mut settings: Vec<String> = wanted.settings.iter().map(|(name, value)| setting(name, value)).collect();
    let given = found.settings.iter().map(|given| match given.split_once('=') {
        Some((name, value)) => setting(name, value),
        None => given.clone(),
    });
    let mut given: Vec<String> = given.collect();
    if !found.is_own {
        // The time zone and the currency are those of the role that created it.
        for setting in settings.iter_mut().chain(&mut given) {
            if setting.starts_with("timezone=") || setting.starts_with("lc_monetary=") {
                setting.truncate(setting.find('=').unwrap_or_default());
            }
        }
    }
    settings.sort();
    given.sort();
    if found.body != wanted.body {
        Some("is not what the rules need now")
    } else if !found.is_definer {
        Some("does not run with its owner's rights (SECURITY DEFINER)")
    } else if settings != given {
        Some("does not have the settings that it needs")
    } else if wanted.callers.iter().any(|owner| *owner != found.owner && !found.callers.contains(owner)) {
        Some("cannot be executed by the owner of the table, so creating a partition fails")
    } else if found.is_public {
        Some("can be executed by PUBLIC")
    } else {
        None
    }
}

/// Collects triggers that are missing or not as they should be. Returns whether these are only
/// truncate triggers of partitions.
fn compare_triggers(
    installed: &Installed,
    watched: &CapturedTable,
    function: &str,
    wrong: &mut Vec<String>,
    statements: &mut Vec<String>,
) -> bool {
    let mut only_partitions = true;
    let row = CaptureTrigger::row(&watched.capture);
    let truncate = CaptureTrigger::truncate(&watched.capture);
    let is_right = |found: &InstalledTrigger, wanted: &CaptureTrigger| {
        found.kind == wanted.kind && found.is_whole && found.function == function
    };
    for wanted in row.iter().chain(&truncate) {
        let is_row = wanted.kind & TRUNCATE == 0;
        let word = if is_row { "row" } else { "truncate" };
        for member in &watched.members {
            let found = installed.triggers.iter().find(|t| t.relation == member.oid && t.name == wanted.name);
            let name = &member.name;
            match found {
                Some(found) if is_right(found, wanted) && found.is_always => {}
                Some(found) if is_right(found, wanted) => {
                    only_partitions = false;
                    wrong.push(format!("the {word} trigger of {name} is not ENABLE ALWAYS"));
                    statements.push(enable(name, &wanted.name));
                }
                // PostgreSQL creates it together with the trigger of its parent.
                _ if is_row && member.is_partition => {}
                found => {
                    let what = if found.is_some() { "is not as it should be" } else { "is missing" };
                    wrong.push(format!("the {word} trigger of {name} {what}"));
                    statements.extend(wanted.statements(name, function));
                    only_partitions &= !is_row && member.is_partition && found.is_none();
                }
            }
        }
    }
    only_partitions
}
