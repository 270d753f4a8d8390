//! Connections: accepted, bounded, and brought to an end.
//!
//! Owns the listener, how many connections there are, how long a client may take to say what it wants, and the drain. It
//! must not know what is asked. Invariants: a client that says nothing holds nothing but its connection, and that not
//! for ever; told to stop, what was begun is finished.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use super::Front;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// How long a client may take for the head of a request, and how long a connection may be idle between two.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// How long a client may leave an answer unread.
#[cfg(target_os = "linux")]
const UNREAD_MAX: Duration = Duration::from_secs(30);

/// The most that the head of a request may take, in bytes: what is too long for the API is still read, so that it can be
/// said what was wrong.
const HEAD_BYTES_MAX: usize = 48 * 1024;

/// The most header lines that are still read.
const LINES_MAX: usize = 256;

/// How long to wait when the process has no room for another connection.
const NO_ROOM: Duration = Duration::from_millis(50);

/// Serves until told to stop, and then for `drain_max` at most. `front` makes what answers, once on each thread.
pub(super) async fn serve(
    front: impl Fn() -> io::Result<Front> + Clone + Send + 'static,
    listener: TcpListener,
    connections: usize,
    stop: &CancellationToken,
    drain_max: Duration,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(connections.clamp(1, Semaphore::MAX_PERMITS)));
    let mut threads = Vec::new();
    for number in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
        let (given, accepted) = mpsc::unbounded_channel();
        let (ended, end) = oneshot::channel();
        let front = front.clone();
        let thread = move || {
            let served = answer_all(front, accepted, drain_max);
            // Whoever waits for it may have been cancelled.
            let _ = ended.send(served);
        };
        std::thread::Builder::new().name(format!("api-{number}")).spawn(thread)?;
        threads.push((given, end));
    }
    let mut next = 0;
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &room)).await {
        // In turn, so that each thread has as many.
        next = (next + 1) % threads.len();
        if threads.get(next).is_none_or(|(given, _)| given.send(accepted).is_err()) {
            tracing::error!("a thread of the API ended by itself; the others end, too");
            break;
        }
    }
    drop(listener);
    // All of them at once: whoever is given nothing any more drains.
    let ends: Vec<_> = threads.into_iter().map(|(_, end)| end).collect();
    let mut outcome = Ok(());
    for end in ends {
        outcome = outcome.and(end.await.unwrap_or_else(|_| Err(io::Error::other("a thread of the API failed"))));
    }
    outcome
}

/// One thread: answers on the connections it is given until there are no more.
fn answer_all(
    front: impl Fn() -> io::Result<Front>,
    mut accepted: mpsc::UnboundedReceiver<Accepted>,
    drain_max: Duration,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let front = front()?;
        let drain = GracefulShutdown::new();
        while let Some(Accepted { stream, peer, permit }) = accepted.recv().await {
            let stream = match TcpStream::from_std(stream) {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken over");
                    continue;
                }
            };
            let connection = connection(stream, peer, front.clone());
            let watched = drain.watch(connection);
            tokio::spawn(async move {
                // A client that breaks the protocol, or leaves, is its own affair.
                if let Err(error) = watched.await {
                    tracing::debug!(%error, "an HTTP connection ended");
                }
                drop(permit);
            });
        }
        if tokio::time::timeout(drain_max, drain.shutdown()).await.is_err() {
            let seconds = drain_max.as_secs();
            tracing::warn!(seconds, "requests were cut short: they took longer than the drain may");
        }
        Ok(())
    })
}

fn connection(stream: TcpStream, peer: SocketAddr, front: Front) -> impl GracefulConnection<Error = hyper::Error> {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let front = front.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        async move { Ok::<_, Infallible>(front.answer(request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_headers(LINES_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .writev(false)
        .serve_connection(TokioIo::new(stream), service)
}

/// A connection that no thread has yet.
struct Accepted {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    permit: OwnedSemaphorePermit,
}

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Accepted {
    loop {
        // It is never closed.
        let Ok(permit) = Arc::clone(room).acquire_owned().await else { return std::future::pending().await };
        let accepted = match listener.accept().await {
            Ok((stream, peer)) => {
                // Small answers leave at once.
                let _ = stream.set_nodelay(true);
                // Who takes nothing of his answer for so long gets no more of it. Other systems have no such limit.
                #[cfg(target_os = "linux")]
                let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_MAX));
                stream.into_std().map(|stream| (stream, peer))
            }
            Err(error) => Err(error),
        };
        match accepted {
            Ok((stream, peer)) => return Accepted { stream, peer, permit },
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(NO_ROOM).await;
            }
        }
    }
}
