//! `GET /events`: invalidations as server-sent events.
//!
//! Owns the one subscription to the broadcast that all clients share, and their streams. It must
//! not know how messages are made. Invariants: a client receives everything that was broadcast
//! after the id it named, or a flush; a slow client delays no other and takes no memory.

mod backlog;

use std::borrow::Cow;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use redis::aio::{MultiplexedConnection, PubSubSink, PubSubStream};
use redis::{Client, Cmd, ConnectionInfo, Pipeline, RedisError, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::backlog::Backlog;
use super::problem::HttpProblem;
use crate::backoff::{Backoff, Notices};
use crate::coherence::watermark::Names;
use crate::redis::in_time;

/// The most clients at once.
const CLIENTS_MAX: usize = 1_000;

/// `Retry-After` if there are already as many clients.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The interval of comments on a quiet stream: many proxies close a connection after a quiet
/// minute.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How long no message may arrive before Redis is asked whether it is there, and takes writes.
const QUIET_MAX: Duration = Duration::from_secs(10);

/// How long one step of the subscription may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The header with the id that a client received last.
const LAST_EVENT_ID: &str = "last-event-id";

/// The same as a query parameter, for browsers: they send the header only when they reconnect.
const LAST_EVENT_ID_PARAMETER: &str = "last_event_id";

/// The broadcasts, for all clients.
#[derive(Debug)]
pub(super) struct Events {
    backlog: Mutex<Backlog>,
    /// Notified when the backlog has changed.
    changed: watch::Sender<()>,
    slots: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Events {
    /// Subscribes in the background until `stop`, and again whenever the connection breaks.
    pub(super) fn start(
        info: &ConnectionInfo,
        names: &Names,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, RedisError> {
        let events = Arc::new(Self {
            backlog: Mutex::default(),
            changed: watch::Sender::new(()),
            slots: Arc::new(Semaphore::new(CLIENTS_MAX)),
            stop: stop.clone(),
        });
        let subscription = Subscription {
            events: Arc::clone(&events),
            client: crate::redis::open_client(info)?,
            address: info.addr().to_string(),
            names: names.clone(),
        };
        let stop = stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(subscription.keep()).await });
        Ok(events)
    }

    /// A poisoned lock is no problem: no method of the backlog can panic halfway.
    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Backlog)) {
        change(&mut self.backlog());
        self.changed.send_replace(());
    }
}

/// Keeps the backlog up to date with Redis.
struct Subscription {
    events: Arc<Events>,
    client: Client,
    address: String,
    names: Names,
}

/// The id of the last broadcast, and the epoch, as Redis holds them.
type LastBroadcast = (Option<Vec<u8>>, Option<Vec<u8>>);

/// An open subscription, and a connection for questions to the same server.
struct Opened {
    sink: PubSubSink,
    messages: PubSubStream,
    connection: MultiplexedConnection,
}

impl Subscription {
    async fn keep(self) {
        let (mut backoff, mut notices) = (Backoff::default(), Notices::default());
        loop {
            let error = match self.open().await {
                Ok(opened) => {
                    if notices.any() {
                        tracing::info!(redis = self.address, "subscribed to the broadcast again");
                    }
                    (backoff, notices) = (Backoff::default(), Notices::default());
                    self.receive(opened).await
                }
                Err(error) => error,
            };
            if notices.due(Instant::now()) {
                let error = crate::redis::describe(&error);
                tracing::warn!(redis = self.address, error, "no events: cannot subscribe to the broadcast in Redis");
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Subscribes, and only then asks for the last broadcast, so that none is missed in between.
    async fn open(&self) -> Result<Opened, RedisError> {
        let (mut sink, mut messages) = crate::redis::subscriber(&self.client).await?.split();
        let mut mget = redis::cmd("MGET");
        mget.arg(self.names.last_broadcast.as_bytes()).arg(self.names.epoch.as_bytes());
        let mut pipeline = Pipeline::new();
        pipeline.add_command(mget).add_command(self.require_primary());
        let asked = async {
            sink.subscribe(self.names.invalidations.as_bytes()).await?;
            let mut connection = crate::redis::connect(&self.client, ANSWER_MAX).await?;
            let (answer, _): (LastBroadcast, u64) = pipeline.query_async(&mut connection).await?;
            // On the subscription: when Redis answers, all broadcasts before the answer have
            // arrived.
            sink.ping::<Value>().await?;
            Ok::<_, RedisError>((answer, connection))
        };
        let ((last, epoch), connection) = in_time(ANSWER_MAX, asked).await?;
        self.events.change(|backlog| {
            let mut is_linked = false;
            while let Some(Some(message)) = messages.next().now_or_never() {
                is_linked |= backlog.append(message.get_payload_bytes());
            }
            // A message names the previous one, so the answer of Redis is not needed.
            if !is_linked {
                backlog.align(last.as_deref(), epoch.as_deref());
            }
        });
        Ok(Opened { sink, messages, connection })
    }

    /// A command that only a server that takes writes answers. A replica passes broadcasts on, but
    /// not while it has lost its primary.
    fn require_primary(&self) -> Cmd {
        redis::cmd("DEL").arg(self.names.probe.as_bytes()).clone()
    }

    /// Appends messages until the connection ends. Returns why it did.
    async fn receive(&self, Opened { mut sink, mut messages, mut connection }: Opened) -> RedisError {
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => self.events.change(|backlog| {
                        backlog.append(message.get_payload_bytes());
                    }),
                    None => return io::Error::from(io::ErrorKind::ConnectionReset).into(),
                },
                () = tokio::time::sleep(QUIET_MAX) => {
                    let asked = async {
                        sink.ping::<Value>().await?;
                        self.require_primary().exec_async(&mut connection).await
                    };
                    if let Err(error) = in_time(ANSWER_MAX, asked).await {
                        return error;
                    }
                }
            }
        }
    }
}

