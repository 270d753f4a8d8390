//! The servers, the daemons and the API of a run.
//!
//! Owns starting, replacing and ending them. It must not know what is written or read. Invariant:
//! [`Cluster::calm`] ends every fault that lasts.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use unstale::change::Lsn;
use unstale::mutant::Mutant;
use unstale::sandbox::{Postgres, Redis, signal};

use super::api;
use super::mode::Mode;
use super::state::{REST_MAX, RunState};
use super::targets::Targets;
use crate::proxy::{Fault, Proxy};
use crate::support::{Daemon, template, text};

/// The application name of the daemon's sessions in PostgreSQL.
pub(super) const SESSIONS: &str = "daemon";

const SCHEMA: &str = "
create sequence versions;
create table items (id int primary key, alias text not null unique, grp int not null,
                    v bigint not null default nextval('versions'));
create table unpublished (n int);
insert into items (id, alias, grp) select n, 'a' || n, n % 12 from generate_series(1, 60) n";

/// Deleting its rows deletes items by cascade. Only triggers see that.
const CASCADES: &str = "
create table groups (id int primary key);
insert into groups select generate_series(0, 11);
alter table items add foreign key (grp) references groups on delete cascade";

/// The servers and the daemon.
pub(super) struct Cluster {
    pub(super) targets: Arc<Targets>,
    postgres: Postgres,
    standby: Postgres,
    redis: Redis,
    /// Replicates the other one, and takes over when that fails.
    spare: Redis,
    mutant: Option<Mutant>,
    directory: TempDir,
    daemon: Option<Daemon>,
    /// In outbox mode there are two daemons.
    second: Option<Daemon>,
}

