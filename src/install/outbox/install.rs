//! Installs and removes the outbox.
//!
//! Owns the transaction, its lock timeout and the retries. It must not decide what is wrong.
//! Invariant: everything or nothing is done, in one transaction that never waits long for a lock.

use tokio_postgres::Client;

use super::comparison::compare;
use super::difference::OutboxDifference;
use super::locks::{INSTALL, LOCKS};
use crate::config::Settings;
use crate::install::error::{ATTEMPTS, InstallError, LOCK_TIMEOUT, is_locked};
use crate::install::step::{PlannedStatement, PlannedStep, Step};
use crate::postgres::blockers::{self, Say};
use crate::rules::Capture;

/// Removes the outbox with its triggers and all entries.
pub const REMOVE: &str = include_str!("../../../sql/outbox_teardown.sql");

/// The steps that install what is missing and fix what is wrong.
pub async fn plan(
    client: &Client,
    settings: &Settings,
    captures: &[Capture],
    events: bool,
) -> Result<Vec<PlannedStep>, InstallError> {
    let comparison = compare(client, settings, captures, events).await?;
    comparison.require_possible()?;
    let step = |difference: OutboxDifference| {
        let statement = PlannedStatement::new(difference.script(), difference.cost.clone());
        PlannedStep::of(difference.subject(), vec![statement])
    };
    let unchanged = comparison.unchanged.into_iter().map(PlannedStep::Unchanged);
    Ok(unchanged.chain(comparison.differences.into_iter().map(step)).collect())
}

/// Installs what is missing and fixes what is wrong, in one transaction. While that waits for
/// locks, `say` is told which process holds them.
pub async fn install(
    client: &Client,
    settings: &Settings,
    captures: &[Capture],
    events: bool,
    say: Say<'_>,
) -> Result<Vec<Step>, InstallError> {
    let pid = blockers::backend(client).await?;
    let installing = attempts(client, settings, captures, events);
    blockers::while_waiting(&settings.postgres, pid, say, installing).await
}

async fn attempts(
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
    comparison.require_possible()?;
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