/// Answers `GET /events`.
pub(super) fn get(events: &Arc<Events>, headers: &HeaderMap, query: &str) -> Response {
    let Ok(slot) = Arc::clone(&events.slots).try_acquire_owned() else {
        return HttpProblem::unavailable("there are already as many clients of /events as allowed", RETRY_AFTER)
            .into_response();
    };
    let client = EventClient::new(events, last_event_id(headers, query).as_deref(), slot);
    let mut response = Response::new(Body::from_stream(client.stream()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would buffer the stream.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Any bytes. The header takes precedence: a browser that reconnects repeats the query of its first
/// request.
fn last_event_id<'a>(headers: &'a HeaderMap, query: &'a str) -> Option<Cow<'a, [u8]>> {
    let header = headers.get(LAST_EVENT_ID).map(|id| Cow::Borrowed(id.as_bytes()));
    let parameters = || query.split('&').filter_map(|pair| pair.split_once('='));
    header
        .or_else(|| {
            let (_, id) = parameters().find(|(name, _)| *name == LAST_EVENT_ID_PARAMETER)?;
            Some(percent_encoding::percent_decode_str(id).into())
        })
        .filter(|id| !id.is_empty())
}

/// One client of the stream.
struct EventClient {
    events: Arc<Events>,
    changed: watch::Receiver<()>,
    /// The text to send first.
    opening: Option<Bytes>,
    /// The number of the next entry to send.
    next_entry: u64,
    /// Freed when the client disconnects.
    _slot: OwnedSemaphorePermit,
}

impl EventClient {
    fn new(events: &Arc<Events>, last: Option<&[u8]>, slot: OwnedSemaphorePermit) -> Self {
        let changed = events.changed.subscribe();
        let (next_entry, opening) = events.backlog().resume(last);
        Self { events: Arc::clone(events), changed, opening: Some(opening), next_entry, _slot: slot }
    }

    fn stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        stream::unfold(self, |mut client| async move {
            let text = client.next().await?;
            Some((Ok(text), client))
        })
    }

    /// The next text to send; None when the API stops.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.events.stop.is_cancelled() {
                return None;
            }
            let entry = self.opening.take().or_else(|| self.events.backlog().next(&mut self.next_entry));
            if entry.is_some() {
                return entry;
            }
            tokio::select! {
                biased;
                () = self.events.stop.cancelled() => return None,
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep(HEARTBEAT) => return Some(Bytes::from_static(b":\n\n")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_id_is_in_the_header_or_in_the_query() {
        let check = |header: Option<&[u8]>, query: &str, expected: Option<&[u8]>| {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(LAST_EVENT_ID, HeaderValue::from_bytes(header).unwrap());
            }
            assert_eq!(last_event_id(&headers, query).as_deref(), expected, "{header:?} {query:?}");
        };
        check(None, "", None);
        check(Some(b"a-1"), "", Some(b"a-1"));
        check(Some(b"a-2"), "last_event_id=a-1", Some(b"a-2"));
        check(Some(b""), "last_event_id=a-1", None);
        check(None, "x=1&last_event_id=a%2D1", Some(b"a-1"));
        check(None, "last_event_id=", None);
        check(None, "last_event_id", None);
        check(None, "last_event_id=%0d%0aevent:%ff", Some(b"\r\nevent:\xff"));
        check(Some(b"\xff\xfe"), "", Some(b"\xff\xfe"));
    }
}
