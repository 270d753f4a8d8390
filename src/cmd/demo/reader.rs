//! Reads through the API, as an application does.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt as _;

use crate::api::Front;
use crate::cmd::config_file::ConfigFile;
use crate::cmd::failure::Failure;
use crate::reads::{ParameterSource, ReadSet};
use crate::rules::Filter;

/// A client of the API, without a socket.
pub(super) struct ApiReader {
    front: Front,
    pub(super) reads: ReadSet,
    pub(super) namespace: String,
}

impl ApiReader {
    pub(super) fn new(front: Front, file: &ConfigFile) -> Self {
        Self { front, reads: file.reads.clone(), namespace: file.settings.namespace.clone() }
    }

    /// Fills the cache as traffic would.
    pub(super) async fn warm(&self, users: u32) -> Result<(), Failure> {
        for number in 1..=users / 5 {
            self.read(&format!("user:u{number}")).await?;
            self.read(&format!("user-email:user{number}@example.com")).await?;
        }
        for number in 1..=users / 10 {
            for prefix in ["org", "org-members", "flags"] {
                self.read(&format!("{prefix}:o{number}")).await?;
            }
        }
        Ok(())
    }

    /// Reads what is cached under these keys.
    pub(super) async fn refill(&self, keys: &[String]) -> Result<(), Failure> {
        for key in keys {
            self.read(key).await?;
        }
        Ok(())
    }

    /// Reads what is cached under a key, if a read caches there.
    async fn read(&self, key: &str) -> Result<(), Failure> {
        if let Some(path) = self.path(key) {
            self.get(&path, "max-age=60").await?;
        }
        Ok(())
    }

    /// The path of the read that caches under a key.
    pub(super) fn path(&self, key: &str) -> Option<String> {
        let name = format!("{}{key}", self.namespace);
        let mut found = self.reads.reads().iter().filter_map(|read| Some((read, read.arguments(name.as_bytes())?)));
        let (read, values) = found.next()?;
        let mut path = read.path.as_str().to_owned();
        for (parameter, value) in read.parameters.iter().zip(values) {
            if parameter.source != ParameterSource::Path {
                // Only the bearer of a token may ask for it.
                return None;
            }
            let value = String::from_utf8(Filter::Urlencode.apply(&value?)).ok()?;
            path = path.replace(&format!("{{{}}}", parameter.name), &value);
        }
        Some(path)
    }

    /// The JSON at a path, or nothing if the answer is 404.
    pub(super) async fn get(&self, path: &str, cache_control: &str) -> Result<Option<Vec<u8>>, Failure> {
        let failure = |error: &dyn std::fmt::Display| Failure::findings(format!("{path}: {error}"));
        let request = Request::get(path).header("cache-control", cache_control).body(Body::empty());
        let answer = self.front.answer(request.map_err(|error| failure(&error))?).await;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| failure(&error))?.to_bytes();
        match status {
            StatusCode::OK => Ok(Some(body.to_vec())),
            StatusCode::NOT_FOUND => Ok(None),
            other => Err(failure(&format!("{other}: {}", String::from_utf8_lossy(&body)))),
        }
    }
}
