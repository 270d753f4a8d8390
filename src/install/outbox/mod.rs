//! The outbox in PostgreSQL: what the rules need of it, what is there, and the statements between the two.
//!
//! Owns the comparison, which `setup` carries out, `check` prints and `run` insists on. It must not read entries.
//! Invariants: what is as it should be is not touched, and no table of an application is locked for it; a table whose
//! triggers are new gets an entry that says so, because what they missed is not known (an outbox that is new itself
//! needs none: the daemon begins a new epoch with it).

mod capture;
mod installed;
pub mod locks;

use tokio_postgres::{Client, error::SqlState};

use self::capture::{Shape, TRUNCATE, Trigger, Watched, drop_trigger, enable, literal};
use self::installed::{Installed, InstalledFunction, InstalledTrigger};
use self::locks::{INSTALL, LOCKS};
use super::step::Step;
use crate::catalog::quote;
use crate::change::TableName;
use crate::config::Settings;
use crate::rules::Capture;

const BASE: &str = include_str!("../../../sql/outbox.sql");
const EMIT: &str = include_str!("../../../sql/outbox_emit.sql");

/// Removes the outbox, as a script: see [`remove`].
pub const REMOVE: &str = include_str!("../../../sql/outbox_teardown.sql");

/// How long `setup` waits for a lock, and `teardown`. Writers queue behind it, and one that waits for it in turn is not
/// made to fail before `deadlock_timeout`, a second by default.
const LOCK_TIMEOUT: &str = "500ms";

/// How often `setup` and `teardown` try.
const ATTEMPTS: usize = 6;

/// Why nothing was installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A database has one outbox, and this one is somebody else's.
    #[error(
        "the outbox of this database belongs to `{0}`: name that in source.slot, or remove it with `unstale teardown` \
         and a file that does"
    )]
    OtherConsumer(String),
    /// Rules read what a trigger cannot.
    #[error(
        "{0} is generated when it is read, so no trigger sees it: make it STORED, or use the columns it is made from"
    )]
    Invisible(String),
    /// Somebody is writing to one of the tables, for long.
    #[error(
        "a table could not be locked in time, so nothing was changed: a transaction that writes to it is still open \
         (see pg_stat_activity); try again when it has ended"
    )]
    Locked,
    /// A statement failed.
    #[error("PostgreSQL did not do it")]
    Query(#[from] tokio_postgres::Error),
}

/// What a [`Difference`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The schema, the tables in it, and the bell.
    Base,
    /// The function by which applications emit events.
    Events,
    /// Who empties it.
    Consumer,
    /// A table's function and triggers.
    Table(TableName),
    /// Triggers of a table that no rule names any more, or what is left of them.
    Surplus,
}

/// Something that is not as the rules need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What it is about.
    pub part: Part,
    /// What is wrong, in words.
    pub wrong: Vec<String>,
    /// What mends it, in order.
    pub statements: Vec<String>,
    /// What that locks.
    pub cost: String,
    /// All that is missing are the truncate triggers of partitions, which PostgreSQL does not make with a new one.
    pub is_minor: bool,
}

/// What is installed, compared with what the rules need.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// What is not as it should be, in the order in which it has to be mended.
    pub differences: Vec<Difference>,
    /// What is as it should be, in words.
    pub unchanged: Vec<String>,
    /// Who empties the outbox, if that is somebody else.
    pub other_consumer: Option<String>,
    /// Columns that rules read and no trigger sees: virtual generated ones.
    pub invisible: Vec<String>,
}

impl Difference {
    /// What mends it, whole or not at all: for whoever runs it by hand.
    pub fn script(&self) -> String {
        match &*self.statements {
            [only] => only.trim_end().to_owned(),
            statements => {
                format!("BEGIN;\nSET LOCAL lock_timeout = '{LOCK_TIMEOUT}';\n{}\nCOMMIT;", statements.join("\n"))
            }
        }
    }

    /// What it is about, in words.
    pub fn subject(&self) -> String {
        match &self.part {
            Part::Base => "the outbox: schema unstale and its tables".to_owned(),
            Part::Events => "function unstale.emit".to_owned(),
            Part::Consumer => "who empties the outbox".to_owned(),
            Part::Table(table) => format!("triggers of {table}"),
            Part::Surplus => "triggers that no rule needs".to_owned(),
        }
    }
}

impl Comparison {
    /// Notes a part of the schema unstale, which one statement mends if something is wrong with it.
    fn judge(&mut self, part: Part, wrong: Option<&str>, statement: String) {
        let cost = "locks no table of yours; makes what is missing in the schema unstale".to_owned();
        let words = wrong.into_iter().map(ToOwned::to_owned).collect();
        let difference = Difference { part, wrong: words, statements: vec![statement], cost, is_minor: false };
        match wrong {
            None => self.unchanged.push(difference.subject()),
            Some(_) => self.differences.push(difference),
        }
    }
}

