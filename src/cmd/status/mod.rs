//! `unstale status`: how far invalidations are in force, and what waits, as both servers say.
//!
//! Owns when they are asked and what the exit code says. It must not judge what is too late. Invariant: what one server
//! says is shown also when the other is away.

mod report;
mod source;
mod target;

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use self::source::{Found, Questions};
use self::target::TargetStatus;
use super::changes::has_reader;
use super::display::line;
use super::run::stop_on_signals;
use super::{Failure, Loaded};
use crate::coherence::watermark::Names;
use crate::config::Settings;

/// How often is asked again.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Clears a terminal and begins at its top.
const CLEAR: &str = "\x1b[H\x1b[2J";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Ask again every second, until interrupted
    #[arg(long, short)]
    watch: bool,
}

pub(super) async fn run(path: &Path, args: Args) -> Result<(), Failure> {
    let stop = stop_on_signals()?;
    let Loaded { settings, .. } = Loaded::read(path)?;
    let mut questions = Questions::default();
    let mut tick = tokio::time::interval(WATCH_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let asked = async {
            tick.tick().await;
            Status::ask(&settings, &mut questions).await
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
            return status.verdict();
        }
    }
}

/// What both servers say.
struct Status<'a> {
    settings: &'a Settings,
    source: Result<Found, Failure>,
    target: Result<TargetStatus, Failure>,
}

impl<'a> Status<'a> {
    async fn ask(settings: &'a Settings, questions: &mut Questions) -> Self {
        let names = Names::new(&settings.namespace, &settings.slot);
        let (source, target) = tokio::join!(questions.ask(settings), target::read(&settings.redis, &names));
        Self { settings, source, target: target.map_err(Failure::from) }
    }

    /// Fails if a server had nothing to say; why is shown already.
    fn verdict(self) -> Result<(), Failure> {
        let codes = [self.source.err(), self.target.err()].into_iter().flatten().map(|failure| failure.code);
        match codes.max() {
            None => Ok(()),
            Some(code) => Err(Failure { code, message: String::new() }),
        }
    }
}

fn show(status: &Status<'_>, args: &Args) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    let text = match args.json {
        true => line(report::object(status)),
        false => report::text(status),
    };
    if args.watch && !args.json {
        let between = if output.is_terminal() { CLEAR } else { "\n" };
        output.write_all(between.as_bytes())?;
    }
    output.write_all(text.as_bytes())?;
    output.flush()
}
