//! `unstale demo`: the daemon and the read API on throwaway servers.
//!
//! Owns the order of the demonstration. [`writer`] changes rows of the example domain as
//! applications do. The daemon and the API run in this process. [`reader`] reads what was removed
//! again, through the API. At the end, [`verification`] compares every cached value with the
//! database.

mod announcements;
mod reader;
mod redis_error;
mod statistics;
mod verification;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::announcements::{Announcement, Announcements};
use self::reader::ApiReader;
use self::redis_error::redis_failure;
use self::statistics::Statistics;
use self::writer::ExampleWriter;
use super::api_server::{self, ListenArgs};
use super::arguments::duration;
use super::config_file::ConfigFile;
use super::failure::{Failure, with_causes};
use super::preflight::Preflight;
use super::signals::stop_on_signals;
use super::stdout::print;
use crate::coherence::watermark::Names;
use crate::key::CacheKey;
use crate::pipeline::{self, RunError};
use crate::postgres;
use crate::sandbox::{Postgres, Redis, SandboxError, example};

/// The shipped rules: the demo shows what a new user starts from.
const RULES: &str = include_str!("../../../invalidation.yaml");

/// Users of the example domain.
const USERS: u32 = 1000;

/// The time between two changes.
const PACE: Duration = Duration::from_millis(200);

/// How long an invalidation may take before the demo counts it as missing.
const INVALIDATION_MAX: Duration = Duration::from_secs(5);

/// How long the daemon may finish what it received.
const DRAIN_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// Stop after this long, with a summary; the exit code is 0 only if cache and database agree
    #[arg(long = "for", value_parser = duration, value_name = "DURATION")]
    time: Option<Duration>,
}

pub(super) async fn run(args: DemoArgs) -> Result<(), Failure> {
    let stop = stop_on_signals()?;
    print("starting throwaway PostgreSQL and Redis …\n")?;
    let servers = Servers::start()?;
    let file = servers.config_file()?;
    let client = postgres::connect(&file.settings.postgres).await?;
    example::create(&client, USERS).await?;
    let preflight = Preflight::compare(&file).await?;
    super::setup::install(&file, &preflight).await?;
    let version: String = client.query_one("show server_version", &[]).await?.get(0);
    print(&format!(
        "PostgreSQL {version} at {}\nRedis at {}\n{USERS} users; every change below is an ordinary SQL statement\n\n",
        servers.postgres.url("postgres"),
        servers.redis.url()
    ))?;

    let mut announcements = Announcements::follow(&file).await?;
    let stop_daemon = CancellationToken::new();
    let folding = Arc::clone(&preflight.folding);
    let daemon = start_daemon(&file, preflight, &stop_daemon).await?;
    let listen = ListenArgs { listen: Some("127.0.0.1:0".to_owned()) };
    let (api, listener) = api_server::open(&file, &folding, &listen, &stop_daemon).await?;
    let address = listener.local_addr()?;
    print(&format!("API on http://{address}; try curl -i http://{address}/users/u1\n\n"))?;
    let reader = ApiReader::new(api.front().map_err(redis_failure)?, &file);
    let served = tokio::spawn(api.serve(listener, Duration::from_secs(1)));

    let mut cache = connect_cache(&file).await?;
    wait_for_epoch(&mut cache, &Names::new(&file.settings.namespace, &file.settings.slot).applied).await?;
    reader.warm(USERS).await?;
    let writer = ExampleWriter::new(client, USERS);
    let mut statistics = Statistics::default();
    let end = args.time.map(|time| Instant::now() + time);
    while end.is_none_or(|end| Instant::now() < end) && !stop.is_cancelled() && !daemon.is_finished() {
        one_change(&writer, &reader, &mut announcements, &mut statistics).await?;
        let _ = tokio::time::timeout(PACE, stop.cancelled()).await;
    }
    let stale = verification::verify(&reader, &mut cache, &statistics).await?;
    stop_daemon.cancel();
    // The API ends by itself, within its drain.
    let _ = served.await;
    match daemon.await {
        Ok(Ok(())) => statistics.outcome(stale),
        Ok(Err(error)) => Err(Failure::findings(with_causes(&error))),
        Err(error) => Err(Failure::findings(format!("the daemon failed: {error}"))),
    }
}

/// The throwaway servers.
struct Servers {
    postgres: Postgres,
    redis: Redis,
}

impl Servers {
    fn start() -> Result<Self, Failure> {
        let unavailable = |error: SandboxError| Failure::unavailable(with_causes(&error));
        Ok(Self {
            postgres: Postgres::start(&[]).map_err(unavailable)?,
            redis: Redis::start(&[]).map_err(unavailable)?,
        })
    }

    /// The shipped rules, for these servers.
    fn config_file(&self) -> Result<ConfigFile, Failure> {
        let environment = |name: &str| match name {
            "DATABASE_URL" => Some(self.postgres.url("postgres")),
            "REDIS_URL" => Some(self.redis.url()),
            _ => None,
        };
        let mut file = ConfigFile::parse(Path::new("invalidation.yaml"), RULES.to_owned(), &environment)?;
        // Every request comes from one client.
        file.settings.api.rate_limits.clear();
        Ok(file)
    }
}

async fn start_daemon(
    file: &ConfigFile,
    preflight: Preflight,
    stop: &CancellationToken,
) -> Result<JoinHandle<Result<(), RunError>>, Failure> {
    let watched = Arc::new(preflight.watched(file).await?);
    let mut sink = file.sink(&preflight.rules)?;
    sink.connect().await?;
    let (settings, rules, stop) = (file.settings.clone(), Arc::new(preflight.rules), stop.clone());
    Ok(tokio::spawn(async move { pipeline::run(&settings, rules, watched, sink, &stop, DRAIN_MAX).await }))
}

async fn connect_cache(file: &ConfigFile) -> Result<MultiplexedConnection, Failure> {
    let client = redis::Client::open(file.settings.redis.clone()).map_err(redis_failure)?;
    client.get_multiplexed_async_connection().await.map_err(redis_failure)
}

/// Waits until the daemon has begun its first epoch, which empties the cache.
async fn wait_for_epoch(cache: &mut MultiplexedConnection, applied: &CacheKey) -> Result<(), Failure> {
    const POLL_EVERY: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + INVALIDATION_MAX;
    while !cache.exists::<_, bool>(applied.as_bytes()).await.map_err(redis_failure)? {
        if Instant::now() > deadline {
            return Err(Failure::findings("the daemon did not begin an epoch in time; see its log above"));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    Ok(())
}

/// Changes something, waits for its invalidation, prints it, and reads what was removed again.
async fn one_change(
    writer: &ExampleWriter,
    reader: &ApiReader,
    announcements: &mut Announcements,
    statistics: &mut Statistics,
) -> Result<(), Failure> {
    // The keys that the change before removed by a lookup are announced after its other keys.
    while let Some(late) = announcements.try_next() {
        statistics.removed += late.keys.len();
        reader.refill(&late.keys).await?;
    }
    let text = writer.write().await?;
    let Some(Announcement { keys, latency }) = announcements.next(INVALIDATION_MAX).await else {
        statistics.missing += 1;
        return print(&format!("{text:<46}  NOT INVALIDATED within {} s\n", INVALIDATION_MAX.as_secs()));
    };
    statistics.latencies.push(latency);
    statistics.removed += keys.len();
    print(&format!("{text:<46}{:>7.2} ms  {}\n", latency.as_secs_f64() * 1000.0, keys.join("  ")))?;
    reader.refill(&keys).await
}
