//! What a session waits for: which processes hold the locks that it needs.
//!
//! Owns the question, on a connection of its own, and the words. It must not know what the session
//! does. Invariants: no query text and no value of a row is reported; if the question fails, the
//! work goes on all the same.

use std::time::Duration;

use tokio_postgres::{Client, Error, Row};

use super::{Address, connect};

/// How often the question is asked while a session works.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Receives what a session waits for, one sentence at a time.
pub type Say<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// The processes that block this one, each with its role, and what is waited for. Process 0 is a
/// prepared transaction.
const BLOCKERS: &str = "select b.pid, coalesce(a.usename::text, a.backend_type, ''), coalesce(a.application_name, ''), \
     coalesce(a.state, ''), coalesce(extract(epoch from clock_timestamp() - a.xact_start), 0)::int8, \
     (select max(l.relation::regclass::text) from pg_locks l where l.pid = $1 and not l.granted and l.locktype = 'relation'), \
     (select string_agg(p.gid, ', ') from pg_prepared_xacts p where p.database = current_database() and b.pid = 0) \
     from (select distinct unnest(pg_blocking_pids($1)) as pid) b left join pg_stat_activity a on a.pid = b.pid order by 1";

/// The process of a session.
pub async fn backend(client: &Client) -> Result<i32, Error> {
    Ok(client.query_one("select pg_backend_pid()", &[]).await?.get(0))
}

/// Does the work of the session whose process is `pid`. While that waits for locks of others, tells
/// `say` for which: within two seconds, and again when they are others.
pub async fn while_waiting<T>(address: &Address, pid: i32, say: Say<'_>, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut said = String::new();
    let mut observer: Option<Client> = None;
    loop {
        let looking = async {
            tokio::time::sleep(LOOK_EVERY).await;
            if observer.as_ref().is_none_or(Client::is_closed) {
                observer = connect(address).await.ok();
            }
            let rows = observer.as_ref()?.query(BLOCKERS, &[&pid]).await;
            rows.ok()
        };
        let rows = tokio::select! {
            biased;
            done = &mut work => return done,
            rows = looking => rows.unwrap_or_default(),
        };
        let who: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        let now = format!("{who:?}");
        if !who.is_empty() && now != said {
            rows.iter().for_each(|row| say(&words(row)));
            said = now;
        }
    }
}

/// One process that is waited for.
fn words(row: &Row) -> String {
    let (pid, role): (i32, String) = (row.get(0), row.get(1));
    if pid == 0 {
        let names: Option<String> = row.get(6);
        return format!("waiting for a prepared transaction to end: {}", names.unwrap_or_default());
    }
    let (application, state, seconds): (String, String, i64) = (row.get(2), row.get(3), row.get(4));
    let application = if application.is_empty() { String::new() } else { format!(", application {application}") };
    let state = if state.is_empty() { String::new() } else { format!(", {state}") };
    let process = format!("process {pid} (role {role}{application}{state}, its transaction is {seconds} s old)");
    match row.get::<_, Option<String>>(5) {
        Some(table) => format!("waiting for a lock on {table}, which is used by {process}"),
        None => format!("waiting for the transaction of {process} to end"),
    }
}
