//! One connection to Redis: opening it, knowing what is behind it, sending and checking.
//!
//! Owns the scripts' hashes and the identity of the dataset. It must not know batches or when to try again.
//! Invariants: every reply is checked; a replica is not taken for a primary.

use std::time::{Duration, Instant};

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{Client, Cmd, ConnectionInfo, ErrorKind, Pipeline, RedisError, Value};
use tokio::sync::mpsc;

use super::liveness::Liveness;
use super::refusal::SinkError;
use crate::coherence::watermark::{BEGIN, COUNT, DECIMAL, Names, PROVE, RAISE, RECORD, SET};
use crate::key::{CacheKey, Glob};
use crate::plan::{Plan, Removal, RuleId};

/// Runs where memory is full, as all that writes state does.
const BUMP: [&str; 3] = ["#!lua flags=allow-oom\n", DECIMAL, include_str!("bump.lua")];

/// How long to wait for the replies of one pipeline, its queueing included.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many keys one step of a scan looks at.
const SCAN_COUNT: usize = 1000;

/// The most keys that one command names.
pub(super) const KEYS_PER_COMMAND: usize = 256;

/// Which dataset answers: another process or another replication history may hold other values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dataset {
    run_id: String,
    replication_id: String,
    /// The history goes back to another server's: this one was its replica.
    inherited: bool,
}

impl Dataset {
    /// Reads the text of `INFO`.
    pub(super) fn parse(info: &str) -> Result<Self, RedisError> {
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        if field("role") == "slave" {
            return Err(RedisError::from((
                ErrorKind::Server(redis::ServerErrorKind::ReadOnly),
                "READONLY",
                "this is a replica".to_owned(),
            )));
        }
        let inherited = field("master_replid2").bytes().any(|byte| byte != b'0');
        Ok(Self { run_id: field("run_id"), replication_id: field("master_replid"), inherited })
    }

    /// Which run of which server has it.
    pub(super) fn server(&self) -> &str {
        &self.run_id
    }

    /// Whether it holds what `earlier` held a moment ago, and what was written since. A server takes a new replication id of its own
    /// when it gets its first replica, or after it had none for `repl-backlog-ttl`; one that took over another's
    /// values keeps the old id besides.
    pub(super) fn continues(&self, earlier: &Self) -> bool {
        self.run_id == earlier.run_id && (self.replication_id == earlier.replication_id || !self.inherited)
    }
}

/// The hashes by which Redis knows our scripts.
#[derive(Clone, Debug, Default)]
pub(super) struct Scripts {
    pub(super) raise: String,
    pub(super) record: String,
    pub(super) bump: String,
    pub(super) set: String,
    pub(super) begin: String,
    pub(super) prove: String,
    pub(super) write: String,
    pub(super) stream: String,
    pub(super) untag: String,
    pub(super) append: String,
    pub(super) bury: String,
    pub(super) tell: String,
    pub(super) count: String,
}

impl Scripts {
    /// Every script, and where its hash goes.
    fn each(&mut self) -> [(&mut String, String); 13] {
        [
            (&mut self.raise, RAISE.to_owned()),
            (&mut self.record, RECORD.to_owned()),
            (&mut self.bump, BUMP.concat()),
            (&mut self.set, SET.to_owned()),
            (&mut self.begin, BEGIN.to_owned()),
            (&mut self.prove, PROVE.to_owned()),
            (&mut self.write, include_str!("write.lua").to_owned()),
            (&mut self.stream, include_str!("stream.lua").to_owned()),
            (&mut self.untag, include_str!("untag.lua").to_owned()),
            (&mut self.append, include_str!("append.lua").to_owned()),
            (&mut self.bury, include_str!("bury.lua").to_owned()),
            (&mut self.tell, include_str!("tell.lua").to_owned()),
            (&mut self.count, COUNT.to_owned()),
        ]
    }
}

/// The clock of Redis, as it was read last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    millis: u64,
    read: Instant,
}

impl Clock {
    /// Takes in a reply to `TIME`. The time lies before the moment the reply arrived, which is the safe side.
    pub(super) fn parse(reply: &Value) -> Result<Self, RedisError> {
        let (seconds, micros): (u64, u64) = redis::from_redis_value_ref(reply)?;
        Ok(Self { millis: seconds * 1000 + micros / 1000, read: Instant::now() })
    }

    /// The time it was there at a moment of ours, in milliseconds since 1970.
    pub(super) fn at(self, moment: Instant) -> u64 {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        match moment.checked_duration_since(self.read) {
            Some(later) => self.millis.saturating_add(millis(later)),
            None => self.millis.saturating_sub(millis(self.read - moment).saturating_add(1)),
        }
    }
}

