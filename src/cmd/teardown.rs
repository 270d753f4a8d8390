//! `unstale teardown`: PostgreSQL as it was before `setup`.

use std::path::Path;

use super::{Failure, Loaded, print};
use crate::postgres::{self, setup};

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(path: &Path, _: Args) -> Result<(), Failure> {
    let loaded = Loaded::read(path)?;
    let client = postgres::connect(&loaded.settings.postgres).await?;
    setup::remove(&client, &loaded.settings).await?;
    let settings = &loaded.settings;
    print(&format!("removed replication slot {} and publication {}\n", settings.slot, settings.publication))
}
