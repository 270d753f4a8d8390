//! `unstale demo`: all of it at work on throwaway servers.
//!
//! A writer changes rows of the example domain, the daemon and the read API run in the same process, and what was removed
//! is read again by way of the API, as applications do. Each change is shown with the keys it removed; in the end
//! every cached value is compared with the database.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use rand::RngExt as _;
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::serve::Listen;
use super::{Failure, Loaded, duration, preflight, print};
use crate::api::Front;
use crate::coherence::lease::Envelope;
use crate::coherence::watermark::Names;
use crate::install::setup;
use crate::key::CacheKey;
use crate::pipeline;
use crate::reads::{ParameterSource, Read, ReadSet};
use crate::rules::Filter;
use crate::sandbox::{Postgres, Redis, example};
use crate::sink::{Broadcast, connect_subscriber};

/// The shipped rules: what the demo shows is what a new user starts from.
const RULES: &str = include_str!("../../invalidation.yaml");

/// Users of the example domain.
const USERS: u32 = 1000;

/// From one change to the next.
const PACE: Duration = Duration::from_millis(200);

/// How long an invalidation may take before the demo counts it as missing.
const INVALIDATION_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Stop after this long, with a summary; exit 0 only if cache and database agree
    #[arg(long = "for", value_parser = duration, value_name = "DURATION")]
    time: Option<Duration>,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let stop = super::run::stop_on_signals()?;
    print("starting throwaway PostgreSQL and Redis …\n")?;
    let postgres = Postgres::start(&[]).map_err(|error| Failure::unavailable(error.to_string()))?;
    let redis = Redis::start(&[]).map_err(|error| Failure::unavailable(error.to_string()))?;
    let environment = |name: &str| match name {
        "DATABASE_URL" => Some(postgres.url("postgres")),
        "REDIS_URL" => Some(redis.url()),
        _ => None,
    };
    let mut loaded = Loaded::parse(Path::new("invalidation.yaml"), RULES.to_owned(), &environment)?;
    // One client asks for everybody.
    loaded.settings.api.rate_limits.clear();
    let client = crate::postgres::connect(&loaded.settings.postgres).await?;
    example::create(&client, USERS).await?;
    let compared = preflight::compare(&loaded).await?;
    let events = compared.rules.has_events();
    setup::apply(&client, &loaded.settings, &compared.rules.tables(), events, &compared.widenings).await?;
    let version: String = client.query_one("show server_version", &[]).await?.get(0);
    print(&format!(
        "PostgreSQL {version} at {}\nRedis at {}\n{USERS} users; every change below is an ordinary SQL statement\n\n",
        postgres.url("postgres"),
        redis.url()
    ))?;

    let names = Names::new(&loaded.settings.namespace, &loaded.settings.slot);
    let applied = names.applied.clone();
    let channel = String::from_utf8_lossy(names.invalidations.as_bytes()).into_owned();
    let mut broadcasts = follow(&loaded, &channel).await?;
    let mut sink = loaded.sink(&compared.rules)?;
    sink.connect().await?;
    let stop_daemon = CancellationToken::new();
    let daemon_stop = stop_daemon.clone();
    let settings = loaded.settings.clone();
    let rules = Arc::new(compared.rules);
    let daemon =
        tokio::spawn(async move { pipeline::run(&settings, rules, sink, &daemon_stop, Duration::from_secs(5)).await });

    let listen = Listen { listen: Some("127.0.0.1:0".to_owned()) };
    let (api, listener) = super::serve::open(&loaded, &listen, &stop_daemon).await?;
    let address = listener.local_addr()?;
    print(&format!("API on http://{address}; try curl -i http://{address}/users/u1\n\n"))?;
    let front = api.front().map_err(redis_failure)?;
    let served = tokio::spawn(api.serve(listener, Duration::from_secs(1)));

    let cache = redis::Client::open(loaded.settings.redis.clone()).map_err(redis_failure)?;
    let cache = cache.get_multiplexed_async_connection().await.map_err(redis_failure)?;
    let mut show = Show {
        client,
        cache,
        front,
        reads: loaded.reads.clone(),
        namespace: loaded.settings.namespace.clone(),
        latencies: Vec::new(),
        removed: 0,
        missing: 0,
    };
    show.wait_for_daemon(&applied).await?;
    show.warm().await?;
    let end = args.time.map(|time| Instant::now() + time);
    while end.is_none_or(|end| Instant::now() < end) && !stop.is_cancelled() && !daemon.is_finished() {
        show.one_change(&mut broadcasts).await?;
        let _ = tokio::time::timeout(PACE, stop.cancelled()).await;
    }
    let outcome = show.summary().await?;
    stop_daemon.cancel();
    // It ends by itself, within its drain.
    let _ = served.await;
    match daemon.await {
        Ok(Ok(())) => outcome,
        Ok(Err(error)) => Err(Failure::findings(error.to_string())),
        Err(error) => Err(Failure::findings(format!("the daemon failed: {error}"))),
    }
}

