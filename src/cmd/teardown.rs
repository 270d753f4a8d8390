//! `unstale teardown`: removes what `setup` installed, in either mode.

use std::path::Path;

use super::config_file::ConfigFile;
use super::failure::Failure;
use super::stdout::print;
use crate::install::outbox;
use crate::install::teardown::{self, OutboxRemoval};
use crate::postgres;

#[derive(Debug, clap::Args)]
pub(super) struct TeardownArgs {}

pub(super) async fn run(config: &Path, _: TeardownArgs) -> Result<(), Failure> {
    let file = ConfigFile::read(config)?;
    let client = postgres::connect(&file.settings.postgres).await?;
    let settings = &file.settings;
    let removed = teardown::remove(&client, settings).await.map_err(|error| match outbox::is_locked(&error) {
        true => Failure::unavailable(outbox::InstallError::Locked.to_string()),
        false => error.into(),
    })?;
    print(&format!("removed replication slot {} and publication {}\n", settings.slot, settings.publication))?;
    match removed {
        OutboxRemoval::Absent => Ok(()),
        OutboxRemoval::Removed(0) => print("removed the outbox and its triggers; it was empty\n"),
        OutboxRemoval::Removed(entries) => {
            print(&format!("removed the outbox and its triggers, and {entries} entries that were not read\n"))
        }
        OutboxRemoval::Kept(consumer) => {
            print(&format!("kept the outbox: it belongs to `{consumer}`, and source.slot is `{}`\n", settings.slot))
        }
    }
}
