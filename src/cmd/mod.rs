//! The commands: one file a verb, each thin.
//!
//! Owns arguments, exit codes and what is printed. It must not decide what a rule means. Invariants: data
//! goes to standard output and messages to standard error; no credential is printed, also not inside an error.

#![allow(clippy::print_stderr, clippy::print_stdout)]

mod changes;
mod check;
mod completions;
mod demo;
mod display;
mod dry_run;
mod explain;
mod init;
mod man;
mod preflight;
mod record;
mod replay;
mod run;
mod schema;
mod serve;
mod setup;
mod status;
mod teardown;
mod test;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use indexmap::IndexSet;
use sha2::{Digest as _, Sha256};

use crate::coherence::watermark::Names;
use crate::config::{Document, Problems, RawTest, Settings};
use crate::postgres::ConnectError;
use crate::reads::ReadSet;
use crate::rules::{Rule, RuleSet};
use crate::sink::{RuleLabel, Sink, SinkError, SinkSettings};
use crate::source::recording::RecordingError;

/// Keeps Redis coherent with PostgreSQL.
#[derive(Debug, Parser)]
#[command(name = "unstale", version, about, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// The file with the rules
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
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a first `invalidation.yaml`, with tests, from the tables of a database
    Init(init::Args),
    /// Lint the rules; unless --offline, also compare them with the database and try both servers
    Check(check::Args),
    /// Run the file's tests
    Test(test::Args),
    /// Create the publication, the replication slot and wide enough replica identities; safe to repeat
    Setup(setup::Args),
    /// Remove what `setup` created
    Teardown(teardown::Args),
    /// Keep Redis coherent until told to stop
    Run(run::Args),
    /// Serve the file's reads over HTTP, from a cache that is never stale
    Serve(serve::Args),
    /// Print what changes would do to Redis, touching nothing
    DryRun(dry_run::Args),
    /// Write changes down as they come, as NDJSON
    Record(record::Args),
    /// Do to Redis what changes would have done
    Replay(replay::Args),
    /// Tell which rules make a key, what it holds and what touched it last; or what rules make of a change
    Explain(explain::Args),
    /// Tell how far invalidations are in force, and what waits
    Status(status::Args),
    /// Print the JSON Schema of the file, for editors
    Schema(schema::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// Print the manual
    Man(man::Args),
    /// Show it all at work on throwaway servers
    Demo(demo::Args),
}

/// Why a command did not succeed: its exit code, and what to tell the user.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// A check, a test or a comparison found something.
    fn findings(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// The command was called wrongly, or its input is malformed.
    fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// A server is away.
    fn unavailable(message: impl Into<String>) -> Self {
        Self { code: 69, message: message.into() }
    }

    /// Whether it may succeed when a server is back.
    fn is_unavailable(&self) -> bool {
        self.code == 69
    }

    /// The configuration cannot be used.
    fn configuration(message: impl Into<String>) -> Self {
        Self { code: 78, message: message.into() }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match &error {
            ConnectError::Unreachable(_) | ConnectError::Protocol(_) => Self::unavailable(error.to_string()),
            // Wrong credentials or certificate files are the file's fault, not the server's absence.
            _ if error.is_transient() => Self::unavailable(error.to_string()),
            ConnectError::Refused(_) | ConnectError::Tls(_) | ConnectError::Login(_) => {
                Self::configuration(error.to_string())
            }
        }
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        // A wrong password is the file's fault, not the server's absence.
        match error.is_login_refused() {
            true => Self::configuration(error.to_string()),
            false => Self::unavailable(error.to_string()),
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refusal) => Self::findings(format!("PostgreSQL: {}", crate::postgres::ServerError::from(refusal))),
            None => Self::unavailable(format!("the connection to PostgreSQL broke: {error}")),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::findings(error.to_string())
    }
}

/// Parses the command line, runs the command, and says how it went.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // One provider for the whole process; the Redis client asks for the default one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    start_logging(matches!(cli.command, Command::Demo(_)));
    let outcome = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(dispatch(cli)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let message = failure.message.trim_end();
            if !message.is_empty() {
                // Nobody may be there to read it.
                let _ = writeln!(std::io::stderr(), "{message}");
            }
            ExitCode::from(failure.code)
        }
    }
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Init(args) => init::run(&cli.config, args).await,
        Command::Test(args) => test::run(&cli.config, args),
        Command::Explain(args) => explain::run(&cli.config, args).await,
        Command::Status(args) => status::run(&cli.config, args).await,
        Command::Schema(args) => schema::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
        Command::Check(args) => check::run(&cli.config, args).await,
        Command::Setup(args) => setup::run(&cli.config, args).await,
        Command::Teardown(args) => teardown::run(&cli.config, args).await,
        Command::Run(args) => run::run(&cli.config, args).await,
        Command::Serve(args) => serve::run(&cli.config, args).await,
        Command::DryRun(args) => dry_run::run(&cli.config, args).await,
        Command::Record(args) => record::run(&cli.config, args).await,
        Command::Replay(args) => replay::run(&cli.config, args).await,
        Command::Demo(args) => demo::run(args).await,
    }
}

