//! `unstale man`: the manual pages.

use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;

use super::failure::Failure;
use super::stdout::print;

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Write a page for every command into this directory, instead of printing one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: ManArgs, command: Command) -> Result<(), Failure> {
    let command = command.disable_help_subcommand(true);
    match args.dir {
        Some(directory) => write(command, &directory).map_err(|error| {
            let directory = directory.display();
            Failure::usage(format!("cannot write the pages to {directory}: {error}; name another directory with --dir"))
        }),
        None => {
            let mut page = Vec::new();
            Man::new(command).render(&mut page)?;
            print(&String::from_utf8_lossy(&page))
        }
    }
}

fn write(command: Command, directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command, directory)
}
