//! The readers by HTTP. They ask two servers of the read API, which are killed and stopped as the
//! daemon is.
//!
//! Owns the requests and the judgement of the answers. An answer must contain every commit up to
//! the position that it names, every commit that is older than a hit may be, and what the reader
//! itself wrote. It must not know how the API comes to its answers. Invariant: an answer is judged
//! by its own headers and by what writers know of their commits.

mod compare;
mod http;
mod servers;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use unstale::change::Lsn;
use unstale::postgres::{self, Address};

pub(super) use self::compare::compare;
use self::http::Answer;
pub(super) use self::servers::SERVERS;
use self::servers::{ProcessState, Servers};
use super::query::{GROUPS, ITEMS};
use super::state::{Committed, RunState, unix_millis};
use super::writer;
use crate::support::{EVENT_MAX, wait_until};

const READERS: usize = 6;

/// Readers that read what they wrote.
const AUTHORS: usize = 2;

/// How long a reader waits for an answer: longer than a server waits, which answers 503 then.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// How far behind a hit may be, as the rules say.
const STALENESS_MAX: Duration = Duration::from_secs(2);
const ALIAS_STALENESS_MAX: Duration = Duration::from_secs(1);

/// How many requests there were, and what came of them.
#[derive(Clone, Debug, Default)]
pub(super) struct HttpCounts {
    answers: u64,
    hits: u64,
    /// Answered 304.
    unchanged: u64,
    /// Compared with at least one commit.
    pub(super) judged: u64,
    /// Reads of what the reader had just written.
    pub(super) own_writes: u64,
    /// Answered 503 or 504.
    unavailable: u64,
    /// Not answered at all.
    unanswered: u64,
    pub(super) at_rest: u64,
    pub(super) hits_at_rest: u64,
    kills: u64,
}

impl std::fmt::Display for HttpCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "by HTTP: {} answers ({} hits, {} unchanged, {} unavailable; {} requests without one), {} compared with commits, \
             {} own writes read, {} compared at rest ({} hits), {} servers killed",
            self.answers,
            self.hits,
            self.unchanged,
            self.unavailable,
            self.unanswered,
            self.judged,
            self.own_writes,
            self.at_rest,
            self.hits_at_rest,
            self.kills
        )
    }
}

/// The API as its readers see it.
#[derive(Default)]
pub(super) struct Api {
    pub(super) servers: Servers,
    /// The token of the last answer in this cycle, from either server.
    token: Mutex<Option<Lsn>>,
    counts: Mutex<HttpCounts>,
}

impl Api {
    pub(super) fn kill(&self, server: usize) {
        self.servers.kill(server);
        self.count(|counts| counts.kills += 1);
    }

    pub(super) fn wait_until_served(&self) {
        wait_until(EVENT_MAX, "the API serves", || (0..SERVERS).all(|server| self.servers.port(server).is_some()));
    }

    pub(super) fn counts(&self) -> HttpCounts {
        self.counts.lock().unwrap().clone()
    }

    fn count(&self, count: impl FnOnce(&mut HttpCounts)) {
        count(&mut self.counts.lock().unwrap());
    }
}

/// Whether a server has to be started. If it ended by itself that is a finding.
pub(super) fn is_away(state: &RunState, server: usize) -> bool {
    match state.api.servers.check(server) {
        ProcessState::Runs => false,
        ProcessState::Away => true,
        ProcessState::Died(how) => {
            state.found(format!("the API's server {server} ended by itself {how}"));
            true
        }
    }
}

/// A resource of the API, and what its value must be.
struct Resource {
    path: String,
    /// The item whose version is its value, and how old a hit may be.
    of: Option<(i32, Duration)>,
    /// The statement that gives the value as text, or NULL.
    sql: String,
}

impl Resource {
    fn item(id: i32) -> Self {
        let sql = format!("select v::text from items where id = {id}");
        Self { path: format!("/items/{id}"), of: Some((id, STALENESS_MAX)), sql }
    }

    fn alias(letter: char, id: i32) -> Self {
        let sql = format!("select v::text from items where alias = '{letter}{id}'");
        Self { path: format!("/aliases/{letter}{id}"), of: Some((id, ALIAS_STALENESS_MAX)), sql }
    }

