//! `unstale setup`: installs in PostgreSQL what the rules need.

use std::io::Write as _;
use std::path::Path;

use super::config_file::ConfigFile;
use super::display::printable;
use super::failure::{Failure, with_causes};
use super::preflight::Preflight;
use super::stdout::print;
use crate::config::Mode;
use crate::install::error::InstallError;
use crate::install::execute::execute;
use crate::install::outbox;
use crate::install::setup;
use crate::install::step::{PlannedStep, Step};

#[derive(Debug, clap::Args)]
pub(super) struct SetupArgs {
    /// Print every statement with its lock and its cost, and change nothing
    #[arg(long)]
    plan: bool,
}

pub(super) async fn run(config: &Path, args: SetupArgs) -> Result<(), Failure> {
    let file = ConfigFile::read(config)?;
    let preflight = Preflight::compare(&file).await?;
    if args.plan {
        return print(&printed(&file, &plan(&file, &preflight).await?));
    }
    for step in install(&file, &preflight).await? {
        print(&match step {
            Step::Done(subject) => format!("done       {subject}\n"),
            Step::Unchanged(subject) => format!("unchanged  {subject}\n"),
            Step::Skipped(subject, reason) => format!("skipped    {subject}: {reason}\n"),
        })?;
    }
    Ok(())
}

/// Installs everything. Also for the demo.
pub(super) async fn install(file: &ConfigFile, preflight: &Preflight) -> Result<Vec<Step>, Failure> {
    let (client, settings) = (&preflight.client, &file.settings);
    let steps = async {
        let mut steps = Vec::new();
        let plan = match settings.mode {
            Mode::Slot => slot_plan(file, preflight).await?,
            Mode::Outbox => {
                let events = preflight.rules.has_events();
                steps.extend(outbox::install(client, settings, &preflight.captures, events, &say).await?);
                vec![setup::ddl_step(client).await?]
            }
        };
        steps.extend(execute(client, &settings.postgres, plan, &say).await?);
        Ok::<_, InstallError>(steps)
    };
    steps.await.map_err(failure)
}

/// What [`install`] would do.
async fn plan(file: &ConfigFile, preflight: &Preflight) -> Result<Vec<PlannedStep>, Failure> {
    let (client, settings) = (&preflight.client, &file.settings);
    let steps = async {
        Ok::<_, InstallError>(match settings.mode {
            Mode::Slot => slot_plan(file, preflight).await?,
            Mode::Outbox => {
                let events = preflight.rules.has_events();
                let mut steps = outbox::plan(client, settings, &preflight.captures, events).await?;
                steps.push(setup::ddl_step(client).await?);
                steps
            }
        })
    };
    steps.await.map_err(failure)
}

async fn slot_plan(file: &ConfigFile, preflight: &Preflight) -> Result<Vec<PlannedStep>, InstallError> {
    const ADVICE: &str = "run ALTER SYSTEM SET wal_level = logical and restart it, or use source.mode: outbox";
    let wal_level: String = preflight.client.query_one("show wal_level", &[]).await?.get(0);
    if wal_level != "logical" {
        return Err(InstallError::Impossible(vec![format!("PostgreSQL runs with wal_level = {wal_level}; {ADVICE}")]));
    }
    let (tables, events) = (preflight.rules.tables(), preflight.rules.has_events());
    setup::plan(&preflight.client, &file.settings, &preflight.catalog, &tables, events, &preflight.widenings).await
}

/// A plan as a script.
fn printed(file: &ConfigFile, plan: &[PlannedStep]) -> String {
    let server = printable(file.settings.postgres.to_string().as_bytes());
    let mut out = format!("-- What `unstale setup` does in PostgreSQL at {server}. Nothing was changed.\n");
    for step in plan {
        match step {
            PlannedStep::Unchanged(subject) => out.push_str(&format!("-- unchanged  {}\n", comment(subject))),
            PlannedStep::Skipped { subject, reason } => {
                out.push_str(&format!("-- skipped    {}: {}\n", comment(subject), comment(reason)));
            }
            PlannedStep::Run { subject, statements } => {
                out.push_str(&format!("\n-- {}\n", comment(subject)));
                for statement in statements {
                    out.push_str(&format!("-- {}\n{}\n", comment(&statement.cost), statement.sql.trim_end()));
                }
            }
        }
    }
    out
}

fn comment(text: &str) -> String {
    printable(text.as_bytes())
}

/// Says on standard error what a statement waits for.
pub(super) fn say(text: &str) {
    // Standard error may be closed.
    let _ = writeln!(std::io::stderr(), "{}", comment(text));
}

/// The failure of a set-up or a teardown.
pub(super) fn failure(error: InstallError) -> Failure {
    match error {
        InstallError::Locked | InstallError::SlotActive { .. } => Failure::unavailable(with_causes(&error)),
        InstallError::Query(error) => error.into(),
        error => Failure::configuration(with_causes(&error)),
    }
}
