//! The checks of Redis.
//!
//! Owns what each answer means. It must not know how Redis is asked; [`probe`](mod@probe) does.
//! Invariant: a command that the user may not run is reported among the missing permissions, and
//! does not end the check.

mod probe;

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use self::probe::{Permission, RedisFacts, RedisProbe};
use super::clock::{self, Reading, SAMPLES};
use super::finding::{Finding, Findings, Stage};
use crate::cmd::config_file::ConfigFile;
use crate::cmd::failure::with_causes;
use crate::config::Mode;
use crate::key::Glob;
use crate::plan::ActionKind;
use crate::rules::Rule;
use crate::sink::SinkError;
use crate::sink::commands::Usage;

/// The oldest major version with the commands and scripts that are used.
const MAJOR_LEAST: u32 = 7;

/// What the checks of Redis found.
pub(super) struct RedisFindings {
    pub(super) findings: Findings,
    /// Its clock, if it was read.
    pub(super) clock: Option<Reading>,
}

/// Runs every check. A server that is not available is one finding.
pub(super) async fn probe(file: &ConfigFile) -> RedisFindings {
    let address = file.settings.redis.addr().to_string();
    let mut cache = RedisFindings { findings: Findings::default(), clock: None };
    cache.findings.heading(format!("Redis at {address}"));
    if let Err(error) = ask(file, &address, &mut cache).await {
        cache.findings.add(refused(&error));
    }
    cache
}

async fn ask(file: &ConfigFile, address: &str, cache: &mut RedisFindings) -> Result<(), SinkError> {
    let findings = &mut cache.findings;
    let mut server = RedisProbe::open(&file.settings.redis).await?;
    if let Some(facts) = unless_forbidden(server.facts().await)? {
        judge(&facts, address, findings);
        eviction(&facts, address, findings);
    }
    permissions(file, &mut server, address, findings).await?;
    let mut samples = Vec::new();
    for _ in 0..SAMPLES {
        let asked = Instant::now();
        if unless_forbidden(server.ping().await)?.is_some() {
            samples.push(asked.elapsed());
        }
    }
    clock::latency(&format!("Redis at {address}"), samples, findings);
    let asked = SystemTime::now();
    let time = unless_forbidden(server.time().await)?;
    cache.clock = time.map(|millis| Reading::new(millis, asked, SystemTime::now()));
    Ok(())
}

/// An answer, or nothing if the user may not run the command.
fn unless_forbidden<T>(answer: Result<T, SinkError>) -> Result<Option<T>, SinkError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_command_refused() => Ok(None),
        Err(error) => Err(error),
    }
}

fn refused(error: &SinkError) -> Finding {
    let why = "without Redis, nothing can be invalidated";
    if error.is_login_refused() {
        return Finding::configuration("redis-login", with_causes(error)).why(why).fix("correct target.url");
    }
    Finding::unavailable("redis-unreachable", with_causes(error)).why(why).fix("start Redis, or correct target.url")
}

fn judge(facts: &RedisFacts, address: &str, findings: &mut Findings) {
    let name = match &facts.valkey {
        Some(version) => format!("Valkey {version}"),
        None => format!("Redis {}", facts.version),
    };
    let major = facts.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let old = major.is_some_and(|major| major < MAJOR_LEAST).then(|| {
        let message = format!("Redis at {address} is version {}; at least 7.0 is needed (Valkey 7.2)", facts.version);
        Finding::error("redis-version", message)
            .why("the scripts need flags that older versions do not have")
            .fix("upgrade Redis")
    });
    findings.pass_or(format!("version: {name}"), old);
    let replica = facts.replica.then(|| {
        Finding::configuration("redis-replica", format!("Redis at {address} is a replica"))
            .why("a replica refuses writes, and its data is replaced by that of its primary")
            .fix("name the primary in target.url")
    });
    findings.pass_or("role: primary", replica);
    let cluster = facts.cluster.then(|| {
        Finding::configuration("redis-cluster", format!("Redis at {address} is a node of a cluster"))
            .why("this version of unstale works with one server, and a cluster distributes keys over several")
            .fix("name a server without cluster mode in target.url")
    });
    findings.pass_or("no cluster", cluster);
}

/// Whether the eviction policy lets values be written. Whatever Redis evicts, no older value is
/// served: what is missing counts as unknown.
fn eviction(facts: &RedisFacts, address: &str, findings: &mut Findings) {
    const FIX: &str = "CONFIG SET maxmemory-policy volatile-lru";
    const COST: &str = "takes effect at once; write it to redis.conf as well";
    let (Some(policy), Some(limit)) = (facts.eviction.as_deref(), facts.memory_max) else { return };
    if limit == 0 {
        return findings.pass("memory: no limit");
    }
    let finding = match policy {
        "noeviction" => {
            let message = format!("Redis at {address} evicts nothing when it is full (maxmemory-policy noeviction)");
            let why = "a full Redis then refuses what `set`, `stream` and readers write; deletes are accepted";
            Some(Finding::warning("redis-eviction", message).why(why).statement(Stage::Redis, FIX, COST))
        }
        _ => None,
    };
    findings.pass_or(format!("memory: limited, maxmemory-policy {policy}"), finding);
}

