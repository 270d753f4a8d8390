//! `unstale setup`: what replication needs in PostgreSQL.

use std::path::Path;

use super::{Failure, Loaded, preflight, print};
use crate::postgres::setup::{self, Step};

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(path: &Path, _: Args) -> Result<(), Failure> {
    let loaded = Loaded::read(path)?;
    let compared = preflight::compare(&loaded).await?;
    let wal_level: String = compared.client.query_one("show wal_level", &[]).await?.get(0);
    if wal_level != "logical" {
        return Err(Failure::configuration(format!(
            "PostgreSQL runs with wal_level = {wal_level}: run ALTER SYSTEM SET wal_level = logical and restart it"
        )));
    }
    let tables = compared.rules.tables();
    let steps =
        setup::apply(&compared.client, &loaded.settings, &tables, compared.rules.has_events(), &compared.widenings)
            .await?;
    for step in steps {
        print(&match step {
            Step::Done(text) => format!("done       {text}\n"),
            Step::Unchanged(text) => format!("unchanged  {text}\n"),
        })?;
    }
    Ok(())
}
