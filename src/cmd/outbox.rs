//! The outbox, for verbs that only look at it: whether it exists, and how its errors are reported.

use tokio_postgres::Client;

use super::display::printable;
use super::failure::{Failure, with_causes};
use crate::config::Settings;
use crate::postgres::StatementError;
use crate::source::outbox::entry::OutboxError;
use crate::source::outbox::pending;

/// Fails if the database has no outbox.
pub(super) async fn require_outbox(client: &Client, settings: &Settings) -> Result<(), Failure> {
    match pending::is_there(client).await? {
        true => Ok(()),
        false => Err(Failure::configuration(format!(
            "{}: there is no outbox (table unstale.outbox); run `unstale setup`",
            settings.postgres
        ))),
    }
}

/// The failure to read the entries of an outbox.
pub(super) fn unreadable_outbox(error: OutboxError) -> Failure {
    match error {
        OutboxError::Statement(StatementError::Refused(refusal)) => Failure::findings(format!("PostgreSQL: {refusal}")),
        OutboxError::Statement(StatementError::Broken(error)) => error.into(),
        OutboxError::Entry { .. } | OutboxError::Position(_) => {
            Failure::findings(printable(with_causes(&error).as_bytes()))
        }
    }
}
