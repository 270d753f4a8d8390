//! What is stored for an answer, and what an answer consists of.
//!
//! Owns ages, entity tags and times to live. It must not know where a value is stored. Invariant: a
//! row that does not exist is stored as a value of no bytes, which no JSON is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::database::Fetched;
use crate::change::Lsn;
use crate::coherence::lease::{Envelope, Token};
use crate::reads::Read;

/// A value, or that there is none, and its origin.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// The JSON; None if there is no row.
    pub(super) body: Option<Vec<u8>>,
    /// The entity tag, without quotes.
    pub(super) etag: String,
    /// How long it has been stored.
    pub(super) age: Duration,
    /// How long it stays fresh.
    pub(super) ttl: Duration,
    /// It contains every commit up to this position, if that is known.
    pub(super) token: Option<Lsn>,
    pub(super) origin: AnswerOrigin,
    /// How long the database took, if it was queried.
    pub(super) database: Option<Duration>,
}

/// Where an answer is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerOrigin {
    /// Redis.
    Hit,
    /// Redis, past its ttl; it is being refreshed.
    StaleHit,
    /// Redis, possibly out of date: neither the daemon nor PostgreSQL is available.
    StaleIfError,
    /// The database, because Redis held nothing.
    Miss { stored: bool },
    /// The database, because the client asked for it.
    Request { stored: bool },
    /// The database, past Redis, for this reason.
    Bypass(&'static str),
}

/// The longest time that a value of a read may stay in Redis.
pub(super) fn longest(read: &Read) -> Duration {
    (read.ttl + read.stale_while_revalidate).max(read.negative_ttl.unwrap_or_default())
}

/// The answer that a stored value gives.
pub(super) fn served(
    value: Envelope,
    age: Duration,
    ttl: Duration,
    token: Option<Lsn>,
    origin: AnswerOrigin,
) -> Answer {
    let etag = if value.etag.is_empty() { Envelope::etag_of(&value.body) } else { value.etag };
    let token = token.max(Some(value.lo)).filter(|token| *token > Lsn::ZERO);
    let body = Some(value.body).filter(|body| !body.is_empty());
    Answer { body, etag, age, ttl, token, origin, database: None }
}

/// What is stored for a result, and for how long; None if it is not to be stored.
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
        stored_at: unix_millis(),
        soft_ttl: soft.map_or(0, |soft| u64::try_from(soft.as_millis()).unwrap_or(u64::MAX)),
        etag: Envelope::etag_of(&body),
        tags: Vec::new(),
        body,
    };
    (value, ttl.filter(|ttl| *ttl >= Duration::from_millis(1)))
}

/// How long a value has been stored.
pub(super) fn age(value: &Envelope) -> Duration {
    Duration::from_millis(unix_millis().saturating_sub(value.stored_at))
}

fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
