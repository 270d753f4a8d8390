//! What the outbox costs: write throughput, table size, and the time until a commit is announced.
//!
//! Owns throwaway servers that differ only in `wal_level`. The ways to invalidate take turns within
//! every round, so a disturbance affects all. Run it with `make bench-outbox`; `ARGS="--quick"`
//! only shows that it runs, and `ARGS="--rounds 5 --seconds 4"` measures longer.

#![allow(clippy::indexing_slicing, clippy::print_stdout, clippy::unwrap_used)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use redis::Commands as _;
use tempfile::NamedTempFile;
use unstale::change::Lsn;
use unstale::postgres::{self, Address};
use unstale::sandbox::{Postgres, Redis, signal};

/// Rows of each table, and entries of each burst.
const ROWS: u32 = 100_000;

const CLIENTS: [u32; 3] = [1, 8, 64];

/// How long anything may take to be in force before the bench gives up.
const IN_FORCE_MAX: Duration = Duration::from_secs(120);

/// As on a server that must not lose commits. The table's size depends on how often autovacuum
/// runs: by default once a minute, which is too rare for a short run.
const SETTINGS: &[&str] = &[
    "fsync=on",
    "synchronous_commit=on",
    "shared_buffers=256MB",
    "max_wal_size=8GB",
    "checkpoint_timeout=1h",
    "autovacuum_naptime=1s",
];

/// The same work for a rule as in the bench of the slot: two deletes and one publish a row.
const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}", SOURCE}
target: {url: "${REDIS_URL}"}
rules:
  item:
    table: items
    changed: [email, name]
    delete: ["item:{id}", "item-email:{email|lower}"]
    publish: {channel: items, data: {id: "{id}"}}
"#;

/// No rule names the table `plain`.
const SCHEMA: &str = "
create table items (id bigint primary key, email text not null, name text not null) with (fillfactor = 70);
insert into items select n, 'User' || n || '@example.com', 'User ' || n from generate_series(1, 100000) n;
create table plain (id bigint primary key, email text not null, name text not null) with (fillfactor = 70);
insert into plain select * from items;
create function ring_always() returns trigger language plpgsql as $$
begin
  perform pg_notify('naive', '');
  return null;
end $$;";

/// How a write is captured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Not at all.
    Nothing,
    /// Triggers, and no daemon that reads the outbox.
    Triggers,
    /// Triggers that notify a daemon at work.
    Wakeup,
    /// A replication slot, and a daemon at work.
    Slot,
    /// Triggers and one NOTIFY a row, a listener, and a daemon at work.
    Naive,
}

impl Way {
    const ALL: [Self; 5] = [Self::Nothing, Self::Triggers, Self::Wakeup, Self::Slot, Self::Naive];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no triggers",
            Self::Triggers => "triggers",
            Self::Wakeup => "wakeup, daemon",
            Self::Slot => "slot, daemon",
            Self::Naive => "NOTIFY a row",
        }
    }
}

/// The result of one run of pgbench.
struct Run {
    tps: f64,
    /// Seconds from the last commit until all of it was in force; zero if no daemon reads.
    behind: f64,
}

/// A running daemon. It ends with the bench, however that ends.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Daemon {
    fn stop(mut self) {
        signal(self.0.id(), "TERM");
        assert!(self.0.wait().unwrap().success());
    }

    /// In MB.
    fn peak_memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
        kilobytes.unwrap_or(f64::NAN) / 1024.0
    }
}

struct Options {
    rounds: usize,
    seconds: usize,
    bursts: usize,
    commits: usize,
}

impl Options {
    fn read() -> Self {
        let arguments: Vec<String> = std::env::args().collect();
        let quick = arguments.iter().any(|argument| argument == "--quick");
        let number = |name: &str, usual: usize, quickly: usize| {
            let Some(place) = arguments.iter().position(|argument| argument == name) else {
                return if quick { quickly } else { usual };
            };
            arguments.get(place + 1).and_then(|value| value.parse().ok()).expect("a number follows")
        };
        Self {
            rounds: number("--rounds", 5, 1),
            seconds: number("--seconds", 2, 1),
            bursts: number("--bursts", 10, 3),
            commits: number("--commits", 500, 100),
        }
    }
}

/// A PostgreSQL, the Redis that belongs to it, and a session.
struct Side {
    postgres: Postgres,
    redis: Redis,
    client: tokio_postgres::Client,
}

