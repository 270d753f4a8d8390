//! The read API in the daemon's process, if this build has it (`--features api`).
//!
//! Owns how the two end together. It must not know what is served.

#[cfg(feature = "api")]
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

#[cfg(feature = "api")]
use super::api_server::{self, ListenArgs};
use super::config_file::ConfigFile;
use super::failure::Failure;
use super::preflight::Preflight;
#[cfg(feature = "api")]
use crate::api::ApiServer;

/// Whether the daemon serves the reads, too.
#[derive(Debug, clap::Args)]
pub(super) struct DaemonApiArgs {
    /// Serve the file's reads over HTTP in the same process
    #[cfg(feature = "api")]
    #[arg(long)]
    serve: bool,
    #[cfg(feature = "api")]
    #[command(flatten)]
    listen: ListenArgs,
}

impl DaemonApiArgs {
    /// Fails if flags of the API are given without the API.
    pub(super) fn validate(&self) -> Result<(), Failure> {
        #[cfg(feature = "api")]
        if self.listen.listen.is_some() && !self.serve {
            return Err(Failure::usage("--listen is for the read API; add --serve"));
        }
        Ok(())
    }
}

/// The API with its open port, if it was asked for.
pub(super) struct DaemonApi {
    #[cfg(feature = "api")]
    server: Option<(ApiServer, TcpListener)>,
}

impl DaemonApi {
    /// Checks the reads and opens the port.
    pub(super) async fn open(
        args: &DaemonApiArgs,
        file: &ConfigFile,
        preflight: &Preflight,
        stop: &CancellationToken,
    ) -> Result<Self, Failure> {
        #[cfg(feature = "api")]
        let server = if args.serve {
            preflight.require_reads(file).await?;
            Some(api_server::open(file, &preflight.folding, &args.listen, stop).await?)
        } else {
            None
        };
        #[cfg(not(feature = "api"))]
        let _ = (args, file, preflight, stop);
        Ok(Self {
            #[cfg(feature = "api")]
            server,
        })
    }

    /// Serves until `stop`, within `drain_max` after it. If serving ends by itself, the daemon is
    /// stopped.
    pub(super) fn start(self, stop: &CancellationToken, drain_max: std::time::Duration) -> ServingTask {
        #[cfg(not(feature = "api"))]
        let _ = (stop, drain_max);
        ServingTask {
            #[cfg(feature = "api")]
            task: self.server.map(|(server, listener)| {
                let stop = stop.clone();
                tokio::spawn(async move {
                    let served = server.serve(listener, drain_max).await;
                    stop.cancel();
                    served
                })
            }),
        }
    }
}

/// The API at work.
pub(super) struct ServingTask {
    #[cfg(feature = "api")]
    task: Option<JoinHandle<std::io::Result<()>>>,
}

impl ServingTask {
    /// Waits until it has ended, which it does by itself within its drain.
    pub(super) async fn join(self) -> Result<(), Failure> {
        #[cfg(feature = "api")]
        if let Some(task) = self.task {
            task.await.map_err(|error| Failure::findings(format!("the read API failed: {error}")))??;
        }
        Ok(())
    }
}
