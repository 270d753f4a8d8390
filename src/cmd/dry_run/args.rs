//! The flags of `unstale dry-run`.

use std::path::PathBuf;

use crate::cmd::changes::ChangesArgs;

#[derive(Debug, clap::Args)]
pub(in crate::cmd) struct DryRunArgs {
    #[command(flatten)]
    pub(super) changes: ChangesArgs,
    /// Print one op a line, as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Compare with the rules of this file: print the ops that are gained and lost
    #[arg(long, value_name = "FILE")]
    pub(super) diff: Option<PathBuf>,
    /// With --diff: exit with 1 if there is a difference
    #[arg(long, requires = "diff")]
    pub(super) exit_code: bool,
}