struct Bench {
    outbox: Side,
    slot: Side,
    with_wakeup: NamedTempFile,
    without_wakeup: NamedTempFile,
    streaming: NamedTempFile,
    options: Options,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // `cargo test` runs every bench once with this argument; there is nothing to test here.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let began = Instant::now();
    let bench = Bench {
        outbox: Side::start("wal_level=replica").await,
        slot: Side::start("wal_level=logical").await,
        with_wakeup: rules("mode: outbox, outbox: {notify: true}"),
        without_wakeup: rules("mode: outbox, outbox: {notify: false}"),
        streaming: rules("mode: slot"),
        options: Options::read(),
    };
    bench.slot.setup(&bench.streaming);
    bench.say_where().await;
    bench.writers().await;
    bench.bursts().await;
    bench.latencies().await;
    println!("\n{:.0} s in all", began.elapsed().as_secs_f64());
}

fn rules(source: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(RULES.replace("SOURCE", source).as_bytes()).unwrap();
    file
}

impl Side {
    async fn start(wal_level: &str) -> Self {
        let settings: Vec<&str> = SETTINGS.iter().copied().chain([wal_level]).collect();
        let postgres = Postgres::start(&settings).unwrap();
        let redis = Redis::start(&[]).unwrap();
        let client = connect(&postgres).await;
        client.batch_execute(SCHEMA).await.unwrap();
        Self { postgres, redis, client }
    }

    fn unstale(&self, command: &str, config: &NamedTempFile) -> Command {
        let mut unstale = Command::new(env!("CARGO_BIN_EXE_unstale"));
        unstale.arg(command).arg("--config").arg(config.path()).env("RUST_LOG", "error");
        unstale.env("DATABASE_URL", self.postgres.url("postgres")).env("REDIS_URL", self.redis.url());
        unstale.stdout(Stdio::null());
        unstale
    }

    fn setup(&self, config: &NamedTempFile) {
        assert!(self.unstale("setup", config).status().unwrap().success());
    }

    /// Starts a daemon and waits until it works.
    async fn daemon(&self, config: &NamedTempFile) -> Daemon {
        let daemon = Daemon(self.unstale("run", config).spawn().unwrap());
        self.in_force().await;
        daemon
    }

