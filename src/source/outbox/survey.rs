//! Questions about the outbox that take nothing out of it: how far it reaches, which daemons read
//! it, to which history it belongs.
//!
//! Owns these questions. It must not judge the answers. Invariant: a position is asked for before
//! the entries are, so that the answer includes everything that was visible when the log was at
//! this position.

use std::convert::Infallible;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use super::entry::{FullXid, OutboxError};
use super::{Consumer, MORTAL};
use crate::change::Lsn;
use crate::install::outbox::locks::{HISTORY, LANES, LOCKS, WORK};

/// Which outbox this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxFacts {
    /// The number of the table's file: one that was made anew, truncated or restored has another.
    pub file: u32,
    /// The highest number that was given to an entry.
    pub last: i64,
    /// When the server last had to discard its statistics, which it does after every unclean stop.
    pub recovered: String,
}

/// How far the outbox reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The number of the table's file; none if there is no such table.
    pub file: Option<u32>,
    /// Where the log was before the rest was asked.
    pub position: Lsn,
    /// The highest number that was given to an entry by then.
    pub given: i64,
    /// No transaction was about to commit then. Not known unless the survey was thorough.
    pub calm: bool,
    /// The oldest transaction that has not ended.
    pub oldest: u64,
    /// The lowest and the highest number of an entry that is visible, if there is any.
    pub entries: Option<(i64, i64)>,
}

/// Identifies the outbox. None if it has no consumer with this name, or is not installed.
pub async fn facts(client: &Client, consumer: &str) -> Result<Option<OutboxFacts>, OutboxError> {
    const FACTS: &str = "select pg_relation_filenode('unstale.outbox'::regclass), \
         (select case when is_called then last_value else 0 end from unstale.outbox_id_seq), \
         (select coalesce(extract(epoch from stats_reset)::text, '') from pg_stat_archiver) \
         from unstale.consumer c where c.slot = $1";
    let row = match client.query_opt(FACTS, &[&consumer]).await {
        Ok(row) => row,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(row) = row else { return Ok(None) };
    Ok(Some(OutboxFacts { file: row.try_get(0)?, last: row.try_get(1)?, recovered: row.try_get(2)? }))
}

/// Whether the server says that a table or schema is not there.
fn is_missing(error: &tokio_postgres::Error) -> bool {
    let missing = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME, SqlState::UNDEFINED_OBJECT];
    error.code().is_some_and(|code| missing.contains(code))
}

/// The statements of a survey, prepared for one connection.
pub struct SurveyStatements {
    position: Statement,
    calm: Statement,
    entries: Statement,
    arm: Statement,
}

impl SurveyStatements {
    /// Prepares them.
    pub async fn prepare(client: &Client) -> Result<Self, OutboxError> {
        const POSITION: &str = "select pg_current_wal_insert_lsn()::text, \
             (select case when is_called then last_value else 0 end from unstale.outbox_id_seq), \
             pg_relation_filenode(to_regclass('unstale.outbox'))";
        const CALM: &str = "select not exists (select from pg_locks where locktype = 'transactionid' \
             and mode = 'ExclusiveLock')";
        const ENTRIES: &str = "select (select min(id) from unstale.outbox where id >= $1), \
             (select max(id) from unstale.outbox where id >= $1), pg_snapshot_xmin(pg_current_snapshot())";
        // Each call of setval is logged: only where that changes anything.
        const ARM: &str = "select setval('unstale.bell', 2) \
             where pg_sequence_last_value('unstale.bell'::regclass) is distinct from 2";
        Ok(Self {
            position: client.prepare(POSITION).await?,
            calm: client.prepare(CALM).await?,
            entries: client.prepare(ENTRIES).await?,
            arm: client.prepare(ARM).await?,
        })
    }

