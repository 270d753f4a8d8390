//! What the integration tests share: their servers, the binary, and waiting for events.

pub(crate) mod template;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use redis::Commands as _;
use tempfile::TempDir;
use unstale::change::Lsn;
use unstale::mutant::Mutant;
use unstale::postgres::{self, Address};
use unstale::sandbox::{self, Postgres, Redis};

/// How long an event may take before a test counts it as missing.
pub(crate) const EVENT_MAX: Duration = Duration::from_secs(120);

/// The shipped file: the example that users start from is what the tests run.
pub(crate) const SHIPPED: &str = include_str!("../../../invalidation.yaml");

/// The next message. If the machine is paused meanwhile, a wait with a limit is interrupted.
pub(crate) fn next_message(subscriber: &mut redis::PubSub<'_>) -> redis::Msg {
    loop {
        match subscriber.get_message() {
            Err(error) if error.to_string().contains("Interrupted system call") => {}
            message => return message.unwrap(),
        }
    }
}

/// A PostgreSQL with the example domain, a Redis, and a configuration for both.
pub(crate) struct World {
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    pub(crate) client: tokio_postgres::Client,
    pub(crate) directory: TempDir,
    /// Overrides the servers' URLs, to put something in between.
    pub(crate) database_url: String,
    pub(crate) redis_url: String,
    /// The protocol rule that the binary breaks, if any.
    pub(crate) mutant: Option<Mutant>,
    runtime: tokio::runtime::Runtime,
}

impl World {
    /// The example domain with ten users, set up with the shipped rules.
    pub(crate) fn shipped() -> Self {
        let world = Self::with_rules(SHIPPED);
        world.run_ok(&["setup"]);
        world
    }

    /// As [`World::shipped`], on a PostgreSQL whose system identifier no other one has.
    pub(crate) fn shipped_on_another_system() -> Self {
        let world = Self::on(template::start_another_system(&[]), SHIPPED, &[]);
        world.run_ok(&["setup"]);
        world
    }

    /// The example domain with ten users and these rules; nothing is set up.
    pub(crate) fn with_rules(rules: &str) -> Self {
        Self::with(rules, &[], &[])
    }

    /// The example domain with these tables beside it, set up with these rules for the outbox, on a
    /// server that has no logical log.
    pub(crate) fn outbox(rules: &str, tables: &str) -> Self {
        Self::outbox_with(rules, tables, &[])
    }

    /// As [`World::outbox`], with these settings of the server.
    pub(crate) fn outbox_with(rules: &str, tables: &str, settings: &[&str]) -> Self {
        let world = Self::with(&in_outbox_mode(rules), &[settings, &["wal_level=replica"]].concat(), &[]);
        world.sql(tables);
        world.run_ok(&["setup"]);
        world
    }

    /// The example domain with ten users and these rules, on servers with these settings and
    /// arguments.
    pub(crate) fn with(rules: &str, postgres: &[&str], redis: &[&str]) -> Self {
        Self::on(template::start(postgres), rules, redis)
    }

    /// The same on a PostgreSQL that has the example domain.
    pub(crate) fn on(postgres: Postgres, rules: &str, redis: &[&str]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let redis = Redis::start(redis).unwrap();
        let client = runtime.block_on(connect(&postgres.url("postgres")));
        let directory = TempDir::new().unwrap();
        let (database_url, redis_url) = (postgres.url("postgres"), redis.url());
        let world = Self { postgres, redis, client, directory, database_url, redis_url, mutant: None, runtime };
        world.write_rules(rules);
        world
    }

    pub(crate) fn write_rules(&self, rules: &str) {
        std::fs::write(self.directory.path().join("invalidation.yaml"), rules).unwrap();
    }

