//! What the primary says of itself: snapshots, positions, the slot.
//!
//! Owns the questions of the coherence protocol during streaming. It must not judge the answers.
//! Invariant: every answer comes from the very server that sends the log, because a replica, or a
//! server that took over, sees other transactions.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use super::gate::Snapshot;
use super::server::ServerIdentity;
use crate::change::{Lsn, Xid};
use crate::postgres::{self, Address, ConnectError, SqlConnection, session};

/// How long one question may take. A healthy server needs less.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Identifies a running server: its database cluster, and when it was started.
pub(crate) const INSTANCE: &str = "select system_identifier::text || ' ' || extract(epoch from pg_postmaster_start_time())::text from pg_control_system()";

const SNAPSHOT: &str = "select pg_current_snapshot()::text";

/// Writes a message to the log that no publication carries, so that its position was never used
/// before.
const FRESH: &str = "select pg_current_snapshot()::text, pg_logical_emit_message(false, 'unstale', 'position')::text";

/// An SQL connection to the server that sends the log.
pub struct Primary {
    client: Client,
    closer: AbortHandle,
    instance: String,
    /// The server, without others that the configured address may name.
    address: Address,
    identity: ServerIdentity,
    snapshot: Statement,
}

/// Why the primary gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum PrimaryError {
    /// It could not be connected to.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It refused, or the connection broke.
    #[error("PostgreSQL did not say which commits are visible")]
    Query(#[from] tokio_postgres::Error),
    /// The connection reached another server than the one that sends the log.
    #[error(
        "source.url leads to more than one server: a connection reached another server than the one that sends the log; \
         name the servers one by one, and add target_session_attrs=primary"
    )]
    OtherServer,
    /// The server is a standby.
    #[error(
        "the server is a standby, and only the primary knows which commits are visible; name the primary in source.url, \
         or all servers and target_session_attrs=primary"
    )]
    Standby,
    /// It did not answer in time.
    #[error("PostgreSQL did not answer within {} seconds", ANSWER_MAX.as_secs())]
    Silent,
    /// Its answer cannot be read.
    #[error("PostgreSQL gave an answer that cannot be read: {0:?}")]
    Unreadable(String),
}

/// What the server says of the slot and of its own history: what decides whether changes were
/// missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFacts {
    /// The slot's position: the slot sends what comes after it. None if there is no such slot.
    pub confirmed: Option<Lsn>,
    /// The server removed log that the slot needs.
    pub lost: bool,
    /// Whether the publication exists.
    pub published: bool,
    /// When the server last discarded its statistics, which it does after every unclean stop.
    pub recovered: String,
    /// The end of the log.
    pub end: Lsn,
}

impl std::fmt::Debug for Primary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Primary").finish_non_exhaustive()
    }
}

impl Primary {
    /// Connects to the server that a replication connection reached, which said it is `instance`.
    pub async fn connect(address: &Address, instance: &str) -> Result<Self, PrimaryError> {
        within(async { Self::new(postgres::open(address).await?, Some(instance)).await }).await
    }

    /// Connects to the first server it reaches; [`Primary::another`] connects to the same one. Also
    /// returns the wakeup of the [`SqlConnection`].
    pub async fn first(address: &Address) -> Result<(Self, Arc<Notify>), PrimaryError> {
        within(async {
            let opened = postgres::open(address).await?;
            let wakeup = Arc::clone(&opened.wakeup);
            Ok((Self::new(opened, None).await?, wakeup))
        })
        .await
    }

    async fn new(opened: SqlConnection, instance: Option<&str>) -> Result<Self, PrimaryError> {
        let SqlConnection { client, closer, address, .. } = opened;
        client.batch_execute(session::LONG_LIVED).await?;
        let found: String = client.query_one(INSTANCE, &[]).await?.get(0);
        if instance.is_some_and(|instance| found != instance) {
            return Err(PrimaryError::OtherServer);
        }
        let identity = ServerIdentity::read(&client).await?;
        if identity.is_standby {
            return Err(PrimaryError::Standby);
        }
        let snapshot = client.prepare(SNAPSHOT).await?;
        Ok(Self { client, closer, instance: found, address, identity, snapshot })
    }

    /// The database, and the history of its server.
    pub fn identity(&self) -> &ServerIdentity {
        &self.identity
    }

    /// Closes the connection, also for questions that are in progress.
    pub fn close(&self) {
        self.closer.abort();
    }

    /// Another connection to the same server.
    pub async fn another(&self) -> Result<Self, PrimaryError> {
        Self::connect(&self.address, &self.instance).await
    }

