//! `unstale setup`: installs in PostgreSQL what the rules need.

use std::path::Path;

use super::config_file::ConfigFile;
use super::failure::{Failure, with_causes};
use super::preflight::Preflight;
use super::stdout::print;
use crate::config::Mode;
use crate::install::outbox::{self, InstallError};
use crate::install::setup;
use crate::install::step::Step;

#[derive(Debug, clap::Args)]
pub(super) struct SetupArgs {}

pub(super) async fn run(config: &Path, _: SetupArgs) -> Result<(), Failure> {
    let file = ConfigFile::read(config)?;
    let preflight = Preflight::compare(&file).await?;
    let steps = match file.settings.mode {
        Mode::Slot => replication(&file, &preflight).await?,
        Mode::Outbox => install(&file, &preflight).await?,
    };
    for step in steps {
        print(&match step {
            Step::Done(text) => format!("done       {text}\n"),
            Step::Unchanged(text) => format!("unchanged  {text}\n"),
        })?;
    }
    Ok(())
}

async fn replication(file: &ConfigFile, preflight: &Preflight) -> Result<Vec<Step>, Failure> {
    let wal_level: String = preflight.client.query_one("show wal_level", &[]).await?.get(0);
    if wal_level != "logical" {
        return Err(Failure::configuration(format!(
            "PostgreSQL runs with wal_level = {wal_level}; run ALTER SYSTEM SET wal_level = logical and restart it, or use \
             source.mode: outbox"
        )));
    }
    let (tables, events) = (preflight.rules.tables(), preflight.rules.has_events());
    Ok(setup::apply(&preflight.client, &file.settings, &tables, events, &preflight.widenings).await?)
}

async fn install(file: &ConfigFile, preflight: &Preflight) -> Result<Vec<Step>, Failure> {
    let events = preflight.rules.has_events();
    let installed = outbox::install(&preflight.client, &file.settings, &preflight.captures, events).await;
    installed.map_err(|error| match error {
        InstallError::OtherConsumer(_) | InstallError::Invisible(_) => Failure::configuration(with_causes(&error)),
        InstallError::Locked => Failure::unavailable(with_causes(&error)),
        InstallError::Query(error) => error.into(),
    })
}