/// An open connection to a primary, with the scripts loaded.
#[derive(Debug)]
pub(super) struct RedisConnection {
    link: MultiplexedConnection,
    liveness: Liveness,
    pub(super) scripts: Scripts,
    pub(super) dataset: Dataset,
    pub(super) clock: Clock,
}

impl RedisConnection {
    pub(super) async fn open(client: &Client, liveness: Liveness) -> Result<Self, RedisError> {
        let mut link = crate::redis::connect(client, RESPONSE_TIMEOUT).await?;
        let mut first = Pipeline::new();
        first.add_command(info()).add_command(redis::cmd("TIME"));
        let mut scripts = Scripts::default();
        for (_, script) in scripts.each() {
            first.add_command(redis::cmd("SCRIPT").arg("LOAD").arg(script).clone());
        }
        let replies = send(&mut link, &first).await?;
        let [info, time, hashes @ ..] = &*replies else {
            return Err(RedisError::from((ErrorKind::UnexpectedReturnType, "another number of replies than commands")));
        };
        for ((place, _), hash) in scripts.each().into_iter().zip(hashes) {
            *place = redis::from_redis_value_ref(hash)?;
        }
        let dataset = Dataset::parse(&redis::from_redis_value_ref::<String>(info)?)?;
        Ok(Self { link, liveness, scripts, dataset, clock: Clock::parse(time)? })
    }

    /// Sends a pipeline; the first error among the replies is the outcome.
    pub(super) async fn send(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let replies = send(&mut self.link, pipeline).await?;
        self.liveness.accepted();
        Ok(replies)
    }

    /// Removes all of it, except for our own state, in bounded steps: what patterns match in one pass over all keys,
    /// then set by set. What was found in sets is handed on as it goes. How many keys there were.
    pub(super) async fn remove(
        &mut self,
        removals: &[(RuleId, Removal)],
        names: &Names,
        found: Option<&mpsc::Sender<Plan>>,
    ) -> Result<u64, RedisError> {
        let mut globs = Vec::new();
        let mut tag_globs = Vec::new();
        let mut sets: Vec<(RuleId, Vec<u8>)> = Vec::new();
        let mut deleted = 0;
        for (rule, removal) in removals {
            match removal {
                Removal::Key(key) => deleted += self.unlink(&[key.as_bytes().to_vec()]).await?,
                Removal::Keys(glob) => globs.push(glob),
                Removal::Tag(set) => sets.push((*rule, set.as_bytes().to_vec())),
                Removal::Tags(glob) => tag_globs.push((*rule, glob)),
            }
        }
        let all: Vec<_> = globs.iter().copied().chain(tag_globs.iter().map(|(_, glob)| *glob)).collect();
        if !all.is_empty() {
            let covering = Glob::covering(&all);
            let mut cursor = 0_u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(covering.as_bytes()).arg("COUNT").arg(SCAN_COUNT);
                let (next, mut keys): (u64, Vec<Vec<u8>>) = scan.query_async(&mut self.link).await?;
                self.liveness.accepted();
                keys.retain(|key| !names.owns(key));
                for (rule, glob) in &tag_globs {
                    let found = keys.extract_if(.., |key| glob.matches(key));
                    sets.extend(found.map(|set| (*rule, set)));
                }
                keys.retain(|key| globs.iter().any(|glob| glob.matches(key)));
                deleted += self.unlink(&keys).await?;
                if next == 0 {
                    break;
                }
                cursor = next;
            }
        }
        for (rule, set) in sets {
            deleted += self.untag(rule, &set, names, found).await?;
        }
        Ok(deleted)
    }

    async fn unlink(&mut self, keys: &[Vec<u8>]) -> Result<u64, RedisError> {
        let mut pipeline = Pipeline::new();
        for chunk in keys.chunks(KEYS_PER_COMMAND) {
            pipeline.add_command(redis::cmd("UNLINK").arg(chunk).clone());
        }
        let mut deleted = 0;
        for reply in self.send(&pipeline).await? {
            deleted += redis::from_redis_value::<u64>(reply)?;
        }
        Ok(deleted)
    }

    /// Removes the keys of a set, some at a time, each together with its membership. The set is never deleted: who
    /// joins it meanwhile stays in it.
    async fn untag(
        &mut self,
        rule: RuleId,
        set: &[u8],
        names: &Names,
        found: Option<&mpsc::Sender<Plan>>,
    ) -> Result<u64, RedisError> {
        let mut cursor = 0_u64;
        let mut deleted = 0;
        loop {
            let mut scan = redis::cmd("SSCAN");
            scan.arg(set).arg(cursor).arg("COUNT").arg(KEYS_PER_COMMAND);
            let scanned: Result<(u64, Vec<Vec<u8>>), _> = scan.query_async(&mut self.link).await;
            let (next, members) = match scanned {
                // Another kind of key under the name of a tag has no members.
                Err(error) if error.code() == Some("WRONGTYPE") => return Ok(deleted),
                scanned => scanned?,
            };
            self.liveness.accepted();
            let (ours, members): (Vec<_>, Vec<_>) = members.into_iter().partition(|key| names.owns(key));
            let mut pipeline = Pipeline::new();
            for chunk in members.chunks(KEYS_PER_COMMAND) {
                let mut untag = redis::cmd("EVALSHA");
                untag.arg(&self.scripts.untag).arg(chunk.len() + 1).arg(set).arg(chunk);
                pipeline.add_command(untag);
            }
            if !ours.is_empty() {
                pipeline.add_command(redis::cmd("SREM").arg(set).arg(&ours).clone());
            }
            for reply in self.send(&pipeline).await?.into_iter().take(members.chunks(KEYS_PER_COMMAND).len()) {
                deleted += redis::from_redis_value::<u64>(reply)?;
            }
            if let Some(found) = found.filter(|_| !members.is_empty()) {
                let mut piece = Plan::default();
                members.into_iter().for_each(|key| piece.announce(rule, Removal::Key(CacheKey::new(key))));
                // Nobody takes it any more: whoever waited for it was dropped.
                let _ = found.send(piece).await;
            }
            if next == 0 {
                return Ok(deleted);
            }
            cursor = next;
        }
    }
}

