//! HTTP connections and the threads that serve them.
//!
//! Owns the listener, the limit of connections, how long a client may take to send a request, and
//! the drain. It must not know what is requested. Invariants: an idle client holds nothing but its
//! connection, and that for a limited time; after a stop, requests in progress are finished.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

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

use super::front::Front;
use crate::causes::with_causes;

/// How long a client may take to send the head of a request, and how long a connection may be idle.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// How long a client may leave an answer unread before it is disconnected.
#[cfg(target_os = "linux")]
const UNREAD_MAX: Duration = Duration::from_secs(30);

/// The longest head of a request, in bytes. It is above the API's own limits, so that a request
/// that exceeds those still gets an answer.
const HEAD_BYTES_MAX: usize = 48 * 1024;

/// The most header lines of a request.
const LINES_MAX: usize = 256;

/// The pause after a connection could not be accepted, usually for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, then drains for `drain_max` at most. `front` is called once on each thread.
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
            let served = run_thread(front, accepted, drain_max);
            // Fails if `serve` was cancelled.
            let _ = ended.send(served);
        };
        std::thread::Builder::new().name(format!("api-{number}")).spawn(thread)?;
        threads.push((given, end));
    }
    let mut next = 0;
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &room)).await {
        // Round robin.
        next = (next + 1) % threads.len();
        if threads.get(next).is_none_or(|(given, _)| given.send(accepted).is_err()) {
            tracing::error!("a thread of the API ended unexpectedly; the API stops");
            break;
        }
    }
    drop(listener);
    // A thread drains once its channel is closed. Close all before waiting for the first.
    let ends: Vec<_> = threads.into_iter().map(|(_, end)| end).collect();
    let mut outcome = Ok(());
    for end in ends {
        outcome = outcome.and(end.await.unwrap_or_else(|_| Err(io::Error::other("a thread of the API panicked"))));
    }
    outcome
}

/// One thread: serves the connections it is given, and drains when there are no more.
fn run_thread(
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
                    tracing::warn!(%error, "a connection could not be registered with the runtime");
                    continue;
                }
            };
            let connection = connection(stream, peer, front.clone());
            let watched = drain.watch(connection);
            tokio::spawn(async move {
                // The client disconnected or broke the protocol.
                if let Err(error) = watched.await {
                    tracing::debug!(error = with_causes(&error), "an HTTP connection ended");
                }
                drop(permit);
            });
        }
        if tokio::time::timeout(drain_max, drain.shutdown()).await.is_err() {
            let seconds = drain_max.as_secs();
            tracing::warn!(seconds, "requests were cut off: they took longer than --drain-max");
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

/// An accepted connection, on its way to a thread.
struct Accepted {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    permit: OwnedSemaphorePermit,
}

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Accepted {
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(room).acquire_owned().await else { return std::future::pending().await };
        let accepted = match listener.accept().await {
            Ok((stream, peer)) => {
                // Small answers must not wait for more data.
                let _ = stream.set_nodelay(true);
                // Disconnects a client that reads nothing. Other systems have no such option.
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
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
