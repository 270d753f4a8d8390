//! `unstale completions`: what a shell has to know to complete a command line.

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use super::{Cli, Failure, print};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "unstale", &mut script);
    print(&String::from_utf8_lossy(&script))
}
