//! What a key holds, and whether a value may be served.
//!
//! Owns that decision: it follows from the value, from `applied`, and from the generations of its
//! tags. It must not know the connection. Invariant: a value whose tag has another generation than
//! the value names, or none, is not served.

use std::collections::HashMap;

use redis::{RedisError, Value};

use super::envelope::{Envelope, Token};
use super::grant::Grant;
use super::tag_generation::TagGeneration;
use crate::change::Lsn;
use crate::mutant::{self, Mutant};

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A value that may be served.
    Value(Envelope),
    /// A value from before the position that the reader has seen: wait for a newer one, or read the
    /// primary and do not fill.
    TooOld(Envelope),
    /// Nothing, and the reader may fill it.
    Granted(Grant),
    /// Another reader is filling it: wait, or read without filling.
    Busy,
    /// Neither a value nor a lease: another application writes to this key. Read without filling.
    Foreign,
}

/// The generations of tags, as Redis held them together with a value or after it.
#[derive(Clone, Debug, Default)]
pub struct Generations(HashMap<Vec<u8>, Option<String>>);

impl Generations {
    /// The generations of these tags, as `MGET` returned them. Whatever is not a string is none.
    pub fn new(tags: impl IntoIterator<Item = Vec<u8>>, replies: impl IntoIterator<Item = Value>) -> Self {
        let text = |reply: Value| redis::from_redis_value::<Option<String>>(reply).ok().flatten();
        Self(tags.into_iter().zip(replies.into_iter().map(text)).collect())
    }

    /// Whether each of these tags was asked for.
    pub fn know(&self, tags: &[TagGeneration]) -> bool {
        tags.iter().all(|tag| self.0.contains_key(&tag.tag))
    }

    /// Whether each of these tags still has the generation that the value names.
    fn confirm(&self, tags: &[TagGeneration]) -> bool {
        let is_current =
            |tag: &TagGeneration| self.0.get(&tag.tag).is_some_and(|held| held.as_ref() == Some(&tag.generation));
        tags.iter().all(is_current) || mutant::is(Mutant::TagsBySet)
    }
}

/// What a key holds, once its tags were compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyContents {
    /// Nothing: ask for the lease.
    Nothing,
    /// Something that decides.
    Found(Found),
    /// A value of which some tag's generation is not known: read those, and compare again.
    Unverified(Envelope),
    /// A value of which some tag was invalidated, or has lost its generation. It must not be
    /// served; [`super::Leases::discard`] makes room for another.
    Outdated(Envelope),
}

impl KeyContents {
    /// What a key holds that was read together with `applied`, or after it; and the generations
    /// together with both, or after them. With `min`, a value must contain every commit up to that
    /// position.
    ///
    /// # Errors
    ///
    /// The reply of Redis is not text.
    pub fn of(
        held: &Value,
        applied: Option<Lsn>,
        min: Option<Lsn>,
        generations: &Generations,
    ) -> Result<Self, RedisError> {
        let copied: Vec<u8>;
        let bytes = match held {
            Value::Nil => return Ok(Self::Nothing),
            Value::BulkString(bytes) => bytes,
            other => {
                copied = redis::from_redis_value_ref(other)?;
                &copied
            }
        };
        if Token::is_lease_text(bytes) {
            return Ok(Self::Found(Found::Busy));
        }
        let Some(value) = Envelope::decode(bytes) else { return Ok(Self::Found(Found::Foreign)) };
        if !generations.know(&value.tags) {
            return Ok(Self::Unverified(value));
        }
        if !generations.confirm(&value.tags) {
            return Ok(Self::Outdated(value));
        }
        let new_enough = min.is_none_or(|min| applied.is_some_and(|applied| applied >= min) || value.lo >= min);
        Ok(Self::Found(if new_enough { Found::Value(value) } else { Found::TooOld(value) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(tag: &[u8], generation: &str) -> TagGeneration {
        TagGeneration { tag: tag.to_vec(), generation: generation.to_owned() }
    }

    #[test]
    fn a_value_is_served_only_while_each_of_its_tags_has_its_generation() {
        let known = |replies: [&str; 2]| {
            let reply = |text: &str| if text.is_empty() { Value::Nil } else { Value::BulkString(text.into()) };
            Generations::new([b"a".to_vec(), b"b".to_vec()], replies.map(reply))
        };
        let (nonce, etag) = (Token::of_new_value(), String::new());
        let tags = vec![tag(b"a", "1"), tag(b"b", "2")];
        let value = Envelope { nonce, lo: Lsn::new(5), stored_at: 0, soft_ttl: 0, etag, tags, body: Vec::new() };
        let held = Value::BulkString(value.encode());
        let check = |generations: &Generations, min: Option<u64>, expected: KeyContents| {
            let contents = KeyContents::of(&held, Some(Lsn::new(5)), min.map(Lsn::new), generations).unwrap();
            assert_eq!(contents, expected, "{generations:?} {min:?}");
        };
        check(&known(["1", "2"]), None, KeyContents::Found(Found::Value(value.clone())));
        check(&known(["1", "2"]), Some(6), KeyContents::Found(Found::TooOld(value.clone())));
        for replies in [["1", "3"], ["1", ""], ["", ""]] {
            check(&known(replies), Some(6), KeyContents::Outdated(value.clone()));
        }
        check(&Generations::default(), None, KeyContents::Unverified(value.clone()));
        let one = Generations::new([b"a".to_vec()], [Value::BulkString(b"1".to_vec())]);
        check(&one, None, KeyContents::Unverified(value.clone()));
        let other_type = Generations::new([b"a".to_vec(), b"b".to_vec()], [Value::Int(1), Value::Array(Vec::new())]);
        check(&other_type, None, KeyContents::Outdated(value.clone()));
    }
}
