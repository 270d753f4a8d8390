//! The writers, which change rows in every way that a transaction can.
//!
//! Owns the statements. It must not know what is cached. Invariant: an item's version only grows,
//! so it is known which of two cached versions is the older.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use unstale::postgres::{self, Address};

use super::query::ITEMS;
use super::state::{Committed, RunState, unix_millis};

const WRITERS: usize = 4;

/// Inserts the items that are missing.
const RESTORE: &str = "insert into items (id, alias, grp) select n, 'a' || n, n % 12 from generate_series(1, 60) n on conflict do nothing";

pub(super) fn start(state: &Arc<RunState>, random: &mut StdRng) -> Vec<JoinHandle<()>> {
    let start = |number| tokio::spawn(write(Arc::clone(state), number, StdRng::from_rng(random)));
    (0..WRITERS).map(start).collect()
}

async fn write(state: Arc<RunState>, writer: usize, mut random: StdRng) {
    let address = Address::parse(&state.primary, &|_| None).unwrap();
    let mut client = None;
    while let Some(turn) = state.writer_turn().await {
        if client.as_ref().is_none_or(Client::is_closed) {
            client = postgres::connect(&address).await.ok();
            if let Some(client) = &client {
                // The previous connection may have left it.
                let _ = client.batch_execute(&format!("rollback prepared 'p{writer}'")).await;
            }
        }
        // A writer may be the victim of a deadlock, or lose its server. Neither concerns the cache.
        if let Some(client) = &client
            && change(&state, client, writer, &mut random).await.is_err()
        {
            let _ = client.batch_execute("rollback").await;
        }
        drop(turn);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..12))).await;
    }
}

async fn change(
    state: &RunState,
    client: &Client,
    writer: usize,
    random: &mut StdRng,
) -> Result<(), tokio_postgres::Error> {
    let (a, b) = (item(random), item(random));
    let pause = random.random_range(0..4) * random.random_range(0..5);
    let kinds = if state.mode.is_outbox() { 26 } else { 23 };
    let sql = match random.random_range(-3..kinds - 3) {
        -3 | -2 => format!("update parts set v = nextval('versions') where id in ({a}, {b})"),
        -1 => format!("begin; delete from parts where id = {a}; insert into parts values ({a}); commit"),
        0..8 => return single(state, client, a).await.map(|_| ()),
        8..11 => format!("begin; {}; select pg_sleep({pause} / 1000.0); {}; commit", touch(a.min(b)), touch(a.max(b))),
        11 => format!("begin; {}; savepoint s; {}; rollback to s; {}; commit", touch(a), touch(b), touch(a)),
        12 => format!("begin; {}; rollback", touch(a)),
        13 => format!(
            "update items set alias = case when alias like 'a%' then 'b' else 'a' end || id, v = nextval('versions') where id = {a}"
        ),
        14 => format!(
            "begin; select from items where id = {a} for update; delete from items where id = {a};
             insert into items (id, alias, grp) values ({a}, 'a{a}', {}); commit",
            b % 12
        ),
        15 => {
            client.batch_execute(&format!("delete from items where id = {a}")).await?;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            format!("insert into items (id, alias, grp) values ({a}, 'a{a}', {}) on conflict do nothing", a % 12)
        }
        16 if state.mode.prepares() => {
            let name = format!("p{writer}");
            let prepare = format!("begin; {}; prepare transaction '{name}'", touch(a));
            client.batch_execute(&prepare).await?;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            format!("commit prepared '{name}'")
        }
        17 => "update items set v = nextval('versions')".to_owned(),
        18 => format!("set synchronous_commit = off; {}; reset synchronous_commit", touch(a)),
        20 => format!("set session_replication_role = replica; {}; reset session_replication_role", touch(a)),
        21 => format!(
            "begin; delete from items where id = {a};
             copy items (id, alias, grp) from program 'echo {a},a{a},{}' with (format csv); commit",
            b % 12
        ),
        22 => match random.random_range(0..8) {
            // Rarely, because what these delete hides what the daemon missed.
            0 => format!("begin; truncate items; {RESTORE}; commit"),
            1 => format!(
                "begin; delete from groups where id = {0}; insert into groups values ({0}); {RESTORE}; commit",
                a % 12
            ),
            _ => format!("begin; {}; select pg_sleep({pause} / 100.0); commit", touch(a)),
        },
        _ => "insert into unpublished select generate_series(1, 50)".to_owned(),
    };
    client.batch_execute(&sql).await?;
    state.commits.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// The number of an item. Some are drawn much more often than the others.
pub(super) fn item(random: &mut StdRng) -> i32 {
    if random.random() { random.random_range(1..=6) } else { random.random_range(1..=ITEMS) }
}

fn touch(item: i32) -> String {
    format!("update items set v = nextval('versions') where id = {item}")
}

/// Changes one row, and tells what is known once the commit returned. None if there is no such row.
pub(super) async fn single(
    state: &RunState,
    client: &Client,
    item: i32,
) -> Result<Option<Committed>, tokio_postgres::Error> {
    let rows = client.query(&format!("{} returning v", touch(item)), &[]).await?;
    let position = client.query_one("select pg_current_wal_insert_lsn()::text", &[]).await?;
    let position = position.get::<_, String>(0).parse().unwrap();
    let committed = rows.first().map(|row| Committed { version: row.get(0), position, at: unix_millis() });
    if let Some(committed) = committed {
        state.committed.lock().unwrap().entry(item).or_default().push(committed);
    }
    state.commits.fetch_add(1, Ordering::Relaxed);
    Ok(committed)
}
