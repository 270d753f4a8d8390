//! What the tasks of a run share: where the servers are, what was committed, and when to pause.
//!
//! Owns the pauses, the counters and the findings of the tasks. It must not know what is written or
//! read. Invariant: once a pause returned, no task that it pauses acts until [`RunState::resume`].

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use redis::aio::MultiplexedConnection;
use unstale::change::Lsn;
use unstale::coherence::lease::Leases;
use unstale::coherence::watermark::Names;

use super::Report;
use super::api::Api;
use super::mode::Mode;

/// How long everything may take to come to rest once no fault is active. The wait ends as soon as
/// it has.
pub(super) const REST_MAX: Duration = Duration::from_secs(300);

/// What a writer knows about a commit once it returned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Committed {
    pub(super) version: i64,
    /// The end of the log at that time.
    pub(super) position: Lsn,
    /// That time, in milliseconds since 1970.
    pub(super) at: u64,
}

/// Milliseconds since 1970.
pub(super) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// What all tasks of a run share.
pub(super) struct RunState {
    pub(super) mode: Mode,
    /// The URLs of the two PostgreSQL servers.
    pub(super) primary: String,
    pub(super) replica: String,
    redis: Mutex<redis::Client>,
    pub(super) leases: Leases,
    pub(super) names: Names,
    /// For each item, what was committed in this cycle.
    pub(super) committed: Mutex<BTreeMap<i32, Vec<Committed>>>,
    /// Whether the promise holds in this cycle: no fault takes history away.
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

/// The right of one task to act. A pause waits until no task has it.
pub(super) struct Turn<'a>(&'a AtomicUsize);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl RunState {
    pub(super) fn new(mode: Mode, primary: String, replica: String, redis_url: &str) -> Self {
        let names = Names::new("t:", "unstale");
        Self {
            mode,
            primary,
            replica,
            redis: Mutex::new(redis::Client::open(redis_url).unwrap()),
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
        }
    }

    pub(super) fn redis(&self) -> redis::Client {
        self.redis.lock().unwrap().clone()
    }

    /// A connection that gives up soon: a frozen Redis must not freeze the harness.
    pub(super) async fn redis_connection(&self) -> redis::RedisResult<MultiplexedConnection> {
        self.redis_within(Duration::from_secs(2)).await
    }

    /// A connection for when no fault is at work. It waits for as long as a loaded machine needs.
    pub(super) async fn redis_at_rest(&self) -> MultiplexedConnection {
        self.redis_within(REST_MAX).await.unwrap()
    }

    async fn redis_within(&self, limit: Duration) -> redis::RedisResult<MultiplexedConnection> {
        let config =
            redis::AsyncConnectionConfig::new().set_connection_timeout(Some(limit)).set_response_timeout(Some(limit));
        self.redis().get_multiplexed_async_connection_with_config(&config).await
    }

    pub(super) async fn writer_turn(&self) -> Option<Turn<'_>> {
        self.turn(&self.writers_pause, &self.writers_busy).await
    }

    pub(super) async fn filler_turn(&self) -> Option<Turn<'_>> {
        self.turn(&self.fillers_pause, &self.fillers_busy).await
    }

    async fn turn<'a>(&self, pause: &AtomicBool, busy: &'a AtomicUsize) -> Option<Turn<'a>> {
        loop {
            if self.over.load(Ordering::SeqCst) {
                return None;
            }
            busy.fetch_add(1, Ordering::SeqCst);
            let turn = Turn(busy);
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

    /// Ends both pauses.
    pub(super) fn resume(&self) {
        self.writers_pause.store(false, Ordering::SeqCst);
        self.fillers_pause.store(false, Ordering::SeqCst);
    }

    /// Forgets what was committed. With `samples`, cached values are compared with what is
    /// committed from now on.
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
        let mut connection = self.redis_at_rest().await;
        redis::cmd("HGETALL").arg(self.names.epochs.as_bytes()).query_async(&mut connection).await.unwrap()
    }

    /// Adds what was counted to a report.
    pub(super) fn count_into(&self, report: &mut Report) {
        report.fills = self.fills.load(Ordering::SeqCst);
        report.refused = self.refused.load(Ordering::SeqCst);
        report.commits = self.commits.load(Ordering::SeqCst);
        report.sampled = self.sampled.load(Ordering::SeqCst);
        report.by_http = self.api.counts();
    }
}

async fn pause(flag: &AtomicBool, busy: &AtomicUsize, tasks: &str) {
    flag.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + REST_MAX;
    while busy.load(Ordering::SeqCst) > 0 {
        assert!(Instant::now() < deadline, "{tasks} do not come to rest");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
