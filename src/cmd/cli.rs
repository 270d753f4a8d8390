//! The command line: its flags for all verbs, and the verbs.
//!
//! Owns which verb runs. It must not know what a verb does.

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};

#[cfg(feature = "demo")]
use super::demo;
use super::failure::Failure;
#[cfg(feature = "api")]
use super::serve;
use super::{
    check, completions, dry_run, explain, init, man, record, replay, run, schema, setup, status, teardown, test,
};

/// Keeps Redis coherent with PostgreSQL.
#[derive(Debug, Parser)]
#[command(name = "unstale", version, about, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// The configuration file
    #[arg(
        long,
        short,
        global = true,
        env = "UNSTALE_CONFIG",
        default_value = "invalidation.yaml",
        value_name = "FILE"
    )]
    config: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write a first `invalidation.yaml`, with tests, from the tables of a database
    Init(init::InitArgs),
    /// Check the file, and whether it fits PostgreSQL and Redis
    Check(check::CheckArgs),
    /// Run the tests in the file
    Test(test::TestArgs),
    /// Install in PostgreSQL what the rules need; safe to repeat
    Setup(setup::SetupArgs),
    /// Remove what `setup` installed
    Teardown(teardown::TeardownArgs),
    /// Run the daemon, which keeps Redis coherent
    Run(run::RunArgs),
    /// Serve the file's reads over HTTP, from a cache that is never stale
    #[cfg(feature = "api")]
    Serve(serve::ServeArgs),
    /// Print what changes would do to Redis, without doing it
    DryRun(dry_run::DryRunArgs),
    /// Write changes as they happen, as NDJSON
    Record(record::RecordArgs),
    /// Do to Redis what changes would have done
    Replay(replay::ReplayArgs),
    /// Explain a key: which rules make it, what it holds, what touched it last; or explain a change
    Explain(explain::ExplainArgs),
    /// Print how far invalidations are in force, and what is waiting
    Status(status::StatusArgs),
    /// Print the JSON Schema of the file, for editors
    Schema(schema::SchemaArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Print the manual page
    Man(man::ManArgs),
    /// Show everything at work on throwaway servers
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),
}

impl Cli {
    /// Whether only warnings are logged by default.
    pub(super) fn is_quiet(&self) -> bool {
        match self.verb {
            #[cfg(feature = "demo")]
            Verb::Demo(_) => true,
            _ => false,
        }
    }

    /// Runs the verb.
    pub(super) async fn run(self) -> Result<(), Failure> {
        let config = self.config.as_path();
        match self.verb {
            Verb::Init(args) => init::run(config, args).await,
            Verb::Check(args) => check::run(config, args).await,
            Verb::Test(args) => test::run(config, args),
            Verb::Setup(args) => setup::run(config, args).await,
            Verb::Teardown(args) => teardown::run(config, args).await,
            Verb::Run(args) => run::run(config, args).await,
            #[cfg(feature = "api")]
            Verb::Serve(args) => serve::run(config, args).await,
            Verb::DryRun(args) => dry_run::run(config, args).await,
            Verb::Record(args) => record::run(config, args).await,
            Verb::Replay(args) => replay::run(config, args).await,
            Verb::Explain(args) => explain::run(config, args).await,
            Verb::Status(args) => status::run(config, args).await,
            Verb::Schema(args) => schema::run(args),
            Verb::Completions(args) => completions::run(args, Self::command()),
            Verb::Man(args) => man::run(args, Self::command()),
            #[cfg(feature = "demo")]
            Verb::Demo(args) => demo::run(args).await,
        }
    }
}