/// Compares what is installed with what the rules need.
pub async fn compare(
    client: &Client,
    settings: &Settings,
    captures: &[Capture],
    events: bool,
) -> Result<Comparison, tokio_postgres::Error> {
    let installed = installed::read(client).await?;
    let mut comparison = Comparison::default();
    compare_base(&installed, settings, events, &mut comparison);
    let mut tables = Vec::new();
    for capture in captures {
        if let Some(watched) = installed::watch(client, capture).await? {
            let invisible = watched.columns.iter().filter(|column| column.is_virtual);
            comparison.invisible.extend(invisible.map(|column| format!("{}.{}", capture.table, column.name)));
            compare_table(&installed, &watched, settings.notify, &mut comparison);
            tables.push(watched);
        }
    }
    comparison.differences.extend(surplus(&installed, &tables));
    Ok(comparison)
}

/// Makes the difference go away, all of it in one transaction.
pub async fn install(
    client: &Client,
    settings: &Settings,
    captures: &[Capture],
    events: bool,
) -> Result<Vec<Step>, InstallError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match attempt(client, settings, captures, events).await {
            Err(InstallError::Query(error)) if is_locked(&error) => {
                client.batch_execute("rollback").await?;
                if attempts >= ATTEMPTS {
                    return Err(InstallError::Locked);
                }
            }
            Err(error) => {
                client.batch_execute("rollback").await?;
                return Err(error);
            }
            Ok(steps) => return Ok(steps),
        }
    }
}

/// Removes the outbox, with everything that is in it and its triggers.
///
/// # Errors
///
/// Also if a table could not be locked in time, however often that was tried; then everything is as it was.
pub async fn remove(client: &Client) -> Result<(), tokio_postgres::Error> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match client.batch_execute(REMOVE).await {
            Err(error) if is_locked(&error) && attempts < ATTEMPTS => {}
            done => return done,
        }
    }
}

/// Whether the server gave up waiting for a lock.
pub fn is_locked(error: &tokio_postgres::Error) -> bool {
    [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED].iter().any(|code| error.code() == Some(code))
}

async fn attempt(
    client: &Client,
    settings: &Settings,
    captures: &[Capture],
    events: bool,
) -> Result<Vec<Step>, InstallError> {
    client.batch_execute(&format!("begin; set local lock_timeout = '{LOCK_TIMEOUT}'")).await?;
    // Two at once would make everything twice, and one of them fail.
    client.query("select pg_advisory_xact_lock($1, $2)", &[&LOCKS, &INSTALL]).await?;
    let comparison = compare(client, settings, captures, events).await?;
    if let Some(other) = comparison.other_consumer {
        return Err(InstallError::OtherConsumer(other));
    }
    if let Some(column) = comparison.invisible.into_iter().next() {
        return Err(InstallError::Invisible(column));
    }
    let mut steps: Vec<Step> = comparison.unchanged.into_iter().map(Step::Unchanged).collect();
    for difference in comparison.differences {
        for statement in &difference.statements {
            client.batch_execute(statement).await?;
        }
        steps.push(Step::Done(difference.subject()));
    }
    client.batch_execute("commit").await?;
    Ok(steps)
}

fn compare_base(installed: &Installed, settings: &Settings, events: bool, comparison: &mut Comparison) {
    let wrong = (!installed.base).then_some("there is no outbox, or a part of it is missing");
    comparison.judge(Part::Base, wrong, BASE.to_owned());
    if events || installed.emit.is_some() {
        let wrong = match installed.emit {
            Some(true) => None,
            Some(false) => Some("unstale.emit writes to the log, as it does in slot mode"),
            None => Some("there is no function unstale.emit(text, jsonb)"),
        };
        comparison.judge(Part::Events, wrong, EMIT.to_owned());
    }
    let slot = &settings.slot;
    comparison.other_consumer = installed.consumers.iter().find(|consumer| *consumer != slot).cloned();
    if comparison.other_consumer.is_none() && installed.readable {
        let statement =
            format!("INSERT INTO unstale.consumer (slot) VALUES ({}) ON CONFLICT DO NOTHING;", literal(slot));
        let wrong = installed.consumers.is_empty().then_some("nobody is written down as who empties the outbox");
        comparison.judge(Part::Consumer, wrong, statement);
    }
}

