//! What Redis holds of one key, and what touched it last.
//!
//! Owns the questions and how their answers are read. It must not know rules. Invariant: nothing is
//! written, and only the beginning of a large value is fetched.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ConnectionInfo, Pipeline, RedisError};

use crate::change::Lsn;
use crate::coherence::lease::{Envelope, Token};
use crate::coherence::watermark::Names;
use crate::key::{CacheKey, Glob};
use crate::plan::ActionKind;
use crate::sink::{SinkError, Touch};

/// How long to wait for a connection, and for each answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How many bytes of a value are fetched: the line of its envelope, and some of its body.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// What Redis holds of a key, and what touched it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyReport {
    /// What the key holds.
    pub(super) content: KeyContent,
    /// How long until it expires; none if it does not expire.
    pub(super) ttl: Option<Duration>,
    /// The time by the clock of Redis, in milliseconds since 1970.
    pub(super) now: u64,
    /// Every invalidation up to this position is in force.
    pub(super) applied: Option<Lsn>,
    /// The epoch.
    pub(super) epoch: Option<u64>,
    /// The ops that were applied last to any key, the newest last.
    pub(super) recent: Vec<Touch>,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyContent {
    /// Nothing.
    Nothing,
    /// A lease: a reader may fill it.
    Lease,
    /// A value in its envelope. The body may be cut off.
    Value {
        /// The envelope.
        envelope: Envelope,
        /// How long the body is, in bytes.
        bytes: u64,
    },
    /// A string that is neither.
    Text {
        /// Its beginning.
        head: Vec<u8>,
        /// How long it is, in bytes.
        bytes: u64,
    },
    /// A key of another type.
    Other {
        /// The type, as Redis names it: `set`, `stream`, …
        kind: String,
        /// How many members a set or entries a stream has.
        members: Option<u64>,
    },
}

/// Whether it touched this key.
pub(super) fn concerns(touch: &Touch, key: &CacheKey) -> bool {
    let is_glob = match touch.op {
        ActionKind::Pattern | ActionKind::Tag => true,
        ActionKind::Delete | ActionKind::Set | ActionKind::Bump | ActionKind::Publish | ActionKind::Stream => false,
    };
    touch.key.as_bytes() == key.as_bytes() || is_glob && glob(&touch.key).matches(key.as_bytes())
}

/// A glob as it is written.
fn glob(text: &str) -> Glob {
    let mut glob = Glob::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' => glob.push_any(),
            b'\\' => glob.push_literal(&[bytes.next().unwrap_or(byte)]),
            _ => glob.push_literal(&[byte]),
        }
    }
    glob
}

/// Reads what Redis holds of a key.
///
/// # Errors
///
/// Redis is unreachable, or refuses one of the commands.
pub(super) async fn read(info: &ConnectionInfo, names: &Names, key: &CacheKey) -> Result<KeyReport, SinkError> {
    let address = info.addr().to_string();
    try_read(info, names, key).await.map_err(|error| SinkError::unusable(&address, error))
}

async fn try_read(info: &ConnectionInfo, names: &Names, key: &CacheKey) -> Result<KeyReport, RedisError> {
    let mut connection = crate::redis::connect(&crate::redis::open_client(info)?, ANSWER_MAX).await?;

    let mut of_key = Pipeline::new();
    of_key.add_command(command("TYPE", key)).add_command(command("PTTL", key)).add_command(redis::cmd("TIME"));
    let (kind, ttl, (seconds, micros)): (String, i64, (u64, u64)) = of_key.query_async(&mut connection).await?;
    let content = read_content(&mut connection, key, kind).await?;

    let mut of_state = Pipeline::new();
    of_state.add_command(command("GET", &names.applied)).add_command(command("GET", &names.epoch));
    of_state.add_command(command("LRANGE", &names.recent).arg(0).arg(-1).clone());
    let (applied, epoch, recent): (Option<String>, Option<String>, Vec<Vec<u8>>) =
        of_state.query_async(&mut connection).await?;

    Ok(KeyReport {
        content,
        ttl: u64::try_from(ttl).ok().map(Duration::from_millis),
        now: seconds.saturating_mul(1000).saturating_add(micros / 1000),
        applied: applied.as_deref().and_then(Lsn::from_fixed_hex),
        epoch: epoch.and_then(|epoch| epoch.parse().ok()),
        // An entry of another version of this tool may look different.
        recent: recent.iter().filter_map(|entry| serde_json::from_slice(entry).ok()).collect(),
    })
}

