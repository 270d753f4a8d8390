//! Taking entries out of the outbox.
//!
//! Owns the transaction in which they are deleted. It must not know what becomes of them.
//! Invariants: nothing is deleted outside of a transaction that [`Claimant::commit`] ends; within a
//! transaction of the application no entry is taken before an earlier one that another daemon has,
//! so its order holds however many daemons share the work; a claim has a bounded number of entries
//! and of bytes.

use std::collections::HashMap;
use std::time::SystemTime;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::entry::{Entry, EntryEvent, FullXid, OutboxError, Shapes};
use super::{Consumer, MORTAL};
use crate::change::Lsn;
use crate::install::outbox::locks::{LANES, LOCKS};
use crate::limits::{EVENT_BYTES_MAX, EVENT_HEAD_BYTES_MAX};
use crate::mutant::{self, Mutant};
use crate::postgres::session;
use crate::source::events::WantedEvents;

/// The most entries of one claim.
pub const ENTRIES_MAX: i64 = 4000;

/// The most bytes of values of one claim, but for its first entry.
const BYTES_MAX: i64 = 4 << 20;

/// The largest event that is sent whole, in bytes: a payload at the limit, and its name.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the limits are small")]
const EVENT_MAX: i32 = (EVENT_BYTES_MAX + EVENT_HEAD_BYTES_MAX) as i32;

/// How much of the name of a larger one is sent, in characters.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the limits are small")]
const EVENT_NAME_MAX: i32 = EVENT_HEAD_BYTES_MAX as i32;

/// Settings of a connection that claims. Its own commits need not be on disk: entries that a crash
/// brings back are only applied once more. Plans by index and by hash, whatever the statistics of a
/// table say that is mostly empty: a nested loop over what several daemons hold took seconds.
const PREPARE: &str = "set synchronous_commit = off; set jit = off; set enable_seqscan = off; \
     set enable_bitmapscan = off; set enable_nestloop = off";

/// Picks the oldest entries that no other daemon has, and deletes those whose turn it is: `passed`
/// has, for each transaction, the first entry that another daemon has. `storage external` makes
/// `pg_column_size` the size that is sent. Of an event above $4 bytes only the name is sent.
const CLAIM: &str = "\
with picked as materialized (
  select o.id, o.xid, coalesce(pg_column_size(o.old), 0) + coalesce(pg_column_size(o.new), 0) as bytes
    from unstale.outbox o where o.id >= $3 and o.op <> 'h' order by o.id limit $1 for update skip locked),
measured as (select id, xid, sum(bytes) over (order by id) - bytes as before from picked),
chosen as materialized (select id, xid from measured where before < $2),
reach as materialized (select max(id) as id from chosen),
passed as materialized (
  select o.xid, min(o.id) as id from unstale.outbox o
   where o.id >= $3 and o.id < (select r.id from reach r) and not exists (select from chosen c where c.id = o.id)
   group by o.xid),
claimed as (
  delete from unstale.outbox o using chosen c
   where o.id = c.id and o.id >= $3 and o.id <= (select r.id from reach r)
     and not exists (select from passed p where p.xid = c.xid and p.id < c.id)
  returning o.id, o.xid, o.at, o.op, o.shape, o.old,
    case when o.op = 'e' and pg_column_size(o.new) > $4 then array[left(o.new[1], $5)] else o.new end as new)
select id, xid, at, op, shape, old, new, (select count(*) from picked) from claimed order by id";

/// Where the log is, asked after the claim's own snapshot and its own writes: past the commit of
/// everything claimed, and past every position that was asked for before.
const POSITION: &str = "select pg_current_wal_insert_lsn()::text, pg_current_xact_id_if_assigned()";

/// A connection that takes entries.
pub struct Claimant {
    client: Client,
    claim: Statement,
    position: Statement,
    shapes: Shapes,
    /// The highest number that was taken. Only a mutant uses it.
    highest: i64,
}

