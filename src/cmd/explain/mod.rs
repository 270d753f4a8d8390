//! `unstale explain`: explains a key or a change.
//!
//! Thin: [`key`] prints which rules make a key, what it holds and what touched it last. [`change`]
//! prints why each rule acts on a change or does not.

mod args;
mod change;
mod key;
mod key_report;
mod template_match;

use std::path::Path;

pub(super) use self::args::ExplainArgs;
use super::config_file::ConfigFile;
use super::failure::Failure;

pub(super) async fn run(config: &Path, args: ExplainArgs) -> Result<(), Failure> {
    let file = ConfigFile::read(config)?;
    match (&args.change, &args.key) {
        (Some(change), _) => change::explain(&file, change, &args).await,
        (None, Some(key)) => key::explain(&file, key, &args).await,
        (None, None) => Err(Failure::usage("name a key, or a change with --change")),
    }
}