async fn read_content(
    connection: &mut MultiplexedConnection,
    key: &CacheKey,
    kind: String,
) -> Result<KeyContent, RedisError> {
    let size = match kind.as_str() {
        "none" => return Ok(KeyContent::Nothing),
        "string" => {
            let mut value = Pipeline::new();
            value.add_command(command("STRLEN", key));
            value.add_command(command("GETRANGE", key).arg(0).arg(VALUE_BYTES_MAX - 1).clone());
            let (bytes, head): (u64, Vec<u8>) = value.query_async(connection).await?;
            return Ok(text(bytes, head));
        }
        "set" => command("SCARD", key),
        "stream" => command("XLEN", key),
        _ => return Ok(KeyContent::Other { kind, members: None }),
    };
    let members = size.query_async(connection).await?;
    Ok(KeyContent::Other { kind, members: Some(members) })
}

/// What a string is, by its length and its beginning.
fn text(bytes: u64, head: Vec<u8>) -> KeyContent {
    let fetched = head.len() as u64;
    if bytes == 0 {
        // It was deleted between two questions, or it is empty, as no lease and no envelope is.
        return KeyContent::Text { head, bytes };
    }
    if bytes == fetched && Token::is_lease_text(&head) {
        return KeyContent::Lease;
    }
    match Envelope::decode(&head) {
        Some(envelope) => {
            let line = fetched.saturating_sub(envelope.body.len() as u64);
            KeyContent::Value { bytes: bytes.saturating_sub(line), envelope }
        }
        None => KeyContent::Text { head, bytes },
    }
}

fn command(name: &str, key: &CacheKey) -> Cmd {
    redis::cmd(name).arg(key.as_bytes()).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_touch_concerns_what_it_names_or_matches() {
        let check = |op: ActionKind, name: &str, key: &str, expected: bool| {
            let [rule, lsn, at] = ["r", "0/1", "t"].map(ToOwned::to_owned);
            let touch = Touch { op, key: name.to_owned(), rule, line: 1, lsn, at };
            assert_eq!(concerns(&touch, &key.into()), expected, "{op} {name} {key}");
        };
        check(ActionKind::Delete, "v1:user:1", "v1:user:1", true);
        check(ActionKind::Delete, "v1:user:*", "v1:user:1", false);
        check(ActionKind::Pattern, "v1:user:*", "v1:user:1", true);
        check(ActionKind::Pattern, r"v1:user:\*", "v1:user:1", false);
        check(ActionKind::Pattern, r"v1:user:\*", "v1:user:*", true);
        check(ActionKind::Tag, "v1:tag:*", "v1:tag:org", true);
        check(ActionKind::Pattern, "v1:user:*", "v1:org:1", false);
    }

    #[test]
    fn what_a_string_is() {
        let nonce = Token::of_new_value();
        let (etag, tags, body) = (String::new(), Vec::new(), b"body".to_vec());
        let mut envelope = Envelope { nonce, lo: Lsn::new(7), stored_at: 1, soft_ttl: 0, etag, tags, body };
        let whole = envelope.encode();
        let length = whole.len() as u64;
        assert_eq!(text(length, whole.clone()), KeyContent::Value { envelope: envelope.clone(), bytes: 4 });
        let head = whole[..whole.len() - 2].to_vec();
        envelope.body.truncate(2);
        assert_eq!(text(length, head), KeyContent::Value { envelope, bytes: 4 });
        assert_eq!(text(34, Token::random().lease().into_bytes()), KeyContent::Lease);
        assert_eq!(text(2, b"17".to_vec()), KeyContent::Text { head: b"17".to_vec(), bytes: 2 });
        assert_eq!(text(0, Vec::new()), KeyContent::Text { head: Vec::new(), bytes: 0 });
    }
}