fn start_logging(quiet: bool) {
    let default = if quiet { "warn" } else { "info" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // Nobody may be left to read the log; that is no reason to stop.
    let builder = builder.log_internal_errors(false);
    if std::io::stderr().is_terminal() {
        builder.with_ansi(colours()).init();
    } else {
        builder.json().flatten_event(true).init();
    }
}

/// Whether messages may be coloured.
fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A file, read and compiled.
struct Loaded {
    path: PathBuf,
    text: String,
    settings: Settings,
    rules: RuleSet,
    reads: ReadSet,
    tests: Vec<RawTest>,
}

impl Loaded {
    /// Reads and compiles; everything wrong with the file is one failure.
    fn read(path: &Path) -> Result<Self, Failure> {
        Self::parse(path, Self::text_of(path)?, &|name| std::env::var(name).ok())
    }

    /// The file as it is.
    fn text_of(path: &Path) -> Result<String, Failure> {
        let bytes = std::fs::read(path).map_err(|error| {
            Failure::configuration(format!(
                "cannot read {}: {error}; name the file with --config or UNSTALE_CONFIG",
                path.display()
            ))
        })?;
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes());
            let mut problems = Problems::default();
            problems.push(at..at + 1, "the file is not UTF-8 here", "save it as UTF-8");
            show(&problems, path, &text)
        })
    }

    fn parse(path: &Path, text: String, environment: &impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        Self::compile(path, text.clone(), environment).map_err(|problems| show(&problems, path, &text))
    }

    fn compile(path: &Path, text: String, environment: &impl Fn(&str) -> Option<String>) -> Result<Self, Problems> {
        let document = Document::parse(&text, environment)?;
        let rules = RuleSet::compile(document.rules, document.lookups, &document.settings)?;
        let reads = ReadSet::compile(document.reads, &document.settings)?;
        Ok(Self { path: path.to_owned(), text, settings: document.settings, rules, reads, tests: document.tests })
    }

    /// The line of a place in the file, from 1.
    fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1
    }

    /// What the sink has to know of these rules.
    fn sink_settings(&self, rules: &RuleSet) -> SinkSettings {
        let label = |rule: &Rule| RuleLabel { name: rule.name.clone(), line: self.line(rule.span.start) };
        // Rules and reads name the same keys, mostly.
        let removals: IndexSet<_> = rules.removals().into_iter().chain(self.reads.removals()).collect();
        SinkSettings {
            removals: removals.into_iter().collect(),
            labels: rules.rules().iter().map(label).collect(),
            ttl: self.settings.ttl,
            digest: self.digest(),
        }
    }

    /// What tells these rules, and the names that the reads cache under, from any others: an API that has others than the
    /// daemon at work would cache what that one does not remove.
    fn digest(&self) -> String {
        let parts = format!("{:?} {:?}", self.rules.versions(), self.reads.removals());
        Sha256::digest(parts).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// A sink for these rules, not yet connected.
    fn sink(&self, rules: &RuleSet) -> Result<Sink, SinkError> {
        let names = Names::new(&self.settings.namespace, &self.settings.slot);
        Sink::new(&self.settings.redis, names, self.sink_settings(rules))
    }

    /// These problems, shown in the file.
    fn failure(&self, problems: &Problems) -> Failure {
        show(problems, &self.path, &self.text)
    }
}

fn show(problems: &Problems, path: &Path, text: &str) -> Failure {
    Failure::configuration(problems.render(&path.display().to_string(), text, 1, colours()))
}

/// A line that is no change, shown at its place.
fn malformed(name: &str, error: RecordingError) -> Failure {
    match error {
        RecordingError::Io(error) => Failure::usage(format!("cannot read {name}: {error}")),
        RecordingError::Line { line, column, message, text } => {
            let mut problems = Problems::default();
            let at = column.saturating_sub(1).min(text.len());
            problems.push(at..at + 1, message, "expected one change: {\"table\":…,\"op\":…,\"old\":{…},\"new\":{…}}");
            Failure::usage(problems.render(name, &text, line, colours()))
        }
    }
}

/// Prints to standard output; a reader that left early is no error.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// A duration such as `10s` or `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; expected a duration such as `10s` or `5m`"))
}
