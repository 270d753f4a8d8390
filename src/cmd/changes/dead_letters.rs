//! The dead letters in Redis, oldest first.
//!
//! Owns how their stream is read. It must not know what a change is. Invariant: reading does not
//! remove them.

use std::collections::VecDeque;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};

use crate::cmd::display::printable;
use crate::cmd::failure::Failure;
use crate::coherence::watermark::Names;
use crate::config::Settings;
use crate::key::CacheKey;

/// How many entries are read at once.
const PAGE_ENTRIES: usize = 100;

/// How long to wait for a connection, and for each answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A dead letter, without its change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeadLetterEntry {
    /// Its id in the stream.
    pub(super) id: String,
    /// The rule that could not be applied to the change.
    pub(super) rule: String,
}

/// Reads the dead letters, page by page.
pub(super) struct DeadLetterReader {
    connection: MultiplexedConnection,
    address: String,
    stream: CacheKey,
    /// Where the next page begins, as `XRANGE` takes it.
    from: String,
    page: VecDeque<StreamRow>,
}

/// An entry of the stream: its id, then fields and values.
type StreamRow = (String, Vec<(String, Vec<u8>)>);

impl DeadLetterReader {
    /// Connects to Redis. The first entry is the oldest.
    pub(super) async fn open(settings: &Settings) -> Result<Self, Failure> {
        let address = settings.redis.addr().to_string();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_MAX))
            .set_response_timeout(Some(ANSWER_MAX));
        let opened = async {
            let client = Client::open(settings.redis.clone())?;
            client.get_multiplexed_async_connection_with_config(&config).await
        };
        let connection = opened.await.map_err(|error| unreadable(&address, &error))?;
        let stream = Names::new(&settings.namespace, &settings.slot).dead;
        Ok(Self { connection, address, stream, from: "-".to_owned(), page: VecDeque::new() })
    }

    /// The next dead letter, and its change as one line of a recording.
    pub(super) async fn next(&mut self) -> Result<Option<(DeadLetterEntry, Vec<u8>)>, Failure> {
        if self.page.is_empty() {
            let mut range = redis::cmd("XRANGE");
            range.arg(self.stream.as_bytes()).arg(&self.from).arg("+").arg("COUNT").arg(PAGE_ENTRIES);
            let page: Vec<StreamRow> =
                range.query_async(&mut self.connection).await.map_err(|error| unreadable(&self.address, &error))?;
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
        Ok(Some((DeadLetterEntry { id, rule }, change)))
    }
}

fn unreadable(address: &str, error: &RedisError) -> Failure {
    let reason = printable(crate::redis::describe(error));
    Failure::unavailable(format!("cannot read the dead letters in Redis at {address}: {reason}"))
}
