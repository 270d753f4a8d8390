//! The servers, the daemons and the API of a run.
//!
//! Owns starting, replacing and ending them. It must not know what is written or read. Invariant:
//! [`Cluster::calm`] ends every fault that lasts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use unstale::change::Lsn;
use unstale::mutant::Mutant;
use unstale::sandbox::{Postgres, Redis, signal};

use super::api;
use super::mode::Mode;
use super::state::REST_MAX;
use super::targets::Targets;
use crate::proxy::Fault;
use crate::support::{Daemon, connect, template, text};

/// The application name of the daemon's sessions in PostgreSQL.
pub(super) const SESSIONS: &str = "daemon";

const SCHEMA: &str = "
create sequence versions;
create table items (id int primary key, alias text not null unique, grp int not null,
                    v bigint not null default nextval('versions'));
create table unpublished (n int);
insert into items (id, alias, grp) select n, 'a' || n, n % 12 from generate_series(1, 60) n;
create table parts (id int primary key, v bigint not null default nextval('versions')) partition by range (id);
create table parts_a partition of parts for values from (1) to (31);
create table parts_b partition of parts for values from (31) to (61);
insert into parts select generate_series(1, 60)";

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
    daemon: Option<Daemon>,
    /// In outbox mode there are two daemons.
    second: Option<Daemon>,
}

impl Cluster {
    pub(super) async fn start(mode: Mode, mutant: Option<Mutant>) -> Self {
        let mut postgres = template::start(&settings(mode));
        let client = connect(&postgres.url("postgres")).await;
        client.batch_execute(SCHEMA).await.unwrap();
        if mode.is_outbox() {
            client.batch_execute(CASCADES).await.unwrap();
        }
        drop(client);
        let standby = postgres.standby(&standby_settings(mode)).unwrap();
        let (redis, spare) = (Redis::start(&[]).unwrap(), Redis::start(&[]).unwrap());
        let ports = [postgres.port(), standby.port(), redis.port()];
        let targets = Arc::new(Targets::new(mode, mutant, ports));
        let mut cluster = Self { targets, postgres, standby, redis, spare, daemon: None, second: None };
        cluster.follow();
        let setup = cluster.targets.command(&["setup"]).output().unwrap();
        assert!(setup.status.success(), "{}", text(&setup));
        cluster.start_daemon();
        cluster.daemon.as_ref().unwrap().wait_for_log("streaming");
        (0..api::SERVERS).for_each(|server| cluster.start_api(server));
        cluster.targets.state.api.wait_until_served();
        cluster
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
        let daemon = Daemon::start(self.targets.command(&["run"]));
        self.targets.set_daemon(Some(daemon.pid()));
        self.daemon = Some(daemon);
    }

    /// Starts one of the API's servers. Its sessions have another name than the daemon's, which
    /// faults look for.
    pub(super) fn start_api(&self, server: usize) {
        let file = if server == 0 { "invalidation.yaml" } else { "replica.yaml" };
        let mut command = self.targets.command(&["serve", "--config", file, "--listen", "127.0.0.1:0"]);
        command.env("DATABASE_URL", self.targets.database_url("api"));
        self.targets.state.api.servers.start(server, command);
    }

    pub(super) fn kill_second(&mut self) {
        self.second = None;
    }

    /// Starts the second daemon if it does not run.
    pub(super) fn start_second(&mut self) {
        if self.second.as_mut().is_none_or(Daemon::has_ended) {
            self.second = Some(Daemon::start(self.targets.command(&["run"])));
        }
    }

    /// Drops the outbox with everything in it, and makes an empty one. No daemon may run meanwhile.
    pub(super) async fn remake_outbox(&self) {
        self.targets.run("teardown").await;
        self.targets.run("setup").await;
    }

    /// Promotes another standby than the replica, which then lags behind the new primary, or is
    /// ahead of it and stays on the old timeline. The old primary lives on for a while, for those
    /// who are connected to it. Finally the replica is one of the new primary.
    pub(super) async fn promote(&mut self, replica_leads: bool, time: Duration) {
        let settings = standby_settings(self.targets.state.mode);
        let mut promoted = self.postgres.standby(&[&settings[..], &["cluster_name=promoted"]].concat()).unwrap();
        let admin = self.targets.admin().await;
        let walsender = until("both standbys stream", async || {
            let sql =
                "select pid from pg_stat_replication where state = 'streaming' order by application_name = 'promoted'";
            let rows = admin.query(sql, &[]).await.unwrap();
            rows.get(1).and_then(|row| u32::try_from(row.get::<_, i32>(0)).ok())
        })
        .await;
        let replica = connect(&self.targets.state.replica).await;
        if replica_leads {
            signal(walsender, "STOP");
        } else {
            replica.batch_execute("select pg_wal_replay_pause()").await.unwrap();
        }
        tokio::time::sleep(time).await;
        connect(&promoted.url("postgres")).await.batch_execute("select pg_promote()").await.unwrap();
        signal(walsender, "CONT");
        let targets = Arc::clone(&self.targets);
        for proxy in [&targets.to_postgres, &targets.past.primary] {
            proxy.retarget(promoted.port());
        }
        targets.to_postgres.cut();
        tokio::time::sleep(time).await;
        let replica = promoted.standby(&settings).unwrap();
        targets.past.replica.retarget(replica.port());
        for proxy in [&targets.past.primary, &targets.past.replica, &targets.to_postgres] {
            proxy.cut();
        }
        (self.postgres, self.standby) = (promoted, replica);
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

/// Waits until there is an answer.
async fn until<T>(what: &str, answer: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + REST_MAX;
    loop {
        if let Some(answer) = answer().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn settings(mode: Mode) -> Vec<&'static str> {
    let settings = ["max_connections=200", "wal_sender_timeout=10s", "wal_keep_size=256MB"];
    [&settings[..], mode.server_settings()].concat()
}

fn standby_settings(mode: Mode) -> Vec<&'static str> {
    let more = ["hot_standby=on", "max_standby_streaming_delay=-1", "wal_retrieve_retry_interval=100ms"];
    [&settings(mode)[..], &more].concat()
}