/// A command that runs a script.
pub(super) fn script(hash: &str, keys: &[&CacheKey]) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(hash).arg(keys.len());
    for key in keys {
        command.arg(key.as_bytes());
    }
    command
}

/// The command whose answer [`Dataset::parse`] reads.
pub(super) fn info() -> Cmd {
    let mut info = redis::cmd("INFO");
    info.arg("server").arg("replication");
    info
}

/// A connection that only listens, for those who follow broadcasts.
pub async fn connect_subscriber(info: &ConnectionInfo) -> Result<PubSub, SinkError> {
    let address = info.addr().to_string();
    let opened = async { crate::redis::subscriber(&crate::redis::open_client(info)?).await };
    opened.await.map_err(|error| SinkError::unusable(&address, error))
}

/// Which version a server says it is.
pub(super) async fn version(client: &Client) -> Result<String, RedisError> {
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query_async(&mut crate::redis::connect(client, RESPONSE_TIMEOUT).await?)
        .await?;
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
    Ok(version.unwrap_or("unknown").trim().to_owned())
}

async fn send(link: &mut MultiplexedConnection, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
    if pipeline.is_empty() {
        return Ok(Vec::new());
    }
    let mut replies = link.send_packed_commands(pipeline, 0, pipeline.len()).await?;
    match replies.iter().position(|reply| matches!(reply, Value::ServerError(_))) {
        Some(at) => match replies.swap_remove(at) {
            Value::ServerError(error) => Err(error.into()),
            _ => Ok(replies),
        },
        None => Ok(replies),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dataset_is_known_by_its_process_and_its_history() {
        let info = |role: &str, [run_id, replid, replid2]: [&str; 3]| {
            format!(
                "# Server\r\nrun_id:{run_id}\r\n# Replication\r\nrole:{role}\r\nmaster_replid:{replid}\r\nmaster_replid2:{replid2}\r\n"
            )
        };
        let dataset = |ids| Dataset::parse(&info("master", ids)).unwrap();
        let first = dataset(["a", "1", "0000"]);
        assert_eq!(first, Dataset { run_id: "a".to_owned(), replication_id: "1".to_owned(), inherited: false });
        assert!(dataset(["a", "1", "0000"]).continues(&first));
        assert!(dataset(["a", "2", "0000"]).continues(&first), "its first replica");
        assert!(!dataset(["a", "2", "f000"]).continues(&first), "it was a replica in between");
        assert!(!dataset(["b", "1", "0000"]).continues(&first), "another process");
        let error = Dataset::parse(&info("slave", ["a", "1", "0000"])).unwrap_err();
        assert_eq!(error.code(), Some("READONLY"));
    }

    #[test]
    fn the_clock_never_runs_ahead() {
        let read = Instant::now();
        let clock = Clock { millis: 10_000, read };
        assert_eq!(clock.at(read), 10_000);
        assert_eq!(clock.at(read + Duration::from_millis(250)), 10_250);
        assert_eq!(clock.at(read - Duration::from_micros(10_500)), 9_989);
    }
}