    /// The sum of a group, found by its tag or under a version.
    fn sum(kind: &str, group: i32) -> Self {
        let sql = format!("select coalesce(sum(v), 0)::text from items where grp = {group}");
        Self { path: format!("/{kind}/{group}"), of: None, sql }
    }

    fn draw(random: &mut StdRng) -> Self {
        let hot = random.random_range(1..=6);
        let any = random.random_range(1..=ITEMS);
        match random.random_range(0..12) {
            0..5 => Self::item(hot),
            5..7 => Self::item(any),
            7 => Self::alias('a', hot),
            8 => Self::alias('b', hot),
            9 => Self::alias('a', any),
            10 => Self::sum("tagged", any % GROUPS),
            _ => Self::sum("versioned", any % GROUPS),
        }
    }

    fn all() -> Vec<Self> {
        let mut all: Vec<_> = (1..=ITEMS).map(Self::item).collect();
        all.extend((1..=ITEMS).flat_map(|id| [Self::alias('a', id), Self::alias('b', id)]));
        all.extend((0..GROUPS).flat_map(|group| [Self::sum("tagged", group), Self::sum("versioned", group)]));
        all
    }
}

pub(super) fn start(state: &Arc<RunState>, random: &mut StdRng) -> Vec<JoinHandle<()>> {
    let mut tasks = Vec::new();
    for _ in 0..READERS {
        tasks.push(tokio::spawn(read_repeatedly(Arc::clone(state), Reader::new(random))));
    }
    for _ in 0..AUTHORS {
        tasks.push(tokio::spawn(write_and_read(Arc::clone(state), Reader::new(random))));
    }
    tasks
}

struct Reader {
    random: StdRng,
    clients: [http::Client; SERVERS],
    /// For each path the entity tag and the value of the last answer.
    held: BTreeMap<String, (String, String)>,
}

/// How new the answer to a request has to be.
struct Asked {
    server: usize,
    min: Option<Lsn>,
    /// When, in milliseconds since 1970.
    at: u64,
}

impl Reader {
    fn new(random: &mut StdRng) -> Self {
        let random = StdRng::from_rng(random);
        Self { random, clients: Default::default(), held: BTreeMap::new() }
    }

    /// None if there was no answer.
    async fn ask(&mut self, state: &RunState, server: usize, path: &str, headers: &str) -> Option<Answer> {
        let answer = match state.api.servers.port(server) {
            Some(port) => {
                let answer = self.clients[server].get(port, path, headers);
                tokio::time::timeout(ANSWER_MAX, answer).await.ok().and_then(Result::ok)
            }
            None => None,
        };
        state.api.count(|counts| match &answer {
            None => counts.unanswered += 1,
            Some(answer) => {
                counts.answers += 1;
                counts.hits += u64::from(answer.cache.contains("; hit"));
                counts.unchanged += u64::from(answer.status == 304);
                counts.unavailable += u64::from(matches!(answer.status, 503 | 504));
            }
        });
        answer
    }

    /// Asks for a random resource with random headers, and judges the answer.
    async fn read(&mut self, state: &RunState) -> Option<()> {
        let resource = Resource::draw(&mut self.random);
        let server = self.random.random_range(0..SERVERS);
        let min = match self.random.random_range(0..6) {
            0 => newest_position(state),
            1 => *state.api.token.lock().unwrap(),
            _ => None,
        };
        let mut headers = min.map(|min| format!("Consistency-Token: {min}\r\n")).unwrap_or_default();
        headers.push_str(match self.random.random_range(0..16) {
            0 => "Cache-Control: no-cache\r\n",
            1 => "Cache-Control: no-store\r\n",
            _ => "",
        });
        if let Some((etag, _)) = self.held.get(&resource.path)
            && self.random.random()
        {
            headers.push_str(&format!("If-None-Match: {etag}\r\n"));
        }
        let asked = Asked { server, min, at: unix_millis() };
        let mut answer = self.ask(state, server, &resource.path, &headers).await?;
        match (answer.status, &answer.etag) {
            (200, Some(etag)) => {
                self.held.insert(resource.path.clone(), (etag.clone(), answer.body.clone()));
            }
            (304, _) => answer.body = self.held.get(&resource.path).map(|(_, body)| body.clone()).unwrap_or_default(),
            _ => {}
        }
        if answer.token.is_some() {
            *state.api.token.lock().unwrap() = answer.token;
        }
        judge(state, &resource, &asked, &answer);
        Some(())
    }

