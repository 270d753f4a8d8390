//! Installs and removes the outbox.
//!
//! Owns the transaction, its lock timeout and the retries. It must not decide what is wrong.
//! Invariant: everything or nothing is done, in one transaction that never waits long for a lock.

use tokio_postgres::{Client, error::SqlState};

use super::comparison::compare;
use super::difference::LOCK_TIMEOUT;
use super::locks::{INSTALL, LOCKS};
use crate::config::Settings;
use crate::install::step::Step;
use crate::rules::Capture;

/// Removes the outbox; see [`remove`].
pub const REMOVE: &str = include_str!("../../../sql/outbox_teardown.sql");

/// The most attempts to lock the tables.
const ATTEMPTS: usize = 6;

/// Why the outbox was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A database has one outbox, and it belongs to the slot of this name.
    #[error(
        "the outbox of this database belongs to `{0}`; set source.slot to `{0}`, or remove the outbox by \
         `unstale teardown` with a file that does"
    )]
    OtherConsumer(String),
    /// Rules read this virtual generated column.
    #[error(
        "{0} is a virtual generated column, so triggers do not see it; make it STORED, or use the columns that it is \
         computed from"
    )]
    Invisible(String),
    /// A transaction that uses one of the tables stayed open.
    #[error(
        "a table could not be locked in time, so nothing was changed; wait until transactions that use it have ended \
         (see pg_stat_activity), then try again"
    )]
    Locked,
    /// A statement failed.
    #[error("a statement failed")]
    Query(#[from] tokio_postgres::Error),
}

/// Installs what is missing and fixes what is wrong, in one transaction.
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

/// Removes the outbox with its triggers and all entries.
///
/// # Errors
///
/// Also if a table could not be locked in several attempts. Then nothing was removed.
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

/// Whether the error is a lock timeout or a deadlock.
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
    // Only one installation runs at a time.
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
