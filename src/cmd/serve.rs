//! `unstale serve`: the read API.

use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::run::stop_on_signals;
use super::{Failure, Loaded, check, duration, preflight};
use crate::api::ApiServer;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    listen: Listen,
    /// On SIGTERM or SIGINT, how long requests that were begun may take
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    drain_max: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct Listen {
    /// Where to listen, instead of `api.listen`; port 0 takes any that is free
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(super) listen: Option<String>,
}

pub(super) async fn run(path: &Path, args: Args) -> Result<(), Failure> {
    let stop = stop_on_signals()?;
    let loaded = Loaded::read(path)?;
    tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        fits = require_fitting(&loaded) => fits?,
    };
    let (server, listener) = open(&loaded, &args.listen, &stop).await?;
    server.serve(listener, args.drain_max).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Fails if a read does not fit the database, or could become stale. A database that is away is no reason: what is
/// cached can be served meanwhile.
async fn require_fitting(loaded: &Loaded) -> Result<(), Failure> {
    match preflight::compare(loaded).await {
        Ok(compared) => check::require_reads(loaded, &compared).await,
        Err(failure) if failure.is_unavailable() => {
            tracing::warn!(why = failure.message, "the reads were not compared with the database");
            Ok(())
        }
        Err(failure) => Err(failure),
    }
}

/// The API, and where it listens.
pub(super) async fn open(
    loaded: &Loaded,
    listen: &Listen,
    stop: &CancellationToken,
) -> Result<(ApiServer, TcpListener), Failure> {
    if loaded.reads.reads().is_empty() {
        let path = loaded.path.display();
        return Err(Failure::configuration(format!("{path} has no `reads`: there is nothing to serve")));
    }
    let address = listen.listen.as_ref().unwrap_or(&loaded.settings.api.listen);
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Failure::configuration(format!("cannot listen on {address}: {error}; change api.listen or give --listen"))
    })?;
    let address = listener.local_addr()?;
    let server = ApiServer::start(&loaded.settings, loaded.reads.clone(), loaded.digest(), stop).map_err(|error| {
        Failure::configuration(format!("target.url cannot be used: {}", crate::redis::describe(&error)))
    })?;
    tracing::info!(%address, reads = loaded.reads.reads().len(), "serving");
    Ok((server, listener))
}
