//! `unstale run`: the daemon.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::serve::{self, Listen};
use super::{Failure, Loaded, check, duration, preflight};
use crate::api::ApiServer;
use crate::coherence::history::HistoryGap;
use crate::config::Settings;
use crate::pipeline::{self, RunError};
use crate::rules::RuleSet;
use crate::sink::Sink;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// On SIGTERM or SIGINT, how long what was received may take to be put into force
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    drain_max: Duration,
    /// Begin a new epoch: empty the cache of everything the rules can name, then go on
    #[arg(long)]
    flush: bool,
    /// Serve the file's reads over HTTP in the same process
    #[arg(long)]
    pub(super) serve: bool,
    #[command(flatten)]
    listen: Listen,
}

pub(super) async fn run(path: &Path, args: Args) -> Result<(), Failure> {
    if args.listen.listen.is_some() && !args.serve {
        return Err(Failure::usage("--listen is for the read API: give --serve too"));
    }
    let stop = stop_on_signals()?;
    let Prepared { settings, rules, mut sink, api } = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        prepared = prepare(path, &args, &stop) => prepared?,
    };
    if args.flush {
        sink.report_gap(HistoryGap::Requested);
    }
    let api = api.map(|(server, listener)| {
        let stop = stop.clone();
        tokio::spawn(async move {
            let served = server.serve(listener, args.drain_max).await;
            // One does not go on without the other.
            stop.cancel();
            served
        })
    });
    let outcome = pipeline::run(&settings, Arc::new(rules), sink, &stop, args.drain_max).await;
    stop.cancel();
    // It ends by itself, within its drain.
    let served = match api {
        Some(api) => api.await.map_err(|error| Failure::findings(format!("the read API failed: {error}")))?,
        None => Ok(()),
    };
    outcome.map_err(|error| match error {
        RunError::Plan(_) => Failure::findings(error.to_string()),
        RunError::Slot { .. } | RunError::Unpublished(_) | RunError::NoOutbox(_) | RunError::NotPrimary(_) => {
            Failure::configuration(error.to_string())
        }
        RunError::Refused(error) => error.into(),
    })?;
    served?;
    tracing::info!("stopped");
    Ok(())
}

/// What the daemon begins with.
struct Prepared {
    settings: Settings,
    rules: RuleSet,
    sink: Sink,
    api: Option<(ApiServer, TcpListener)>,
}

/// Everything that must hold before the first change is read.
async fn prepare(path: &Path, args: &Args, stop: &CancellationToken) -> Result<Prepared, Failure> {
    let loaded = Loaded::read(path)?;
    let compared = preflight::compare(&loaded).await?;
    compared.require_identities(&loaded)?;
    compared.require_setup(&loaded).await?;
    let mut sink = loaded.sink(&compared.rules)?;
    sink.connect().await?;
    let mut api = None;
    if args.serve {
        check::require_reads(&loaded, &compared).await?;
        api = Some(serve::open(&loaded, &args.listen, stop).await?);
    }
    Ok(Prepared { settings: loaded.settings, rules: compared.rules, sink, api })
}

/// Cancelled at the first SIGTERM or SIGINT. A second one ends the process at once.
pub(super) fn stop_on_signals() -> Result<CancellationToken, Failure> {
    let stop = CancellationToken::new();
    let told = stop.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for code in [None, Some(130)] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match code {
                None => told.cancel(),
                Some(code) => std::process::exit(code),
            }
        }
    });
    Ok(stop)
}
