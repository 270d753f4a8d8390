//! The state of the slot or of the outbox in PostgreSQL.
//!
//! Owns these queries. It must not change anything in the database. Invariant: a server that does
//! not answer is reported in time.

use std::time::Duration;

use tokio_postgres::Client;

use crate::cmd::failure::Failure;
use crate::cmd::outbox::require_outbox;
use crate::config::{Mode, Settings};
use crate::postgres;
use crate::source::outbox::survey::daemons;

/// How long PostgreSQL may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// More entries than this are not counted.
const DEPTH_MAX: i64 = 1_000_000;

/// The state of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SourceStatus {
    Slot(SlotStatus),
    Outbox(OutboxStatus),
}

/// A replication slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotStatus {
    /// A daemon reads it.
    pub(super) active: bool,
    /// Its confirmed position.
    pub(super) confirmed: Option<String>,
    /// From there to the end of the log, in bytes.
    pub(super) lag: Option<i64>,
    /// How much log is kept for it, in bytes.
    pub(super) retained: Option<i64>,
    /// Whether that log is safe, as PostgreSQL calls it.
    pub(super) wal_status: Option<String>,
}

/// An outbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OutboxStatus {
    /// How many entries are waiting, up to a limit.
    pub(super) depth: i64,
    /// There are more.
    pub(super) deeper: bool,
    /// How long the oldest has been waiting.
    pub(super) oldest: Option<Duration>,
    /// The size of the table, with its indexes, in bytes.
    pub(super) bytes: i64,
    /// How many daemons are at work.
    pub(super) daemons: i64,
    /// The slot name of the consumer that it was set up for.
    pub(super) consumer: Option<String>,
    /// How many batches Redis had counted when entries were last removed for this consumer.
    pub(super) batches: Option<i64>,
}

/// A connection that `--watch` keeps between two queries.
#[derive(Default)]
pub(super) struct SourceConnection {
    client: Option<Client>,
}

impl SourceConnection {
    pub(super) async fn ask(&mut self, settings: &Settings) -> Result<SourceStatus, Failure> {
        let asked = tokio::time::timeout(ANSWER_MAX, async {
            let client = match self.client.take().filter(|client| !client.is_closed()) {
                Some(client) => client,
                None => postgres::connect(&settings.postgres).await?,
            };
            let found = match settings.mode {
                Mode::Slot => slot(&client, settings).await.map(SourceStatus::Slot),
                Mode::Outbox => outbox(&client, settings).await.map(SourceStatus::Outbox),
            };
            self.client = Some(client);
            found
        });
        let silent = |_| {
            let seconds = ANSWER_MAX.as_secs();
            Failure::unavailable(format!("PostgreSQL at {} did not answer within {seconds} seconds", settings.postgres))
        };
        asked.await.map_err(silent)?
    }
}

async fn slot(client: &Client, settings: &Settings) -> Result<SlotStatus, Failure> {
    const SLOT: &str = "select active, confirmed_flush_lsn::text, \
         pg_wal_lsn_diff(log.ends, confirmed_flush_lsn)::int8, pg_wal_lsn_diff(log.ends, restart_lsn)::int8, wal_status \
         from pg_replication_slots, (select case when pg_is_in_recovery() \
         then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end as ends) log where slot_name = $1";
    let Some(row) = client.query_opt(SLOT, &[&settings.slot]).await? else {
        return Err(Failure::configuration(format!(
            "{}: there is no replication slot `{}`; run `unstale setup`",
            settings.postgres, settings.slot
        )));
    };
    Ok(SlotStatus {
        active: row.try_get(0)?,
        confirmed: row.try_get(1)?,
        lag: row.try_get(2)?,
        retained: row.try_get(3)?,
        wal_status: row.try_get(4)?,
    })
}

async fn outbox(client: &Client, settings: &Settings) -> Result<OutboxStatus, Failure> {
    const OUTBOX: &str = "select (select count(*) from (select from unstale.outbox limit $1::int8 + 1) counted), \
         (select (extract(epoch from clock_timestamp() - at) * 1000)::int8 from unstale.outbox order by id limit 1), \
         pg_total_relation_size('unstale.outbox'::regclass), \
         (select slot from unstale.consumer order by slot <> $2 limit 1), \
         (select case when is_called then last_value else 0 end from unstale.counted \
           where exists (select from unstale.consumer where slot = $2))";
    require_outbox(client, settings).await?;
    let row = client.query_one(OUTBOX, &[&DEPTH_MAX, &settings.slot]).await?;
    let depth: i64 = row.try_get(0)?;
    let oldest: Option<i64> = row.try_get(1)?;
    Ok(OutboxStatus {
        depth: depth.min(DEPTH_MAX),
        deeper: depth > DEPTH_MAX,
        // If the clock was set back, an entry may be from the future.
        oldest: oldest.map(|millis| Duration::from_millis(u64::try_from(millis).unwrap_or(0))),
        bytes: row.try_get(2)?,
        daemons: daemons(client).await?,
        consumer: row.try_get(3)?,
        batches: row.try_get(4)?,
    })
}
