//! How fast a backlog drains, compared with PostgreSQL's own walsender; and how soon a commit is
//! announced.
//!
//! `pg_recvlogical -f /dev/null` reads a copy of the same slot in the same run and does nothing
//! with it: that is the limit. Each row makes two deletes and one publish. Run it with `make
//! bench`.

#![allow(clippy::indexing_slicing, clippy::print_stdout, clippy::unwrap_used)]

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use redis::Commands as _;
use unstale::change::Lsn;
use unstale::postgres::{self, Address};
use unstale::sandbox::{Postgres, Redis, signal};

const ROUNDS: usize = 5;

/// How long one drain may take before the bench gives up.
const DRAIN_MAX: Duration = Duration::from_secs(120);

const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}"}
rules:
  item:
    table: items
    delete: ["item:{id}", "item-email:{email|lower}"]
    publish: {channel: items, data: {id: "{id}"}}
"#;

const SCHEMA: &str = "
create table items (id bigint primary key, email text not null, name text not null);
alter table items replica identity full;
create procedure one_by_one(first bigint, last bigint) language plpgsql as $$
begin
  for n in first..last loop
    insert into items values (n, 'User' || n || '@example.com', 'User ' || n);
    commit;
  end loop;
end $$;
create procedure at_once(first bigint, last bigint) language sql as $$
  insert into items select n, 'User' || n || '@example.com', 'User ' || n from generate_series(first, last) n $$;";

struct Bench {
    postgres: Postgres,
    redis: Redis,
    client: tokio_postgres::Client,
    config: tempfile::NamedTempFile,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // `cargo test` runs every bench once with this argument; there is nothing to test here.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let settings = ["max_wal_size=8GB", "checkpoint_timeout=1h", "autovacuum=off", "synchronous_commit=off"];
    let postgres = Postgres::start(&settings).unwrap();
    let redis = Redis::start(&[]).unwrap();
    let address = Address::parse(&postgres.url("postgres"), &|_| None).unwrap();
    let client = postgres::connect(&address).await.unwrap();
    client.batch_execute(SCHEMA).await.unwrap();
    let mut config = tempfile::NamedTempFile::new().unwrap();
    config.write_all(RULES.as_bytes()).unwrap();
    let bench = Bench { postgres, redis, client, config };
    assert!(bench.unstale("setup").status().unwrap().success());

    let single = (1..=1).map(|_| "call one_by_one(1, 200000)".to_owned()).collect();
    bench.drain("200k single-row transactions", 200_000, single).await;
    let large = (1..=3).map(|n| format!("call at_once({}, {})", n * 1_000_000 + 1, n * 1_000_000 + 200_000)).collect();
    bench.drain("600k rows in 3 transactions", 600_000, large).await;
    bench.latency().await;
}

impl Bench {
    fn unstale(&self, command: &str) -> Command {
        let mut unstale = Command::new(env!("CARGO_BIN_EXE_unstale"));
        unstale.arg(command).arg("--config").arg(self.config.path()).env("RUST_LOG", "error");
        unstale.env("DATABASE_URL", self.postgres.url("postgres")).env("REDIS_URL", self.redis.url());
        unstale.stdout(Stdio::null());
        unstale
    }

