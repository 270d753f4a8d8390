//! The flags of `unstale dry-run`.

use std::path::PathBuf;

use crate::cmd::changes::ChangesArgs;

#[derive(Debug, clap::Args)]
pub(in crate::cmd) struct DryRunArgs {
    #[command(flatten)]
    pub(super) changes: ChangesArgs,
    /// Print one op a line as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Compare with what the rules of this file would do: the ops that are gained and lost
    #[arg(long, value_name = "FILE")]
    pub(super) diff: Option<PathBuf>,
    /// Exit with 1 if there is a difference
    #[arg(long, requires = "diff")]
    pub(super) exit_code: bool,
}
