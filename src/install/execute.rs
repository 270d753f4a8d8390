//! Runs the statements of a plan.
//!
//! Owns the lock timeouts, the retries, and saying what a statement waits for. It must not decide
//! what is run. Invariant: no writer of an application waits long behind a lock that a statement
//! waits for.

use tokio_postgres::Client;

use super::error::{ATTEMPTS, InstallError, LOCK_TIMEOUT, is_locked};
use super::step::{PlannedStatement, PlannedStep, Step};
use crate::postgres::Address;
use crate::postgres::blockers::{self, Say};

/// Runs a plan, in order. While a statement waits, `say` is told what for.
///
/// # Errors
///
/// If a statement fails. The steps before it are done; a second run goes on from there.
pub async fn execute(
    client: &Client,
    address: &Address,
    plan: Vec<PlannedStep>,
    say: Say<'_>,
) -> Result<Vec<Step>, InstallError> {
    let mut steps = Vec::new();
    for step in plan {
        steps.push(match step {
            PlannedStep::Unchanged(subject) => Step::Unchanged(subject),
            PlannedStep::Skipped { subject, reason } => Step::Skipped(subject, reason),
            PlannedStep::Run { subject, statements } => {
                for statement in &statements {
                    run(client, address, statement, say).await?;
                }
                Step::Done(subject)
            }
        });
    }
    Ok(steps)
}

/// Runs one statement.
pub(super) async fn run(
    client: &Client,
    address: &Address,
    statement: &PlannedStatement,
    say: Say<'_>,
) -> Result<(), InstallError> {
    let pid = blockers::backend(client).await?;
    let running = async {
        if statement.is_patient {
            return client.batch_execute(&statement.sql).await.map_err(InstallError::Query);
        }
        client.batch_execute(&format!("set lock_timeout = '{LOCK_TIMEOUT}'")).await?;
        let mut attempts = 0;
        let done = loop {
            attempts += 1;
            match client.batch_execute(&statement.sql).await {
                Err(error) if is_locked(&error) && attempts < ATTEMPTS => {}
                Err(error) if is_locked(&error) => break Err(InstallError::Locked),
                done => break done.map_err(InstallError::Query),
            }
        };
        client.batch_execute("set lock_timeout = 0").await?;
        done
    };
    blockers::while_waiting(address, pid, say, running).await
}
