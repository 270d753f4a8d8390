//! Searching the cache for what patterns and tags remove.
//!
//! Owns the search, and its retry on a connection of its own. It must not know what a removal means
//! for subscribers. Invariants: every step is bounded; the daemon's own state is never removed; a
//! search that was cut short begins again, and never on another dataset than the one that it began
//! on.

use redis::{Pipeline, RedisError};
use tokio::sync::mpsc;

use super::connection::RedisConnection;
use super::dataset::Dataset;
use super::link::RedisLink;
use super::proof::Unproven;
use super::retry::{AttemptError, RetryState};
use super::scripts::{KEYS_PER_COMMAND, script};
use crate::change::Lsn;
use crate::coherence::watermark::Names;
use crate::key::{CacheKey, Glob};
use crate::plan::{Plan, Removal, RuleId};

/// How many keys one step of `SCAN` looks at.
const SCAN_COUNT: usize = 1000;

/// Searches and removes.
#[derive(Debug)]
pub struct Sweeper {
    link: RedisLink,
    names: Names,
    /// The dataset of the first search.
    proven: Option<Dataset>,
}

impl Sweeper {
    pub(super) fn new(link: RedisLink, names: Names) -> Self {
        Self { link, names, proven: None }
    }

    /// Removes all of `removals`, and tries again until it succeeds. Sends the keys that it found
    /// in sets to `found` as it goes; a key may be sent twice.
    ///
    /// # Errors
    ///
    /// Another dataset took the place of the one that the first search began on.
    pub async fn sweep(
        &mut self,
        removals: &[(RuleId, Removal)],
        started: Lsn,
        found: &mpsc::Sender<Plan>,
    ) -> Result<(), Unproven> {
        if removals.is_empty() {
            return Ok(());
        }
        let mut retry = RetryState::default();
        loop {
            match self.attempt(removals, started, found).await {
                Ok(()) => {
                    self.link.succeeded(&retry);
                    return Ok(());
                }
                Err(AttemptError::Unproven) => {
                    self.link.close();
                    return Err(Unproven);
                }
                Err(AttemptError::Refused(error)) => self.link.failed(&error, &mut retry).await,
            }
        }
    }

    async fn attempt(
        &mut self,
        removals: &[(RuleId, Removal)],
        started: Lsn,
        found: &mpsc::Sender<Plan>,
    ) -> Result<(), AttemptError> {
        let connection = self.link.open().await?;
        let proven = self.proven.get_or_insert_with(|| connection.dataset.clone());
        if !connection.dataset.continues(proven) {
            return Err(AttemptError::Unproven);
        }
        let mut raise = script(&connection.scripts.raise, &[&self.names.started]);
        raise.arg(started.to_fixed_hex());
        connection.send(Pipeline::new().add_command(raise)).await?;
        remove(connection, removals, &self.names, Some(found)).await?;
        Ok(())
    }
}

