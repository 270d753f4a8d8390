//! Questions to Redis before it is used: what server it is, and what its user may do.
//!
//! Owns how a permission is found out. It must not judge the answers. Invariant: no question
//! changes a key that exists, or reaches a subscriber.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Arg, Cmd, ConnectionInfo, RedisError, Value};

use crate::key::{INVALIDATIONS, RESERVED};
use crate::plan::Removal;
use crate::sink::SinkError;

/// How long to wait for a connection, and for each answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A connection for questions.
pub(super) struct Probe {
    link: MultiplexedConnection,
    address: String,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServerFacts {
    /// The version of Redis that it is, or says it is like.
    pub(super) version: String,
    /// Its own version, if it is a Valkey.
    pub(super) valkey: Option<String>,
    /// It only follows another.
    pub(super) replica: bool,
    /// It is one node of a cluster.
    pub(super) cluster: bool,
    /// The most memory it may use, in bytes; zero is no limit. None if it does not say.
    pub(super) memory_max: Option<u64>,
    /// What it does at that limit: the name of the policy. None if it does not say.
    pub(super) eviction: Option<String>,
}

/// A command as it is used, which the user has to be allowed to run.
#[derive(Debug)]
pub(super) struct Need {
    command: Cmd,
    /// It may be run to see whether it may be run.
    harmless: bool,
    /// Only the commands that look need it; keeping Redis coherent does not.
    pub(super) only_to_look: bool,
}

/// Whether the user may run a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// It may.
    Allowed,
    /// It may not, in the server's words.
    Denied(String),
    /// The server does not tell, and trying would do something: the command.
    Untried(String),
}

impl Probe {
    /// Connects.
    pub(super) async fn open(info: &ConnectionInfo) -> Result<Self, SinkError> {
        let address = info.addr().to_string();
        let opened = async { crate::redis::connect(&crate::redis::open_client(info)?, ANSWER_MAX).await };
        let link = opened.await.map_err(|error| SinkError::unusable(&address, error))?;
        Ok(Self { link, address })
    }

    /// What the server says of itself.
    pub(super) async fn facts(&mut self) -> Result<ServerFacts, SinkError> {
        let info: String = self.ask(&redis::cmd("INFO")).await?;
        Ok(ServerFacts::parse(&info))
    }

    /// Its clock, in milliseconds since 1970.
    pub(super) async fn time(&mut self) -> Result<i64, SinkError> {
        let (seconds, micros): (i64, i64) = self.ask(&redis::cmd("TIME")).await?;
        Ok(seconds.saturating_mul(1000).saturating_add(micros / 1000))
    }

    /// The smallest question.
    pub(super) async fn ping(&mut self) -> Result<(), SinkError> {
        self.ask::<Value>(&redis::cmd("PING")).await.map(drop)
    }

    /// Who we are there; nothing if the server does not tell this user.
    pub(super) async fn user(&mut self) -> Result<Option<String>, SinkError> {
        match redis::cmd("ACL").arg("WHOAMI").query_async(&mut self.link).await {
            Ok(user) => Ok(Some(user)),
            Err(error) if is_answer(&error) => Ok(None),
            Err(error) => Err(SinkError::unusable(&self.address, error)),
        }
    }

    /// Whether this user may run a command: as the server says, or else by running it if that is
    /// harmless.
    pub(super) async fn may(&mut self, user: Option<&str>, need: &Need) -> Result<Permission, SinkError> {
        if let Some(user) = user
            && let Some(verdict) = self.dry_run(user, &need.command).await?
        {
            return Ok(verdict);
        }
        if !need.harmless {
            return Ok(Permission::Untried(need.name()));
        }
        match need.command.query_async::<Value>(&mut self.link).await {
            Ok(_) => Ok(Permission::Allowed),
            Err(error) if error.code() == Some("NOPERM") => {
                Ok(Permission::Denied(error.detail().unwrap_or_default().to_owned()))
            }
            // Anything else is an answer to a command that was allowed to run.
            Err(error) if is_answer(&error) => Ok(Permission::Allowed),
            Err(error) => Err(SinkError::unusable(&self.address, error)),
        }
    }

