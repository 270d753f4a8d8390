//! The event triggers that tell the daemon of DDL in the same transaction.
//!
//! Owns `sql/ddl_notice.sql`. It must not know what a daemon does with a notice. Invariant: a
//! database without them is no error, because daemons also compare the catalog.

use tokio_postgres::{Client, Error};

use super::script;

/// Creates the function and the event triggers.
pub const DDL_NOTICE: &str = include_str!("../../sql/ddl_notice.sql");

/// Removes the event triggers, then their function.
pub const REMOVE_DDL_NOTICE: &str = "DROP EVENT TRIGGER IF EXISTS unstale_ddl; \
     DROP EVENT TRIGGER IF EXISTS unstale_drop; DROP EVENT TRIGGER IF EXISTS unstale_rewrite; \
     DROP FUNCTION IF EXISTS unstale.notice_ddl();";

/// What follows if a role may not create event triggers.
pub const WITHOUT_DDL_NOTICE: &str =
    "only a superuser may create event triggers; without them the daemon compares the catalog every 2 s";

/// The event triggers, as they are in a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DdlNotice {
    /// How many of the three exist, whatever they call.
    triggers: i64,
    /// The function exists.
    has_function: bool,
    /// All of them exist, are enabled for every session, and call the function of this version.
    pub is_current: bool,
    /// The role is a superuser.
    pub may_create: bool,
}

impl DdlNotice {
    /// Whether any part exists.
    pub const fn is_installed(&self) -> bool {
        self.triggers > 0 || self.has_function
    }
}

/// Looks at the event triggers.
pub async fn read(client: &Client) -> Result<DdlNotice, Error> {
    const STATE: &str = "select count(*), count(*) filter (where e.evtenabled = 'A' and n.nspname = 'unstale' \
         and p.proname = 'notice_ddl' and p.prosecdef and p.prosrc = $1), \
         (select rolsuper from pg_roles where rolname = current_user), \
         exists (select from pg_proc f join pg_namespace s on s.oid = f.pronamespace \
                  where s.nspname = 'unstale' and f.proname = 'notice_ddl') \
         from pg_event_trigger e join pg_proc p on p.oid = e.evtfoid join pg_namespace n on n.oid = p.pronamespace \
         where (e.evtname, e.evtevent) in (('unstale_ddl', 'ddl_command_end'), ('unstale_drop', 'sql_drop'), \
                                           ('unstale_rewrite', 'table_rewrite'))";
    let row = client.query_one(STATE, &[&script::body(DDL_NOTICE, "$notice$")]).await?;
    let current: i64 = row.get(1);
    Ok(DdlNotice {
        triggers: row.get(0),
        is_current: current == 3,
        may_create: row.get::<_, Option<bool>>(2) == Some(true),
        has_function: row.get(3),
    })
}
