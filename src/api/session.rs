//! Sessions: which session and user a bearer token stands for.
//!
//! Owns the way from a token to a session (its hash, the read that resolves it) and prolonging a
//! session in use. It must not know what a session permits. Invariant: a token leaves this file
//! only as its SHA-256; no key, log line or message contains it.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use redis::RedisError;
use sha2::{Digest as _, Sha256};

use super::cache::Cache;
use super::error::ReadError;
use super::question::{CacheControl, Question};
use super::reader::Reader;
use super::shared::Shared;
use crate::causes::with_causes;
use crate::change::Lsn;
use crate::coherence::watermark::Names;
use crate::config::api::SessionSettings;

/// The longest token, in bytes. A longer one counts as none.
const TOKEN_MAX: usize = 4096;

/// The sessions of an API.
#[derive(Debug)]
pub(super) struct Sessions {
    settings: SessionSettings,
    /// The read that resolves a token, by its position.
    read: usize,
    names: Names,
}

/// The SHA-256 of a token in lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenHash(String);

/// A valid session.
#[derive(Clone, Debug)]
pub(super) struct ClientSession {
    pub(super) hash: TokenHash,
    /// The user, if `api.session.user` names a field and the session has it.
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
    pub(super) fn new(settings: SessionSettings, read: usize, names: Names) -> Self {
        Self { settings, read, names }
    }

    /// Whether a read is the one that resolves tokens.
    pub(super) fn is_read(&self, read: usize) -> bool {
        self.read == read
    }

    /// Whether a path needs a session.
    pub(super) fn is_required(&self, path: &str) -> bool {
        self.settings.required.iter().any(|glob| glob.matches(path))
    }

    /// Whether a request proceeds if its session cannot be verified.
    pub(super) fn fails_open(&self) -> bool {
        self.settings.on_error == crate::config::api::OnError::Open
    }

    /// The session of a token; None if there is none, or it has ended. The answer contains every
    /// commit up to `min`, so that a new login is known to every instance.
    pub(super) async fn resolve(
        &self,
        reader: &Reader,
        hash: TokenHash,
        min: Option<Lsn>,
    ) -> Result<Option<ClientSession>, ReadError> {
        let arguments = vec![Some(hash.as_str().as_bytes().to_vec())];
        let question = Question { read: self.read, arguments, min, control: CacheControl::Serve };
        let Some(body) = reader.answer(question).await?.body else { return Ok(None) };
        Ok(Some(ClientSession { hash, user: self.user(&body) }))
    }

    /// The user in the session's JSON.
    fn user(&self, body: &[u8]) -> Option<String> {
        let field = self.settings.user.as_deref()?;
        match serde_json::from_slice::<serde_json::Value>(body).ok()?.get(field)? {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// Prolongs a session that is in use, in the background and at most once in
    /// `api.session.sliding.every`.
    pub(super) fn prolong(&self, cache: &Arc<Cache>, shared: &Arc<Shared>, hash: &TokenHash) {
        let Some(sliding) = self.settings.sliding.clone() else { return };
        let Ok(mut connection) = cache.connection() else { return };
        let (cache, shared, hash) = (Arc::clone(cache), Arc::clone(shared), hash.clone());
        let mark = self.names.touched(hash.as_str());
        tokio::spawn(async move {
            let every = u64::try_from(sliding.every.max(Duration::from_millis(1)).as_millis()).unwrap_or(u64::MAX);
            let mut set = redis::cmd("SET");
            set.arg(mark.as_bytes()).arg(1).arg("NX").arg("PX").arg(every);
            let first: Result<Option<String>, RedisError> = set.query_async(&mut connection).await;
            if let Ok(Some(_)) = cache.observe(first)
                && let Err(error) = shared.upstream.execute(&sliding.sql, hash.as_str().as_bytes()).await
            {
                tracing::warn!(
                    error = with_causes(&error),
                    "a session could not be prolonged; see api.session.sliding"
                );
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bearer_tokens_count() {
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
    fn a_token_is_hashed_with_sha256() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, "Bearer abc".parse().unwrap());
        let hash = TokenHash::of(&headers).unwrap();
        assert_eq!(hash.as_str(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