    /// What the server says about a command; nothing if it does not say.
    async fn dry_run(&mut self, user: &str, command: &Cmd) -> Result<Option<Permission>, SinkError> {
        let mut dry = redis::cmd("ACL");
        dry.arg("DRYRUN").arg(user);
        for argument in command.args_iter() {
            if let Arg::Simple(bytes) = argument {
                dry.arg(bytes);
            }
        }
        match dry.query_async::<Value>(&mut self.link).await {
            Ok(Value::Okay) => Ok(Some(Permission::Allowed)),
            Ok(reply) => Ok(redis::from_redis_value(reply).ok().map(Permission::Denied)),
            Err(error) if is_answer(&error) => Ok(None),
            Err(error) => Err(SinkError::unusable(&self.address, error)),
        }
    }

    async fn ask<T: redis::FromRedisValue>(&mut self, command: &Cmd) -> Result<T, SinkError> {
        command.query_async(&mut self.link).await.map_err(|error| SinkError::unusable(&self.address, error))
    }
}

impl ServerFacts {
    /// Reads the text of `INFO`.
    fn parse(info: &str) -> Self {
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned())
        };
        Self {
            version: field("redis_version").unwrap_or_default(),
            valkey: field("valkey_version"),
            replica: field("role").as_deref() == Some("slave"),
            cluster: field("cluster_enabled").as_deref() == Some("1"),
            memory_max: field("maxmemory").and_then(|bytes| bytes.parse().ok()),
            eviction: field("maxmemory_policy"),
        }
    }
}

impl Need {
    /// The command's name, with its subcommand.
    fn name(&self) -> String {
        let words: Vec<String> = self
            .command
            .args_iter()
            .filter_map(|argument| match argument {
                Arg::Simple(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
                _ => None,
            })
            .collect();
        match &*words {
            [name, subcommand, ..] if name == "SCRIPT" => format!("{name} {subcommand}"),
            [name, ..] => name.clone(),
            [] => String::new(),
        }
    }
}

/// Every command that is used, on a key and a channel of the namespace, and what invalidates on a
/// key of each removal; what only an outbox takes, if one is read.
pub(super) fn needs(namespace: &str, slot: &str, removals: &[Removal], outbox: bool) -> Vec<Need> {
    let key = format!("{namespace}{RESERVED}{{{slot}}}:probe").into_bytes();
    let key = key.as_slice();
    let channel = format!("{namespace}{INVALIDATIONS}").into_bytes();
    let channel = channel.as_slice();
    let need = |words: &str, key: &[u8], rest: &str, harmless, only_to_look| {
        let command = command(words, key, rest);
        Need { command, harmless, only_to_look }
    };
    let daemon = |words: &str, key: &[u8], rest: &str, harmless| need(words, key, rest, harmless, false);
    let look = |words: &str, key: &[u8], rest: &str, harmless| need(words, key, rest, harmless, true);
    let mut needs = vec![
        daemon("INFO", b"", "", true),
        daemon("TIME", b"", "", true),
        daemon("SCRIPT LOAD", b"", "return", true),
        daemon("SCAN 0 COUNT", b"", "1", true),
        daemon("GET", key, "", true),
        daemon("MGET", key, "", true),
        daemon("SET", key, "value XX", true),
        daemon("DEL", key, "", true),
        daemon("UNLINK", key, "", true),
        daemon("SSCAN", key, "0", true),
        daemon("SREM", key, "member", true),
        daemon("PEXPIRE", key, "1", true),
        daemon("LTRIM", key, "0 0", true),
        daemon("XADD", key, "NOMKSTREAM MAXLEN 1 * field value", true),
        daemon(EVALSHA, key, "", true),
        daemon("XREVRANGE", key, "+ - COUNT 1", true),
        daemon("HINCRBY", key, "field 1", false),
        daemon("RPUSH", key, "element", false),
        daemon("PUBLISH", channel, "message", false),
        look("TYPE", key, "", true),
        look("PTTL", key, "", true),
        look("STRLEN", key, "", true),
        look("GETRANGE", key, "0 0", true),
        look("SCARD", key, "", true),
        look("XLEN", key, "", true),
        look("HGETALL", key, "", true),
        look("HLEN", key, "", true),
        look("HSCAN", key, "0 COUNT 1", true),
        look("LRANGE", key, "0 0", true),
        look("XRANGE", key, "- + COUNT 1", true),
        look("SUBSCRIBE", channel, "", false),
    ];
    if outbox {
        needs.push(daemon("INCR", key, "", false));
        needs.push(daemon("HEXISTS", key, "field", true));
        needs.push(daemon("HDEL", key, "field", true));
    }
    let samples: BTreeSet<Vec<u8>> = removals.iter().map(sample).collect();
    for sample in &samples {
        // To the server it reads and writes the key, as everything does that invalidates.
        needs.push(daemon(EVALSHA, sample, "", true));
    }
    needs
}

/// Runs a script that no server knows, on one key: the keys are checked before the script is looked
/// for.
const EVALSHA: &str = "EVALSHA 0000000000000000000000000000000000000000 1";

/// A command of words before a key (or a channel, or nothing) and words after it.
fn command(words: &str, key: &[u8], rest: &str) -> Cmd {
    let mut command = Cmd::new();
    for word in words.split_whitespace() {
        command.arg(word);
    }
    if !key.is_empty() {
        command.arg(key);
    }
    for word in rest.split_whitespace() {
        command.arg(word);
    }
    command
}

/// A key that would be removed.
fn sample(removal: &Removal) -> Vec<u8> {
    let glob = match removal {
        Removal::Key(key) | Removal::Tag(key) => return key.as_bytes().to_vec(),
        Removal::Keys(glob) | Removal::Tags(glob) => glob,
    };
    let mut key = Vec::new();
    let mut bytes = glob.as_bytes().iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => key.extend(bytes.next()),
            b'*' => key.extend_from_slice(b"probe"),
            byte => key.push(byte),
        }
    }
    key
}

