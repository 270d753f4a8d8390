//! `unstale run`: the daemon.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Failure, Loaded, duration, preflight};
use crate::coherence::history::Doubt;
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
}

pub(super) async fn run(path: &Path, args: Args) -> Result<(), Failure> {
    let stop = stop_on_signals()?;
    let (settings, rules, mut sink) = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        prepared = prepare(path) => prepared?,
    };
    if args.flush {
        sink.doubt(Doubt::Asked);
    }
    pipeline::run(&settings, Arc::new(rules), sink, &stop, args.drain_max).await.map_err(|error| match error {
        RunError::Plan(_) => Failure::findings(error.to_string()),
        RunError::Slot { .. } | RunError::Unpublished(_) | RunError::NoOutbox(_) | RunError::NotPrimary(_) => {
            Failure::configuration(error.to_string())
        }
        RunError::Refused(error) => error.into(),
    })?;
    tracing::info!("stopped");
    Ok(())
}

/// Everything that must hold before the first change is read.
async fn prepare(path: &Path) -> Result<(Settings, RuleSet, Sink), Failure> {
    let loaded = Loaded::read(path)?;
    let compared = preflight::compare(&loaded).await?;
    compared.require_identities(&loaded)?;
    compared.require_setup(&loaded).await?;
    let mut sink = loaded.sink(&compared.rules)?;
    sink.connect().await?;
    Ok((loaded.settings, compared.rules, sink))
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