    /// The connection itself, for questions that may take long.
    pub fn into_client(self) -> Client {
        self.client
    }

    /// The connection, for questions to the catalog.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What is visible now.
    pub async fn snapshot(&self) -> Result<Snapshot, PrimaryError> {
        within(async { read_snapshot(self.client.query_one(&self.snapshot, &[]).await?.get(0)) }).await
    }

    /// What is visible now, and a position that is later than all before it.
    pub async fn fresh_position(&self) -> Result<(Snapshot, Lsn), PrimaryError> {
        within(async {
            let row = self.client.query_one(FRESH, &[]).await?;
            Ok((read_snapshot(row.get(0))?, read_lsn(row.get(1))?))
        })
        .await
    }

    /// The id of a transaction that begins to write now. A transaction that may be committed and
    /// not yet visible has a lower one. A snapshot alone does not show this: it lists nothing above
    /// the last transaction that ended.
    pub async fn barrier(&self) -> Result<Xid, PrimaryError> {
        const BARRIER: &str = "begin; select pg_current_xact_id()::text; rollback";
        within(async {
            let messages = self.client.simple_query(BARRIER).await?;
            let text = messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            });
            let text = text.unwrap_or_default();
            let full: u64 = text.parse().map_err(|_| PrimaryError::Unreadable(text.to_owned()))?;
            #[expect(clippy::cast_possible_truncation, reason = "the epoch is cut off on purpose")]
            Ok(Xid::new(full as u32))
        })
        .await
    }

    /// Up to where the log is flushed. What is visible lies before it, except for commits with
    /// `synchronous_commit = off`, which follow within three times `wal_writer_delay`.
    pub async fn flushed(&self) -> Result<Lsn, PrimaryError> {
        const FLUSHED: &str = "select pg_current_wal_flush_lsn()::text";
        within(async { read_lsn(self.client.query_one(FLUSHED, &[]).await?.get(0)) }).await
    }

    /// A position after every commit that was visible until now. The log is flushed up to there, so
    /// a slot sends it without waiting for the next commit.
    pub async fn horizon(&self) -> Result<Lsn, PrimaryError> {
        const WRITTEN: &str = "select pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text";
        // A commit flushes what is before it. This one is not replicated synchronously.
        const FLUSH: &str = "begin; set local synchronous_commit = local; \
             select pg_logical_emit_message(true, 'unstale', 'position'); commit";
        within(async {
            let row = self.client.query_one(WRITTEN, &[]).await?;
            let (written, flushed) = (read_lsn(row.get(0))?, read_lsn(row.get(1))?);
            if flushed < written
                && let Err(error) = self.client.batch_execute(FLUSH).await
            {
                if error.as_db_error().is_none() {
                    return Err(error.into());
                }
                // The role may not write messages. The next commit flushes what is written.
                self.client.batch_execute("rollback").await?;
            }
            Ok(written)
        })
        .await
    }

    /// What decides whether changes were missed. A slot that is being read can be neither dropped
    /// nor moved.
    pub async fn facts(&self, slot: &str, publication: &str) -> Result<SlotFacts, PrimaryError> {
        const FACTS: &str = "select confirmed_flush_lsn::text, coalesce(wal_status = 'lost', false), \
             exists (select from pg_publication where pubname = $2), \
             (select coalesce(extract(epoch from stats_reset)::text, '') from pg_stat_archiver), \
             pg_current_wal_insert_lsn()::text \
             from (values (1)) one left join pg_replication_slots on slot_name = $1";
        within(async {
            let row = self.client.query_one(FACTS, &[&slot, &publication]).await?;
            let confirmed: Option<&str> = row.get(0);
            Ok(SlotFacts {
                confirmed: confirmed.map(read_lsn).transpose()?,
                lost: row.get(1),
                published: row.get(2),
                recovered: row.get(3),
                end: read_lsn(row.get(4))?,
            })
        })
        .await
    }
}

async fn within<T>(question: impl Future<Output = Result<T, PrimaryError>>) -> Result<T, PrimaryError> {
    tokio::time::timeout(ANSWER_MAX, question).await.unwrap_or(Err(PrimaryError::Silent))
}

fn read_snapshot(text: &str) -> Result<Snapshot, PrimaryError> {
    Snapshot::parse(text).ok_or_else(|| PrimaryError::Unreadable(text.to_owned()))
}

fn read_lsn(text: &str) -> Result<Lsn, PrimaryError> {
    text.parse().map_err(|_| PrimaryError::Unreadable(text.to_owned()))
}