    /// Asks how far the outbox reaches, from the number `floor` on. If `thorough`, also whether a
    /// transaction is about to commit: a transaction has the lock on its own id until after it is
    /// visible.
    pub async fn survey(&self, client: &Client, floor: i64, thorough: bool) -> Result<Survey, OutboxError> {
        let row = client.query_one(&self.position, &[]).await?;
        let (at, given, file) = (position(row.try_get(0)?)?, row.try_get(1)?, row.try_get(2)?);
        let calm = thorough && client.query_one(&self.calm, &[]).await?.try_get(0)?;
        let row = client.query_one(&self.entries, &[&floor]).await?;
        let (first, last): (Option<i64>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        let FullXid(oldest) = row.try_get(2)?;
        Ok(Survey { file, position: at, given, calm, oldest, entries: first.zip(last) })
    }

    /// Asks the next writer for a wakeup. Returns whether no writer had been asked before.
    pub async fn arm(&self, client: &Client) -> Result<bool, OutboxError> {
        Ok(!client.query(&self.arm, &[]).await?.is_empty())
    }
}

/// Moves the log on by one message that no publication carries, so that later positions are past
/// all that were asked for before. Returns the position after it.
pub async fn seal(client: &Client) -> Result<Lsn, OutboxError> {
    const SEAL: &str = "select pg_logical_emit_message(false, 'unstale', 'position')::text";
    position(client.query_one(SEAL, &[]).await?.try_get(0)?)
}

/// Whether transactions may be prepared on this server (`max_prepared_transactions`).
pub async fn prepares(client: &Client) -> Result<bool, OutboxError> {
    const PREPARES: &str = "select current_setting('max_prepared_transactions') <> '0'";
    Ok(client.query_one(PREPARES, &[]).await?.try_get(0)?)
}

/// Takes the right to work on the outbox, for as long as the connection lives. Returns false if
/// another daemon has it. `alone` if no other daemon may work meanwhile: then earlier ones must
/// have no connection left.
pub async fn enter(client: &Client, alone: bool) -> Result<bool, OutboxError> {
    client.batch_execute(MORTAL).await?;
    if !alone {
        return lock(client, "pg_try_advisory_lock_shared", WORK).await;
    }
    Ok(lock(client, "pg_try_advisory_lock", WORK).await?
        && lock(client, "pg_try_advisory_lock", LANES).await?
        && lock(client, "pg_advisory_unlock", LANES).await?)
}

async fn lock(client: &Client, how: &str, which: i32) -> Result<bool, OutboxError> {
    Ok(client.query_one(&format!("select {how}($1, $2)"), &[&LOCKS, &which]).await?.try_get(0)?)
}

/// Whether a daemon with other rules took over, and others work on the outbox besides this one,
/// which has entered.
pub async fn is_superseded(client: &Client, consumer: &Consumer) -> Result<bool, OutboxError> {
    const OTHER_RULES: &str = "select exists (select from unstale.consumer \
         where slot = $1 and rules is distinct from $2::text::jsonb)";
    let others: bool = client.query_one(OTHER_RULES, &[&consumer.name, &consumer.rules]).await?.try_get(0)?;
    Ok(others && daemons(client).await? > 1)
}

/// How many daemons are at work on the outbox.
pub async fn daemons(client: &Client) -> Result<i64, tokio_postgres::Error> {
    const AT_WORK: &str = "select count(distinct pid) from pg_locks \
         where locktype = 'advisory' and classid = $1::int4::oid and objid = $2::int4::oid and objsubid = 2 and granted \
         and database = (select oid from pg_database where datname = current_database())";
    client.query_one(AT_WORK, &[&LOCKS, &WORK]).await?.try_get(0)
}

/// Returns how many batches Redis had counted when entries were last taken out, and by which
/// dataset, if any. From then on no daemon confirms a batch that went into another dataset than
/// this, or was made by other rules.
pub async fn take_over(
    client: &Client,
    consumer: &Consumer,
    dataset: &str,
) -> Result<(u64, Option<String>), OutboxError> {
    const TAKE_OVER: &str = "select counted, counted_by from unstale.take_over($1, $2, $3::text::jsonb)";
    let row = client.query_one(TAKE_OVER, &[&consumer.name, &dataset, &consumer.rules]).await?;
    Ok((row.try_get::<_, i64>(0)?.cast_unsigned(), row.try_get(1)?))
}

/// Keeps the server from ending the connection, for ever.
pub async fn stay(client: &Client) -> Infallible {
    const EVERY: Duration = Duration::from_secs(10);
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = client.batch_execute("").await {
            tracing::debug!(%error, "the connection that waits is gone");
        }
    }
}

/// The highest number of an entry that is visible; 0 if there is none.
pub async fn highest(client: &Client) -> Result<i64, OutboxError> {
    Ok(client.query_one("select coalesce(max(id), 0) from unstale.outbox", &[]).await?.try_get(0)?)
}

/// Removes, from the number `floor` on, the holds ([`super::claim::Hold`]) whose entries are all
/// gone. Returns how many holds are left.
pub async fn release_holds(client: &Client, floor: i64) -> Result<u64, OutboxError> {
    // Which entries of the application are gone is durable before a hold is.
    let release = format!(
        "begin; set local synchronous_commit = off; \
         delete from unstale.outbox h where h.op = 'h' and h.id >= {floor} and not exists (select from unstale.outbox o \
         where o.id >= {floor} and o.op <> 'h' and o.id <= h.new[1]::bigint); \
         select count(*)::text from unstale.outbox h where h.op = 'h' and h.id >= {floor}; commit"
    );
    let messages = client.simple_query(&release).await?;
    let left = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(left.and_then(|left| left.parse().ok()).unwrap_or_default())
}

/// Where the log ends.
pub async fn end(client: &Client) -> Result<Lsn, OutboxError> {
    position(client.query_one("select pg_current_wal_insert_lsn()::text", &[]).await?.try_get(0)?)
}

/// Keeps other daemons from comparing or beginning history. Returns false if another daemon has
/// this right.
pub async fn lock_history(client: &Client) -> Result<bool, OutboxError> {
    lock(client, "pg_try_advisory_lock", HISTORY).await
}

/// Gives the right of [`lock_history`] to the next daemon.
pub async fn unlock_history(client: &Client) -> Result<(), OutboxError> {
    lock(client, "pg_advisory_unlock", HISTORY).await.map(|_| ())
}

fn position(text: &str) -> Result<Lsn, OutboxError> {
    text.parse().map_err(|_| OutboxError::Position(text.to_owned()))
}
