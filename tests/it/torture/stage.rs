//! The servers, the daemon and what lies between, and the state that all actors share.
//!
//! Owns starting, ending and calming them. It must not know what is written or read.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use tokio_postgres::Client;
use unstale::change::Lsn;
use unstale::coherence::lease::Leases;
use unstale::coherence::watermark::Names;
use unstale::mutant::Mutant;
use unstale::postgres::{self, Address};
use unstale::sandbox::{Postgres, Redis, signal};

use super::Report;
use super::api::{self, Api};
use super::mode::Mode;
use crate::proxy::{Fault, Proxy};
use crate::support::{Daemon, template};

/// Rows that are written and keys that are filled.
pub(super) const ITEMS: i32 = 60;
pub(super) const GROUPS: i32 = 12;

/// What the daemon's sessions are called in PostgreSQL.
pub(super) const SESSIONS: &str = "daemon";

/// How long everything may take to come to rest once nothing fails any more.
pub(super) const CALM_MAX: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
create sequence versions;
create table items (id int primary key, alias text not null unique, grp int not null, v bigint not null default nextval('versions'));
create table unpublished (n int);
insert into items (id, alias, grp) select n, 'a' || n, n % 12 from generate_series(1, 60) n";

/// A table whose rows take items with them, where triggers are what sees it.
const CASCADES: &str = "
create table groups (id int primary key);
insert into groups select generate_series(0, 11);
alter table items add foreign key (grp) references groups on delete cascade";

/// What a writer knows of a commit once it returned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Committed {
    pub(super) version: i64,
    /// Where the log was then.
    pub(super) position: Lsn,
    /// When that was, in milliseconds since 1970.
    pub(super) at: u64,
}

/// Milliseconds since 1970.
pub(super) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// What every actor needs, and how they are told to pause.
pub(super) struct Setting {
    pub(super) mode: Mode,
    pub(super) primary: String,
    pub(super) replica: String,
    redis: Mutex<redis::Client>,
    pub(super) leases: Leases,
    pub(super) names: Names,
    /// For each item, what was committed.
    pub(super) committed: Mutex<BTreeMap<i32, Vec<Committed>>>,
    pub(super) samples: AtomicBool,
    writers_pause: AtomicBool,
    fillers_pause: AtomicBool,
    over: AtomicBool,
    writers_busy: AtomicUsize,
    fillers_busy: AtomicUsize,
    pub(super) fills: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) sampled: AtomicU64,
    findings: Mutex<Vec<String>>,
    pub(super) api: Api,
}

