//! What is stored of an answer, and what an answer is made of.
//!
//! Owns ages, entity tags and times to live. It must not know where a value is stored. Invariant: "there is none" is a
//! value of no bytes, which no JSON is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::database::Fetched;
use crate::change::Lsn;
use crate::coherence::lease::{Envelope, Token};
use crate::reads::Read;

/// A value, or that there is none, and where it is from.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// The JSON; nothing if there is no row.
    pub(super) body: Option<Vec<u8>>,
    /// Without quotes.
    pub(super) etag: String,
    /// For how long it has been stored.
    pub(super) age: Duration,
    /// For how long it is fresh.
    pub(super) ttl: Duration,
    /// It contains every commit up to here, if that is known.
    pub(super) token: Option<Lsn>,
    pub(super) origin: Origin,
    /// What the database took.
    pub(super) database: Option<Duration>,
}

/// Where an answer is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Redis.
    Hit,
    /// Redis; its time is over, and it is being read anew.
    StaleHit,
    /// Redis, although nobody knows whether it is still true: PostgreSQL is away.
    StaleIfError,
    /// The database, because there was nothing in Redis; whether it was stored.
    Miss { stored: bool },
    /// The database, because the client wanted that; whether it was stored.
    Request { stored: bool },
    /// The database, past Redis, for this reason.
    Bypass(&'static str),
}

/// For how long a value of a read may be in Redis, at most.
pub(super) fn longest(read: &Read) -> Duration {
    (read.ttl + read.stale_while_revalidate).max(read.negative_ttl.unwrap_or_default())
}

pub(super) fn served(value: Envelope, age: Duration, ttl: Duration, token: Option<Lsn>, origin: Origin) -> Answer {
    let etag = if value.etag.is_empty() { Envelope::etag_of(&value.body) } else { value.etag };
    let token = token.max(Some(value.lo)).filter(|token| *token > Lsn::ZERO);
    // "There is none" is stored as a value of no bytes, which no JSON is.
    let body = Some(value.body).filter(|body| !body.is_empty());
    Answer { body, etag, age, ttl, token, origin, database: None }
}

/// What is stored, and for how long; nothing if it is not to be stored.
pub(super) fn envelope(read: &Read, fetched: &Fetched, lo: Lsn) -> (Envelope, Option<Duration>) {
    let body = fetched.body.clone().unwrap_or_default();
    let full = if fetched.body.is_some() { Some(read.ttl) } else { read.negative_ttl };
    let later = if fetched.body.is_some() { read.stale_while_revalidate } else { Duration::ZERO };
    let share: f64 = rand::random();
    let jittered = full.map(|ttl| ttl.mul_f64(1.0 - read.jitter * share));
    let soft = jittered.map(|ttl| ttl.min(fetched.valid_for.unwrap_or(ttl)));
    let ttl = soft.map(|soft| (soft + later).min(fetched.valid_for.unwrap_or(Duration::MAX)));
    let value = Envelope {
        nonce: Token::of_new_value(),
        lo,
        stored_at: since_1970(),
        soft_ttl: soft.map_or(0, |soft| u64::try_from(soft.as_millis()).unwrap_or(u64::MAX)),
        etag: Envelope::etag_of(&body),
        body,
    };
    (value, ttl.filter(|ttl| *ttl >= Duration::from_millis(1)))
}

pub(super) fn age(value: &Envelope) -> Duration {
    Duration::from_millis(since_1970().saturating_sub(value.stored_at))
}

fn since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