/// Entries that were taken.
#[derive(Debug)]
pub struct Claim {
    /// Whole transactions or parts of them, in an order in which they may have been committed.
    pub transactions: Vec<ClaimedTransaction>,
    /// Every transaction of the claim was committed before this position.
    pub position: Lsn,
    /// The transaction in which they were taken; none if there are no entries.
    pub taken_by: Option<u64>,
    /// How many entries it has.
    pub entries: usize,
    /// There may be more.
    pub is_full: bool,
}

/// What one transaction wrote, or a part of that, in its order.
#[derive(Debug)]
pub struct ClaimedTransaction {
    /// Its id.
    pub xid: u64,
    /// When its last entry here was written.
    pub at: SystemTime,
    /// The lowest number of its entries here.
    pub first: i64,
    /// What it did, each with the number of the entry.
    pub events: Vec<(i64, EntryEvent)>,
}

/// What is left in the outbox in place of entries whose ops follow from a later state of the
/// database: until everything that was visible then is in force, no daemon takes the outbox for
/// being past them. A hold is an entry itself, with the lowest of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The lowest number of the entries.
    pub id: i64,
    /// The highest number of an entry that was visible then.
    pub until: i64,
}

impl Hold {
    /// No transaction has the id 0, so a hold belongs to none of the application's.
    fn insert(self) -> String {
        let Self { id, until } = self;
        format!(
            "insert into unstale.outbox (id, xid, op, new) overriding system value \
             values ({id}, '0', 'h', array['{until}']); "
        )
    }
}

impl std::fmt::Debug for Claimant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claimant").finish_non_exhaustive()
    }
}

impl Claimant {
    /// Makes an open connection one that claims.
    /// `is_raw`: the server does not convert what it sends.
    pub async fn new(client: Client, wanted: WantedEvents, is_raw: bool) -> Result<Self, OutboxError> {
        for settings in [MORTAL, PREPARE] {
            client.batch_execute(settings).await?;
        }
        if is_raw {
            client.batch_execute(session::AS_STORED).await?;
        }
        client.query("select pg_advisory_lock_shared($1, $2)", &[&LOCKS, &LANES]).await?;
        let (claim, position) = (client.prepare(CLAIM).await?, client.prepare(POSITION).await?);
        Ok(Self { client, claim, position, shapes: Shapes::new(wanted, is_raw), highest: 0 })
    }

    /// Begins the transaction in which entries are taken.
    pub async fn begin(&self) -> Result<(), OutboxError> {
        Ok(self.client.batch_execute("begin isolation level read committed").await?)
    }

    /// Takes the oldest entries from the number `floor` on, inside of a transaction that
    /// [`Claimant::begin`] began.
    pub async fn claim(&mut self, floor: i64) -> Result<Claim, OutboxError> {
        if mutant::is(Mutant::CursorOverIds) {
            const FORGET: &str = "delete from unstale.outbox where id in \
                 (select id from unstale.outbox where id <= $1 for update skip locked)";
            self.client.execute(FORGET, &[&self.highest]).await?;
        }
        let limits: [&(dyn ToSql + Sync); 5] = [&ENTRIES_MAX, &BYTES_MAX, &floor, &EVENT_MAX, &EVENT_NAME_MAX];
        let claim = self.client.query(&self.claim, &limits);
        let position = self.client.query_one(&self.position, &[]);
        // Both are sent before either is answered, in this order.
        let (rows, position) = futures_util::future::try_join(claim, position).await?;
        let picked: i64 = rows.first().map_or(Ok(0), |row| row.try_get(7))?;
        let entries = self.shapes.decode(&self.client, &rows).await?;
        self.highest = entries.last().map_or(self.highest, |entry| entry.id.max(self.highest));
        let taken_by = position.try_get::<_, Option<FullXid>>(1)?.map(|FullXid(xid)| xid);
        let position: &str = position.try_get(0)?;
        let position = position.parse().map_err(|_| OutboxError::Position(position.to_owned()))?;
        let is_full =
            !entries.is_empty() && (picked >= ENTRIES_MAX || picked > i64::try_from(entries.len()).unwrap_or(i64::MAX));
        Ok(Claim { taken_by, entries: entries.len(), transactions: transactions(entries), position, is_full })
    }