    /// Reads what was just written, from a server that may not know of it yet.
    async fn read_own(&mut self, state: &RunState, item: i32, written: Committed) {
        let server = self.random.random_range(0..SERVERS);
        let resource = if self.random.random() { Resource::item(item) } else { Resource::alias('a', item) };
        let name = if self.random.random_range(0..4) == 0 { "X-Min-LSN" } else { "Consistency-Token" };
        let headers = format!("{name}: {}\r\n", written.position);
        let asked = Asked { server, min: Some(written.position), at: unix_millis() };
        let Some(answer) = self.ask(state, server, &resource.path, &headers).await else { return };
        judge(state, &resource, &asked, &answer);
        // A writer may have deleted it since: that is a right answer, too.
        let Some(version) = version(&answer) else { return };
        state.api.count(|counts| counts.own_writes += 1);
        if version < written.version && state.samples.load(Ordering::SeqCst) {
            state.found(format!(
                "the API's server {server} answers {} with version {version} to a reader that wrote {} at {}: {answer:?}",
                resource.path, written.version, written.position
            ));
        }
    }
}

fn version(answer: &Answer) -> Option<i64> {
    if matches!(answer.status, 200 | 304) { answer.body.parse().ok() } else { None }
}

/// Compares an answer with what was committed before it was asked for.
fn judge(state: &RunState, resource: &Resource, asked: &Asked, answer: &Answer) {
    let (server, path) = (asked.server, &resource.path);
    let promised = || state.samples.load(Ordering::SeqCst);
    // If commits were lost, an earlier token is ahead of the server.
    let is_possible = matches!(answer.status, 200 | 304 | 404 | 503 | 504) || answer.status == 400 && !promised();
    if !is_possible {
        state.found(format!("the API's server {server} answers {path} with {answer:?}; asked for {:?}", asked.min));
    }
    if !matches!(answer.status, 200 | 304) {
        return;
    }
    let (Some((item, staleness_max)), Some(version)) = (resource.of, version(answer)) else {
        if resource.of.is_some() {
            state.found(format!("the API's server {server} answers {path} with no version: {answer:?}"));
        }
        return;
    };
    let position = answer.token.max(asked.min);
    let too_old = asked.at.saturating_sub(u64::try_from(staleness_max.as_millis()).unwrap());
    let newest = newest(state, item, |commit| {
        position.is_some_and(|position| commit.position <= position) || commit.at < too_old
    });
    let Some(newest) = newest else { return };
    state.api.count(|counts| counts.judged += 1);
    if version < newest && promised() {
        state.found(format!(
            "the API's server {server} answers {path} with version {version} though {newest} was committed before what the answer promises ({position:?}, or {too_old}): {answer:?}"
        ));
    }
}

fn newest(state: &RunState, item: i32, counts: impl Fn(&Committed) -> bool) -> Option<i64> {
    let committed = state.committed.lock().unwrap();
    committed.get(&item)?.iter().filter(|commit| counts(commit)).map(|commit| commit.version).max()
}

fn newest_position(state: &RunState) -> Option<Lsn> {
    state.committed.lock().unwrap().values().flatten().map(|commit| commit.position).max()
}

async fn read_repeatedly(state: Arc<RunState>, mut reader: Reader) {
    while let Some(turn) = state.filler_turn().await {
        let answered = reader.read(&state).await.is_some();
        drop(turn);
        let pause = if answered { reader.random.random_range(0..4) } else { 5 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn write_and_read(state: Arc<RunState>, mut reader: Reader) {
    let address = Address::parse(&state.primary, &|_| None).unwrap();
    let mut client = None;
    while let Some(turn) = state.writer_turn().await {
        if client.as_ref().is_none_or(Client::is_closed) {
            client = postgres::connect(&address).await.ok();
        }
        let item = writer::item(&mut reader.random);
        if let Some(client) = &client
            && let Ok(Some(written)) = writer::single(&state, client, item).await
        {
            reader.read_own(&state, item, written).await;
        }
        drop(turn);
        tokio::time::sleep(Duration::from_millis(reader.random.random_range(0..20))).await;
    }
}
