//! Who a bearer token stands for.
//!
//! Owns the way from a token to a session: its hash, the read that resolves it, moving its end on. It must not know what
//! the session permits. Invariant: a token leaves this file only as its SHA-256; it is in no key, log or message.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use redis::RedisError;
use sha2::{Digest as _, Sha256};

use super::reader::{Control, Question, ReadError, Reader};
use crate::change::Lsn;
use crate::coherence::watermark::Names;
use crate::config::api::SessionSettings as Settings;

/// The longest token that is taken for one, in bytes.
const TOKEN_MAX: usize = 4096;

/// The sessions of an API.
#[derive(Debug)]
pub(super) struct Sessions {
    settings: Settings,
    /// The read that resolves a token, by its position.
    read: usize,
    names: Names,
}

/// The SHA-256 of a token, in lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenHash(String);

/// A session that is valid.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) hash: TokenHash,
    /// The user, if the session names one.
    pub(super) user: Option<String>,
}

impl TokenHash {
    /// The hash of the bearer token of a request, if it has one. RFC 6750, section 2.1.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(header::AUTHORIZATION)?.as_bytes();
        let (scheme, rest) = value.split_at_checked("Bearer ".len())?;
        let token = rest.trim_ascii();
        let is_token = (1..=TOKEN_MAX).contains(&token.len()) && token.iter().all(u8::is_ascii_graphic);
        (scheme.eq_ignore_ascii_case(b"Bearer ") && is_token)
            .then(|| Self(Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Sessions {
    pub(super) fn new(settings: Settings, read: usize, names: Names) -> Self {
        Self { settings, read, names }
    }

    /// Whether a read is the one that resolves tokens.
    pub(super) fn is_read(&self, read: usize) -> bool {
        self.read == read
    }

    /// Whether nobody may see a path without a session.
    pub(super) fn is_required(&self, path: &str) -> bool {
        self.settings.required.iter().any(|glob| glob.matches(path))
    }

    /// Whether a request goes on when nobody can say whether its session is valid.
    pub(super) fn is_open(&self) -> bool {
        self.settings.on_error == crate::config::api::OnError::Open
    }

    /// The session of a token; nothing if there is none, or it is over.
    /// The answer contains every commit up to `min`: who has just logged in is known everywhere.
    pub(super) async fn resolve(
        &self,
        reader: &Arc<Reader>,
        hash: TokenHash,
        min: Option<Lsn>,
    ) -> Result<Option<Session>, ReadError> {
        let arguments = vec![Some(hash.as_str().as_bytes().to_vec())];
        let question = Question { read: self.read, arguments, min, control: Control::Serve };
        let Some(body) = reader.answer(question).await?.body else { return Ok(None) };
        Ok(Some(Session { hash, user: self.user(&body) }))
    }

    /// The user that a session's JSON names.
    fn user(&self, body: &[u8]) -> Option<String> {
        let field = self.settings.user.as_deref()?;
        match serde_json::from_slice::<serde_json::Value>(body).ok()?.get(field)? {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// Moves the end of a session on, because it is used; now and then is enough.
    pub(super) fn touch(&self, reader: &Arc<Reader>, hash: &TokenHash) {
        let Some(sliding) = self.settings.sliding.clone() else { return };
        let Ok(mut connection) = reader.cache.connection() else { return };
        let (reader, hash) = (Arc::clone(reader), hash.clone());
        let mark = self.names.touched(hash.as_str());
        tokio::spawn(async move {
            let every = u64::try_from(sliding.every.max(Duration::from_millis(1)).as_millis()).unwrap_or(u64::MAX);
            let mut set = redis::cmd("SET");
            set.arg(mark.as_bytes()).arg(1).arg("NX").arg("PX").arg(every);
            let first: Result<Option<String>, RedisError> = set.query_async(&mut connection).await;
            if let Ok(Some(_)) = reader.cache.noted(first)
                && let Err(error) = reader.primary().touch(&sliding.sql, hash.as_str().as_bytes()).await
            {
                tracing::warn!(%error, "the end of a session could not be moved on: api.session.sliding");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_token_is_a_token() {
        let check = |value: &[u8], expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, axum::http::HeaderValue::from_bytes(value).unwrap());
            assert_eq!(TokenHash::of(&headers).is_some(), expected, "{value:?}");
        };
        check(b"Bearer abc", true);
        check(b"bearer  abc ", true);
        check(b"Bearer ", false);
        check(b"Bearer a b", false);
        check(b"Bearer \xff\xfe", false);
        check(b"Basic abc", false);
        check(b"", false);
        check(&[b"Bearer ", &[b'x'; TOKEN_MAX + 1][..]].concat(), false);
        assert_eq!(TokenHash::of(&HeaderMap::new()), None);
    }

    #[test]
    fn a_token_is_known_by_its_sha256() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, "Bearer abc".parse().unwrap());
        let hash = TokenHash::of(&headers).unwrap();
        assert_eq!(hash.as_str(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
