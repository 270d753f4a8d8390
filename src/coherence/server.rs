//! To which history a PostgreSQL server belongs.
//!
//! Owns the question, which every connection answers in the same way, and the comparison with the
//! history that positions in Redis belong to. It must not know what is read on the connection.
//! Invariant: a server that does not say to which history it belongs belongs to none.
//!
//! Positions of different histories cannot be compared. The timeline of a primary cannot change
//! while a connection lives, so it is asked once. That of a standby can: it is part of each check
//! of a replica.

use tokio_postgres::Client;

use super::history::Origin;

/// The identifier of the database cluster and the OID of the database, as text.
const SYSTEM: &str = "(select system_identifier from pg_control_system())::text || '.' || \
     (select oid from pg_database where datname = current_database())::text";

/// The timeline that a primary writes.
const PRIMARY: &str = "('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int";

/// The timeline that a standby follows. The first is known only while it streams, and to roles that
/// may read all statistics; the others follow it.
const STANDBY: &str = "greatest((select received_tli from pg_stat_wal_receiver), \
     (select timeline_id from pg_control_checkpoint()), \
     (select min_recovery_end_timeline from pg_control_recovery()))";

/// A database, and the history of its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerIdentity {
    /// The identifier of the database cluster, a dot, and the OID of the database.
    pub system: String,
    /// The timeline, as a decimal number.
    pub timeline: String,
    /// It follows another server.
    pub is_standby: bool,
}

impl ServerIdentity {
    /// Asks a server.
    ///
    /// # Errors
    ///
    /// The server's.
    pub async fn read(client: &Client) -> Result<Self, tokio_postgres::Error> {
        let sql = format!(
            "select {SYSTEM}, (case when pg_is_in_recovery() then {STANDBY} else {PRIMARY} end)::text, pg_is_in_recovery()"
        );
        let row = client.query_one(&sql, &[]).await?;
        Ok(Self { system: row.try_get(0)?, timeline: row.try_get(1)?, is_standby: row.try_get(2)? })
    }

    /// Whether it is the database, on the timeline, that positions of this origin belong to.
    pub fn is_of(&self, origin: &Origin) -> bool {
        origin.is_of_system(&self.system) && origin.timeline == self.timeline
    }
}

/// The condition that a standby belongs to the history of this origin, in SQL. None if the origin
/// is not what unstale writes.
pub fn standby_condition(origin: &Origin) -> Option<String> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Origin { system, timeline, .. } = origin;
    if !is_number(timeline) || !system.split('.').all(is_number) {
        return None;
    }
    let pattern = if system.contains('.') { system.clone() } else { format!("{system}.%") };
    Some(format!("{SYSTEM} like '{pattern}' and {STANDBY} = {timeline}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_of_an_origin_by_system_database_and_timeline() {
        let check = |origin: &str, expected: bool| {
            let server = ServerIdentity { system: "7.5".to_owned(), timeline: "2".to_owned(), is_standby: false };
            assert_eq!(server.is_of(&Origin::decode(origin).unwrap()), expected, "{origin}");
        };
        check("7.5/2/0", true);
        check("7.5/2/9/outbox 3 a", true);
        check("7.6/2/0", false);
        check("8.5/2/0", false);
        check("7.5/1/0", false);
        // What an earlier version wrote.
        check("7/2/0", true);
        check("77/2/0", false);
    }

    #[test]
    fn nothing_but_numbers_becomes_sql() {
        let condition = |origin: &str| standby_condition(&Origin::decode(origin).unwrap());
        assert!(condition("7.5/2/0").unwrap().contains("like '7.5'"));
        assert!(condition("7/2/0").unwrap().contains("like '7.%'"));
        for origin in ["7.5/x/0", "7'.5/2/0", "7.5//0", "/2/0", "7._/2/0"] {
            assert_eq!(condition(origin), None, "{origin}");
        }
    }
}
