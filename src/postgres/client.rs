//! SQL connections.
//!
//! Owns the translation of an [`Address`] for tokio-postgres, and of its errors for the user. It
//! must not know which queries run.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use secrecy::ExposeSecret as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_postgres::tls::{ChannelBinding as Bound, TlsConnect, TlsStream};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, SimpleQueryMessage, config};

use super::address::{Address, ChannelBinding, Host};
use super::error::{ConnectError, NO_CHANNEL_BINDING, NO_PASSWORD, ServerError, UNSUPPORTED};
use super::session;
use super::target::ServerState;
use super::transport::{Attempt, Transport, try_hosts};

/// Connects. A task drives the connection; it ends with the client.
pub async fn connect(address: &Address) -> Result<Client, ConnectError> {
    open(address).await.map(|opened| opened.client)
}

/// An open connection.
#[derive(Debug)]
pub struct SqlConnection {
    /// Runs queries.
    pub client: Client,
    /// Notified by each NOTIFY on a channel that the client listens to.
    pub wakeup: Arc<Notify>,
    /// Ends the connection, even during a query.
    pub closer: AbortHandle,
    /// The server that was reached.
    pub address: Address,
}

/// Connects, and returns all parts of the connection.
pub async fn open(address: &Address) -> Result<SqlConnection, ConnectError> {
    let config = &config(address);
    let log_in = |transport| async move {
        let (client, connection) = config.connect_raw(transport, PassThrough).await.map_err(explain)?;
        let wakeup = Arc::new(Notify::new());
        let driver = tokio::spawn(drive(connection, Arc::clone(&wakeup)));
        let opened = SqlConnection { client, wakeup, closer: driver.abort_handle(), address: address.clone() };
        let state = match address.target.asks() {
            true => state(&opened.client).await.map_err(explain)?,
            false => ServerState::default(),
        };
        Ok((opened, state))
    };
    let (opened, reached) = try_hosts(address, log_in).await?;
    opened.client.batch_execute(&session::statements()).await.map_err(|error| match error.as_db_error() {
        Some(refusal) => ConnectError::Refused(ServerError::from(refusal)),
        None => {
            let lost = |host: &Host| (host.clone(), io::Error::other("the connection broke after the log-in"));
            ConnectError::Unreachable(reached.hosts.iter().map(lost).collect())
        }
    })?;
    Ok(SqlConnection { address: reached, ..opened })
}

/// Drives a connection until it ends.
async fn drive(mut connection: Connection<Transport, PassThroughStream>, wakeup: Arc<Notify>) {
    while let Some(message) = std::future::poll_fn(|context| connection.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notification(_)) => wakeup.notify_one(),
            Ok(_) => {}
            Err(error) => return tracing::debug!(%error, "an SQL connection ended"),
        }
    }
}

/// What the server says of itself.
async fn state(client: &Client) -> Result<ServerState, tokio_postgres::Error> {
    let messages = client.simple_query(ServerState::QUESTION).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(row.map_or_else(ServerState::default, |row| ServerState::parse(row.get(0), row.get(1))))
}

fn config(address: &Address) -> Config {
    let mut config = Config::new();
    config.user(&address.user).dbname(&address.database).application_name(&address.application_name);
    if let Some(password) = &address.password {
        config.password(password.expose_secret());
    }
    if let Some(options) = &address.options {
        config.options(options);
    }
    // The transport already has TLS if it is wanted, so tokio-postgres must not negotiate it.
    config.ssl_mode(config::SslMode::Require).ssl_negotiation(config::SslNegotiation::Direct);
    config.channel_binding(match address.channel_binding {
        ChannelBinding::Disable => config::ChannelBinding::Disable,
        ChannelBinding::Prefer => config::ChannelBinding::Prefer,
        ChannelBinding::Require => config::ChannelBinding::Require,
    });
    config
}

fn explain(error: tokio_postgres::Error) -> Attempt {
    if let Some(refusal) = error.as_db_error() {
        return ConnectError::Refused(ServerError::from(refusal)).into();
    }
    let text = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    match text.as_str() {
        "password missing" => return ConnectError::Login(NO_PASSWORD).into(),
        "server did not use channel binding" => return ConnectError::Login(NO_CHANNEL_BINDING).into(),
        "unsupported authentication method" | "unsupported SASL mechanism" => {
            return ConnectError::Login(UNSUPPORTED).into();
        }
        _ => {}
    }
    match error.into_source().map(|cause| cause.downcast::<io::Error>()) {
        Some(Ok(error))
            if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
                && !error.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()) =>
        {
            ConnectError::Protocol(error.to_string()).into()
        }
        Some(Ok(error)) => (*error).into(),
        _ => Attempt::Next(io::Error::other(text)),
    }
}

/// TLS for tokio-postgres: the transport, unchanged.
struct PassThrough;

struct PassThroughStream(Transport);

impl TlsConnect<Transport> for PassThrough {
    type Stream = PassThroughStream;
    type Error = Infallible;
    type Future = Ready<Result<PassThroughStream, Infallible>>;

    fn connect(self, transport: Transport) -> Self::Future {
        ready(Ok(PassThroughStream(transport)))
    }
}

impl TlsStream for PassThroughStream {
    fn channel_binding(&self) -> Bound {
        self.0.end_point.clone().map_or_else(Bound::none, Bound::tls_server_end_point)
    }
}

impl AsyncRead for PassThroughStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for PassThroughStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
