//! Which service uses the name of a slot in a namespace of Redis.
//!
//! Owns the record in which a service says so, and how long it lives. It must not know what the
//! service applies. Invariant: the record of another service is never overwritten while it lives.
//! Daemons that follow one database in one mode are one service.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::{Cmd, Pipeline, Value};
use serde::{Deserialize, Serialize};

use super::link::RedisLink;
use super::scripts::{Scripts, script};
use crate::coherence::lease::Token;
use crate::coherence::watermark::Names;

/// How long a record lives after it was written last.
pub(super) const OWNER_TTL: Duration = Duration::from_secs(10);

/// How often it is written during a flush. Otherwise each probe writes it.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// What a service says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OwnerRecord {
    /// The database that it follows, as an origin names it.
    pub system: String,
    /// How it learns of changes: `slot` or `outbox`.
    pub mode: String,
    /// Where the database is, without credentials.
    pub address: String,
    /// The name of the machine on which it runs.
    pub host: String,
    /// The id of its process.
    pub pid: u32,
    /// Identifies the process among all.
    pub instance: String,
    /// When it was written, in milliseconds since 1970. Only a change of it means something.
    pub at: u64,
}

/// Another service is at work under the same name.
#[derive(Debug, thiserror::Error)]
#[error(
    "another service uses the same source.slot and target.namespace (`{key}` in Redis at {redis}): it follows {} by \
     its {}, and runs on {} as process {}; give one of the two another source.slot or target.namespace",
    owner.address, owner.mode, owner.host, owner.pid
)]
pub struct NameTaken {
    /// The other service.
    pub owner: Box<OwnerRecord>,
    /// The key that says so.
    pub key: String,
    /// Where Redis is.
    pub redis: String,
    /// This process was at work under the name before.
    pub was_ours: bool,
}

impl OwnerRecord {
    /// The record of this process, which follows a database in a mode.
    pub fn of_this_process(system: &str, mode: &str, address: String) -> Self {
        let pid = std::process::id();
        let instance = format!("{pid}-{}", Token::random().lease());
        Self { system: system.to_owned(), mode: mode.to_owned(), address, host: host(), pid, instance, at: 0 }
    }

    /// The command that writes it. Its reply is [`other`].
    pub(super) fn write(&self, names: &Names, scripts: &Scripts) -> Cmd {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = u64::try_from(now.as_millis()).unwrap_or_default();
        let record = serde_json::to_string(&Self { at, ..self.clone() }).expect("texts and numbers always serialize");
        let mut own = script(&scripts.own, &[&names.owner]);
        own.arg(record).arg(&self.system).arg(&self.mode).arg(OWNER_TTL.as_secs() * 1000);
        own
    }
}

/// The name of this machine.
fn host() -> String {
    let read = |path| std::fs::read_to_string(path).ok();
    let name = read("/proc/sys/kernel/hostname").or_else(|| read("/etc/hostname"));
    let name = name.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "an unknown machine".to_owned() } else { name.to_owned() }
}

/// The record of another service, if the reply to [`OwnerRecord::write`] has one.
pub(super) fn other(reply: &Value) -> Option<String> {
    match reply {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    }
}

/// Writes a record each second, for ever: over a connection of its own, beside a step that takes
/// long.
pub(super) async fn beat(mut link: RedisLink, names: Names, record: Option<OwnerRecord>) -> std::convert::Infallible {
    let Some(record) = record else { return std::future::pending().await };
    loop {
        tokio::time::sleep(BEAT_EVERY).await;
        let written = async {
            let connection = link.open().await?;
            let write = record.write(&names, &connection.scripts);
            connection.send(Pipeline::new().add_command(write)).await
        };
        if let Err(error) = written.await {
            tracing::debug!(error = crate::redis::describe(&error), "this service could not be named in Redis");
            link.close();
        }
    }
}
