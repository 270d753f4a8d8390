//! The transport to a PostgreSQL server: a socket, with TLS if `sslmode` asks for it.
//!
//! Owns the meaning of `sslmode` before the first message, for replication and SQL. It must not
//! know messages. Invariant: nothing is sent unencrypted if `sslmode` requires TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::address::{Address, Host, SslMode};
use super::error::{CANNOT_CONNECT_NOW, ConnectError};
use super::target::ServerState;
use super::tls::{connector, server_end_point};

trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// An open transport.
pub(crate) struct Transport {
    stream: Box<dyn ByteStream>,
    /// With TLS, the hash of the certificate that SCRAM binds to, if it is defined.
    pub(crate) end_point: Option<Vec<u8>>,
    /// Whether TLS is on.
    pub(crate) encrypted: bool,
}

/// Why an attempt on one host failed, and whether to try the next host.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// The host did not answer: try the next.
    Next(io::Error),
    /// The host answered: stop.
    Stop(ConnectError),
}

impl From<io::Error> for Attempt {
    /// A TLS error is not a network failure, even if it comes after the handshake: a server that
    /// refuses the client's certificate reports it only then.
    fn from(error: io::Error) -> Self {
        let tls = error.get_ref().is_some_and(|cause| cause.is::<rustls::Error>());
        if tls { Self::Stop(ConnectError::Tls(error.to_string())) } else { Self::Next(error) }
    }
}

impl From<ConnectError> for Attempt {
    fn from(error: ConnectError) -> Self {
        Self::Stop(error)
    }
}

/// One server to try.
struct Endpoint {
    host: Host,
    /// Where the host's name leads. None for a socket.
    at: Option<SocketAddr>,
}

/// Tries the hosts in order, each at most for the connect time-out and as `sslmode` allows. A host
/// whose name leads to several addresses counts as so many hosts. Also returns the address of the
/// server that was reached.
///
/// `log_in` also returns what the server says of itself, if the address asks for that.
pub(crate) async fn try_hosts<T, F: Future<Output = Result<(T, ServerState), Attempt>>>(
    address: &Address,
    log_in: impl Fn(Transport) -> F,
) -> Result<(T, Address), ConnectError> {
    let mut tried = Vec::new();
    for wanted in address.target.passes() {
        tried.clear();
        for host in &address.hosts {
            let endpoints = match resolve(address, host).await {
                Ok(endpoints) => endpoints,
                Err(error) => {
                    tried.push((host.clone(), error));
                    continue;
                }
            };
            for endpoint in endpoints {
                let attempt = tokio::time::timeout(address.connect_timeout, attempt(address, &endpoint, &log_in)).await;
                let error = match attempt {
                    Ok(Ok((opened, state))) => match wanted.refusal(state) {
                        None => return Ok((opened, address.reached(host, endpoint.at))),
                        Some(why) => io::Error::other(why),
                    },
                    Ok(Err(Attempt::Next(error))) => error,
                    // As in libpq, a server that is starting is skipped if there are others.
                    Ok(Err(Attempt::Stop(ConnectError::Refused(error))))
                        if error.sqlstate == CANNOT_CONNECT_NOW && address.hosts.len() > 1 =>
                    {
                        io::Error::other(error)
                    }
                    Ok(Err(Attempt::Stop(error))) => return Err(error),
                    Err(_) => io::Error::new(io::ErrorKind::TimedOut, "no answer within connect_timeout"),
                };
                tried.push((host.clone(), error));
            }
        }
    }
    Err(ConnectError::Unreachable(tried))
}

/// The servers to which the name of a host leads.
async fn resolve(address: &Address, host: &Host) -> io::Result<Vec<Endpoint>> {
    let endpoint = |at| Endpoint { host: host.clone(), at };
    let (name, port) = match host {
        Host::Unix(..) => return Ok(vec![endpoint(None)]),
        Host::Tcp(..) if address.resolved.is_some() => return Ok(vec![endpoint(address.resolved)]),
        Host::Tcp(name, port) => (name.as_str(), *port),
    };
    let looked_up = tokio::time::timeout(address.connect_timeout, tokio::net::lookup_host((name, port))).await;
    let found =
        looked_up.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the name was not resolved in time"))??;
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for at in found {
        if endpoints.iter().all(|known| known.at != Some(at)) {
            endpoints.push(endpoint(Some(at)));
        }
    }
    match endpoints.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::NotFound, "the name leads to no address")),
        false => Ok(endpoints),
    }
}

async fn attempt<T, F: Future<Output = Result<T, Attempt>>>(
    address: &Address,
    endpoint: &Endpoint,
    log_in: &impl Fn(Transport) -> F,
) -> Result<T, Attempt> {
    let mut encrypted = false;
    let first = match Transport::open(address, endpoint, address.ssl_mode).await {
        Ok(transport) => {
            encrypted = transport.encrypted;
            log_in(transport).await
        }
        Err(error) => Err(error),
    };
    match first {
        // As in libpq, `prefer` retries without TLS if TLS failed.
        Err(Attempt::Stop(error))
            if address.ssl_mode == SslMode::Prefer
                && (matches!(error, ConnectError::Tls(_))
                    || encrypted && matches!(&error, ConnectError::Refused(error) if error.sqlstate == "28000")) =>
        {
            log_in(Transport::open(address, endpoint, SslMode::Disable).await?).await
        }
        first => first,
    }
}

impl Transport {
    async fn open(address: &Address, endpoint: &Endpoint, mode: SslMode) -> Result<Self, Attempt> {
        let (name, mut socket) = match (&endpoint.host, endpoint.at) {
            (Host::Tcp(name, _), Some(at)) => (name, TcpStream::connect(at).await?),
            (Host::Tcp(name, port), None) => (name, TcpStream::connect((name.as_str(), *port)).await?),
            (socket @ Host::Unix(..), _) => return Ok(Self::plain(UnixStream::connect(socket.to_string()).await?)),
        };
        socket.set_nodelay(true)?;
        if mode == SslMode::Disable {
            return Ok(Self::plain(socket));
        }
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        socket.write_all(&request).await?;
        match socket.read_u8().await? {
            b'S' => {}
            b'N' if mode == SslMode::Prefer => return Ok(Self::plain(socket)),
            b'N' => {
                let message = "the server does not offer TLS; set ssl = on there, or sslmode=prefer here";
                return Err(ConnectError::Tls(message.to_owned()).into());
            }
            other => {
                return Err(ConnectError::Protocol(format!(
                    "unexpected byte {other:#04x} in response to a TLS request"
                ))
                .into());
            }
        }
        let failed = |error: &dyn std::fmt::Display| ConnectError::Tls(error.to_string());
        let server_name = rustls_pki_types::ServerName::try_from(name.clone()).map_err(|error| failed(&error))?;
        let connecting = connector(address)?.connect(server_name, socket).await;
        let stream =
            connecting.map_err(|error| match error.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()) {
                true => Attempt::Stop(failed(&error)),
                false => Attempt::Next(error),
            })?;
        let certificates = stream.get_ref().1.peer_certificates();
        let end_point = certificates.and_then(|chain| chain.first()).and_then(server_end_point);
        Ok(Self { stream: Box::new(stream), end_point, encrypted: true })
    }

    fn plain(stream: impl ByteStream + 'static) -> Self {
        Self { stream: Box::new(stream), end_point: None, encrypted: false }
    }
}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
