//! `unstale status`: prints how far invalidations are in force, and what is waiting.
//!
//! Owns when the servers are asked. It must not judge what is too late.

mod json;
mod servers;
mod source;
mod target;
mod text;

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use self::servers::ServerStatus;
use self::source::SourceConnection;
use super::config_file::ConfigFile;
use super::display::json_line;
use super::failure::Failure;
use super::signals::stop_on_signals;
use super::stdout::has_reader;

/// How often `--watch` prints.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Clears a terminal and moves to its top.
const CLEAR: &str = "\x1b[H\x1b[2J";

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Print again every second, until interrupted
    #[arg(long, short)]
    watch: bool,
}

pub(super) async fn run(config: &Path, args: StatusArgs) -> Result<(), Failure> {
    let stop = stop_on_signals()?;
    let ConfigFile { settings, .. } = ConfigFile::read(config)?;
    let mut connection = SourceConnection::default();
    let mut tick = tokio::time::interval(WATCH_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let asked = async {
            tick.tick().await;
            ServerStatus::ask(&settings, &mut connection).await
        };
        let status = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            status = asked => status,
        };
        if !has_reader(show(&status, &args))? {
            return Ok(());
        }
        if !args.watch {
            return status.outcome();
        }
    }
}

fn show(status: &ServerStatus<'_>, args: &StatusArgs) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    let text = match args.json {
        true => json_line(json::object(status)),
        false => text::text(status),
    };
    if args.watch && !args.json {
        let between = if output.is_terminal() { CLEAR } else { "\n" };
        output.write_all(between.as_bytes())?;
    }
    output.write_all(text.as_bytes())?;
    output.flush()
}
