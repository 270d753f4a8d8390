//! Questions to Redis before it is used: what server it is, and what its user may do.
//!
//! Owns how a permission is found out. It must not judge the answers. Invariant: no question
//! changes a key that exists, or reaches a subscriber.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Arg, Cmd, ConnectionInfo, RedisError, Value};

use crate::sink::SinkError;
use crate::sink::commands::{SentCommand, Usage};

/// How long to wait for a connection, and for each answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A connection for the checks.
pub(super) struct RedisProbe {
    connection: MultiplexedConnection,
    address: String,
}

impl std::fmt::Debug for RedisProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisProbe").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What a server reports about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RedisFacts {
    /// The version of Redis, or the one that it says it is compatible with.
    pub(super) version: String,
    /// The version of Valkey, if it is one.
    pub(super) valkey: Option<String>,
    /// It is a replica.
    pub(super) replica: bool,
    /// It is one node of a cluster.
    pub(super) cluster: bool,
    /// The most memory it may use, in bytes; zero is no limit. None if it does not say.
    pub(super) memory_max: Option<u64>,
    /// What it does at that limit: the name of the policy. None if it does not say.
    pub(super) eviction: Option<String>,
}

/// A command that the user must be permitted to run.
#[derive(Debug)]
pub(super) struct Need {
    sent: SentCommand,
    /// Only `explain`, `status`, `dry-run --dead` and `replay --dead` send it. Invalidation does
    /// not need it.
    pub(super) only_for_diagnosis: bool,
}

/// Whether the user may run a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// The user may run it.
    Allowed,
    /// The server does not have the command: it was renamed or disabled, or this is another server.
    Missing(String),
    /// The user may not, in the server's words.
    Denied(String),
    /// The server does not say, and to try it would change something: the command.
    Untried(String),
}

impl RedisProbe {
    /// Connects.
    pub(super) async fn open(info: &ConnectionInfo) -> Result<Self, SinkError> {
        let address = info.addr().to_string();
        let opened = async { crate::redis::connect(&crate::redis::open_client(info)?, ANSWER_MAX).await };
        let connection = opened.await.map_err(|error| SinkError::unusable(&address, error))?;
        Ok(Self { connection, address })
    }

    /// Asks what the server is.
    pub(super) async fn facts(&mut self) -> Result<RedisFacts, SinkError> {
        let info: String = self.ask(&redis::cmd("INFO")).await?;
        Ok(RedisFacts::parse(&info))
    }

    /// Its clock, in milliseconds since 1970.
    pub(super) async fn time(&mut self) -> Result<i64, SinkError> {
        let (seconds, micros): (i64, i64) = self.ask(&redis::cmd("TIME")).await?;
        Ok(seconds.saturating_mul(1000).saturating_add(micros / 1000))
    }

    /// Sends the smallest command.
    pub(super) async fn ping(&mut self) -> Result<(), SinkError> {
        self.ask::<Value>(&redis::cmd("PING")).await.map(drop)
    }

    /// The name of the user; none if the server does not say.
    pub(super) async fn user(&mut self) -> Result<Option<String>, SinkError> {
        match redis::cmd("ACL").arg("WHOAMI").query_async(&mut self.connection).await {
            Ok(user) => Ok(Some(user)),
            Err(error) if is_answer(&error) => Ok(None),
            Err(error) => Err(SinkError::unusable(&self.address, error)),
        }
    }

    /// Whether this user may run a command: as the server says, or else by running it if that is
    /// harmless.
    pub(super) async fn may(&mut self, user: Option<&str>, need: &Need) -> Result<Permission, SinkError> {
        if let Some(user) = user
            && let Some(permission) = self.dry_run(user, need).await?
        {
            return Ok(permission);
        }
        if !need.sent.harmless {
            return Ok(Permission::Untried(need.name()));
        }
        match need.sent.command.query_async::<Value>(&mut self.connection).await {
            Ok(_) => Ok(Permission::Allowed),
            Err(error) if error.code() == Some("NOPERM") => {
                Ok(Permission::Denied(error.detail().unwrap_or_default().to_owned()))
            }
            Err(error) if is_missing(&error) => Ok(Permission::Missing(need.name())),
            // Anything else is an answer to a command that was allowed to run.
            Err(error) if is_answer(&error) => Ok(Permission::Allowed),
            Err(error) => Err(SinkError::unusable(&self.address, error)),
        }
    }

