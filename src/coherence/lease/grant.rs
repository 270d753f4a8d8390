//! The right to fill a key once, and which server may be read for it.
//!
//! Owns what a replica must show. It must not know how a grant is given or used. Invariant: a
//! replica says where it is, and in which history, in a statement of its own, before the statement
//! that reads.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, SimpleQueryMessage};

use super::envelope::Token;
use crate::change::Lsn;
use crate::coherence::history::Origin;
use crate::coherence::server::standby_condition;
use crate::key::CacheKey;
use crate::mutant::{self, Mutant};

/// The right to fill a key once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub(super) key: CacheKey,
    pub(super) token: Token,
    /// A value that is read now contains every commit up to this position.
    pub lo: Lsn,
    /// The position that a replica must have replayed before it may be read for this fill. None: no
    /// replica may be read, because Redis does not know up to where invalidations are in force.
    pub started: Option<Lsn>,
    /// The history that both positions belong to. None: no server may be read for this fill. A
    /// primary may be read if [`crate::coherence::server::ServerIdentity::is_of`] says so, which
    /// need be asked once for each connection.
    pub origin: Option<Origin>,
}

/// `applied`, `started` and `origin`, from one moment.
pub(super) type GrantState = (Option<String>, Option<String>, Option<String>);

impl Grant {
    pub(super) fn new(key: &CacheKey, token: Token, (applied, started, origin): GrantState) -> Self {
        Self {
            key: key.clone(),
            token,
            lo: position(applied.as_deref()).unwrap_or_default(),
            started: position(started.as_deref()),
            origin: origin.as_deref().and_then(Origin::decode),
        }
    }

    /// Reads the value from a replica, if it belongs to the history of the grant, and has replayed
    /// everything that the fill and the reader rely on. None if not: read the primary. `sql`
    /// returns one row.
    ///
    /// Both statements go over this client, and so to one server. They must not share a `REPEATABLE
    /// READ` transaction: the second would see what the first saw, and the check would prove
    /// nothing.
    ///
    /// # Errors
    ///
    /// The replica's; read the primary then.
    pub async fn read_replica(
        &self,
        replica: &Client,
        min: Option<Lsn>,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, tokio_postgres::Error> {
        if mutant::is(Mutant::ReplicaCheckTooLate)
            && let Some(check) = self.replica_check(min)
        {
            let row = replica.query_one(&format!("select q.*, {check} from ({sql}) q"), parameters).await?;
            return Ok(row.get::<_, bool>(row.len() - 1).then_some(row));
        }
        if !self.is_covered_by(replica, min).await? {
            return Ok(None);
        }
        replica.query_one(sql, parameters).await.map(Some)
    }

    /// Whether a statement that begins now on this replica sees everything that the fill and the
    /// reader rely on. Ask on the connection that will read, before the statement that reads.
    ///
    /// # Errors
    ///
    /// The replica's; read the primary then.
    pub async fn is_covered_by(&self, replica: &Client, min: Option<Lsn>) -> Result<bool, tokio_postgres::Error> {
        let Some(check) = self.replica_check(min) else { return Ok(false) };
        let answer = replica.simple_query(&format!("select coalesce({check}, false)")).await?;
        Ok(answer.iter().any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"))))
    }

    fn replica_check(&self, min: Option<Lsn>) -> Option<String> {
        let position = self.started?.max(min.unwrap_or_default());
        let mut check = format!("pg_is_in_recovery() and pg_last_wal_replay_lsn() >= '{position}'::pg_lsn");
        if !mutant::is(Mutant::ReplicaWithoutHistory) {
            check = format!("{check} and {}", standby_condition(self.origin.as_ref()?)?);
        }
        Some(check)
    }
}

/// The position in a reply of Redis, if there is one.
pub(super) fn position(text: Option<&str>) -> Option<Lsn> {
    text.and_then(Lsn::from_fixed_hex)
}
