//! The flags of `unstale explain`.

use std::ffi::OsString;

#[derive(Debug, clap::Args)]
pub(in crate::cmd) struct ExplainArgs {
    /// A key, with the namespace or without
    #[arg(required_unless_present = "change", conflicts_with = "change")]
    pub(super) key: Option<OsString>,
    /// Explain a change, given as a line of a recording; `-` reads lines from standard input
    #[arg(long, value_name = "JSON")]
    pub(super) change: Option<String>,
    /// With --change: run the lookups
    #[arg(long, requires = "change", conflicts_with = "key")]
    pub(super) lookups: bool,
    /// Do not ask Redis
    #[arg(long, conflicts_with = "change")]
    pub(super) offline: bool,
    /// Also print the beginning of the value
    #[arg(long, conflicts_with_all = ["change", "offline"])]
    pub(super) show_value: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}
