//! What `setup` installs for the replication slot, in order.
//!
//! Owns the order. It must not decide which tables or identities are needed; the outbox is installed by
//! [`super::outbox`].
//! Invariants: running twice changes nothing the second time; no step leaves an application's writes
//! refused, so a table's identity is widened before the table is published.

use tokio_postgres::{Client, Error};

use super::step::Step;
use super::{emit, identity, publication, slot};
use crate::change::TableName;
use crate::config::Settings;
use crate::rules::Widening;

/// Makes identities wide enough, then the publication, then the slot.
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