    /// Runs SQL: one transaction, unless the SQL says otherwise.
    pub(crate) fn sql(&self, sql: &str) {
        self.runtime.block_on(self.client.batch_execute(sql)).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// The first column of the only row.
    pub(crate) fn value(&self, sql: &str) -> String {
        self.value_on(&self.client, sql)
    }

    /// The same in another session.
    pub(crate) fn value_on(&self, client: &tokio_postgres::Client, sql: &str) -> String {
        let row = self.block_on(client.query_one(sql, &[])).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        row.get::<_, Option<String>>(0).unwrap_or_default()
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// A second session.
    pub(crate) fn another_client(&self) -> tokio_postgres::Client {
        self.runtime.block_on(connect(&self.postgres.url("postgres")))
    }

    /// Runs SQL in that session.
    pub(crate) fn sql_on(&self, client: &tokio_postgres::Client, sql: &str) {
        self.runtime.block_on(client.batch_execute(sql)).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// How many entries of the outbox this session sees: those that are not in force and
    /// confirmed.
    pub(crate) fn entries(&self) -> u64 {
        self.value("select count(*)::text from unstale.outbox").parse().unwrap()
    }

    /// How many of them a daemon has claimed.
    pub(crate) fn claimed(&self) -> u64 {
        let sql = "select ((select count(*) from unstale.outbox) \
                   - (select count(*) from (select from unstale.outbox for update skip locked) free))::text";
        self.value(sql).parse().unwrap()
    }

    /// Where the log ends: everything committed so far is before it.
    pub(crate) fn token(&self) -> Lsn {
        self.value("select pg_current_wal_insert_lsn()::text").parse().unwrap()
    }

    /// Reconnects after the server was unavailable.
    pub(crate) fn reconnect(&mut self) {
        let url = self.postgres.url("postgres");
        self.client = self.runtime.block_on(connect(&url));
    }

    /// What [`World::value`] returns on a new connection, if the server accepts one.
    pub(crate) fn try_value(&self, sql: &str) -> Option<String> {
        let address = Address::parse(&self.postgres.url("postgres"), &|_| None).unwrap();
        self.runtime.block_on(async {
            let row = postgres::connect(&address).await.ok()?.query_one(sql, &[]).await.ok()?;
            row.get::<_, Option<String>>(0)
        })
    }

    pub(crate) fn redis(&self) -> redis::Connection {
        redis::Client::open(self.redis.url()).unwrap().get_connection().unwrap()
    }

    /// The binary with this world's servers, in this world's directory.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
        command.args(arguments).current_dir(self.directory.path());
        command.env("DATABASE_URL", &self.database_url).env("REDIS_URL", &self.redis_url).env_remove("RUST_LOG");
        if let Some(mutant) = self.mutant {
            command.env("UNSTALE_MUTANT", mutant.name());
        }
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn run_ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the daemon and waits until it streams.
    pub(crate) fn daemon(&self) -> Daemon {
        let daemon = self.daemon_unready();
        daemon.wait_for_log("streaming");
        daemon
    }

    /// Starts the daemon.
    pub(crate) fn daemon_unready(&self) -> Daemon {
        Daemon::start(self.command(&["run"]))
    }

    /// Puts a value under a key, as an application's cache would.
    pub(crate) fn cache(&self, key: &str) {
        let _: () = self.redis().set(key, "cached").unwrap();
    }

    pub(crate) fn holds(&self, key: &str) -> bool {
        self.redis().exists(key).unwrap()
    }

    /// Waits until everything committed so far is in force: the watermark passes the log's end.
    pub(crate) fn settle(&self) {
        self.settle_within(EVENT_MAX);
    }

    pub(crate) fn settle_within(&self, limit: Duration) {
        let end: Lsn = self.value("select pg_current_wal_lsn()::text").parse().unwrap();
        // Unpublished changes are confirmed too, but only a published commit is announced at once.
        let reached = || self.applied() >= end;
        wait_until(limit, "the watermark passes the log's end", reached);
    }

    /// Runs SQL on a connection of its own, for statements that have to wait.
    pub(crate) fn sql_in_background(&self, sql: &'static str) -> std::thread::JoinHandle<()> {
        let url = self.postgres.url("postgres");
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { connect(&url).await.batch_execute(sql).await.unwrap() });
        })
    }

    /// Commits from now on wait for a missing standby, except those of the world's own session.
    pub(crate) fn hold_commits(&self) {
        const PROBE: &str = "select pg_logical_emit_message(true, 'probe', '')";
        self.sql("set synchronous_commit = local");
        self.sql("alter system set synchronous_standby_names = 'missing'");
        self.sql("select pg_reload_conf()");
        // The setting takes effect only once the checkpointer has read it too, which is not
        // visible, so try a commit.
        let cancelled = format!(
            "select count(pg_cancel_backend(pid))::text from pg_stat_activity \
             where wait_event = 'SyncRep' and query = {}",
            quoted(PROBE)
        );
        let mut probe = self.sql_in_background(PROBE);
        wait_until(EVENT_MAX, "a commit waits", || {
            if probe.is_finished() {
                probe = self.sql_in_background(PROBE);
            }
            self.value(&cancelled) == "1"
        });
        probe.join().unwrap();
    }

    /// Ends what [`World::hold_commits`] began.
    pub(crate) fn release_commits(&self) {
        self.sql("alter system reset synchronous_standby_names");
        self.sql("select pg_reload_conf()");
    }

    /// A change whose commit is stuck: it is in the log, but no snapshot sees it.
    pub(crate) fn stuck(&self, sql: &'static str) -> std::thread::JoinHandle<()> {
        let waiting = "select count(*)::text from pg_stat_activity where wait_event = 'SyncRep'";
        let before: u32 = self.value(waiting).parse().unwrap();
        let committing = self.sql_in_background(sql);
        wait_until(EVENT_MAX, "the commit is stuck", || self.value(waiting).parse::<u32>().unwrap() > before);
        committing
    }

