//! What a fault can reach at any time: the proxies, the processes, the program's verbs, and both
//! servers past the proxies that disturb.
//!
//! Owns these handles. It must not start or end a server: that is for [`super::cluster`].
//! Invariant: a handle leads to the server or the daemon that is in use.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_postgres::Client;
use unstale::mutant::Mutant;
use unstale::postgres::{self, Address};
use unstale::sandbox::Redis;

use super::cluster::SESSIONS;
use super::mode::Mode;
use super::state::{REST_MAX, RunState};
use crate::proxy::Proxy;
use crate::support::text;

/// What a fault can reach while other faults strike.
pub(super) struct Targets {
    pub(super) state: Arc<RunState>,
    /// Between the daemon or the API and the servers. The fillers reach Redis by the same proxy.
    pub(super) to_postgres: Proxy,
    pub(super) to_redis: Proxy,
    /// The way of all others. Nothing disturbs it; the server behind it may become another one.
    pub(super) past: Past,
    /// With the files of the configuration.
    directory: TempDir,
    mutant: Option<Mutant>,
    /// Held by the one who changes tables.
    pub(super) ddl: tokio::sync::Mutex<()>,
    current: Mutex<Current>,
}

/// The ways to the two PostgreSQL servers that nothing disturbs.
pub(super) struct Past {
    pub(super) primary: Proxy,
    pub(super) replica: Proxy,
}

/// The URL of a server behind a proxy, as superuser.
pub(super) fn url_of(proxy: &Proxy) -> String {
    format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port())
}

/// What changes when a server or the daemon is replaced.
#[derive(Default)]
struct Current {
    daemon_pid: Option<u32>,
    redis_pid: Option<u32>,
    redis_url: String,
}

impl Targets {
    pub(super) fn new(mode: Mode, mutant: Option<Mutant>, ports: [u16; 3]) -> Self {
        let [primary, replica, redis] = ports;
        let past = Past { primary: Proxy::start(primary), replica: Proxy::start(replica) };
        let (to_postgres, to_redis) = (Proxy::start(primary), Proxy::start(redis));
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("invalidation.yaml"), mode.rules()).unwrap();
        let with_replica = mode.rules_with_replica(&url_of(&past.replica));
        std::fs::write(directory.path().join("replica.yaml"), with_replica).unwrap();
        let redis_url = format!("redis://127.0.0.1:{}", to_redis.port());
        let state = RunState::new(mode, url_of(&past.primary), url_of(&past.replica), &redis_url);
        let (ddl, current) = Default::default();
        Self { state: Arc::new(state), to_postgres, to_redis, past, directory, mutant, ddl, current }
    }

    /// A verb of the program, with its servers behind the proxies that disturb.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
        command.args(arguments).current_dir(self.directory.path()).env_remove("RUST_LOG");
        command.env("DATABASE_URL", self.database_url(SESSIONS));
        command.env("REDIS_URL", format!("redis://127.0.0.1:{}", self.to_redis.port()));
        if let Some(mutant) = self.mutant {
            command.env("UNSTALE_MUTANT", mutant.name());
        }
        command
    }

    /// The primary, behind the proxy that disturbs, for sessions of this name.
    pub(super) fn database_url(&self, sessions: &str) -> String {
        format!("{}?application_name={sessions}", url_of(&self.to_postgres))
    }

    /// Runs `setup` or `teardown` until it succeeds. It waits for locks of the writers, and may be
    /// the victim of a deadlock.
    pub(super) async fn run(&self, verb: &str) {
        let deadline = Instant::now() + REST_MAX;
        loop {
            let mut command = self.command(&[verb]);
            command.env("DATABASE_URL", &self.state.primary);
            let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
            if output.status.success() {
                return;
            }
            assert!(Instant::now() < deadline, "{verb}: {}", text(&output));
        }
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
