//! A connection to PostgreSQL in replication mode: opening, TLS, logging in, simple commands.
//!
//! Owns the socket and its two buffers. It must not know pgoutput or what is done with the log.
//! tokio-postgres has no CopyBoth, so this speaks the protocol itself on `postgres-protocol`.
//! Invariants: no message above [`SERVER_MESSAGE_BYTES_MAX`] is buffered; nothing is sent in clear
//! when TLS was demanded.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::{backend, frontend};
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};

use crate::causes::with_causes;
use crate::limits::{IDLE_BUFFER_BYTES_MAX, SERVER_MESSAGE_BYTES_MAX};
use crate::postgres::{
    self, Address, Attempt, ChannelBinding, ConnectError, ServerError, ServerState, Transport, session,
};

/// The largest message before the stream begins; log-in needs a few kilobytes.
const LOGIN_MESSAGE_BYTES_MAX: usize = 1 << 20;

/// How much is read from the socket at a time, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// An open connection.
pub struct Connection {
    transport: Transport,
    incoming: BytesMut,
    outgoing: BytesMut,
    address: Address,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("incoming", &self.incoming.len()).finish_non_exhaustive()
    }
}

/// Why a connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The socket failed or the server closed it.
    #[error("the connection to PostgreSQL broke")]
    Io(#[from] io::Error),
    /// The server reported an error.
    #[error("PostgreSQL reported an error")]
    Server(#[source] ServerError),
    /// The server sent what the protocol does not allow here.
    #[error("PostgreSQL sent what the protocol does not allow: {0}")]
    Protocol(String),
}

/// One message as it arrived: its type, and what follows the length.
#[derive(Debug)]
pub(super) struct RawMessage {
    pub(super) tag: u8,
    pub(super) body: Bytes,
}

impl Connection {
    /// Connects to the first host that answers, and logs in for logical replication.
    pub async fn open(address: &Address) -> Result<Self, ConnectError> {
        let log_in = |transport| Self::over(transport, address).log_in(address);
        let (mut connection, reached) = postgres::try_hosts(address, log_in).await?;
        connection.address = reached;
        // Text of a database without an encoding cannot be converted. It is taken as it is.
        let encoding = connection.query("show server_encoding").await.map_err(unanswered)?;
        if encoding.into_iter().flatten().flatten().any(|encoding| encoding == "SQL_ASCII") {
            connection.query("set client_encoding to 'SQL_ASCII'").await.map_err(unanswered)?;
        }
        Ok(connection)
    }

    fn over(transport: Transport, address: &Address) -> Self {
        let (incoming, outgoing) = (BytesMut::with_capacity(READ_BYTES), BytesMut::new());
        Self { transport, incoming, outgoing, address: address.clone() }
    }

    /// The server that was reached.
    pub fn address(&self) -> &Address {
        &self.address
    }

    async fn log_in(mut self, address: &Address) -> Result<(Self, ServerState), Attempt> {
        // The server reports by a warning that it skipped a publication.
        let settings = format!("{} -c client_min_messages=warning", session::options());
        let options = match &address.options {
            Some(own) => format!("{own}{settings}"),
            None => settings,
        };
        let parameters = [
            ("user", address.user.as_str()),
            ("database", &address.database),
            ("replication", "database"),
            ("application_name", &address.application_name),
            ("client_encoding", "UTF8"),
            ("options", &options),
        ];
        frontend::startup_message(parameters, &mut self.outgoing)?;
        // As in libpq: if channel binding is required, only a bound SCRAM will do, and no
        // authentication is not enough.
        let mut bound = address.channel_binding != ChannelBinding::Require;
        loop {
            match self.login_message().await? {
                backend::Message::AuthenticationOk
                | backend::Message::AuthenticationCleartextPassword
                | backend::Message::AuthenticationMd5Password(_)
                    if !bound =>
                {
                    return Err(ConnectError::Login(postgres::NO_CHANNEL_BINDING).into());
                }
                backend::Message::AuthenticationOk => {}
                backend::Message::AuthenticationCleartextPassword => {
                    frontend::password_message(password(address)?, &mut self.outgoing)?;
                }
                backend::Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(address.user.as_bytes(), password(address)?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut self.outgoing)?;
                }
                backend::Message::AuthenticationSasl(body) => {
                    let mechanisms: Vec<String> = body.mechanisms().map(|name| Ok(name.to_owned())).collect()?;
                    self.scram(address, &mechanisms).await?;
                    bound = true;
                }
                backend::Message::ReadyForQuery(_) => {
                    let state = self.state(address).await?;
                    return Ok((self, state));
                }
                backend::Message::ParameterStatus(_)
                | backend::Message::BackendKeyData(_)
                | backend::Message::NoticeResponse(_) => {}
                _ => {
                    return Err(ConnectError::Login(postgres::UNSUPPORTED).into());
                }
            }
        }
    }

    /// What the server says of itself, if the address asks for that.
    async fn state(&mut self, address: &Address) -> Result<ServerState, Attempt> {
        if !address.target.asks() {
            return Ok(ServerState::default());
        }
        let rows = self.query(ServerState::QUESTION).await.map_err(unanswered)?;
        let columns = rows.first().map(Vec::as_slice).unwrap_or_default();
        let text = |at: usize| columns.get(at).and_then(Option::as_deref);
        Ok(ServerState::parse(text(0), text(1)))
    }

    async fn scram(&mut self, address: &Address, mechanisms: &[String]) -> Result<(), Attempt> {
        let offered = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
        let wanted = address.channel_binding != ChannelBinding::Disable;
        let (binding, mechanism) = match self.transport.end_point.clone().filter(|_| wanted) {
            Some(hash) if offered(sasl::SCRAM_SHA_256_PLUS) => {
                (sasl::ChannelBinding::tls_server_end_point(hash), sasl::SCRAM_SHA_256_PLUS)
            }
            _ if address.channel_binding == ChannelBinding::Require => {
                return Err(ConnectError::Login(postgres::NO_CHANNEL_BINDING).into());
            }
            Some(_) => (sasl::ChannelBinding::unrequested(), sasl::SCRAM_SHA_256),
            None => (sasl::ChannelBinding::unsupported(), sasl::SCRAM_SHA_256),
        };
        if !offered(mechanism) {
            return Err(ConnectError::Login("the server offers no SCRAM-SHA-256").into());
        }
        let mut scram = sasl::ScramSha256::new(password(address)?, binding);
        frontend::sasl_initial_response(mechanism, scram.message(), &mut self.outgoing)?;
        loop {
            match self.login_message().await? {
                backend::Message::AuthenticationSaslContinue(body) => {
                    scram.update(body.data())?;
                    frontend::sasl_response(scram.message(), &mut self.outgoing)?;
                }
                backend::Message::AuthenticationSaslFinal(body) => {
                    return scram.finish(body.data()).map_err(|_| {
                        ConnectError::Login("the server does not know the password it checked: it may be an impostor")
                            .into()
                    });
                }
                _ => return Err(ConnectError::Protocol("SCRAM was interrupted".to_owned()).into()),
            }
        }
    }

    /// Sends what is queued and reads one message of the log-in.
    async fn login_message(&mut self) -> Result<backend::Message, Attempt> {
        let message = self.next_message(LOGIN_MESSAGE_BYTES_MAX).await.map_err(|error| match error {
            ConnectionError::Io(error) => error.into(),
            ConnectionError::Server(error) => Attempt::Stop(ConnectError::Refused(error)),
            ConnectionError::Protocol(message) => Attempt::Stop(ConnectError::Protocol(message)),
        })?;
        parse(&message).map_err(|error| ConnectError::Protocol(error.to_string()).into())
    }

    /// Runs one command of the replication protocol and returns its rows as text.
    pub async fn query(&mut self, command: &str) -> Result<Vec<Vec<Option<String>>>, ConnectionError> {
        frontend::query(command, &mut self.outgoing)?;
        let mut rows = Vec::new();
        let mut refusal = None;
        loop {
            let message = match self.next_message(SERVER_MESSAGE_BYTES_MAX).await {
                Err(ConnectionError::Server(error)) => {
                    refusal = Some(error);
                    continue;
                }
                message => message?,
            };
            match parse(&message)? {
                backend::Message::DataRow(row) => {
                    let text = |range: Option<std::ops::Range<usize>>| {
                        let bytes = range.and_then(|range| row.buffer().get(range));
                        Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
                    };
                    rows.push(row.ranges().map(text).collect()?);
                }
                backend::Message::ReadyForQuery(_) => {
                    return refusal.map_or(Ok(rows), |error| Err(ConnectionError::Server(error)));
                }
                _ => {}
            }
        }
    }

    /// Sends a command that begins a CopyBoth and waits until it has.
    pub async fn start_copy(&mut self, command: &str) -> Result<(), ConnectionError> {
        frontend::query(command, &mut self.outgoing)?;
        loop {
            match self.next_message(SERVER_MESSAGE_BYTES_MAX).await?.tag {
                b'W' => return Ok(()),
                backend::NOTICE_RESPONSE_TAG | backend::PARAMETER_STATUS_TAG => {}
                tag => {
                    return Err(ConnectionError::Protocol(format!(
                        "{:?} in answer to START_REPLICATION",
                        char::from(tag)
                    )));
                }
            }
        }
    }

    async fn next_message(&mut self, limit: usize) -> Result<RawMessage, ConnectionError> {
        loop {
            if let Some(message) = self.buffered_message(limit)? {
                return Ok(message);
            }
            self.exchange(true).await?;
        }
    }

    /// The next message that is already here. An error the server reports is an error.
    pub(super) fn buffered_message(&mut self, limit: usize) -> Result<Option<RawMessage>, ConnectionError> {
        let header = backend::Header::parse(&self.incoming);
        let header = header.map_err(|error| ConnectionError::Protocol(error.to_string()))?;
        let Some(header) = header else { return Ok(None) };
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX);
        if length > limit {
            let tag = char::from(header.tag());
            return Err(ConnectionError::Protocol(format!(
                "a message {tag:?} of {length} bytes; at most {limit} are taken"
            )));
        }
        let whole = length + 1;
        if self.incoming.len() < whole {
            // Grow towards the announced length, but at most to twice what has arrived.
            self.incoming.reserve((whole - self.incoming.len()).min(READ_BYTES.max(self.incoming.len())));
            return Ok(None);
        }
        let mut body = self.incoming.split_to(whole).freeze();
        if whole > IDLE_BUFFER_BYTES_MAX {
            // What is left would keep the memory of the message.
            self.incoming = BytesMut::from(&self.incoming[..]);
        }
        body.advance(5);
        let message = RawMessage { tag: header.tag(), body };
        match message.tag {
            backend::ERROR_RESPONSE_TAG => Err(ConnectionError::Server(server_error(&message.body))),
            _ => Ok(Some(message)),
        }
    }

    /// Queues bytes to be sent by the next [`Connection::exchange`].
    pub(super) fn queue(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    /// Sends what is queued while waiting for more to read; returns once something was read, which
    /// it does not try unless asked to. Cancel-safe: nothing that was read or sent is lost when the
    /// future is dropped.
    ///
    /// The caller takes every [`Connection::buffered_message`] before it reads: that bounds the
    /// buffer.
    pub(super) async fn exchange(&mut self, read: bool) -> io::Result<()> {
        debug_assert!(!read || self.buffers_no_message(), "read before what is buffered was taken");
        std::future::poll_fn(|cx| {
            self.poll_send(cx)?;
            if read { self.poll_receive(cx) } else { Poll::Pending }
        })
        .await
    }

    fn buffers_no_message(&self) -> bool {
        match backend::Header::parse(&self.incoming) {
            Ok(Some(header)) => usize::try_from(header.len()).is_ok_and(|length| self.incoming.len() < length + 1),
            Ok(None) | Err(_) => true,
        }
    }

    /// Sends everything that is queued, for at most this long.
    pub(super) async fn flush(&mut self, limit: Duration) -> io::Result<()> {
        let sent = std::future::poll_fn(|cx| {
            self.poll_send(cx)?;
            if self.outgoing.is_empty() { Pin::new(&mut self.transport).poll_flush(cx) } else { Poll::Pending }
        });
        tokio::time::timeout(limit, sent).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match Pin::new(&mut self.transport).poll_write(cx, &self.outgoing) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(sent)) => self.outgoing.advance(sent),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
        match Pin::new(&mut self.transport).poll_flush(cx) {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.incoming.capacity() - self.incoming.len() < READ_BYTES / 4 {
            self.incoming.reserve(READ_BYTES);
        }
        let read = {
            let future = self.transport.read_buf(&mut self.incoming);
            tokio::pin!(future);
            future.poll(cx)
        };
        match read {
            Poll::Ready(Ok(0)) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it")))
            }
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn password(address: &Address) -> Result<&[u8], ConnectError> {
    let password = address.password.as_ref().map(|password| password.expose_secret().as_bytes());
    password.ok_or(ConnectError::Login(postgres::NO_PASSWORD))
}

/// Parses a message that is not part of a copy. `postgres-protocol` knows no CopyBoth and says so
/// by an error.
fn parse(message: &RawMessage) -> io::Result<backend::Message> {
    let mut whole = BytesMut::with_capacity(message.body.len() + 5);
    whole.extend_from_slice(&[message.tag]);
    let length = i32::try_from(message.body.len() + 4).map_err(io::Error::other)?;
    whole.extend_from_slice(&length.to_be_bytes());
    whole.extend_from_slice(&message.body);
    backend::Message::parse(&mut whole)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// An ErrorResponse: fields of a type byte and a text each, up to a zero.
pub(super) fn server_error(body: &[u8]) -> ServerError {
    let mut error =
        ServerError { sqlstate: "XX000".to_owned(), message: "an error without text".to_owned(), detail: None };
    for field in body.split(|&byte| byte == 0) {
        let Some((kind, text)) = field.split_first() else { continue };
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'C' => error.sqlstate = text,
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            _ => {}
        }
    }
    error
}

/// The error of a server that accepted the log-in and then did not answer.
fn unanswered(error: ConnectionError) -> ConnectError {
    match error {
        ConnectionError::Server(refusal) => ConnectError::Refused(refusal),
        error => ConnectError::Protocol(with_causes(&error)),
    }
}