/// Whether the server answered, if with an error.
fn is_answer(error: &RedisError) -> bool {
    error.code().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_info() {
        let info = "# Server\r\nredis_version:7.2.4\r\nvalkey_version:8.0.1\r\n# Memory\r\nmaxmemory:1024\r\n\
                    maxmemory_human:1K\r\nmaxmemory_policy:allkeys-lru\r\n# Replication\r\nrole:slave\r\n\
                    # Cluster\r\ncluster_enabled:1\r\n";
        let expected = ServerFacts {
            version: "7.2.4".to_owned(),
            valkey: Some("8.0.1".to_owned()),
            replica: true,
            cluster: true,
            memory_max: Some(1024),
            eviction: Some("allkeys-lru".to_owned()),
        };
        assert_eq!(ServerFacts::parse(info), expected);
        assert_eq!(ServerFacts::parse(""), ServerFacts::default());
    }

    #[test]
    fn a_sample_is_what_its_glob_matches() {
        let mut glob = crate::key::Glob::new();
        glob.push_literal(br"v1:a*[b]\:");
        glob.push_any();
        let sample = sample(&Removal::Keys(glob.clone()));
        assert_eq!(sample, br"v1:a*[b]\:probe");
        assert!(glob.matches(&sample));
    }

    #[test]
    fn nothing_that_leaves_a_trace_is_called_harmless() {
        for need in needs("v1:", "unstale", &[Removal::Key("v1:all".into())], true) {
            let name = need.name();
            let named = need.command.args_iter().any(|argument| argument == Arg::Simple(&b"v1:all"[..]));
            assert!(!named || !need.harmless || name == "EVALSHA", "{need:?}");
            let leaves_a_trace = matches!(name.as_str(), "HINCRBY" | "RPUSH" | "PUBLISH" | "SUBSCRIBE");
            assert!(!leaves_a_trace || !need.harmless, "{need:?}");
        }
    }
}
