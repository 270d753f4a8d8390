//! What Redis holds of one key, and what touched it last; how far the whole of it is.
//!
//! Owns the questions and how their answers are read. It must not know rules. Invariant: nothing is written, and of a
//! large value only the beginning is fetched.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ConnectionInfo, Pipeline, RedisError};

use super::recent::Touch;
use super::redis::{SinkError, unusable};
use crate::change::Lsn;
use crate::coherence::lease::{Envelope, Token};
use crate::coherence::watermark::Names;
use crate::key::{CacheKey, Glob};

/// How long to wait for a connection, and for each answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How many bytes of a value are fetched: the line of its envelope, and some of its body.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// How many streams are named.
const STREAMS_NAMED: usize = 100;

/// What there is to see of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// What it holds.
    pub held: Held,
    /// How long it goes on to hold it; none if it does not expire.
    pub ttl: Option<Duration>,
    /// The time by the clock of Redis, in milliseconds since 1970.
    pub now: u64,
    /// Every invalidation up to this position is in force.
    pub applied: Option<Lsn>,
    /// The generation of the cache.
    pub epoch: Option<u64>,
    /// What was done last to any key, the newest last.
    pub recent: Vec<Touch>,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// A reader's right to fill it.
    Lease,
    /// A value in its envelope, of whose body only the beginning may be there.
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
    /// Something else than a string.
    Other {
        /// What, in the words of Redis: `set`, `stream`, …
        kind: String,
        /// How many members a set or entries a stream has.
        members: Option<u64>,
    },
}

/// How far a dataset is, and what went wrong on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Every invalidation up to this position is in force.
    pub applied: Option<Lsn>,
    /// Some invalidation up to this position may be in force.
    pub started: Option<Lsn>,
    /// The generation of the cache.
    pub epoch: Option<u64>,
    /// How many began, by the word for the reason.
    pub epochs: BTreeMap<String, u64>,
    /// Everything that was durably committed so long ago is in force.
    pub asof: Option<Duration>,
    /// How many changes wait that a rule could not be held against.
    pub dead: u64,
    /// How many of them there were, by rule.
    pub failures: BTreeMap<String, u64>,
    /// How many streams were written.
    pub streams: u64,
    /// Some of their names.
    pub stream_names: Vec<CacheKey>,
    /// How many batches of an outbox are in force.
    pub batches: Option<u64>,
}

