//! `unstale explain`: which rules make a key and what became of it, or what each rule makes of a change.
//!
//! Thin: [`key`] and [`change`] show what the rules and Redis say.

mod change;
mod key;
mod key_report;
mod origin;

use std::ffi::OsString;
use std::path::Path;

use super::{Failure, Loaded};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A key, with the namespace or without
    #[arg(required_unless_present = "change", conflicts_with = "change")]
    key: Option<OsString>,
    /// Explain what each rule makes of a change, given as a line of a recording; `-` reads lines from standard input
    #[arg(long, value_name = "JSON")]
    change: Option<String>,
    /// With --change: ask the database for the rows of lookups
    #[arg(long, requires = "change", conflicts_with = "key")]
    lookups: bool,
    /// Do not ask Redis what the key holds
    #[arg(long, conflicts_with = "change")]
    offline: bool,
    /// Also print the beginning of the value
    #[arg(long, conflicts_with_all = ["change", "offline"])]
    show_value: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(path: &Path, args: Args) -> Result<(), Failure> {
    let loaded = Loaded::read(path)?;
    match (&args.change, &args.key) {
        (Some(change), _) => change::explain(&loaded, change, &args).await,
        (None, Some(key)) => key::explain(&loaded, key, &args).await,
        (None, None) => Err(Failure::usage("name a key, or a change by --change")),
    }
}
