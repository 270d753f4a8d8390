//! The entries that wait in the outbox, read and not consumed.
//!
//! Owns the query, its order, and the difference between one scan and the next. It must not know
//! rules. Invariants: entries stay where they are, and no daemon waits for a scan; a scan shows one
//! moment, however long it takes; entries are read page by page, however many wait.

use std::collections::VecDeque;

use tokio_postgres::{Client, Error};

use super::entry::{ENTRY_COLUMNS, Entry, OutboxError, Shapes};
use crate::change::Lsn;

/// How many entries are fetched at once.
const PAGE: usize = 1000;

/// What is visible now, and a position that the log has reached.
const PRESENT: &str = "select pg_current_snapshot()::text, (case when pg_is_in_recovery() \
     then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end)::text";

/// The entries of transactions that could be seen at one moment ($1) and could not yet at an
/// earlier one ($2), as far as these are given. An entry that a restore brought here names a
/// transaction of another server, of which no moment tells: a scan without moments shows it, and
/// later ones do not repeat it.
const CONDITION: &str = "coalesce(pg_visible_in_snapshot(o.xid, $1::text::pg_snapshot), true) \
     and ($2::text is null or pg_visible_in_snapshot(o.xid, (select pg_current_snapshot())) \
     and not pg_visible_in_snapshot(o.xid, $2::text::pg_snapshot))";

/// A daemon's order, but for the limits of its batches: transactions whole. One that waited for
/// another to end wrote its last entry after that, and comes after it.
const ORDER: &str = "max(o.id) over (partition by o.xid), o.id";

/// A moment, as far as transactions are concerned: which of them could be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment(String);

impl Moment {
    /// Now.
    pub async fn now(client: &Client) -> Result<Self, Error> {
        Ok(Self(client.query_one("select pg_current_snapshot()::text", &[]).await?.try_get(0)?))
    }
}

/// What a scan shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingScan {
    /// The moment that it shows.
    pub moment: Moment,
    /// Every transaction that it shows was committed before the log got here.
    pub end: Lsn,
}

/// Reads the entries that wait.
pub struct Pending {
    client: Client,
    shapes: Shapes,
    page: VecDeque<Entry>,
    /// Everything that the scan shows was fetched.
    ended: bool,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Pending {
    /// Reads over a connection of its own.
    pub fn new(client: Client) -> Self {
        Self { client, shapes: Shapes::default(), page: VecDeque::new(), ended: true }
    }

    /// Begins a scan of what waits now: of transactions that could not be seen yet at `since`, and
    /// could at `until`.
    pub async fn scan(&mut self, since: Option<&Moment>, until: Option<&Moment>) -> Result<PendingScan, OutboxError> {
        if !self.ended {
            self.client.batch_execute("rollback").await?;
        }
        self.page.clear();
        self.client.batch_execute("begin isolation level repeatable read, read only").await?;
        self.ended = false;
        let present = self.client.query_one(PRESENT, &[]).await?;
        let moment = Moment(present.try_get(0)?);
        let end: Option<&str> = present.try_get(1)?;
        let end = end.unwrap_or_default();
        let end: Lsn = end.parse().map_err(|_| OutboxError::Position(end.to_owned()))?;
        let [since, until] = [since, until].map(|moment| moment.map(|moment| moment.0.as_str()));
        let declare = format!(
            "declare unstale_pending no scroll cursor for \
             select {ENTRY_COLUMNS} from unstale.outbox o where o.op <> 'h' and {CONDITION} order by {ORDER}"
        );
        self.client.execute(&declare, &[&until, &since]).await?;
        Ok(PendingScan { moment, end })
    }

    /// The next entry of the scan. Those of one transaction follow one another.
    pub async fn next(&mut self) -> Result<Option<Entry>, OutboxError> {
        if self.page.is_empty() && !self.ended {
            let fetch = format!("fetch forward {PAGE} from unstale_pending");
            let rows = self.client.query(&fetch, &[]).await?;
            self.page = self.shapes.decode(&self.client, &rows).await?.into();
            if rows.len() < PAGE {
                self.client.batch_execute("commit").await?;
                self.ended = true;
            }
        }
        Ok(self.page.pop_front())
    }

    /// The connection, for questions between two scans.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// Whether there is an outbox.
pub async fn is_there(client: &Client) -> Result<bool, Error> {
    client.query_one("select to_regclass('unstale.outbox') is not null", &[]).await?.try_get(0)
}