/// Removes all of `removals`, except for the daemon's own state: the generations of tags and keys
/// by name, then the generations and keys that patterns match, in one pass over all keys, then the
/// keys of sets, one set after the other. Without its generation no value is served, so the search
/// in the sets only makes room and finds what to announce. Sends the keys that it found in sets to
/// `found`. Returns how many keys it removed.
///
/// # Errors
///
/// Redis refused or did not answer. Some keys may be removed.
pub(super) async fn remove(
    connection: &mut RedisConnection,
    removals: &[(RuleId, Removal)],
    names: &Names,
    found: Option<&mpsc::Sender<Plan>>,
) -> Result<u64, RedisError> {
    let mut globs = Vec::new();
    let mut tag_globs = Vec::new();
    let mut sets: Vec<(RuleId, Vec<u8>)> = Vec::new();
    let mut generations = Vec::new();
    let mut removed = 0;
    for (rule, removal) in removals {
        match removal {
            Removal::Key(key) => removed += unlink(connection, &[key.as_bytes().to_vec()]).await?,
            Removal::Keys(glob) => globs.push(glob),
            Removal::Tag(set) => {
                generations.push(names.generation_of(set).as_bytes().to_vec());
                sets.push((*rule, set.as_bytes().to_vec()));
            }
            Removal::Tags(glob) => tag_globs.push((*rule, glob)),
        }
    }
    unlink(connection, &generations).await?;
    let generations: Vec<_> = tag_globs.iter().map(|(_, glob)| names.generations(glob)).collect();
    let all = globs.iter().copied().chain(tag_globs.iter().map(|(_, glob)| *glob)).chain(&generations);
    let all: Vec<_> = all.collect();
    if !all.is_empty() {
        let covering = Glob::covering(&all);
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(covering.as_bytes()).arg("COUNT").arg(SCAN_COUNT);
            let (next, mut keys): (u64, Vec<Vec<u8>>) = connection.ask(&scan).await?;
            let is_generation = |key: &mut Vec<u8>| generations.iter().any(|glob| glob.matches(key));
            unlink(connection, &keys.extract_if(.., is_generation).collect::<Vec<_>>()).await?;
            keys.retain(|key| !names.owns(key));
            for (rule, glob) in &tag_globs {
                let matching = keys.extract_if(.., |key| glob.matches(key));
                sets.extend(matching.map(|set| (*rule, set)));
            }
            keys.retain(|key| globs.iter().any(|glob| glob.matches(key)));
            removed += unlink(connection, &keys).await?;
            if next == 0 {
                break;
            }
            cursor = next;
        }
    }
    for (rule, set) in sets {
        removed += untag(connection, rule, &set, names, found).await?;
    }
    Ok(removed)
}

/// Removes keys. Returns how many there were.
async fn unlink(connection: &mut RedisConnection, keys: &[Vec<u8>]) -> Result<u64, RedisError> {
    let mut pipeline = Pipeline::new();
    for chunk in keys.chunks(KEYS_PER_COMMAND) {
        pipeline.add_command(redis::cmd("UNLINK").arg(chunk).clone());
    }
    let mut removed = 0;
    for reply in connection.send(&pipeline).await? {
        removed += redis::from_redis_value::<u64>(reply)?;
    }
    Ok(removed)
}

/// Removes the keys of a set, some at a time, each together with its membership. The set itself is
/// never deleted: a key that joins it meanwhile stays a member.
async fn untag(
    connection: &mut RedisConnection,
    rule: RuleId,
    set: &[u8],
    names: &Names,
    found: Option<&mpsc::Sender<Plan>>,
) -> Result<u64, RedisError> {
    let mut cursor = 0_u64;
    let mut removed = 0;
    loop {
        let mut scan = redis::cmd("SSCAN");
        scan.arg(set).arg(cursor).arg("COUNT").arg(KEYS_PER_COMMAND);
        let (next, members): (u64, Vec<Vec<u8>>) = match connection.ask(&scan).await {
            // A key of another type under the name of a tag has no members.
            Err(error) if error.code() == Some("WRONGTYPE") => return Ok(removed),
            scanned => scanned?,
        };
        let (own, members): (Vec<_>, Vec<_>) = members.into_iter().partition(|key| names.owns(key));
        let mut pipeline = Pipeline::new();
        for chunk in members.chunks(KEYS_PER_COMMAND) {
            let mut untag = redis::cmd("EVALSHA");
            untag.arg(&connection.scripts.untag).arg(chunk.len() + 1).arg(set).arg(chunk);
            pipeline.add_command(untag);
        }
        let untags = pipeline.len();
        if !own.is_empty() {
            pipeline.add_command(redis::cmd("SREM").arg(set).arg(&own).clone());
        }
        for reply in connection.send(&pipeline).await?.into_iter().take(untags) {
            removed += redis::from_redis_value::<u64>(reply)?;
        }
        if let Some(found) = found.filter(|_| !members.is_empty()) {
            let mut piece = Plan::default();
            members.into_iter().for_each(|key| piece.announce(rule, Removal::Key(CacheKey::new(key))));
            // If the receiver is gone, nothing waits for it.
            let _ = found.send(piece).await;
        }
        if next == 0 {
            return Ok(removed);
        }
        cursor = next;
    }
}
