//! Every cached value, compared with the database.

use std::collections::BTreeSet;

use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;

use super::reader::ApiReader;
use super::redis_error::redis_failure;
use super::statistics::Statistics;
use crate::cmd::failure::Failure;
use crate::cmd::stdout::print;
use crate::coherence::lease::Envelope;
use crate::reads::Read;

/// Compares and prints the summary. Returns how many values are stale.
pub(super) async fn verify(
    reader: &ApiReader,
    cache: &mut MultiplexedConnection,
    statistics: &Statistics,
) -> Result<usize, Failure> {
    let names: Vec<String> = cache.keys(format!("{}*", reader.namespace)).await.map_err(redis_failure)?;
    let outdated = outdated(reader, cache, &names).await?;
    let (mut compared, mut stale) = (0, 0);
    for name in names {
        let key = name.strip_prefix(&reader.namespace).unwrap_or(&name);
        let Some(path) = reader.path(key).filter(|_| !outdated.contains(&name)) else { continue };
        let held: Option<Vec<u8>> = cache.get(&name).await.map_err(redis_failure)?;
        let Some(value) = held.as_deref().and_then(Envelope::decode) else { continue };
        // `no-store` reads the database and not the cache.
        if reader.get(&path, "no-store").await?.unwrap_or_default() != value.body {
            stale += 1;
            print(&format!("STALE: {key}\n"))?;
        }
        compared += 1;
    }
    let statistics = statistics.text();
    print(&format!("\n{statistics}{compared} cached values compared with the database: {stale} stale\n"))?;
    Ok(stale)
}

/// The names whose version is not the current one. They are no longer read.
async fn outdated(
    reader: &ApiReader,
    cache: &mut MultiplexedConnection,
    names: &[String],
) -> Result<BTreeSet<String>, Failure> {
    let mut outdated = BTreeSet::new();
    for name in names {
        for read in reader.reads.reads() {
            let Some(values) = read.arguments(name.as_bytes()) else { continue };
            let (Some(version), Some(key)) = (read.version_key(&values), read.key(&values)) else { continue };
            let current: Option<String> = cache.get(version.as_bytes()).await.map_err(redis_failure)?;
            if Read::versioned(&key, &current.unwrap_or_default()).as_bytes() != name.as_bytes() {
                outdated.insert(name.clone());
            }
        }
    }
    Ok(outdated)
}
