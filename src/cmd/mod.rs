//! The commands: one file or folder a verb, and what several verbs share in files of their own.
//!
//! Owns arguments, exit codes and what is printed. It must not decide what a rule means.
//! Invariants: data goes to standard output and messages to standard error; no credential is
//! printed, not even in an error.

#![allow(clippy::print_stderr, clippy::print_stdout)]

mod arguments;
mod cli;
mod config_file;
mod display;
mod failure;
mod logging;
mod signals;
mod stdout;

#[cfg(feature = "api")]
mod api_server;
mod changes;
mod daemon_api;
mod lock_file;
mod outbox;
mod preflight;
mod tables;

mod check;
mod completions;
#[cfg(feature = "demo")]
mod demo;
mod dry_run;
mod explain;
mod init;
mod man;
mod record;
mod replay;
mod run;
mod schema;
#[cfg(feature = "api")]
mod serve;
mod setup;
mod status;
mod teardown;
mod test;

use std::process::ExitCode;

use clap::Parser as _;

pub use self::cli::Cli;

/// Parses the command line and runs the command. Returns its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // One provider for the whole process; the Redis client takes the default one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    logging::start(cli.is_quiet());
    let outcome = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli.run()),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
