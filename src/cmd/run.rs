//! `unstale run`: the daemon.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::arguments::duration;
use super::config_file::ConfigFile;
use super::daemon_api::{DaemonApi, DaemonApiArgs};
use super::failure::{Failure, with_causes};
use super::preflight::Preflight;
use super::signals::stop_on_signals;
use crate::coherence::history::HistoryGap;
use crate::config::Settings;
use crate::pipeline::{self, Fault, RunError};
use crate::rules::RuleSet;
use crate::sink::Sink;
use crate::watch::Watched;

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// On SIGTERM or SIGINT, how long to keep applying changes that were received
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "DURATION")]
    drain_max: Duration,
    /// Begin a new epoch: delete everything that the rules and reads can name, then continue
    #[arg(long)]
    flush: bool,
    #[command(flatten)]
    api: DaemonApiArgs,
}

pub(super) async fn run(config: &Path, args: RunArgs) -> Result<(), Failure> {
    args.api.validate()?;
    let stop = stop_on_signals()?;
    let PreparedDaemon { settings, rules, watched, mut sink, api } = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        prepared = PreparedDaemon::open(config, &args, &stop) => prepared?,
    };
    if args.flush {
        sink.report_gap(HistoryGap::Requested);
    }
    let serving = api.start(&stop, args.drain_max);
    let outcome = pipeline::run(&settings, Arc::new(rules), watched, sink, &stop, args.drain_max).await;
    stop.cancel();
    let served = serving.join().await;
    outcome.map_err(failure)?;
    served?;
    tracing::info!("stopped");
    Ok(())
}

fn failure(error: RunError) -> Failure {
    let mut message = with_causes(&error);
    if let Some(advice) = error.advice {
        message.push_str("; ");
        message.push_str(advice);
    }
    match error.fault {
        Fault::Change => Failure::findings(message),
        Fault::Configuration => Failure::configuration(message),
        Fault::Server => Failure::unavailable(message),
    }
}

/// What the daemon starts with.
struct PreparedDaemon {
    settings: Settings,
    rules: RuleSet,
    watched: Arc<Watched>,
    sink: Sink,
    api: DaemonApi,
}

impl PreparedDaemon {
    /// Checks everything that must hold before the first change is read, and connects.
    async fn open(config: &Path, args: &RunArgs, stop: &CancellationToken) -> Result<Self, Failure> {
        let file = ConfigFile::read(config)?;
        let preflight = Preflight::compare(&file).await?;
        preflight.require_identities(&file)?;
        preflight.require_setup(&file).await?;
        let mut sink = file.sink(&preflight.rules)?;
        sink.connect().await?;
        let api = DaemonApi::open(&args.api, &file, &preflight, stop).await?;
        let watched = Arc::new(preflight.watched(&file).await?);
        Ok(Self { settings: file.settings, rules: preflight.rules, watched, sink, api })
    }
}
