//! The server that is checked, and the facts that several questions need.

use tokio_postgres::Client;

use crate::config::Settings;
use crate::postgres::Address;

/// A server that answers, and what the questions need.
pub(super) struct PostgresProbe<'a> {
    pub(super) client: &'a Client,
    /// The server that was reached.
    pub(super) address: &'a Address,
    pub(super) settings: &'a Settings,
    /// Its name in messages.
    pub(super) name: String,
    pub(super) facts: PostgresFacts,
}

/// What a server says about itself and about our role.
pub(super) struct PostgresFacts {
    /// The major version.
    pub(super) version: i32,
    pub(super) version_text: String,
    pub(super) wal_level: String,
    pub(super) standby: bool,
    pub(super) role: String,
    pub(super) slots_max: i32,
    pub(super) slots: i32,
    pub(super) senders_max: i32,
    pub(super) senders: i32,
}

impl PostgresFacts {
    pub(super) async fn read(client: &Client) -> Result<Self, tokio_postgres::Error> {
        const FACTS: &str = "select current_setting('server_version_num')::int, current_setting('server_version'), \
             current_setting('wal_level'), pg_is_in_recovery(), current_user::text, \
             current_setting('max_replication_slots')::int, (select count(*) from pg_replication_slots)::int, \
             current_setting('max_wal_senders')::int, (select count(*) from pg_stat_replication)::int";
        let row = client.query_one(FACTS, &[]).await?;
        Ok(Self {
            version: row.get::<_, i32>(0) / 10_000,
            version_text: row.get(1),
            wal_level: row.get(2),
            standby: row.get(3),
            role: row.get(4),
            slots_max: row.get(5),
            slots: row.get(6),
            senders_max: row.get(7),
            senders: row.get(8),
        })
    }
}
