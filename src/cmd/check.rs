//! `unstale check`: is the file right, and does it fit the servers?

use std::path::Path;

use super::{Failure, Loaded, preflight, print};
use crate::coherence::watermark::Names;
use crate::sink::Sink;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Look at the file only
    #[arg(long)]
    offline: bool,
}

pub(super) async fn run(path: &Path, args: Args) -> Result<(), Failure> {
    let loaded = Loaded::read(path)?;
    let rules = loaded.rules.rules().len();
    let tables = loaded.rules.tables().len();
    let sound = format!("{}: {rules} rules on {tables} tables", path.display());
    if args.offline {
        return print(&format!("{sound}, no problems\n"));
    }
    let compared = preflight::compare(&loaded).await?;
    compared.require_identities(&loaded)?;
    compared.require_setup(&loaded).await?;
    let names = Names::new(&loaded.settings.namespace, &loaded.settings.slot);
    Sink::new(&loaded.settings.redis, names, Vec::new())?.connect().await?;
    print(&format!("{sound}, no problems; PostgreSQL and Redis are ready\n"))
}
