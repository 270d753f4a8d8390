//! `unstale teardown`: removes what `setup` installed for the mode of the file.

use std::path::Path;

use super::config_file::ConfigFile;
use super::failure::Failure;
use super::setup::{failure, say};
use super::stdout::print;
use crate::install::teardown::{self, TeardownStep};
use crate::postgres;

#[derive(Debug, clap::Args)]
pub(super) struct TeardownArgs {}

pub(super) async fn run(config: &Path, _: TeardownArgs) -> Result<(), Failure> {
    let file = ConfigFile::read(config)?;
    let client = postgres::connect(&file.settings.postgres).await?;
    let removals = teardown::remove(&client, &file.settings, &say).await.map_err(failure)?;
    if removals.is_empty() {
        return print("there is nothing to remove\n");
    }
    for removal in removals {
        print(&match removal {
            TeardownStep::Removed(part) => format!("removed {part}\n"),
            TeardownStep::Kept(part, why) => format!("kept {part}: {why}\n"),
        })?;
    }
    Ok(())
}
