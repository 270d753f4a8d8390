//! `unstale setup`: what is needed in PostgreSQL to hear of changes.

use std::path::Path;

use super::preflight::Compared;
use super::{Failure, Loaded, preflight, print};
use crate::config::Mode;
use crate::install::outbox::{self, InstallError};
use crate::install::setup;
use crate::install::step::Step;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(path: &Path, _: Args) -> Result<(), Failure> {
    let loaded = Loaded::read(path)?;
    let compared = preflight::compare(&loaded).await?;
    let steps = match loaded.settings.mode {
        Mode::Slot => replication(&loaded, &compared).await?,
        Mode::Outbox => install(&loaded, &compared).await?,
    };
    for step in steps {
        print(&match step {
            Step::Done(text) => format!("done       {text}\n"),
            Step::Unchanged(text) => format!("unchanged  {text}\n"),
        })?;
    }
    Ok(())
}

async fn replication(loaded: &Loaded, compared: &Compared) -> Result<Vec<Step>, Failure> {
    let wal_level: String = compared.client.query_one("show wal_level", &[]).await?.get(0);
    if wal_level != "logical" {
        return Err(Failure::configuration(format!(
            "PostgreSQL runs with wal_level = {wal_level}: run ALTER SYSTEM SET wal_level = logical and restart it, \
             or use source.mode: outbox"
        )));
    }
    let (tables, events) = (compared.rules.tables(), compared.rules.has_events());
    Ok(setup::apply(&compared.client, &loaded.settings, &tables, events, &compared.widenings).await?)
}

async fn install(loaded: &Loaded, compared: &Compared) -> Result<Vec<Step>, Failure> {
    let events = compared.rules.has_events();
    let installed = outbox::install(&compared.client, &loaded.settings, &compared.captures, events).await;
    installed.map_err(|error| match error {
        InstallError::OtherConsumer(_) | InstallError::Invisible(_) => Failure::configuration(error.to_string()),
        InstallError::Locked => Failure::unavailable(error.to_string()),
        InstallError::Query(error) => error.into(),
    })
}