    /// What the server says about a command; none if it does not say.
    async fn dry_run(&mut self, user: &str, need: &Need) -> Result<Option<Permission>, SinkError> {
        let mut dry = redis::cmd("ACL");
        dry.arg("DRYRUN").arg(user);
        for argument in need.sent.command.args_iter() {
            if let Arg::Simple(bytes) = argument {
                dry.arg(bytes);
            }
        }
        match dry.query_async::<Value>(&mut self.connection).await {
            Ok(Value::Okay) => Ok(Some(Permission::Allowed)),
            Ok(reply) => Ok(redis::from_redis_value(reply).ok().map(Permission::Denied)),
            Err(error) if is_missing(&error) => Ok(Some(Permission::Missing(need.name()))),
            Err(error) if is_answer(&error) => Ok(None),
            Err(error) => Err(SinkError::unusable(&self.address, error)),
        }
    }

    async fn ask<T: redis::FromRedisValue>(&mut self, command: &Cmd) -> Result<T, SinkError> {
        command.query_async(&mut self.connection).await.map_err(|error| SinkError::unusable(&self.address, error))
    }
}

impl RedisFacts {
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
            .sent
            .command
            .args_iter()
            .filter_map(|argument| match argument {
                Arg::Simple(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
                _ => None,
            })
            .collect();
        match &*words {
            [name, subcommand, ..] if name == "SCRIPT" || name == "XINFO" => format!("{name} {subcommand}"),
            [name, ..] => name.clone(),
            [] => String::new(),
        }
    }
}

/// Every command that the daemon sends, and those that only other commands of this program send.
pub(super) fn needs(usage: &Usage<'_>) -> Vec<Need> {
    let (key, channel) = (usage.probe_key(), usage.channel());
    let of_daemon = usage.commands().into_iter().map(|sent| Need { sent, only_for_diagnosis: false });
    let for_diagnosis = [
        SentCommand::new("PTTL", &key, "", true),
        SentCommand::new("STRLEN", &key, "", true),
        SentCommand::new("GETRANGE", &key, "0 0", true),
        SentCommand::new("SCARD", &key, "", true),
        SentCommand::new("XLEN", &key, "", true),
        SentCommand::new("HLEN", &key, "", true),
        SentCommand::new("HSCAN", &key, "0 COUNT 1", true),
        SentCommand::new("LRANGE", &key, "0 0", true),
        SentCommand::new("XRANGE", &key, "- + COUNT 1", true),
        SentCommand::new("XDEL", &key, "0-1", true),
        SentCommand::new("SUBSCRIBE", &channel, "", false),
    ];
    of_daemon.chain(for_diagnosis.into_iter().map(|sent| Need { sent, only_for_diagnosis: true })).collect()
}

/// Whether the server does not have the command, as it says itself or of `ACL DRYRUN`.
fn is_missing(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    let is_command = |rest: &str| rest.to_ascii_lowercase().starts_with("command");
    detail.starts_with("unknown command") && !detail.contains("'ACL'")
        || is_command(detail) && detail.ends_with("not found")
}

/// Whether the server answered, although with an error.
fn is_answer(error: &RedisError) -> bool {
    error.code().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Removal;

    #[test]
    fn facts_are_read_from_info() {
        let info = "# Server\r\nredis_version:7.2.4\r\nvalkey_version:8.0.1\r\n# Memory\r\nmaxmemory:1024\r\n\
                    maxmemory_human:1K\r\nmaxmemory_policy:allkeys-lru\r\n# Replication\r\nrole:slave\r\n\
                    # Cluster\r\ncluster_enabled:1\r\n";
        let expected = RedisFacts {
            version: "7.2.4".to_owned(),
            valkey: Some("8.0.1".to_owned()),
            replica: true,
            cluster: true,
            memory_max: Some(1024),
            eviction: Some("allkeys-lru".to_owned()),
        };
        assert_eq!(RedisFacts::parse(info), expected);
        assert_eq!(RedisFacts::parse(""), RedisFacts::default());
    }

    #[test]
    fn nothing_that_leaves_a_trace_is_called_harmless() {
        let removals = [Removal::Key("v1:all".into())];
        let usage =
            Usage { namespace: "v1:", slot: "unstale", removals: &removals, outbox: true, streams: true, again: true };
        for need in needs(&usage) {
            let name = need.name();
            let named = need.sent.command.args_iter().any(|argument| argument == Arg::Simple(&b"v1:all"[..]));
            assert!(!named || !need.sent.harmless || name == "EVALSHA", "{need:?}");
            let leaves_a_trace =
                matches!(name.as_str(), "HINCRBY" | "HSET" | "INCR" | "RPUSH" | "PUBLISH" | "SUBSCRIBE");
            assert!(!leaves_a_trace || !need.sent.harmless, "{need:?}");
        }
    }
}
