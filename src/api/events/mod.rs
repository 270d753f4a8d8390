//! `GET /events`: what was invalidated, as server-sent events.
//!
//! Owns the one subscription to the broadcast that all followers share, and their streams. It must not know how messages
//! are made. Invariants: a follower is told everything that was broadcast after the id it named, or to forget
//! everything; a slow one holds up nobody and takes no memory.

mod ring;

use std::borrow::Cow;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Client, ConnectionInfo, RedisError, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::ring::Ring;
use super::problem::Problem;
use crate::backoff::{Backoff, Notices};
use crate::coherence::watermark::Names;
use crate::redis::in_time;

/// How many may follow at once.
const FOLLOWERS_MAX: usize = 1_000;

/// When whoever found no seat should come back.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// A quiet stream says so often that it still stands; proxies end what says nothing for a minute.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// After so long without a message Redis is asked whether it is still there.
const QUIET_MAX: Duration = Duration::from_secs(10);

/// How long one step of the subscription may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// By which a follower says what it was told last.
const LAST_EVENT_ID: &str = "last-event-id";

/// The same, for browsers: they set the header only when they reconnect by themselves.
const LAST_EVENT_ID_PARAMETER: &str = "last_event_id";

/// The broadcasts, for everybody who follows them.
#[derive(Debug)]
pub(super) struct Events {
    ring: Mutex<Ring>,
    /// There is something new in the ring.
    news: watch::Sender<()>,
    seats: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Events {
    /// Begins to listen, and goes on until `stop`, whatever becomes of Redis meanwhile.
    pub(super) fn start(
        info: &ConnectionInfo,
        names: &Names,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, RedisError> {
        let events = Arc::new(Self {
            ring: Mutex::default(),
            news: watch::Sender::new(()),
            seats: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
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

    /// Nothing that is done to the ring can leave it half done.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Ring)) {
        change(&mut self.ring());
        self.news.send_replace(());
    }
}

/// What keeps the ring in step with Redis.
struct Subscription {
    events: Arc<Events>,
    client: Client,
    address: String,
    names: Names,
}

impl Subscription {
    async fn keep(self) {
        let (mut backoff, mut notices) = (Backoff::default(), Notices::default());
        loop {
            let error = match self.open().await {
                Ok((sink, messages)) => {
                    if notices.any() {
                        tracing::info!(redis = self.address, "the events come again");
                    }
                    (backoff, notices) = (Backoff::default(), Notices::default());
                    self.follow(sink, messages).await
                }
                Err(error) => error,
            };
            if notices.due() {
                let error = crate::redis::describe(&error);
                tracing::warn!(redis = self.address, error, "no events come: cannot listen to Redis");
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Subscribes, and only then asks what was broadcast last: so nothing falls in between.
    async fn open(&self) -> Result<(PubSubSink, PubSubStream), RedisError> {
        let (mut sink, mut messages) = crate::redis::subscriber(&self.client).await?.split();
        let mut mget = redis::cmd("MGET");
        mget.arg(self.names.last_broadcast.as_bytes()).arg(self.names.epoch.as_bytes());
        let asked = async {
            sink.subscribe(self.names.invalidations.as_bytes()).await?;
            let mut link = crate::redis::connect(&self.client, ANSWER_MAX).await?;
            let answer: (Option<Vec<u8>>, Option<Vec<u8>>) = mget.query_async(&mut link).await?;
            // On the connection that listens: what was broadcast before Redis answered has arrived now.
            sink.ping::<Value>().await?;
            Ok::<_, RedisError>(answer)
        };
        let (last, epoch) = in_time(ANSWER_MAX, asked).await?;
        self.events.change(|ring| {
            let mut is_linked = false;
            while let Some(Some(message)) = messages.next().now_or_never() {
                is_linked |= ring.take(message.get_payload_bytes());
            }
            // A message names the one before it, which is all that there is to know.
            if !is_linked {
                ring.stand_at(last.as_deref(), epoch.as_deref());
            }
        });
        Ok((sink, messages))
    }

    /// Takes what comes until the connection ends; why it did.
    async fn follow(&self, mut sink: PubSubSink, mut messages: PubSubStream) -> RedisError {
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => self.events.change(|ring| {
                        ring.take(message.get_payload_bytes());
                    }),
                    None => return io::Error::from(io::ErrorKind::ConnectionReset).into(),
                },
                () = tokio::time::sleep(QUIET_MAX) => {
                    if let Err(error) = in_time(ANSWER_MAX, sink.ping::<Value>()).await {
                        return error;
                    }
                }
            }
        }
    }
}

/// Answers `GET /events`.
pub(super) fn get(events: &Arc<Events>, headers: &HeaderMap, query: &str) -> Response {
    let Ok(seat) = Arc::clone(&events.seats).try_acquire_owned() else {
        return Problem::unavailable("as many follow the events as may", RETRY_AFTER).into_response();
    };
    let follower = Follower::new(events, last_event_id(headers, query).as_deref(), seat);
    let mut response = Response::new(Body::from_stream(follower.stream()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would hold back what comes little by little.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Any bytes. The header goes first: a browser that reconnects has what the page named at first in its query still.
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

/// One client.
struct Follower {
    events: Arc<Events>,
    news: watch::Receiver<()>,
    /// What it is told first.
    opening: Option<Bytes>,
    /// The number of the entry that it is told next.
    cursor: u64,
    /// Goes with it.
    _seat: OwnedSemaphorePermit,
}

impl Follower {
    fn new(events: &Arc<Events>, last: Option<&[u8]>, seat: OwnedSemaphorePermit) -> Self {
        let news = events.news.subscribe();
        let (cursor, opening) = events.ring().begin(last);
        Self { events: Arc::clone(events), news, opening: Some(opening), cursor, _seat: seat }
    }

    fn stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        stream::unfold(self, |mut follower| async move {
            let text = follower.next().await?;
            Some((Ok(text), follower))
        })
    }

    /// What it is told next; nothing at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.events.stop.is_cancelled() {
                return None;
            }
            let entry = self.opening.take().or_else(|| self.events.ring().after(&mut self.cursor));
            if entry.is_some() {
                return entry;
            }
            tokio::select! {
                biased;
                () = self.events.stop.cancelled() => return None,
                changed = self.news.changed() => changed.ok()?,
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
