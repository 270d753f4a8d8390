//! `unstale serve`: the read API.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::api_server::{self, ListenArgs};
use super::arguments::duration;
use super::config_file::ConfigFile;
use super::failure::Failure;
use super::preflight::{Preflight, history};
use super::signals::stop_on_signals;
use crate::rules::Folding;

#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    listen: ListenArgs,
    /// On SIGTERM or SIGINT, how long to finish requests that have begun
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    drain_max: Duration,
}

pub(super) async fn run(config: &Path, args: ServeArgs) -> Result<(), Failure> {
    let stop = stop_on_signals()?;
    let file = ConfigFile::read(config)?;
    let folding = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        folding = require_fitting_reads(&file) => folding?,
    };
    let (server, listener) = api_server::open(&file, &folding, &args.listen, &stop).await?;
    server.serve(listener, args.drain_max).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Fails if a read does not fit the database, or could become stale, or if the database is not the
/// one that the daemon follows. A database that is not
/// available is no reason: what is cached can be served meanwhile. Returns how the database folds
/// case.
async fn require_fitting_reads(file: &ConfigFile) -> Result<Arc<Folding>, Failure> {
    match Preflight::compare(file).await {
        Ok(preflight) => {
            history::require_same_database(&file.settings, &preflight.client).await?;
            preflight.require_reads(file).await.map(|()| preflight.folding)
        }
        Err(failure) if failure.is_unavailable() => {
            tracing::warn!(
                why = failure.message,
                "PostgreSQL is not available: serving reads that were not compared with it; until a restart, nothing is \
                 cached under a name that contains letters in `lower` or `upper`"
            );
            Ok(Arc::new(Folding::unknown()))
        }
        Err(failure) => Err(failure),
    }
}