    /// Builds a backlog, then lets both drain copies of it in turn.
    async fn drain(&self, what: &str, rows: u32, statements: Vec<String>) {
        // From here the base slot holds exactly the backlog.
        self.client.batch_execute("select pg_create_logical_replication_slot('base', 'pgoutput')").await.unwrap();
        for statement in statements {
            self.client.batch_execute(&statement).await.unwrap();
        }
        let end: String = self.client.query_one("select pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
        self.client.batch_execute("checkpoint; select pg_switch_wal()").await.unwrap();
        let mut ours = Vec::new();
        let mut limit = Vec::new();
        let mut memory = 0.0_f64;
        for _ in 0..ROUNDS {
            limit.push(self.pg_recvlogical(&end).await);
            let (time, peak) = self.daemon(&end, rows).await;
            ours.push(time);
            memory = memory.max(peak);
        }
        self.client.batch_execute("select pg_drop_replication_slot('base')").await.unwrap();
        let mut ratios: Vec<f64> = ours.iter().zip(&limit).map(|(ours, limit)| limit / ours).collect();
        let (ours, limit, ratio) = (median(&mut ours), median(&mut limit), median(&mut ratios));
        let speed = |seconds: f64| f64::from(rows) / seconds / 1000.0;
        println!(
            "{what}: unstale {:.0}k rows/s, pg_recvlogical {:.0}k rows/s, ratio {ratio:.2} (median of {ROUNDS}, {:.2}-{:.2}); peak memory {memory:.1} MB",
            speed(ours),
            speed(limit),
            ratios[0],
            ratios[ROUNDS - 1],
        );
    }

    async fn copy_slot(&self, name: &str) {
        let copy = "select pg_copy_logical_replication_slot('base', $1)";
        self.client.execute(copy, &[&name]).await.unwrap();
    }

    async fn drop_slot(&self, name: &str) {
        // The walsender may still be exiting.
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.client.execute("select pg_drop_replication_slot($1)", &[&name]).await.is_err() {
            assert!(Instant::now() < deadline, "slot {name} stays active");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn pg_recvlogical(&self, end: &str) -> f64 {
        self.copy_slot("peer").await;
        let mut command = Command::new(self.postgres.bin().join("pg_recvlogical"));
        command.args([
            "-S",
            "peer",
            "--start",
            "-f",
            "/dev/null",
            "-o",
            "proto_version=1",
            "-o",
            "publication_names=unstale",
        ]);
        command.args(["--endpos", end, "-d", &self.postgres.url("postgres")]);
        let began = Instant::now();
        assert!(command.status().expect("pg_recvlogical is part of PostgreSQL's client programs").success());
        let time = began.elapsed().as_secs_f64();
        self.drop_slot("peer").await;
        time
    }

    /// Seconds from the start of the process to the end of the backlog, and the peak of its memory
    /// in MB.
    async fn daemon(&self, end: &str, rows: u32) -> (f64, f64) {
        self.drop_slot("unstale").await;
        self.copy_slot("unstale").await;
        let end: Lsn = end.parse().unwrap();
        let mut redis = redis::Client::open(self.redis.url()).unwrap().get_connection().unwrap();
        let _: () = redis::cmd("FLUSHALL").query(&mut redis).unwrap();
        let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query(&mut redis).unwrap();
        let began = Instant::now();
        let mut daemon = self.unstale("run").spawn().unwrap();
        loop {
            let applied: Option<String> = redis.get("unstale:{unstale}:applied").unwrap();
            if applied.and_then(|text| Lsn::from_fixed_hex(&text)).is_some_and(|applied| applied >= end) {
                break;
            }
            assert!(began.elapsed() < DRAIN_MAX, "the backlog did not drain");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let time = began.elapsed().as_secs_f64();
        let memory = peak_memory(&daemon);
        stop(&mut daemon);
        let statistics: String = redis::cmd("INFO").arg("commandstats").query(&mut redis).unwrap();
        let published = statistics.lines().find_map(|line| line.strip_prefix("cmdstat_publish:calls="));
        let published: u32 = published.and_then(|line| line.split(',').next()?.parse().ok()).unwrap();
        assert!(published >= rows, "only {published} of {rows} rows were published");
        (time, memory)
    }

    /// The time from the return of a commit until a subscriber received it, on an idle machine.
    async fn latency(&self) {
        const COMMITS: u32 = 500;
        self.client.batch_execute("set synchronous_commit = on").await.unwrap();
        let mut daemon = self.unstale("run").spawn().unwrap();
        let client = redis::Client::open(self.redis.url()).unwrap();
        let mut subscriber = client.get_async_pubsub().await.unwrap();
        subscriber.subscribe("invalidations").await.unwrap();
        let mut messages = subscriber.into_on_message();
        let mut latencies = Vec::new();
        for n in 0..COMMITS {
            let id = i64::from(n) + 10_000_000;
            self.client.execute("insert into items values ($1, 'x@y', 'z')", &[&id]).await.unwrap();
            let committed = Instant::now();
            let wanted = format!("item:{id}");
            loop {
                let message = tokio::time::timeout(DRAIN_MAX, messages.next()).await.unwrap().unwrap();
                if String::from_utf8_lossy(message.get_payload_bytes()).contains(&wanted) {
                    break;
                }
            }
            latencies.push(committed.elapsed().as_secs_f64() * 1000.0);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop(&mut daemon);
        let p50 = median(&mut latencies);
        println!(
            "commit to subscriber, {COMMITS} commits: p50 {p50:.2} ms, p99 {:.2} ms",
            latencies[latencies.len() * 99 / 100]
        );
    }
}

fn peak_memory(process: &Child) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kilobytes.unwrap_or(f64::NAN) / 1024.0
}

fn stop(process: &mut Child) {
    signal(process.id(), "TERM");
    assert!(process.wait().unwrap().success());
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
