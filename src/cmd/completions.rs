//! `unstale completions`: a completion script for a shell.

use clap::Command;
use clap_complete::{Shell, generate};

use super::failure::Failure;
use super::stdout::print;

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: CompletionsArgs, mut command: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(args.shell, &mut command, "unstale", &mut script);
    print(&String::from_utf8_lossy(&script))
}