    /// Everything taken since [`Claimant::begin`] is in force: ends the transaction. `batches` is
    /// what the dataset in Redis counted once that was so. `hold` takes the place of the entries.
    ///
    /// # Errors
    ///
    /// A daemon with another dataset, which may not have it, or with other rules has taken over
    /// meanwhile.
    pub async fn commit(
        &self,
        consumer: &Consumer,
        dataset: &str,
        batches: u64,
        hold: Option<Hold>,
    ) -> Result<(), OutboxError> {
        let hold = hold.map_or_else(String::new, Hold::insert);
        // One message: if the first statement fails the second is not run.
        let [dataset, rules] = [dataset, &consumer.rules].map(|text| text.replace('\'', "''"));
        let commit = format!("{hold}select unstale.confirm('{dataset}', '{rules}', {batches}); commit");
        Ok(self.client.batch_execute(&commit).await?)
    }

    /// Ends a transaction in which nothing was taken.
    pub async fn leave(&self) -> Result<(), OutboxError> {
        Ok(self.client.batch_execute("rollback").await?)
    }

    /// Keeps the server from ending the connection.
    pub async fn stay(&self) -> Result<(), OutboxError> {
        Ok(self.client.batch_execute("").await?)
    }
}

/// Groups entries that are in the order of their numbers. Where one transaction had to wait for
/// another, it wrote its entry after the other was committed, and so after the other's last; hence
/// the order of their last entries will do.
fn transactions(entries: Vec<Entry>) -> Vec<ClaimedTransaction> {
    let mut by_xid: HashMap<u64, ClaimedTransaction> = HashMap::new();
    for Entry { id, xid, at, event } in entries {
        let transaction =
            by_xid.entry(xid).or_insert_with(|| ClaimedTransaction { xid, at, first: id, events: Vec::new() });
        transaction.at = at;
        transaction.events.push((id, event));
    }
    let mut transactions: Vec<_> = by_xid.into_values().collect();
    transactions.sort_unstable_by_key(|transaction| transaction.events.last().map(|(id, _)| *id));
    transactions
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::change::{Change, Operation, Relation, RelationId, TableName};

    fn entry(id: i64, xid: u64) -> Entry {
        let relation = Relation {
            id: RelationId::default(),
            name: TableName::parse("public.users"),
            also: Vec::new(),
            columns: Vec::new(),
        };
        let change = Change { relation: Arc::new(relation), operation: Operation::Truncate, old: None, new: None };
        Entry { id, xid, at: SystemTime::UNIX_EPOCH, event: EntryEvent::Change(change) }
    }

    #[test]
    fn transactions_come_in_the_order_of_their_last_entries() {
        let check = |entries: &[(i64, u64)], expected: &[(u64, &[i64])]| {
            let found = transactions(entries.iter().map(|&(id, xid)| entry(id, xid)).collect());
            let found: Vec<(u64, Vec<i64>)> =
                found.iter().map(|found| (found.xid, found.events.iter().map(|(id, _)| *id).collect())).collect();
            let expected: Vec<_> = expected.iter().map(|(xid, ids)| (*xid, ids.to_vec())).collect();
            assert_eq!(found, expected);
        };
        check(&[], &[]);
        check(&[(1, 7), (2, 7), (3, 8)], &[(7, &[1, 2]), (8, &[3])]);
        // 8 was committed before 7 wrote its last: what 7 did to the same row counts.
        check(&[(1, 7), (3, 8), (5, 7)], &[(8, &[3]), (7, &[1, 5])]);
    }
}
