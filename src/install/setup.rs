//! Installs everything for slot mode.
//!
//! Owns the order. It must not decide which tables or identities are needed. [`super::outbox`]
//! installs what outbox mode needs. Invariants: a second run changes nothing; an application can
//! write at any time, so a table's identity is widened before the table is published.

use tokio_postgres::{Client, Error};

use super::step::Step;
use super::{emit, identity, publication, slot};
use crate::change::TableName;
use crate::config::Settings;
use crate::rules::Widening;

/// Widens identities, then creates the publication, `unstale.emit` if `events`, and the slot.
pub async fn apply(
    client: &Client,
    settings: &Settings,
    tables: &[&TableName],
    events: bool,
    widenings: &[Widening],
) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    for widening in widenings {
        steps.push(identity::widen(client, widening).await?);
    }
    steps.push(publication::publish(client, &settings.publication, tables).await?);
    steps.extend(emit::install(client, events).await?);
    steps.push(slot::create(client, &settings.slot).await?);
    Ok(steps)
}