/// The daemon's broadcasts, each with the moment it was received.
async fn follow(loaded: &Loaded, channel: &str) -> Result<mpsc::Receiver<(Broadcast, SystemTime)>, Failure> {
    let mut subscriber = connect_subscriber(&loaded.settings.redis).await?;
    subscriber.subscribe(channel).await.map_err(redis_failure)?;
    let (sender, receiver) = mpsc::channel(1024);
    tokio::spawn(async move {
        let mut messages = subscriber.into_on_message();
        while let Some(message) = futures_util::StreamExt::next(&mut messages).await {
            let received = SystemTime::now();
            if let Ok(broadcast) = serde_json::from_slice(message.get_payload_bytes())
                && sender.send((broadcast, received)).await.is_err()
            {
                return;
            }
        }
    });
    Ok(receiver)
}

fn redis_failure(error: redis::RedisError) -> Failure {
    Failure::unavailable(format!("Redis: {error}"))
}

/// The writer, the reader and what they have seen.
struct Show {
    client: Client,
    cache: MultiplexedConnection,
    front: Front,
    reads: ReadSet,
    namespace: String,
    latencies: Vec<Duration>,
    removed: usize,
    missing: usize,
}

impl Show {
    /// Waits until the daemon has begun its first epoch, which empties the cache.
    async fn wait_for_daemon(&mut self, applied: &CacheKey) -> Result<(), Failure> {
        const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(5);
        let deadline = Instant::now() + INVALIDATION_MAX;
        while !self.cache.exists::<_, bool>(applied.as_bytes()).await.map_err(redis_failure)? {
            if Instant::now() > deadline {
                return Err(Failure::findings("the daemon did not begin to stream"));
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
        Ok(())
    }

    /// Fills the cache as traffic would.
    async fn warm(&mut self) -> Result<(), Failure> {
        for number in 1..=USERS / 5 {
            self.read(&format!("user:u{number}")).await?;
            self.read(&format!("user-email:user{number}@example.com")).await?;
        }
        for number in 1..=USERS / 10 {
            for prefix in ["org", "org-members", "flags"] {
                self.read(&format!("{prefix}:o{number}")).await?;
            }
        }
        Ok(())
    }

    /// Reads what is cached under a key, by way of the API, if that is known to cache anything there.
    async fn read(&self, key: &str) -> Result<(), Failure> {
        if let Some(path) = self.path(key) {
            self.get(&path, "max-age=60").await?;
        }
        Ok(())
    }

    /// The path of the read that a key is of.
    fn path(&self, key: &str) -> Option<String> {
        let name = format!("{}{key}", self.namespace);
        let mut found = self.reads.reads().iter().filter_map(|read| Some((read, read.arguments(name.as_bytes())?)));
        let (read, values) = found.next()?;
        let mut path = read.path.as_str().to_owned();
        for (parameter, value) in read.parameters.iter().zip(values) {
            if parameter.source != ParameterSource::Path {
                // What only the bearer of a token may ask for.
                return None;
            }
            let value = String::from_utf8(Filter::Urlencode.apply(&value?)).ok()?;
            path = path.replace(&format!("{{{}}}", parameter.name), &value);
        }
        Some(path)
    }

    /// The JSON at a path, if there is any.
    async fn get(&self, path: &str, cache_control: &str) -> Result<Option<Vec<u8>>, Failure> {
        let request = Request::get(path).header("cache-control", cache_control).body(Body::empty());
        let request = request.map_err(|error| Failure::findings(format!("{path}: {error}")))?;
        let answer = self.front.answer(request).await;
        let status = answer.status();
        let body = answer.into_body().collect().await;
        let body = body.map_err(|error| Failure::findings(format!("{path}: {error}")))?.to_bytes();
        match status {
            StatusCode::OK => Ok(Some(body.to_vec())),
            StatusCode::NOT_FOUND => Ok(None),
            other => Err(Failure::findings(format!("{path}: {other}: {}", String::from_utf8_lossy(&body)))),
        }
    }

    /// Changes something, waits for the invalidation, shows it, and refills what was removed.
    async fn one_change(&mut self, broadcasts: &mut mpsc::Receiver<(Broadcast, SystemTime)>) -> Result<(), Failure> {
        self.catch_up(broadcasts).await?;
        let text = self.write().await?;
        let Ok(Some((broadcast, received))) = tokio::time::timeout(INVALIDATION_MAX, broadcasts.recv()).await else {
            self.missing += 1;
            return print(&format!("{text:<46}  NOT INVALIDATED within {} s\n", INVALIDATION_MAX.as_secs()));
        };
        let committed = humantime::parse_rfc3339(&broadcast.at).unwrap_or(received);
        let latency = received.duration_since(committed).unwrap_or_default();
        let keys: Vec<&str> =
            broadcast.ops.iter().map(|op| op.key.strip_prefix(&self.namespace).unwrap_or(&op.key)).collect();
        self.latencies.push(latency);
        self.removed += keys.len();
        print(&format!("{text:<46}{:>7.2} ms  {}\n", latency.as_secs_f64() * 1000.0, keys.join("  ")))?;
        for key in keys {
            self.read(key).await?;
        }
        Ok(())
    }

    /// What followed from the change before by a lookup was told after the rest of it.
    async fn catch_up(&mut self, broadcasts: &mut mpsc::Receiver<(Broadcast, SystemTime)>) -> Result<(), Failure> {
        while let Ok((broadcast, _)) = broadcasts.try_recv() {
            for op in broadcast.ops {
                self.removed += 1;
                let key = op.key.strip_prefix(&self.namespace).unwrap_or(&op.key).to_owned();
                self.read(&key).await?;
            }
        }
        Ok(())
    }

    /// One committed change; what it was.
    async fn write(&mut self) -> Result<String, Failure> {
        let (user, kind) = {
            let mut random = rand::rng();
            (format!("u{}", random.random_range(1..=USERS / 5)), random.random_range(0..6))
        };
        let stamp: u32 = rand::random();
        let organization = format!("o{}", stamp % (USERS / 10) + 1);
        let (text, sql, parameters) = match kind {
            0 => (
                format!("update users set email … where id = {user}"),
                "update users set email = $2 where id = $1",
                vec![user, format!("Person.{stamp}@Example.com")],
            ),
            1 => (
                format!("update users set name … where id = {user}"),
                "update users set name = $2 where id = $1",
                vec![user, format!("Name {stamp}")],
            ),
            2 => (
                format!("update feature_flags … of {organization}"),
                "update feature_flags set enabled = not enabled where organization_id = $1 and key = 'feature-1'",
                vec![organization],
            ),
            3 => (
                format!("update memberships set role … of {user}"),
                "update memberships set role = case role when 'member' then 'admin' else 'member' end \
                 where id = (select min(id) from memberships where user_id = $1)",
                vec![user],
            ),
            4 => (
                format!("update organizations set plan … {organization}"),
                "update organizations set plan = case plan when 'free' then 'team' else 'free' end where id = $1",
                vec![organization],
            ),
            _ => (
                format!("insert into sessions … for {user}"),
                "insert into sessions (id, user_id, token_hash) values ($2, $1, md5($2))",
                vec![user, format!("s{stamp}")],
            ),
        };
        let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = parameters.iter().map(|p| p as _).collect();
        self.client.execute(sql, &parameters).await?;
        Ok(text)
    }

    /// The names that nobody asks for any more, because their version is not the current one.
    async fn outdated(&mut self, names: &[String]) -> Result<BTreeSet<String>, Failure> {
        let mut outdated = BTreeSet::new();
        for name in names {
            for read in self.reads.reads() {
                let Some(values) = read.arguments(name.as_bytes()) else { continue };
                let (Some(version), Some(key)) = (read.version_key(&values), read.key(&values)) else { continue };
                let current: Option<String> = self.cache.get(version.as_bytes()).await.map_err(redis_failure)?;
                if Read::versioned(&key, &current.unwrap_or_default()).as_bytes() != name.as_bytes() {
                    outdated.insert(name.clone());
                }
            }
        }
        Ok(outdated)
    }

    /// Compares every cached value with the database and says how it went.
    async fn summary(&mut self) -> Result<Result<(), Failure>, Failure> {
        let names: Vec<String> = self.cache.keys(format!("{}*", self.namespace)).await.map_err(redis_failure)?;
        let outdated = self.outdated(&names).await?;
        let mut compared = 0;
        let mut stale = 0;
        for name in names {
            let key = name.strip_prefix(&self.namespace).unwrap_or(&name);
            let Some(path) = self.path(key).filter(|_| !outdated.contains(&name)) else { continue };
            let held: Option<Vec<u8>> = self.cache.get(&name).await.map_err(redis_failure)?;
            let Some(value) = held.as_deref().and_then(Envelope::decode) else { continue };
            // Past the cache, from the database.
            if self.get(&path, "no-store").await?.unwrap_or_default() != value.body {
                stale += 1;
                print(&format!("STALE: {key}\n"))?;
            }
            compared += 1;
        }
        self.latencies.sort_unstable();
        let millis = |share: f64| {
            let at = (self.latencies.len() as f64 * share) as usize;
            let latency = self.latencies.get(at.min(self.latencies.len().saturating_sub(1)));
            latency.copied().unwrap_or_default().as_secs_f64() * 1000.0
        };
        print(&format!(
            "\n{} changes, {} keys invalidated; from commit to subscriber p50 {:.2} ms, p99 {:.2} ms\n\
             {compared} cached values compared with the database: {stale} stale\n",
            self.latencies.len() + self.missing,
            self.removed,
            millis(0.5),
            millis(0.99),
        ))?;
        Ok(match (stale, self.missing) {
            (0, 0) => Ok(()),
            _ => Err(Failure::findings(format!(
                "cache and database disagree: {stale} stale values, {} changes never invalidated",
                self.missing
            ))),
        })
    }
}