/// Whether the user may run every command that unstale uses.
async fn permissions(
    file: &ConfigFile,
    server: &mut RedisProbe,
    address: &str,
    findings: &mut Findings,
) -> Result<(), SinkError> {
    let settings = &file.settings;
    let user = server.user().await?;
    let (mut needed, mut for_diagnosis, mut untried) = (Vec::new(), Vec::new(), Vec::new());
    let mut absent = BTreeSet::new();
    let usage = Usage {
        namespace: &settings.namespace,
        slot: &settings.slot,
        removals: &file.rules.removals(),
        outbox: settings.mode == Mode::Outbox,
        streams: file.rules.rules().iter().flat_map(Rule::actions).any(|(kind, _)| kind == ActionKind::Stream),
        again: file.rules.repeats(),
    };
    for need in probe::needs(&usage) {
        match server.may(user.as_deref(), &need).await? {
            Permission::Allowed => {}
            Permission::Missing(command) => _ = absent.insert(command),
            Permission::Denied(reason) if need.only_for_diagnosis => for_diagnosis.push(reason),
            Permission::Denied(reason) => needed.push(reason),
            Permission::Untried(command) if !untried.contains(&command) => untried.push(command),
            Permission::Untried(_) => {}
        }
    }
    let who = user.as_deref().map_or_else(|| "the user in target.url".to_owned(), |user| format!("the user `{user}`"));
    let missing = |reasons: &[String]| Missing::of(reasons, &settings.namespace, user.as_deref());
    let mut found = Vec::new();
    if !absent.is_empty() {
        let commands = absent.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!("Redis at {address} does not have the command {commands}: it was renamed or disabled");
        let finding = Finding::error("redis-command", message).why(
            "entries of `stream` and messages that cannot be sent become dead letters; without another command \
             every invalidation waits",
        );
        found.push(finding.fix("remove `rename-command` from its configuration, or remove the rules that need it"));
    }
    if !needed.is_empty() {
        let Missing { list, command } = missing(&needed);
        let finding = Finding::error("redis-acl", format!("Redis at {address}: {who} lacks {list}"))
            .why("each is needed to keep Redis coherent, and a refused batch is retried for ever");
        found.push(finding.statement(Stage::Redis, command, ACL_COST));
    }
    if !for_diagnosis.is_empty() {
        let Missing { list, command } = missing(&for_diagnosis);
        let finding = Finding::warning("redis-acl-look", format!("Redis at {address}: {who} lacks {list}"))
            .why("invalidation does not need them; `explain`, `status`, `dry-run --dead` or `replay --dead` may fail for this user");
        found.push(finding.statement(Stage::Redis, command, ACL_COST));
    }
    if !untried.is_empty() {
        let commands = untried.join(", ");
        let message = format!("Redis at {address}: it could not be determined whether {who} may run {commands}");
        let finding = Finding::warning("redis-acl-untried", message).why(
            "the user may not run ACL WHOAMI and ACL DRYRUN, and running the commands themselves would have effects",
        );
        found.push(finding.fix("allow `+acl|whoami +acl|dryrun`, or run the check as another user"));
    }
    findings.pass_or(format!("permissions of {who}"), found);
    Ok(())
}

const ACL_COST: &str =
    "takes effect at once; make it permanent with ACL SAVE, or in the file from which the server reads its users";

/// What an ACL must allow in addition.
struct Missing {
    list: String,
    command: String,
}

impl Missing {
    fn of(reasons: &[String], namespace: &str, user: Option<&str>) -> Self {
        let mut names = Glob::new();
        names.push_literal(namespace.as_bytes());
        names.push_any();
        let rule = |reason: &String| {
            let command = reason.split_once("to run the '").and_then(|(_, rest)| rest.split_once('\''));
            match command {
                Some((command, _)) => format!("+{command}"),
                None if reason.contains("channel") => format!("&{names}"),
                None => format!("~{names}"),
            }
        };
        let rules: BTreeSet<String> = reasons.iter().map(rule).collect();
        let rules: Vec<String> = rules.into_iter().collect();
        let command = format!("ACL SETUSER {} {}", user.unwrap_or("NAME"), rules.join(" "));
        Self { list: rules.join(", "), command }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_permissions_are_listed_as_an_acl_writes_them() {
        let reasons = [
            "User app has no permissions to run the 'xadd' command",
            "this user has no permissions to run the 'script|load' command",
            "This user has no permissions to access the 'v1:user:probe' key",
            "this user has no permissions to access one of the keys used as arguments",
            "This user has no permissions to access the 'v1:invalidations' channel",
        ];
        let missing = Missing::of(&reasons.map(ToOwned::to_owned), "v1:", Some("app"));
        assert_eq!(missing.list, "&v1:*, +script|load, +xadd, ~v1:*");
        assert_eq!(missing.command, "ACL SETUSER app &v1:* +script|load +xadd ~v1:*");
    }

    #[test]
    fn a_server_is_judged_by_what_it_says() {
        let check = |facts: &RedisFacts, expected: &[&str]| {
            let mut findings = Findings::default();
            judge(facts, "h:1", &mut findings);
            eviction(facts, "h:1", &mut findings);
            let ids: Vec<_> = findings.found.iter().map(|finding| finding.id).collect();
            assert_eq!(ids, expected, "{facts:?}");
        };
        let sound = || RedisFacts { version: "7.0.15".to_owned(), memory_max: Some(0), ..RedisFacts::default() };
        check(&sound(), &[]);
        check(&RedisFacts { version: "6.2.1".to_owned(), ..sound() }, &["redis-version"]);
        check(&RedisFacts { replica: true, cluster: true, ..sound() }, &["redis-replica", "redis-cluster"]);
        let evicting = |policy: &str| RedisFacts { memory_max: Some(1), eviction: Some(policy.to_owned()), ..sound() };
        check(&evicting("noeviction"), &["redis-eviction"]);
        // Whatever is evicted of tags, no older value is served.
        ["allkeys-lru", "volatile-lru"].iter().for_each(|policy| check(&evicting(policy), &[]));
    }
}