    /// Waits until everything committed so far is in force and taken out of the outbox.
    async fn in_force(&self) {
        // The slot reads only flushed log, and without further writes nothing flushes it.
        let position = "select case current_setting('wal_level') when 'logical' then pg_current_wal_flush_lsn()
                               else pg_current_wal_insert_lsn() end::text";
        let token: String = self.client.query_one(position, &[]).await.unwrap().get(0);
        let token: Lsn = token.parse().unwrap();
        let mut redis = redis::Client::open(self.redis.url()).unwrap().get_connection().unwrap();
        let began = Instant::now();
        loop {
            let applied: Option<String> = redis.get("unstale:{unstale}:applied").unwrap();
            if applied.and_then(|text| Lsn::from_fixed_hex(&text)).is_some_and(|applied| applied >= token) {
                break;
            }
            assert!(began.elapsed() < IN_FORCE_MAX, "what was committed is not in force");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // The entries are removed a moment after they took effect.
        while self.has_entries().await {
            assert!(began.elapsed() < IN_FORCE_MAX, "the outbox is not emptied");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn has_entries(&self) -> bool {
        let there = "select to_regclass('unstale.outbox') is not null";
        if !self.client.query_one(there, &[]).await.unwrap().get::<_, bool>(0) {
            return false;
        }
        self.client.query_one("select exists (select from unstale.outbox)", &[]).await.unwrap().get(0)
    }

    /// pgbench with one of these scripts, ready to start.
    fn pgbench(&self, script: &NamedTempFile, clients: u32, seconds: usize) -> Command {
        // Some builds of PostgreSQL come without pgbench; any version will do.
        let beside = self.postgres.bin().join("pgbench");
        let mut pgbench = Command::new(if beside.is_file() { beside } else { PathBuf::from("pgbench") });
        pgbench.args(["-n", "-M", "prepared", "-h", "127.0.0.1", "-U", "postgres", "-f"]).arg(script.path());
        pgbench.args(["-p", &self.postgres.port().to_string(), "-c", &clients.to_string()]);
        pgbench.args(["-j", &clients.min(2).to_string(), "-T", &seconds.to_string(), "postgres"]);
        pgbench
    }
}

impl Bench {
    async fn say_where(&self) {
        let query = "select current_setting('server_version'), current_setting('fsync'),
                            current_setting('synchronous_commit'), current_setting('wal_level')";
        for side in [&self.outbox, &self.slot] {
            let row = side.client.query_one(query, &[]).await.unwrap();
            let [version, fsync, commit, level]: [String; 4] = std::array::from_fn(|n| row.get(n));
            println!("PostgreSQL {version}: fsync {fsync}, synchronous_commit {commit}, wal_level {level}");
        }
    }

    /// Transactions per second, in every way.
    async fn writers(&self) {
        let Options { rounds, seconds, .. } = self.options;
        let mut runs: Vec<Vec<Vec<Run>>> =
            CLIENTS.map(|_| Way::ALL.map(|_| Vec::new()).into_iter().collect()).into_iter().collect();
        for _ in 0..rounds {
            for (clients, runs) in CLIENTS.into_iter().zip(&mut runs) {
                for (way, runs) in Way::ALL.into_iter().zip(runs) {
                    runs.push(self.write(way, clients).await);
                }
            }
        }
        println!(
            "\npgbench -M prepared, UPDATE of one of {ROWS} rows by primary key; transactions per second and their ratio \
             to none, medians of {rounds} x {seconds} s; in brackets the seconds until the last commit was in force"
        );
        let names = Way::ALL.map(|way| format!("{:>24}", way.name()));
        println!("clients {}", names.concat());
        for (clients, runs) in CLIENTS.into_iter().zip(&runs) {
            let plain = median(&mut tps(&runs[0]));
            let cells = Way::ALL.iter().zip(runs).map(|(way, runs)| {
                let speed = median(&mut tps(runs));
                let behind = median(&mut runs.iter().map(|run| run.behind).collect::<Vec<_>>());
                let cell = match way {
                    Way::Nothing => format!("{speed:.0}"),
                    Way::Triggers => format!("{speed:.0} {:.2}", speed / plain),
                    _ => format!("{speed:.0} {:.2} ({behind:.2})", speed / plain),
                };
                format!("{cell:>24}")
            });
            println!("{clients:>7} {}", cells.collect::<String>());
        }
    }

    /// One run of pgbench, with everything in place that this way needs.
    async fn write(&self, way: Way, clients: u32) -> Run {
        let (side, config) = match way {
            Way::Nothing | Way::Triggers | Way::Naive => (&self.outbox, &self.without_wakeup),
            Way::Wakeup => (&self.outbox, &self.with_wakeup),
            Way::Slot => (&self.slot, &self.streaming),
        };
        if way != Way::Nothing && way != Way::Slot {
            side.setup(config);
            assert_eq!(self.wakes().await, way == Way::Wakeup, "setup installs what the file says");
            // Entries that the last run did not read must not count in the next one.
            side.client.batch_execute("truncate unstale.outbox").await.unwrap();
        }
        let table = if way == Way::Nothing { "plain" } else { "items" };
        side.client.batch_execute(&format!("vacuum {table}")).await.unwrap();
        let listener = connect(&side.postgres).await;
        if way == Way::Naive {
            let trigger = "create trigger naive after update on items for each row execute function ring_always()";
            side.client.batch_execute(trigger).await.unwrap();
            listener.batch_execute("listen naive").await.unwrap();
        }
        let daemon = match way {
            Way::Nothing | Way::Triggers => None,
            Way::Wakeup | Way::Slot | Way::Naive => Some(side.daemon(config).await),
        };

        let script = script(table);
        let mut pgbench = side.pgbench(&script, clients, self.options.seconds);
        // On its own thread, because the listener reads meanwhile.
        let output = tokio::task::spawn_blocking(move || pgbench.output()).await.unwrap();
        let output = output.expect("pgbench is part of PostgreSQL's server programs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let ended = Instant::now();
        let mut behind = 0.0;
        if let Some(daemon) = daemon {
            side.in_force().await;
            behind = ended.elapsed().as_secs_f64();
            daemon.stop();
        }
        if way == Way::Naive {
            side.client.batch_execute("drop trigger naive on items").await.unwrap();
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        Run { tps: tps.expect("pgbench says its tps"), behind }
    }

    /// Whether the installed triggers wake the daemon.
    async fn wakes(&self) -> bool {
        let query = "select coalesce(bool_or(prosrc ~ 'unstale.bell'), false) from pg_proc
                      where pronamespace = 'unstale'::regnamespace and prorettype = 'trigger'::regtype";
        self.outbox.client.query_one(query, &[]).await.unwrap().get(0)
    }

    /// One statement that writes many entries, repeatedly: how fast they are processed, and how
    /// much of the table remains.
    async fn bursts(&self) {
        let side = &self.outbox;
        side.setup(&self.with_wakeup);
        side.client.batch_execute("truncate unstale.outbox").await.unwrap();
        let daemon = side.daemon(&self.with_wakeup).await;
        let mut speeds = Vec::new();
        let mut sizes = Vec::new();
        for _ in 0..self.options.bursts {
            speeds.push(self.burst().await);
            sizes.push(self.size().await);
        }
        // Vacuum can remove nothing that was deleted after this snapshot.
        let other = connect(&side.postgres).await;
        other.batch_execute("begin isolation level repeatable read; select 1").await.unwrap();
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(self.burst().await);
        }
        other.batch_execute("rollback").await.unwrap();
        let memory = daemon.peak_memory();
        daemon.stop();

        let bursts = self.options.bursts;
        println!("\nUPDATE of {ROWS} rows in one transaction, {bursts} times");
        let speed = median(&mut speeds);
        println!(
            "from its commit until all is in force: {speed:.0} entries/s (median of {bursts}, {:.0}-{:.0}); peak memory of the daemon {memory:.1} MB",
            speeds[0],
            speeds[bursts - 1],
        );
        println!(
            "unstale.outbox with its index, MB after each: {}; after the last {:.2} of the first",
            list(&sizes, 1),
            sizes[bursts - 1] / sizes[0]
        );
        let statistics = "select n_dead_tup, autovacuum_count from pg_stat_user_tables
                           where relid = 'unstale.outbox'::regclass";
        let row = side.client.query_one(statistics, &[]).await.unwrap();
        let (dead, vacuums): (i64, i64) = (row.get(0), row.get(1));
        println!("{dead} dead rows in the end, {vacuums} runs of autovacuum (looked for every second)");
        println!("with another transaction's snapshot held open, entries/s in turn: {}", list(&held, 0));
    }

    /// Entries per second.
    async fn burst(&self) -> f64 {
        // Another name each time, because an update without a change is not a change to the rules.
        let update = "update items set name = 'User ' || random() where id <= 100000";
        self.outbox.client.batch_execute(update).await.unwrap();
        let committed = Instant::now();
        self.outbox.in_force().await;
        f64::from(ROWS) / committed.elapsed().as_secs_f64()
    }

    /// In MB.
    async fn size(&self) -> f64 {
        let query = "select pg_total_relation_size('unstale.outbox')::float8 / 1048576";
        self.outbox.client.query_one(query, &[]).await.unwrap().get(0)
    }

    /// The time from the return of a commit until a subscriber received it.
    async fn latencies(&self) {
        println!("\nfrom commit to subscriber, {} commits", self.options.commits);
        // Long enough for the daemon to sleep, and never in step with its polling.
        let asleep = |n: usize| Duration::from_millis(25 + (n as u64 * 37) % 20);
        let any_time = |n: usize| Duration::from_millis((n as u64 * 37) % 100);
        self.latency("wakeup", &self.with_wakeup, asleep, false).await;
        self.latency("wakeup, 200 other commits a second", &self.with_wakeup, asleep, true).await;
        self.latency("no wakeup", &self.without_wakeup, any_time, false).await;
    }

    async fn latency(&self, what: &str, config: &NamedTempFile, pause: impl Fn(usize) -> Duration, beside: bool) {
        let side = &self.outbox;
        side.setup(config);
        let daemon = side.daemon(config).await;
        let script = script("items");
        let mut others = beside.then(|| {
            let mut pgbench = side.pgbench(&script, 4, 3600);
            pgbench.args(["-R", "200"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        });
        let client = redis::Client::open(side.redis.url()).unwrap();
        let mut subscriber = client.get_async_pubsub().await.unwrap();
        subscriber.subscribe("invalidations").await.unwrap();
        let mut messages = subscriber.into_on_message();
        let newest = "select greatest(max(id), 10000000) from items";
        let newest: i64 = side.client.query_one(newest, &[]).await.unwrap().get(0);
        let mut latencies = Vec::new();
        for (n, id) in (newest + 1..).take(self.options.commits).enumerate() {
            tokio::time::sleep(pause(n)).await;
            side.client
                .execute("insert into items values ($1::bigint, $1::bigint || '@y', 'z')", &[&id])
                .await
                .unwrap();
            let committed = Instant::now();
            let wanted = format!("item:{id}");
            loop {
                let message = tokio::time::timeout(IN_FORCE_MAX, messages.next()).await.unwrap().unwrap();
                if String::from_utf8_lossy(message.get_payload_bytes()).contains(&wanted) {
                    break;
                }
            }
            latencies.push(committed.elapsed().as_secs_f64() * 1000.0);
        }
        if let Some(others) = &mut others {
            others.kill().unwrap();
            others.wait().unwrap();
        }
        daemon.stop();
        let p50 = median(&mut latencies);
        println!("{what}: p50 {p50:.2} ms, p99 {:.2} ms", latencies[latencies.len() * 99 / 100]);
    }
}

async fn connect(postgres: &Postgres) -> tokio_postgres::Client {
    let address = Address::parse(&postgres.url("postgres"), &|_| None).unwrap();
    postgres::connect(&address).await.unwrap()
}

/// What every client of pgbench does: a one-row update that a rule matches.
fn script(table: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "\\set id random(1, {ROWS})\n\\set name random(1, 1000000000)").unwrap();
    writeln!(file, "update {table} set name = 'User ' || :name::text where id = :id;").unwrap();
    file
}

fn tps(runs: &[Run]) -> Vec<f64> {
    runs.iter().map(|run| run.tps).collect()
}

fn list(values: &[f64], digits: usize) -> String {
    let texts: Vec<_> = values.iter().map(|value| format!("{value:.digits$}")).collect();
    texts.join(" ")
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