/// The right to act; the pause waits until nobody has it.
pub(super) struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Setting {
    pub(super) fn redis(&self) -> redis::Client {
        self.redis.lock().unwrap().clone()
    }

    /// A connection that gives up soon: a frozen Redis must not freeze the harness.
    pub(super) async fn redis_connection(&self) -> redis::RedisResult<redis::aio::MultiplexedConnection> {
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(Duration::from_secs(2)));
        self.redis().get_multiplexed_async_connection_with_config(&config).await
    }

    pub(super) async fn writer_turn(&self) -> Option<Busy<'_>> {
        self.turn(&self.writers_pause, &self.writers_busy).await
    }

    pub(super) async fn filler_turn(&self) -> Option<Busy<'_>> {
        self.turn(&self.fillers_pause, &self.fillers_busy).await
    }

    async fn turn<'a>(&self, pause: &AtomicBool, busy: &'a AtomicUsize) -> Option<Busy<'a>> {
        loop {
            if self.over.load(Ordering::SeqCst) {
                return None;
            }
            busy.fetch_add(1, Ordering::SeqCst);
            let turn = Busy(busy);
            if !pause.load(Ordering::SeqCst) {
                return Some(turn);
            }
            drop(turn);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(super) async fn pause_writers(&self) {
        pause(&self.writers_pause, &self.writers_busy, "the writers").await;
    }

    pub(super) async fn pause_fillers(&self) {
        pause(&self.fillers_pause, &self.fillers_busy, "the fillers").await;
    }

    /// Everybody may act again.
    pub(super) fn resume(&self) {
        self.writers_pause.store(false, Ordering::SeqCst);
        self.fillers_pause.store(false, Ordering::SeqCst);
    }

    /// What is committed from now on is held against what is cached, if `samples`.
    pub(super) fn begin_cycle(&self, samples: bool) {
        self.committed.lock().unwrap().clear();
        self.samples.store(samples, Ordering::SeqCst);
    }

    pub(super) fn finish(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.resume();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    pub(super) fn found(&self, finding: String) {
        self.findings.lock().unwrap().push(finding);
    }

    pub(super) fn take_findings(&self) -> Vec<String> {
        std::mem::take(&mut self.findings.lock().unwrap())
    }

    /// How many epochs began, by reason.
    pub(super) async fn epochs(&self) -> BTreeMap<String, u64> {
        let mut connection = self.redis_connection().await.unwrap();
        redis::cmd("HGETALL").arg(self.names.epochs.as_bytes()).query_async(&mut connection).await.unwrap()
    }

    pub(super) fn count_into(&self, report: &mut Report) {
        report.fills = self.fills.load(Ordering::SeqCst);
        report.refused = self.refused.load(Ordering::SeqCst);
        report.commits = self.commits.load(Ordering::SeqCst);
        report.sampled = self.sampled.load(Ordering::SeqCst);
        report.by_http = self.api.tally();
    }
}

async fn pause(flag: &AtomicBool, busy: &AtomicUsize, who: &str) {
    flag.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + CALM_MAX;
    while busy.load(Ordering::SeqCst) > 0 {
        assert!(Instant::now() < deadline, "{who} do not come to rest");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What a fault reaches while others do, too.
pub(super) struct Ground {
    pub(super) setting: Arc<Setting>,
    /// Between the daemon or the API and the servers. The fillers reach Redis by the same way.
    pub(super) to_postgres: Proxy,
    pub(super) to_redis: Proxy,
    now: Mutex<Now>,
}

/// What changes when a server or the daemon is replaced.
#[derive(Default)]
struct Now {
    daemon_pid: Option<u32>,
    redis_pid: Option<u32>,
    redis_url: String,
}

impl Ground {
    pub(super) fn daemon_pid(&self) -> Option<u32> {
        self.now.lock().unwrap().daemon_pid
    }

    pub(super) fn redis_pid(&self) -> Option<u32> {
        self.now.lock().unwrap().redis_pid
    }

    /// A connection to the primary that no fault of the way touches.
    pub(super) async fn admin(&self) -> Client {
        let address = Address::parse(&self.setting.primary, &|_| None).unwrap();
        let deadline = Instant::now() + CALM_MAX;
        loop {
            match postgres::connect(&address).await {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs a command that may be repeated on the Redis in use, past the proxy, however often another fault cuts it.
    pub(super) async fn redis(&self, words: &[&str]) {
        let deadline = Instant::now() + CALM_MAX;
        loop {
            let url = self.now.lock().unwrap().redis_url.clone();
            let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(1)));
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

    /// No commit waits for a standby any more.
    pub(super) async fn release_commits(&self) {
        let deadline = Instant::now() + CALM_MAX;
        loop {
            let admin = self.admin().await;
            let released = async {
                // Ours may not wait for it, or nothing would ever end it.
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

    /// Moves the slot to the end of the log, past what the daemon has not seen. Whether that could be done soon: the
    /// walsender of a daemon that was killed may not have noticed, or be frozen.
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

/// The servers and the daemon.
pub(super) struct Stage {
    pub(super) ground: Arc<Ground>,
    postgres: Postgres,
    standby: Postgres,
    redis: Redis,
    /// Takes over when the other fails.
    spare: Redis,
    mutant: Option<Mutant>,
    directory: TempDir,
    daemon: Option<Daemon>,
    /// Another one, in the modes that have several.
    second: Option<Daemon>,
}

impl Stage {
    pub(super) async fn set(mode: Mode, mutant: Option<Mutant>) -> Self {
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
        let names = Names::new("t:", "unstale");
        let setting = Setting {
            mode,
            primary: postgres.url("postgres"),
            replica: standby.url("postgres"),
            redis: Mutex::new(redis::Client::open(url).unwrap()),
            leases: Leases::new(names.clone(), Duration::from_millis(500)),
            names,
            committed: Mutex::default(),
            samples: AtomicBool::new(false),
            writers_pause: AtomicBool::new(false),
            fillers_pause: AtomicBool::new(false),
            over: AtomicBool::new(false),
            writers_busy: AtomicUsize::new(0),
            fillers_busy: AtomicUsize::new(0),
            fills: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            sampled: AtomicU64::new(0),
            findings: Mutex::default(),
            api: Api::default(),
        };
        let ground = Ground { setting: Arc::new(setting), to_postgres, to_redis, now: Mutex::default() };
        let ground = Arc::new(ground);
        let mut stage = Self { ground, postgres, standby, redis, spare, mutant, directory, daemon: None, second: None };
        stage.follow();
        let setup = stage.command(&["setup"]).output().unwrap();
        assert!(setup.status.success(), "{}", crate::support::text(&setup));
        stage.start_daemon();
        stage.daemon.as_ref().unwrap().wait_for_log("streaming");
        (0..api::SERVERS).for_each(|server| stage.start_api(server));
        stage.ground.setting.api.wait_until_served();
        stage
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
        command.args(arguments).current_dir(self.directory.path()).env_remove("RUST_LOG");
        command.env("DATABASE_URL", self.database_url(SESSIONS));
        command.env("REDIS_URL", format!("redis://127.0.0.1:{}", self.ground.to_redis.port()));
        if let Some(mutant) = self.mutant {
            command.env("UNSTALE_MUTANT", mutant.name());
        }
        command
    }

    /// The primary, behind the proxy, for sessions of this name.
    fn database_url(&self, sessions: &str) -> String {
        let port = self.ground.to_postgres.port();
        format!("postgres://postgres@127.0.0.1:{port}/postgres?application_name={sessions}")
    }

    /// The spare becomes the replica of the Redis in use.
    fn follow(&self) {
        let mut now = self.ground.now.lock().unwrap();
        (now.redis_pid, now.redis_url) = (self.redis.pid(), self.redis.url());
        let mut spare = redis::Client::open(self.spare.url()).unwrap().get_connection().unwrap();
        redis::cmd("REPLICAOF").arg("127.0.0.1").arg(self.redis.port()).exec(&mut spare).unwrap();
    }

    /// The spare stays as it is from now on.
    pub(super) fn unfollow(&self) {
        let mut spare = redis::Client::open(self.spare.url()).unwrap().get_connection().unwrap();
        redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut spare).unwrap();
    }

    /// The spare takes over, with what it has. The other one becomes the spare.
    pub(super) fn fail_over(&mut self) {
        self.unfollow();
        std::mem::swap(&mut self.redis, &mut self.spare);
        self.ground.to_redis.retarget(self.redis.port());
        self.ground.to_redis.cut();
        self.follow();
    }

    pub(super) fn restart_redis(&mut self) {
        self.redis.stop();
        self.redis.restart().unwrap();
        self.follow();
    }

    /// The server ends as if the machine had, and comes back.
    pub(super) async fn crash_postgres(&mut self) {
        self.postgres.stop();
        let deadline = Instant::now() + CALM_MAX;
        // A walsender that another fault has frozen still holds the shared memory.
        while let Err(error) = self.postgres.restart() {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) fn kill_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.signal("KILL");
            self.ground.now.lock().unwrap().daemon_pid = None;
        }
    }

    pub(super) fn start_daemon(&mut self) {
        let daemon = Daemon::start(self.command(&["run"]));
        self.ground.now.lock().unwrap().daemon_pid = Some(daemon.pid());
        self.daemon = Some(daemon);
    }

    /// Starts one of the API's servers. Its sessions are not called the daemon's, which faults look for.
    pub(super) fn start_api(&self, server: usize) {
        let file = if server == 0 { "invalidation.yaml" } else { "replica.yaml" };
        let mut command = self.command(&["serve", "--config", file, "--listen", "127.0.0.1:0"]);
        command.env("DATABASE_URL", self.database_url("api"));
        self.ground.setting.api.servers.start(server, command);
    }

    pub(super) fn kill_second(&mut self) {
        self.second = None;
    }

    /// Starts the second one if there is none.
    pub(super) fn start_second(&mut self) {
        if self.second.as_mut().is_none_or(Daemon::has_ended) {
            self.second = Some(Daemon::start(self.command(&["run"])));
        }
    }

    /// The outbox goes with all that is in it, and comes back empty. Nobody may read it meanwhile.
    pub(super) fn remake_outbox(&self) {
        let deadline = Instant::now() + CALM_MAX;
        for verb in ["teardown", "setup"] {
            loop {
                let mut command = self.command(&[verb]);
                let output = command.env("DATABASE_URL", &self.ground.setting.primary).output().unwrap();
                if output.status.success() {
                    break;
                }
                // It takes locks that writers have, and may lose a deadlock.
                assert!(Instant::now() < deadline, "{verb}: {}", crate::support::text(&output));
            }
        }
    }

    /// Ends every fault that lasts.
    pub(super) async fn calm(&mut self) {
        let ground = Arc::clone(&self.ground);
        ground.to_postgres.set(Fault::None);
        ground.to_redis.set(Fault::None);
        let servers = [self.redis.pid(), self.spare.pid(), self.postgres.pid(), self.standby.pid()];
        for pid in servers.into_iter().chain([ground.daemon_pid()]).flatten() {
            signal(pid, "CONT");
        }
        ground.redis(&["CONFIG", "SET", "maxmemory", "0"]).await;
        ground.release_commits().await;
        for server in 0..api::SERVERS {
            ground.setting.api.servers.signal(server, "CONT");
            if api::is_away(&ground.setting, server) {
                self.start_api(server);
            }
        }
        // A daemon may have ended by itself: it is told to, by what may only be configured wrongly.
        if self.daemon.as_mut().is_none_or(Daemon::has_ended) {
            self.start_daemon();
        }
    }

    /// Waits until everything that is committed is in force: the watermark passes a position from now. The
    /// daemon may end meanwhile when a server was away at its start, as a supervisor expects.
    pub(super) async fn fence(&mut self) -> Result<(), String> {
        let admin = self.ground.admin().await;
        admin.batch_execute("update items set v = nextval('versions') where id = 1").await.unwrap();
        let row = admin.query_one("select pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
        let fence: Lsn = row.get::<_, String>(0).parse().unwrap();
        // Something published after it, so that the watermark moves there at once. It makes no value stale: the
        // watermark may be between the two when the values are compared.
        admin.batch_execute("update items set grp = grp where id = 1").await.unwrap();
        let deadline = Instant::now() + CALM_MAX;
        loop {
            if self.applied().await.is_some_and(|applied| applied >= fence) {
                return Ok(());
            }
            if self.daemon.as_mut().is_none_or(Daemon::has_ended) {
                self.start_daemon();
            }
            if Instant::now() > deadline {
                let logs: Vec<_> = [&self.daemon, &self.second].into_iter().flatten().map(Daemon::log).collect();
                return Err(format!("the watermark never passed {fence}; the daemons say {logs:#?}"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn applied(&self) -> Option<Lsn> {
        let mut connection = self.ground.setting.redis_connection().await.ok()?;
        let applied: Option<String> = redis::cmd("GET")
            .arg(self.ground.setting.names.applied.as_bytes())
            .query_async(&mut connection)
            .await
            .ok()?;
        Lsn::from_fixed_hex(&applied?)
    }
}