impl Touch {
    /// Whether it touched this key.
    pub fn concerns(&self, key: &CacheKey) -> bool {
        let globs = matches!(self.op.as_str(), "pattern" | "tag");
        self.key.as_bytes() == key.as_bytes() || globs && glob(&self.key).matches(key.as_bytes())
    }
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

/// Looks at a key.
///
/// # Errors
///
/// Redis is away, or refuses one of the commands.
pub async fn look(info: &ConnectionInfo, names: &Names, key: &CacheKey) -> Result<Look, SinkError> {
    let address = info.addr().to_string();
    ask(info, names, key).await.map_err(|error| unusable(&address, error))
}

/// Looks how far the dataset is.
///
/// # Errors
///
/// Redis is away, or refuses one of the commands.
pub async fn standing(info: &ConnectionInfo, names: &Names) -> Result<Standing, SinkError> {
    let address = info.addr().to_string();
    ask_standing(info, names).await.map_err(|error| unusable(&address, error))
}

async fn ask_standing(info: &ConnectionInfo, names: &Names) -> Result<Standing, RedisError> {
    let mut link = crate::redis::connect(&crate::redis::open_client(info)?, ANSWER_MAX).await?;
    let mut state = redis::cmd("MGET");
    for key in [&names.applied, &names.started, &names.epoch, &names.asof, &names.batches] {
        state.arg(key.as_bytes());
    }
    let mut of_state = Pipeline::new();
    of_state.add_command(redis::cmd("TIME")).add_command(state);
    let ((seconds, micros), state): ((u64, u64), Vec<Option<String>>) = of_state.query_async(&mut link).await?;

    let mut of_counts = Pipeline::new();
    of_counts.add_command(command("HGETALL", &names.epochs)).add_command(command("HGETALL", &names.failures));
    of_counts.add_command(command("XLEN", &names.dead)).add_command(command("HLEN", &names.streams));
    let (epochs, failures, dead, streams): (Counts, Counts, u64, u64) = of_counts.query_async(&mut link).await?;

    let mut stream_names = command("HSCAN", &names.streams);
    stream_names.arg(0).arg("COUNT").arg(STREAMS_NAMED);
    type Page = (u64, Vec<(Vec<u8>, Vec<u8>)>);
    let (_, found): Page = stream_names.query_async(&mut link).await?;

    let text = |at: usize| state.get(at).and_then(Option::as_deref);
    let number = |at: usize| text(at).and_then(|number| number.parse::<u64>().ok());
    let now = seconds.saturating_mul(1000).saturating_add(micros / 1000);
    Ok(Standing {
        applied: text(0).and_then(Lsn::from_fixed_hex),
        started: text(1).and_then(Lsn::from_fixed_hex),
        epoch: number(2),
        epochs: counted(epochs),
        asof: number(3).map(|asof| Duration::from_millis(now.saturating_sub(asof))),
        dead,
        failures: counted(failures),
        streams,
        stream_names: found.into_iter().take(STREAMS_NAMED).map(|(name, _)| CacheKey::new(name)).collect(),
        batches: number(4),
    })
}

/// A hash of counts, as it comes.
type Counts = BTreeMap<String, String>;

fn counted(counts: Counts) -> BTreeMap<String, u64> {
    counts.into_iter().filter_map(|(name, count)| Some((name, count.parse().ok()?))).collect()
}

async fn ask(info: &ConnectionInfo, names: &Names, key: &CacheKey) -> Result<Look, RedisError> {
    let mut link = crate::redis::connect(&crate::redis::open_client(info)?, ANSWER_MAX).await?;

    let mut of_key = Pipeline::new();
    of_key.add_command(command("TYPE", key)).add_command(command("PTTL", key)).add_command(redis::cmd("TIME"));
    let (kind, ttl, (seconds, micros)): (String, i64, (u64, u64)) = of_key.query_async(&mut link).await?;
    let held = held(&mut link, key, kind).await?;

    let mut of_ours = Pipeline::new();
    of_ours.add_command(command("GET", &names.applied)).add_command(command("GET", &names.epoch));
    of_ours.add_command(command("LRANGE", &names.recent).arg(0).arg(-1).clone());
    let (applied, epoch, recent): (Option<String>, Option<String>, Vec<Vec<u8>>) =
        of_ours.query_async(&mut link).await?;

    Ok(Look {
        held,
        ttl: u64::try_from(ttl).ok().map(Duration::from_millis),
        now: seconds.saturating_mul(1000).saturating_add(micros / 1000),
        applied: applied.as_deref().and_then(Lsn::from_fixed_hex),
        epoch: epoch.and_then(|epoch| epoch.parse().ok()),
        // An entry of another version of this tool may look different.
        recent: recent.iter().filter_map(|entry| serde_json::from_slice(entry).ok()).collect(),
    })
}

async fn held(link: &mut MultiplexedConnection, key: &CacheKey, kind: String) -> Result<Held, RedisError> {
    let size = match kind.as_str() {
        "none" => return Ok(Held::Nothing),
        "string" => {
            let mut value = Pipeline::new();
            value.add_command(command("STRLEN", key));
            value.add_command(command("GETRANGE", key).arg(0).arg(VALUE_BYTES_MAX - 1).clone());
            let (bytes, head): (u64, Vec<u8>) = value.query_async(link).await?;
            return Ok(text(bytes, head));
        }
        "set" => command("SCARD", key),
        "stream" => command("XLEN", key),
        _ => return Ok(Held::Other { kind, members: None }),
    };
    let members = size.query_async(link).await?;
    Ok(Held::Other { kind, members: Some(members) })
}

/// What a string is, by its length and its beginning.
fn text(bytes: u64, head: Vec<u8>) -> Held {
    let fetched = head.len() as u64;
    if bytes == 0 {
        // It went between two questions, or it is empty, which neither a lease nor an envelope is.
        return Held::Text { head, bytes };
    }
    if bytes == fetched && Token::is_lease_of_somebody(&head) {
        return Held::Lease;
    }
    match Envelope::decode(&head) {
        Some(envelope) => {
            let line = fetched.saturating_sub(envelope.body.len() as u64);
            Held::Value { bytes: bytes.saturating_sub(line), envelope }
        }
        None => Held::Text { head, bytes },
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
        let check = |op: &str, name: &str, key: &str, expected: bool| {
            let [rule, lsn, at] = ["r", "0/1", "t"].map(ToOwned::to_owned);
            let touch = Touch { op: op.to_owned(), key: name.to_owned(), rule, line: 1, lsn, at };
            assert_eq!(touch.concerns(&key.into()), expected, "{op} {name} {key}");
        };
        check("delete", "v1:user:1", "v1:user:1", true);
        check("delete", "v1:user:*", "v1:user:1", false);
        check("pattern", "v1:user:*", "v1:user:1", true);
        check("pattern", r"v1:user:\*", "v1:user:1", false);
        check("pattern", r"v1:user:\*", "v1:user:*", true);
        check("tag", "v1:tag:*", "v1:tag:org", true);
        check("pattern", "v1:user:*", "v1:org:1", false);
    }

    #[test]
    fn what_a_string_is() {
        let nonce = Token::of_new_value();
        let mut envelope =
            Envelope { nonce, lo: Lsn::new(7), stored_at: 1, soft_ttl: 0, etag: String::new(), body: b"body".to_vec() };
        let whole = envelope.encode();
        let length = whole.len() as u64;
        assert_eq!(text(length, whole.clone()), Held::Value { envelope: envelope.clone(), bytes: 4 });
        let head = whole[..whole.len() - 2].to_vec();
        envelope.body.truncate(2);
        assert_eq!(text(length, head), Held::Value { envelope, bytes: 4 });
        assert_eq!(text(34, Token::random().lease().into_bytes()), Held::Lease);
        assert_eq!(text(2, b"17".to_vec()), Held::Text { head: b"17".to_vec(), bytes: 2 });
        assert_eq!(text(0, Vec::new()), Held::Text { head: Vec::new(), bytes: 0 });
    }
}