impl Cluster {
    pub(super) async fn start(mode: Mode, mutant: Option<Mutant>) -> Self {
        let fixed = ["max_connections=200", "wal_sender_timeout=10s", "wal_keep_size=256MB"];
        let settings = [&fixed[..], mode.server_settings()].concat();
        let mut postgres = template::start(&settings);
        let client = crate::support::connect(&postgres.url("postgres")).await;
        client.batch_execute(SCHEMA).await.unwrap();
        if mode.is_outbox() {
            client.batch_execute(CASCADES).await.unwrap();
        }
        drop(client);
        let standby =
            postgres.standby(&[&settings[..], &["hot_standby=on", "max_standby_streaming_delay=-1"]].concat()).unwrap();
        let (redis, spare) = (Redis::start(&[]).unwrap(), Redis::start(&[]).unwrap());
        let (to_postgres, to_redis) = (Proxy::start(postgres.port()), Proxy::start(redis.port()));
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("invalidation.yaml"), mode.rules()).unwrap();
        let with_replica = mode.rules_with_replica(&standby.url("postgres"));
        std::fs::write(directory.path().join("replica.yaml"), with_replica).unwrap();
        let url = format!("redis://127.0.0.1:{}", to_redis.port());
        let state = RunState::new(mode, postgres.url("postgres"), standby.url("postgres"), &url);
        let targets = Arc::new(Targets::new(Arc::new(state), to_postgres, to_redis));
        let mut cluster =
            Self { targets, postgres, standby, redis, spare, mutant, directory, daemon: None, second: None };
        cluster.follow();
        let setup = cluster.command(&["setup"]).output().unwrap();
        assert!(setup.status.success(), "{}", text(&setup));
        cluster.start_daemon();
        cluster.daemon.as_ref().unwrap().wait_for_log("streaming");
        (0..api::SERVERS).for_each(|server| cluster.start_api(server));
        cluster.targets.state.api.wait_until_served();
        cluster
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
        command.args(arguments).current_dir(self.directory.path()).env_remove("RUST_LOG");
        command.env("DATABASE_URL", self.database_url(SESSIONS));
        command.env("REDIS_URL", format!("redis://127.0.0.1:{}", self.targets.to_redis.port()));
        if let Some(mutant) = self.mutant {
            command.env("UNSTALE_MUTANT", mutant.name());
        }
        command
    }

    /// The primary, behind the proxy, for sessions of this name.
    fn database_url(&self, sessions: &str) -> String {
        let port = self.targets.to_postgres.port();
        format!("postgres://postgres@127.0.0.1:{port}/postgres?application_name={sessions}")
    }

    /// Makes the spare the replica of the Redis in use.
    fn follow(&self) {
        self.targets.set_redis(&self.redis);
        let mut spare = redis::Client::open(self.spare.url()).unwrap().get_connection().unwrap();
        redis::cmd("REPLICAOF").arg("127.0.0.1").arg(self.redis.port()).exec(&mut spare).unwrap();
    }

    /// Ends replication: the spare keeps its data.
    pub(super) fn unfollow(&self) {
        let mut spare = redis::Client::open(self.spare.url()).unwrap().get_connection().unwrap();
        redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut spare).unwrap();
    }

    /// Makes the spare, with its data, the Redis in use, and the other one the spare.
    pub(super) fn fail_over(&mut self) {
        self.unfollow();
        std::mem::swap(&mut self.redis, &mut self.spare);
        self.targets.to_redis.retarget(self.redis.port());
        self.targets.to_redis.cut();
        self.follow();
    }

    pub(super) fn restart_redis(&mut self) {
        self.redis.stop();
        self.redis.restart().unwrap();
        self.follow();
    }

    /// Ends PostgreSQL without a shutdown, and starts it again.
    pub(super) async fn crash_postgres(&mut self) {
        self.postgres.stop();
        let deadline = Instant::now() + REST_MAX;
        // A walsender that another fault has frozen still uses the shared memory.
        while let Err(error) = self.postgres.restart() {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) fn kill_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.signal("KILL");
            self.targets.set_daemon(None);
        }
    }

    pub(super) fn start_daemon(&mut self) {
        let daemon = Daemon::start(self.command(&["run"]));
        self.targets.set_daemon(Some(daemon.pid()));
        self.daemon = Some(daemon);
    }

    /// Starts one of the API's servers. Its sessions have another name than the daemon's, which
    /// faults look for.
    pub(super) fn start_api(&self, server: usize) {
        let file = if server == 0 { "invalidation.yaml" } else { "replica.yaml" };
        let mut command = self.command(&["serve", "--config", file, "--listen", "127.0.0.1:0"]);
        command.env("DATABASE_URL", self.database_url("api"));
        self.targets.state.api.servers.start(server, command);
    }

    pub(super) fn kill_second(&mut self) {
        self.second = None;
    }

    /// Starts the second daemon if it does not run.
    pub(super) fn start_second(&mut self) {
        if self.second.as_mut().is_none_or(Daemon::has_ended) {
            self.second = Some(Daemon::start(self.command(&["run"])));
        }
    }

    /// Drops the outbox with everything in it, and makes an empty one. No daemon may run meanwhile.
    pub(super) fn remake_outbox(&self) {
        let deadline = Instant::now() + REST_MAX;
        for verb in ["teardown", "setup"] {
            loop {
                let mut command = self.command(&[verb]);
                let output = command.env("DATABASE_URL", &self.targets.state.primary).output().unwrap();
                if output.status.success() {
                    break;
                }
                // It waits for locks of the writers, and may be the victim of a deadlock.
                assert!(Instant::now() < deadline, "{verb}: {}", text(&output));
            }
        }
    }

    /// Ends every fault that lasts, and starts what has ended.
    pub(super) async fn calm(&mut self) {
        let targets = Arc::clone(&self.targets);
        targets.to_postgres.set(Fault::None);
        targets.to_redis.set(Fault::None);
        let servers = [self.redis.pid(), self.spare.pid(), self.postgres.pid(), self.standby.pid()];
        for pid in servers.into_iter().chain([targets.daemon_pid()]).flatten() {
            signal(pid, "CONT");
        }
        targets.redis(&["CONFIG", "SET", "maxmemory", "0"]).await;
        targets.release_commits().await;
        for server in 0..api::SERVERS {
            targets.state.api.servers.signal(server, "CONT");
            if api::is_away(&targets.state, server) {
                self.start_api(server);
            }
        }
        // A daemon ends by itself if something looks like a mistake in its configuration.
        if self.daemon.as_mut().is_none_or(Daemon::has_ended) {
            self.start_daemon();
        }
    }

    /// Waits until everything that is committed is in force: the watermark passes a position of
    /// now. A daemon that started while a server was away may end meanwhile; as a supervisor would,
    /// this starts another one.
    pub(super) async fn wait_until_in_force(&mut self) -> Result<(), String> {
        let admin = self.targets.admin().await;
        admin.batch_execute("update items set v = nextval('versions') where id = 1").await.unwrap();
        let row = admin.query_one("select pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
        let position: Lsn = row.get::<_, String>(0).parse().unwrap();
        // Something published after it, so that the watermark actions there at once. It makes no
        // value stale: the watermark may be between the two when the values are compared.
        admin.batch_execute("update items set grp = grp where id = 1").await.unwrap();
        let deadline = Instant::now() + REST_MAX;
        loop {
            if self.applied().await.is_some_and(|applied| applied >= position) {
                return Ok(());
            }
            if self.daemon.as_mut().is_none_or(Daemon::has_ended) {
                self.start_daemon();
            }
            if Instant::now() > deadline {
                let logs: Vec<_> = [&self.daemon, &self.second].into_iter().flatten().map(Daemon::log).collect();
                return Err(format!("the watermark never passed {position}; the daemons say {logs:#?}"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn applied(&self) -> Option<Lsn> {
        let mut connection = self.targets.state.redis_connection().await.ok()?;
        let applied: Option<String> = redis::cmd("GET")
            .arg(self.targets.state.names.applied.as_bytes())
            .query_async(&mut connection)
            .await
            .ok()?;
        Lsn::from_fixed_hex(&applied?)
    }
}
