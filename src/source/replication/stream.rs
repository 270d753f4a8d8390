//! The running log of a slot: messages in, acknowledgements out.
//!
//! Owns the replication part of the protocol. It must not know pgoutput's content or why a position
//! is confirmed. Invariants: replication always starts from 0/0, which means "where the slot is" (a
//! position of our own above it would silently skip commits); a keepalive that asks is always
//! answered.

use std::time::{Duration, SystemTime};

use bytes::{Buf as _, BufMut as _, Bytes};

use super::connection::{Connection, ConnectionError, server_error};
use super::pgoutput::to_postgres_time;
use crate::change::Lsn;
use crate::limits::SERVER_MESSAGE_BYTES_MAX;
use crate::postgres::PREREQUISITE_STATE;

/// A message of the replication stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// A piece of the log: one pgoutput message.
    Log(Bytes),
    /// A sign of life.
    Keepalive {
        /// Everything before this position has been sent.
        wal_end: Lsn,
    },
    /// The server could not load the publication as it was at this point of the log and went on
    /// without it (PostgreSQL 18; before that, it is an error). Changes may be missing.
    Skipped,
}

/// A slot that is being read.
#[derive(Debug)]
pub struct ReplicationStream {
    connection: Connection,
    /// The last position confirmed, repeated in every status.
    confirmed: Lsn,
    /// A keepalive asked for an answer that was not yet queued.
    answer_due: bool,
}

impl ReplicationStream {
    /// Starts to read a slot through a publication; with the messages that applications emit, if
    /// asked for.
    pub async fn start(
        mut connection: Connection,
        slot: &str,
        publication: &str,
        with_messages: bool,
    ) -> Result<Self, ConnectionError> {
        let quoted = publication.replace('"', "\"\"").replace('\'', "''");
        let messages = if with_messages { ", messages 'true'" } else { "" };
        let command = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 \
             (proto_version '1', publication_names '\"{quoted}\"'{messages})"
        );
        connection.start_copy(&command).await?;
        Ok(Self { connection, confirmed: Lsn::ZERO, answer_due: false })
    }

    /// Sends what is queued and waits until something was received; without `read`, only sends, and
    /// never returns. Cancel-safe.
    pub async fn exchange(&mut self, read: bool) -> Result<(), ConnectionError> {
        Ok(self.connection.exchange(read).await?)
    }

    /// The next frame that is already here.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ConnectionError> {
        while let Some(message) = self.connection.buffered_message(SERVER_MESSAGE_BYTES_MAX)? {
            match message.tag {
                b'd' => return self.frame(message.body).map(Some),
                // The server ends the copy only when it shuts down or drops us.
                b'c' | b'C' => return Err(ConnectionError::Protocol("the server ended replication".to_owned())),
                b'N' if server_error(&message.body).sqlstate == PREREQUISITE_STATE => return Ok(Some(Frame::Skipped)),
                b'N' | b'S' => {}
                tag => {
                    return Err(ConnectionError::Protocol(format!(
                        "{:?} inside the replication stream",
                        char::from(tag)
                    )));
                }
            }
        }
        Ok(None)
    }

    fn frame(&mut self, mut body: Bytes) -> Result<Frame, ConnectionError> {
        const LOG_HEADER_BYTES: usize = 24;
        const KEEPALIVE_BYTES: usize = 17;
        let short = || ConnectionError::Protocol("a replication message that is too short".to_owned());
        match body.try_get_u8().map_err(|_| short())? {
            b'w' if body.len() >= LOG_HEADER_BYTES => {
                body.advance(LOG_HEADER_BYTES);
                Ok(Frame::Log(body))
            }
            b'k' if body.len() == KEEPALIVE_BYTES => {
                let wal_end = Lsn::new(body.get_u64());
                body.advance(8);
                self.answer_due |= body.get_u8() == 1;
                Ok(Frame::Keepalive { wal_end })
            }
            b'w' | b'k' => Err(short()),
            kind => Err(ConnectionError::Protocol(format!("{:?} as a replication message", char::from(kind)))),
        }
    }

    /// Whether the server asked for a sign of life.
    pub fn answer_due(&self) -> bool {
        self.answer_due
    }

    /// Queues a status: everything up to `confirmed` is durable in Redis. A position never goes
    /// back. With `ask`, the server is to answer: a sign of life.
    pub fn report(&mut self, confirmed: Lsn, now: SystemTime, ask: bool) {
        self.confirmed = self.confirmed.max(confirmed);
        self.answer_due = false;
        let position = self.confirmed.offset();
        let buffer = self.connection.queue();
        // One CopyData: type, length, then `r`, written, flushed, applied, clock, answer wanted.
        const STATUS_BYTES: u32 = 4 + 1 + 8 + 8 + 8 + 8 + 1;
        buffer.put_u8(b'd');
        buffer.put_u32(STATUS_BYTES);
        buffer.put_u8(b'r');
        buffer.put_u64(position);
        buffer.put_u64(position);
        buffer.put_u64(position);
        buffer.put_i64(to_postgres_time(now));
        buffer.put_u8(u8::from(ask));
    }

    /// Ends the stream: sends what is queued, for at most this long.
    pub async fn close(&mut self, limit: Duration) -> Result<(), ConnectionError> {
        postgres_protocol::message::frontend::copy_done(self.connection.queue());
        postgres_protocol::message::frontend::terminate(self.connection.queue());
        Ok(self.connection.flush(limit).await?)
    }
}
