//! Installing the outbox, and removing it, without making an application's transactions wait.
//!
//! Owns the lock timeout and how often it is tried. It must not decide what is wrong. Invariant: all of it or nothing, in
//! one transaction.

use tokio_postgres::{Client, error::SqlState};

use super::comparison::compare;
use super::difference::LOCK_TIMEOUT;
use super::locks::{INSTALL, LOCKS};
use crate::config::Settings;
use crate::install::step::Step;
use crate::rules::Capture;

/// Removes the outbox, as a script: see [`remove`].
pub const REMOVE: &str = include_str!("../../../sql/outbox_teardown.sql");

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
