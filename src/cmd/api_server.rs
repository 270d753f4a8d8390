//! The API server as `serve`, `run --serve` and `demo` start it.
//!
//! Owns where it listens. It must not know in which process it runs.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::config_file::ConfigFile;
use super::failure::Failure;
use crate::api::ApiServer;
use crate::rules::Folding;

/// Where the API listens.
#[derive(Debug, clap::Args)]
pub(super) struct ListenArgs {
    /// Where to listen, instead of `api.listen`; port 0 takes any free port
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(super) listen: Option<String>,
}

/// Creates the server and opens its port. Names fold case as this database does.
pub(super) async fn open(
    file: &ConfigFile,
    folding: &Arc<Folding>,
    args: &ListenArgs,
    stop: &CancellationToken,
) -> Result<(ApiServer, TcpListener), Failure> {
    let reads = file.reads.reads().len();
    if reads == 0 {
        let path = file.path.display();
        return Err(Failure::configuration(format!(
            "{path} has no `reads`, so there is nothing to serve; add some under `reads:`"
        )));
    }
    let address = args.listen.as_ref().unwrap_or(&file.settings.api.listen);
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Failure::configuration(format!(
            "cannot listen on {address}: {error}; change api.listen, or name another address with --listen"
        ))
    })?;
    let address = listener.local_addr()?;
    let mut folded = file.reads.clone();
    folded.fold_as(folding);
    let server = ApiServer::start(&file.settings, folded, file.digest(), stop).map_err(|error| {
        Failure::configuration(format!("target.url cannot be used: {}", crate::redis::describe(&error)))
    })?;
    tracing::info!(%address, reads, "serving");
    Ok((server, listener))
}