fn compare_table(installed: &Installed, watched: &Watched, notify: bool, comparison: &mut Comparison) {
    let table = &watched.capture.table;
    let shape = watched.shape();
    let id = shape_id(installed, &shape);
    let function = watched.function(id, notify, &installed.defaults);
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
        wrong.push("unstale.shape does not say what its columns are".to_owned());
    }
    let (before, is_sound) = (statements.len(), wrong.is_empty());
    let only_partitions = compare_triggers(installed, watched, &function.name, &mut wrong, &mut statements);
    if statements.len() > before && installed.base {
        statements.push(format!("INSERT INTO unstale.outbox (op, shape) VALUES ('r', {id});"));
    }
    let cost = if statements.len() > before {
        format!(
            "locks {table} and what is below it against writes (SHARE ROW EXCLUSIVE) for a moment, once nobody writes \
             to it"
        )
    } else {
        format!("locks no table; the next write to {table} uses it")
    };
    if wrong.is_empty() {
        comparison.unchanged.push(format!("triggers of {table}"));
    } else {
        let (part, is_minor) = (Part::Table(table.clone()), is_sound && only_partitions);
        comparison.differences.push(Difference { part, wrong, statements, cost, is_minor });
    }
}

/// The number of a shape: its own, or if another has that, the next that is free.
fn shape_id(installed: &Installed, shape: &Shape) -> i32 {
    let mut id = shape.preferred_id();
    while installed.shapes.get(&id).is_some_and(|other| other != shape) {
        id = id.checked_add(1).unwrap_or(0);
    }
    id
}

/// In what an installed function differs from what it should be.
fn unlike(found: &InstalledFunction, wanted: &capture::Function) -> Option<&'static str> {
    let setting = |name: &str, value: &str| format!("{}={value}", name.to_lowercase());
    let mut settings: Vec<String> = wanted.settings.iter().map(|(name, value)| setting(name, value)).collect();
    let given = found.settings.iter().map(|given| match given.split_once('=') {
        Some((name, value)) => setting(name, value),
        None => given.clone(),
    });
    let mut given: Vec<String> = given.collect();
    if !found.is_own {
        // The time zone and the currency are those of the role that made it.
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
        Some("does not pin the settings that it should")
    } else if wanted.callers.iter().any(|owner| *owner != found.owner && !found.callers.contains(owner)) {
        Some("may not be called for partitions that the table's owner makes, so nobody can make one")
    } else if found.is_public {
        Some("may be called for a table of anybody's")
    } else {
        None
    }
}

/// The triggers that have to be there and are not, or not as they should be; whether these are truncate triggers of
/// partitions and nothing else.
fn compare_triggers(
    installed: &Installed,
    watched: &Watched,
    function: &str,
    wrong: &mut Vec<String>,
    statements: &mut Vec<String>,
) -> bool {
    let mut only_partitions = true;
    let row = watched.row_trigger();
    let truncate = watched.truncate_trigger();
    let is_right = |found: &InstalledTrigger, wanted: &Trigger| {
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
                // PostgreSQL makes it with that of the table it is a partition of.
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

/// Triggers and functions that no rule needs: they cost every writer something, and nothing else.
fn surplus(installed: &Installed, tables: &[Watched]) -> Option<Difference> {
    let watched_by = |function: &str| tables.iter().find(|t| capture::function_name(&t.capture.table) == function);
    let is_needed = |trigger: &InstalledTrigger| {
        trigger.is_inherited
            || watched_by(&trigger.function).is_some_and(|watched| {
                let (row, truncate) = (watched.row_trigger(), watched.truncate_trigger());
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
        let cost = format!("locks {tables} (ACCESS EXCLUSIVE) for a moment, once nobody uses it");
        (format!("no rule needs the triggers of {tables}, and each write there pays for them"), cost)
    };
    Some(Difference { part: Part::Surplus, wrong: vec![wrong], statements, cost, is_minor: false })
}

/// Who owns capture functions and may not write to the outbox: then every write to those tables fails.
pub async fn powerless_owners(client: &Client) -> Result<Vec<String>, tokio_postgres::Error> {
    let installed = installed::read(client).await?;
    let powerless = installed.functions.into_iter().filter(|function| !function.may_insert);
    let mut owners: Vec<String> = powerless.map(|function| function.owner).collect();
    owners.sort();
    owners.dedup();
    Ok(owners)
}

/// Whether there is an outbox, or a part of one.
pub async fn is_installed(client: &Client) -> Result<bool, tokio_postgres::Error> {
    Ok(installed::read(client).await?.is_any())
}

/// Whether there is an outbox that is ours, as far as the role may know.
pub async fn is_ours(client: &Client, slot: &str) -> Result<bool, tokio_postgres::Error> {
    let installed = installed::read(client).await?;
    let others = !installed.consumers.is_empty() && installed.consumers.iter().all(|consumer| consumer != slot);
    Ok(installed.is_any() && !others)
}