    /// Waits until the walsender has sent everything: the daemon has it, or soon will.
    pub(crate) fn wait_until_sent(&self) {
        let end: Lsn = self.value("select pg_current_wal_lsn()::text").parse().unwrap();
        let sent = "select coalesce(max(sent_lsn), '0/0')::text from pg_stat_replication";
        wait_until(EVENT_MAX, "the walsender sent everything", || self.value(sent).parse::<Lsn>().unwrap() >= end);
    }

    pub(crate) fn applied(&self) -> Lsn {
        let applied: Option<String> = self.redis().get("v1:unstale:{unstale}:applied").unwrap();
        applied.map_or(Lsn::ZERO, |applied| Lsn::from_fixed_hex(&applied).unwrap())
    }

    /// How many epochs began.
    /// Whether `setup` may choose REPLICA IDENTITY FULL: until version 17.
    pub(crate) fn takes_full_identities(&self) -> bool {
        self.value("select (current_setting('server_version_num')::int < 180000)::text") == "true"
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.redis().get("v1:unstale:{unstale}:epoch").unwrap()
    }

    /// How many began for this reason.
    pub(crate) fn epochs_because(&self, reason: &str) -> u64 {
        let count: Option<u64> = self.redis().hget("v1:unstale:{unstale}:epochs", reason).unwrap();
        count.unwrap_or(0)
    }

    pub(crate) fn confirmed(&self) -> Lsn {
        let confirmed = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = 'unstale'";
        self.value(confirmed).parse().unwrap()
    }
}

/// The same rules for the other source.
pub(crate) fn in_outbox_mode(rules: &str) -> String {
    let inline = rules.replace("source: {url: \"${DATABASE_URL}\"", "source: {mode: outbox, url: \"${DATABASE_URL}\"");
    let changed = inline.replace("\nsource:\n", "\nsource:\n  mode: outbox\n");
    assert_ne!(changed, rules, "these rules name no source");
    changed
}

/// Promotes a standby of the world's server and puts it in the server's place. Returns the old
/// server, which goes on by itself.
pub(crate) fn promote(world: &mut World, standby: Postgres) -> Postgres {
    let old = std::mem::replace(&mut world.postgres, standby);
    world.database_url = world.postgres.url("postgres");
    world.reconnect();
    world.sql("select pg_promote()");
    wait_until(EVENT_MAX, "it is promoted", || world.value("select pg_is_in_recovery()::text") == "false");
    old
}

/// Connects to a database as a test does: as superuser, without TLS.
pub(crate) async fn connect(url: &str) -> tokio_postgres::Client {
    postgres::connect(&Address::parse(url, &|_| None).unwrap()).await.unwrap()
}

/// A text as an SQL literal.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Polls until the condition is true. It is the state of another process, which announces nothing.
pub(crate) fn wait_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {limit:?} for this in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Everything a command printed.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs the binary without any server, with this standard input.
pub(crate) fn unstale(directory: &TempDir, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
    command.args(arguments).current_dir(directory.path()).env_remove("DATABASE_URL").env_remove("REDIS_URL");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that refuses its arguments does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// A running `unstale run`. Killed when dropped.
pub(crate) struct Daemon {
    process: Child,
    log: std::sync::Mutex<Log>,
}

struct Log {
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Daemon {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let errors = BufReader::new(process.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || errors.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { process, log: std::sync::Mutex::new(Log { lines, seen: Vec::new() }) }
    }

    /// Waits for a line of the log that no earlier call has returned; all lines are kept.
    pub(crate) fn wait_for_log(&self, part: &str) -> String {
        let mut log = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let deadline = Instant::now() + EVENT_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = log.lines.recv_timeout(left) else {
                panic!("the daemon never said {part:?}, but: {:#?}", log.seen)
            };
            log.seen.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Every line so far.
    pub(crate) fn log(&self) -> Vec<String> {
        let mut log = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while let Ok(line) = log.lines.try_recv() {
            log.seen.push(line);
        }
        log.seen.clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The most memory it ever had, in MB.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    pub(crate) fn signal(&self, name: &str) {
        assert!(sandbox::signal(self.process.id(), name));
    }

    /// Whether the process has exited.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// Waits until the process has exited and its log has ended. Returns the exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + EVENT_MAX;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                let log = self.log.get_mut().unwrap();
                log.seen.extend(log.lines.iter());
                return status.code();
            }
            assert!(Instant::now() < deadline, "the daemon does not end: {:#?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops it as an operator does. Returns the exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        self.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "the daemon said: {:#?}", self.log());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
