//! The flags of `dry-run` and `replay` that name where changes come from.

use std::path::PathBuf;

/// Where changes come from, and how many are read.
#[derive(Debug, clap::Args)]
pub(in crate::cmd) struct ChangesArgs {
    #[command(flatten)]
    pub(super) source: SourceArgs,
    /// With --table: only rows for which this SQL condition holds
    #[arg(long = "where", value_name = "SQL", requires = "table")]
    pub(super) condition: Option<String>,
    /// Stop after so many changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) limit: Option<u32>,
    /// Run no lookups: what a rule with `for_each` could delete takes the place of the rows
    #[arg(long)]
    pub(super) no_lookups: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct SourceArgs {
    /// A recording of changes (NDJSON); `-` reads standard input
    #[arg(long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// The rows of a table as they are now, whatever `ops`, `changed` and `when` of the rules say
    #[arg(long, value_name = "TABLE")]
    pub(super) table: Option<String>,
    /// What is pending in the replication slot or in the outbox; it is not consumed
    #[arg(long)]
    pub(super) slot: bool,
    /// The dead letters: changes to which the daemon could not apply a rule
    #[arg(long)]
    pub(super) dead: bool,
}

impl ChangesArgs {
    /// Whether standard input is read.
    pub(in crate::cmd) fn reads_input(&self) -> bool {
        self.source.file.as_ref().is_some_and(|file| file.as_os_str() == "-")
    }
}
