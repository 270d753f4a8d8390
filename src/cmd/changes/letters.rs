//! The dead letters in Redis, oldest first.
//!
//! Owns how their stream is read. It must not know what a change is. Invariant: reading leaves them where they are.

use std::collections::VecDeque;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};

use super::printable;
use crate::cmd::Failure;
use crate::coherence::watermark::Names;
use crate::config::Settings;
use crate::key::CacheKey;

/// How many are fetched at once.
const LETTERS_AT_ONCE: usize = 100;

/// How long to wait for a connection, and for each answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// One dead letter, but for its change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Letter {
    /// By what the stream knows it.
    pub(super) id: String,
    /// The rule that the change could not be held against.
    pub(super) rule: String,
}

/// An entry of the stream: its id, then fields and values.
type Entry = (String, Vec<(String, Vec<u8>)>);

/// The dead letters, on their way.
pub(super) struct Letters {
    link: MultiplexedConnection,
    address: String,
    stream: CacheKey,
    /// Where the next page begins, as `XRANGE` takes it.
    from: String,
    page: VecDeque<Entry>,
}

impl Letters {
    /// Begins at the oldest.
    pub(super) async fn open(settings: &Settings) -> Result<Self, Failure> {
        let address = settings.redis.addr().to_string();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_MAX))
            .set_response_timeout(Some(ANSWER_MAX));
        let opened = async {
            let client = Client::open(settings.redis.clone())?;
            client.get_multiplexed_async_connection_with_config(&config).await
        };
        let link = opened.await.map_err(|error| unread(&address, &error))?;
        let stream = Names::new(&settings.namespace, &settings.slot).dead;
        Ok(Self { link, address, stream, from: "-".to_owned(), page: VecDeque::new() })
    }

    /// The next one, and its change as one line of a recording.
    pub(super) async fn next(&mut self) -> Result<Option<(Letter, Vec<u8>)>, Failure> {
        if self.page.is_empty() {
            let mut range = redis::cmd("XRANGE");
            range.arg(self.stream.as_bytes()).arg(&self.from).arg("+").arg("COUNT").arg(LETTERS_AT_ONCE);
            let page: Vec<Entry> =
                range.query_async(&mut self.link).await.map_err(|error| unread(&self.address, &error))?;
            self.page = page.into();
        }
        let Some((id, fields)) = self.page.pop_front() else { return Ok(None) };
        self.from = format!("({id}");
        let (mut rule, mut change) = (String::new(), Vec::new());
        for (field, value) in fields {
            match field.as_str() {
                "rule" => rule = String::from_utf8_lossy(&value).into_owned(),
                "change" => change = value,
                _ => {}
            }
        }
        Ok(Some((Letter { id, rule }, change)))
    }
}

fn unread(address: &str, error: &RedisError) -> Failure {
    let said = crate::redis::describe(error);
    Failure::unavailable(format!("cannot read the dead letters in Redis at {address}: {}", printable(&said)))
}
