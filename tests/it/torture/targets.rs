//! What a fault can reach at any time: the proxies, the processes, and both servers past the
//! proxies.
//!
//! Owns these handles. It must not start or end a server: that is for [`super::cluster`].
//! Invariant: a handle leads to the server or the daemon that is in use.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use unstale::postgres::{self, Address};
use unstale::sandbox::Redis;

use super::state::{REST_MAX, RunState};
use crate::proxy::Proxy;

/// What a fault can reach while other faults strike.
pub(super) struct Targets {
    pub(super) state: Arc<RunState>,
    /// Between the daemon or the API and the servers. The fillers reach Redis by the same proxy.
    pub(super) to_postgres: Proxy,
    pub(super) to_redis: Proxy,
    current: Mutex<Current>,
}

/// What changes when a server or the daemon is replaced.
#[derive(Default)]
struct Current {
    daemon_pid: Option<u32>,
    redis_pid: Option<u32>,
    redis_url: String,
}

impl Targets {
    pub(super) fn new(state: Arc<RunState>, to_postgres: Proxy, to_redis: Proxy) -> Self {
        Self { state, to_postgres, to_redis, current: Mutex::default() }
    }

    pub(super) fn set_daemon(&self, pid: Option<u32>) {
        self.current.lock().unwrap().daemon_pid = pid;
    }

    pub(super) fn set_redis(&self, redis: &Redis) {
        let mut current = self.current.lock().unwrap();
        (current.redis_pid, current.redis_url) = (redis.pid(), redis.url());
    }

    pub(super) fn daemon_pid(&self) -> Option<u32> {
        self.current.lock().unwrap().daemon_pid
    }

    pub(super) fn redis_pid(&self) -> Option<u32> {
        self.current.lock().unwrap().redis_pid
    }

    /// A connection to the primary past the proxy.
    pub(super) async fn admin(&self) -> Client {
        let address = Address::parse(&self.state.primary, &|_| None).unwrap();
        let deadline = Instant::now() + REST_MAX;
        loop {
            match postgres::connect(&address).await {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs a command on the Redis in use, past the proxy, until it succeeds: another fault may
    /// interrupt it. So it may run more than once.
    pub(super) async fn redis(&self, words: &[&str]) {
        let deadline = Instant::now() + REST_MAX;
        loop {
            let url = self.current.lock().unwrap().redis_url.clone();
            let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
            let done = async {
                let client = redis::Client::open(url)?;
                let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
                redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut connection).await
            };
            match done.await {
                Ok(()) => return,
                Err(error) => assert!(Instant::now() < deadline, "{words:?}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the wait of commits for a standby.
    pub(super) async fn release_commits(&self) {
        let deadline = Instant::now() + REST_MAX;
        loop {
            let admin = self.admin().await;
            let released = async {
                // The statement that ends the wait must not wait itself.
                admin.batch_execute("set synchronous_commit = local").await?;
                admin.batch_execute("alter system reset synchronous_standby_names").await?;
                admin.batch_execute("select pg_reload_conf()").await
            };
            match released.await {
                Ok(()) => return,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }

    /// Moves the slot to the end of the log, past what the daemon has not seen; whether that
    /// succeeded. The walsender of a daemon that was killed may not have noticed that yet, or may
    /// be frozen.
    pub(super) async fn advance_slot(&self) -> bool {
        let admin = self.admin().await;
        let deadline = Instant::now() + Duration::from_millis(500);
        let end = "select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null";
        let advance = "select pg_replication_slot_advance('unstale', pg_current_wal_lsn())";
        while admin.query(end, &[]).await.is_ok_and(|rows| !rows.is_empty()) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        admin.batch_execute(advance).await.is_ok()
    }
}
