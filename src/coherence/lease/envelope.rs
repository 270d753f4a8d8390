//! What a leased key holds: a lease, or a value in its envelope.
//!
//! Owns both forms, which clients in other languages also read and write. It must not know Redis.
//! Invariant: the first 34 bytes of either are its token, and no two tokens are equal.

use sha2::{Digest as _, Sha256};

use super::tag_generation::TagGeneration;
use crate::change::Lsn;

/// Hexadecimal digits of a nonce: 128 bits.
const NONCE_DIGITS: usize = 32;

/// What a fill compares: `L:` and a nonce while leased, then `V:` and the nonce of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    kind: char,
    nonce: String,
}

impl Token {
    /// The token of a new lease.
    pub fn random() -> Self {
        Self { kind: 'L', nonce: nonce() }
    }

    /// The nonce of a new value.
    pub fn of_new_value() -> Self {
        Self { kind: 'V', nonce: nonce() }
    }

    /// A new generation of a tag: digits of which no two are equal. It must not be another token's
    /// digits, because several fillers may hold one token.
    pub(super) fn new_generation() -> String {
        nonce()
    }

    /// Whether it is the token of a lease, not of a value.
    pub fn is_lease(&self) -> bool {
        self.kind == 'L'
    }

    /// What the key holds while leased: the token and nothing else.
    pub fn lease(&self) -> String {
        self.prefix()
    }

    /// The beginning of what the key holds.
    pub fn prefix(&self) -> String {
        format!("{}:{}", self.kind, self.nonce)
    }

    /// Whether a key that holds these bytes is leased.
    pub fn is_lease_text(held: &[u8]) -> bool {
        held.len() == NONCE_DIGITS + 2 && held.starts_with(b"L:")
    }
}

fn nonce() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// A cached value and what readers need to know of it. In Redis it is one line, `V:<nonce> <lo>
/// <stored at> <soft ttl> <etag>`, then ` <tags>` if it has any, and then the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The value's own token, with which it is refreshed.
    pub nonce: Token,
    /// The value contains every commit up to this position.
    pub lo: Lsn,
    /// When it was stored, in milliseconds since 1970.
    pub stored_at: u64,
    /// After this many milliseconds it is served and refreshed; 0 means never.
    pub soft_ttl: u64,
    /// The HTTP entity tag of the body, without quotes; may be empty. A tag that is not printable
    /// ASCII without spaces is not stored.
    pub etag: String,
    /// The tags by which rules find it, each with the generation that it had before the value was
    /// read.
    pub tags: Vec<TagGeneration>,
    /// What is cached.
    pub body: Vec<u8>,
}

impl Envelope {
    /// The entity tag of a body: half of its SHA-256, as 32 hexadecimal digits.
    pub fn etag_of(body: &[u8]) -> String {
        Sha256::digest(body).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The form in which Redis holds it.
    pub fn encode(&self) -> Vec<u8> {
        let Self { nonce, lo, stored_at, soft_ttl, etag, tags, body } = self;
        let etag = if is_etag(etag) { etag } else { "" };
        let line = format!("{} {} {stored_at} {soft_ttl} {etag}", nonce.prefix(), lo.to_fixed_hex());
        let tags = if tags.is_empty() { String::new() } else { format!(" {}", TagGeneration::encode(tags)) };
        [line.as_bytes(), tags.as_bytes(), b"\n", body].concat()
    }

    /// The tags of what [`Envelope::encode`] wrote, without its body. Empty if the bytes are not an
    /// envelope.
    pub fn tags_of(held: &[u8]) -> Vec<TagGeneration> {
        let line = held.iter().position(|&byte| byte == b'\n').and_then(|end| held.get(..=end));
        line.and_then(Self::decode).map(|value| value.tags).unwrap_or_default()
    }

    /// Reads what [`Envelope::encode`] wrote. None if the bytes are not an envelope.
    pub fn decode(held: &[u8]) -> Option<Self> {
        let end = held.iter().position(|&byte| byte == b'\n')?;
        let (line, body) = (std::str::from_utf8(held.get(..end)?).ok()?, held.get(end + 1..)?);
        let mut fields = line.split(' ');
        let nonce = fields.next()?.strip_prefix("V:")?;
        if nonce.len() != NONCE_DIGITS || !nonce.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let envelope = Self {
            nonce: Token { kind: 'V', nonce: nonce.to_owned() },
            lo: Lsn::from_fixed_hex(fields.next()?)?,
            stored_at: fields.next()?.parse().ok()?,
            soft_ttl: fields.next()?.parse().ok()?,
            etag: fields.next().filter(|etag| is_etag(etag))?.to_owned(),
            tags: fields.next().map_or_else(|| Some(Vec::new()), TagGeneration::decode)?,
            body: body.to_vec(),
        };
        fields.next().is_none().then_some(envelope)
    }
}

/// Whether it can be part of the line, and of an HTTP header.
fn is_etag(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_envelope_survives_redis(
            (lo, stored_at, soft_ttl) in any::<(u64, u64, u64)>(),
            etag in "[!-~]{0,40}",
            tags in prop::collection::vec(any::<Vec<u8>>(), 0..3),
            body: Vec<u8>,
        ) {
            let (nonce, lo) = (Token::of_new_value(), Lsn::new(lo));
            let tag = |tag: Vec<u8>| TagGeneration { tag, generation: Token::new_generation() };
            let tags: Vec<_> = tags.into_iter().map(tag).collect();
            let envelope = Envelope { nonce, lo, stored_at, soft_ttl, etag, tags: tags.clone(), body };
            let bytes = envelope.encode();
            prop_assert_eq!(Envelope::tags_of(&bytes), tags);
            prop_assert!(bytes.starts_with(envelope.nonce.prefix().as_bytes()));
            prop_assert!(!Token::is_lease_text(&bytes));
            prop_assert_eq!(Envelope::decode(&bytes), Some(envelope));
        }

        /// Close to an envelope, because random bytes are far from one: the bytes mean what they
        /// would mean if `encode` had written them, or nothing.
        #[test]
        fn a_foreign_value_is_not_an_envelope(at in 0..70_usize, byte: u8, cut in 0..90_usize) {
            let etag = "e".to_owned();
            let nonce = Token::of_new_value();
            let (lo, tags, body) = (Lsn::new(7), Vec::new(), b"b".to_vec());
            let own = Envelope { nonce, lo, stored_at: 1, soft_ttl: 0, etag, tags, body };
            let mut bytes = own.encode();
            bytes.truncate(cut);
            bytes.get_mut(at).into_iter().for_each(|old| *old = byte);
            if let Some(found) = Envelope::decode(&bytes) {
                prop_assert!(cut > 56 && bytes[34] == b' ');
                prop_assert_eq!(Envelope::decode(&found.encode()), Some(found));
            }
        }

        #[test]
        fn an_etag_cannot_break_the_line(etag: String) {
            let nonce = Token::of_new_value();
            let (lo, tags, body) = (Lsn::ZERO, Vec::new(), Vec::new());
            let envelope = Envelope { nonce, lo, stored_at: 1, soft_ttl: 0, etag, tags, body };
            prop_assert!(Envelope::decode(&envelope.encode()).is_some());
        }
    }

    #[test]
    fn a_lease_is_its_token_and_nothing_else() {
        let token = Token::random();
        assert!(Token::is_lease_text(token.lease().as_bytes()));
        assert!(!Token::is_lease_text(b"L:short"));
        assert_ne!(token, Token::random());
    }
}
