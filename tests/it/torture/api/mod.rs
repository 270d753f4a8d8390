//! Those who read by HTTP, from two servers of the read API that are killed and frozen as the daemon is.
//!
//! Owns the requests, and what the answers are held against: every commit up to the position an answer names, every
//! commit that is older than a hit may be, what the reader itself wrote, and at rest the database. It must not know
//! how the API comes to its answers. Invariant: an answer is judged by what it says in its headers and by what
//! writers know of their commits.

mod http;
mod servers;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use unstale::change::Lsn;
use unstale::postgres::{self, Address};

use self::http::Answer;
pub(super) use self::servers::SERVERS;
use self::servers::{Servers, State};
use super::STUCK;
use super::stage::{CALM_MAX, Committed, GROUPS, ITEMS, Setting, Stage, unix_millis};
use super::writer;
use crate::support::{EVENT_MAX, wait_until};

const READERS: usize = 6;

/// Those who read what they wrote.
const AUTHORS: usize = 2;

/// Connections at once to each server, when everything is compared.
const COMPARERS: usize = 8;

/// How long a reader waits: longer than a server does, which answers 503 then.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// How far behind a hit may be, as the rules say.
const STALENESS_MAX: Duration = Duration::from_secs(2);
const ALIAS_STALENESS_MAX: Duration = Duration::from_secs(1);

/// What came of the requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    answers: u64,
    hits: u64,
    /// Answered 304.
    unchanged: u64,
    /// Held against at least one commit.
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

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "by HTTP: {} answers ({} hits, {} unchanged, {} unavailable; {} requests without one), {} held against what was committed, {} own writes read, {} compared at rest ({} hits), {} servers killed",
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
    /// The last token of an answer in this cycle, from whichever server.
    token: Mutex<Option<Lsn>>,
    tally: Mutex<Tally>,
}

impl Api {
    pub(super) fn kill(&self, server: usize) {
        self.servers.kill(server);
        self.count(|tally| tally.kills += 1);
    }

    pub(super) fn wait_until_served(&self) {
        wait_until(EVENT_MAX, "the API serves", || (0..SERVERS).all(|server| self.servers.port(server).is_some()));
    }

    pub(super) fn tally(&self) -> Tally {
        self.tally.lock().unwrap().clone()
    }

    fn count(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut self.tally.lock().unwrap());
    }
}

/// Whether a server has to be started. One that died is a finding.
pub(super) fn is_away(setting: &Setting, server: usize) -> bool {
    match setting.api.servers.look(server) {
        State::Runs => false,
        State::Away => true,
        State::Died(how) => {
            setting.found(format!("the API's server {server} ended by itself {how}"));
            true
        }
    }
}

/// What has an address.
struct Resource {
    path: String,
    /// The item whose version it is, and how far behind a hit may be.
    of: Option<(i32, Duration)>,
    /// The same value as text, and NULL for none.
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

pub(super) fn start(setting: &Arc<Setting>, random: &mut StdRng) -> Vec<JoinHandle<()>> {
    let mut tasks = Vec::new();
    for _ in 0..READERS {
        tasks.push(tokio::spawn(read_on_and_on(Arc::clone(setting), Reader::new(random))));
    }
    for _ in 0..AUTHORS {
        tasks.push(tokio::spawn(write_and_read(Arc::clone(setting), Reader::new(random))));
    }
    tasks
}

struct Reader {
    random: StdRng,
    clients: [http::Client; SERVERS],
    /// For each path the last value, behind its tag.
    held: BTreeMap<String, (String, String)>,
}

/// What a request said of how new its answer has to be.
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

    /// Nothing if there was no answer.
    async fn ask(&mut self, setting: &Setting, server: usize, path: &str, headers: &str) -> Option<Answer> {
        let answer = match setting.api.servers.port(server) {
            Some(port) => {
                let answer = self.clients[server].get(port, path, headers);
                tokio::time::timeout(ANSWER_MAX, answer).await.ok().and_then(Result::ok)
            }
            None => None,
        };
        setting.api.count(|tally| match &answer {
            None => tally.unanswered += 1,
            Some(answer) => {
                tally.answers += 1;
                tally.hits += u64::from(answer.cache.contains("; hit"));
                tally.unchanged += u64::from(answer.status == 304);
                tally.unavailable += u64::from(matches!(answer.status, 503 | 504));
            }
        });
        answer
    }

    /// Asks for anything in any way, and judges the answer.
    async fn read(&mut self, setting: &Setting) -> Option<()> {
        let resource = Resource::draw(&mut self.random);
        let server = self.random.random_range(0..SERVERS);
        let min = match self.random.random_range(0..6) {
            0 => newest_position(setting),
            1 => *setting.api.token.lock().unwrap(),
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
        let mut answer = self.ask(setting, server, &resource.path, &headers).await?;
        match (answer.status, &answer.etag) {
            (200, Some(etag)) => {
                self.held.insert(resource.path.clone(), (etag.clone(), answer.body.clone()));
            }
            (304, _) => answer.body = self.held.get(&resource.path).map(|(_, body)| body.clone()).unwrap_or_default(),
            _ => {}
        }
        if answer.token.is_some() {
            *setting.api.token.lock().unwrap() = answer.token;
        }
        judge(setting, &resource, &asked, &answer);
        Some(())
    }

    /// Reads what was just written, from where it may not have arrived.
    async fn read_own(&mut self, setting: &Setting, item: i32, written: Committed) {
        let server = self.random.random_range(0..SERVERS);
        let resource = if self.random.random() { Resource::item(item) } else { Resource::alias('a', item) };
        let name = if self.random.random_range(0..4) == 0 { "X-Min-LSN" } else { "Consistency-Token" };
        let headers = format!("{name}: {}\r\n", written.position);
        let asked = Asked { server, min: Some(written.position), at: unix_millis() };
        let Some(answer) = self.ask(setting, server, &resource.path, &headers).await else { return };
        judge(setting, &resource, &asked, &answer);
        // Somebody may have deleted it since, which is an answer too.
        let Some(version) = version(&answer) else { return };
        setting.api.count(|tally| tally.own_writes += 1);
        if version < written.version && setting.samples.load(Ordering::SeqCst) {
            setting.found(format!(
                "the API's server {server} answers {} with version {version} to one who wrote {} at {}: {answer:?}",
                resource.path, written.version, written.position
            ));
        }
    }
}

fn version(answer: &Answer) -> Option<i64> {
    if matches!(answer.status, 200 | 304) { answer.body.parse().ok() } else { None }
}

/// Holds an answer against what was committed before it was asked for.
fn judge(setting: &Setting, resource: &Resource, asked: &Asked, answer: &Answer) {
    let (server, path) = (asked.server, &resource.path);
    let promised = || setting.samples.load(Ordering::SeqCst);
    // Where commits were lost, a token of before is ahead of the server.
    let may_be = matches!(answer.status, 200 | 304 | 404 | 503 | 504) || answer.status == 400 && !promised();
    if !may_be {
        setting.found(format!("the API's server {server} answers {path} with {answer:?}; asked for {:?}", asked.min));
    }
    if !matches!(answer.status, 200 | 304) {
        return;
    }
    let (Some((item, staleness_max)), Some(version)) = (resource.of, version(answer)) else {
        if resource.of.is_some() {
            setting.found(format!("the API's server {server} answers {path} with no version: {answer:?}"));
        }
        return;
    };
    let position = answer.token.max(asked.min);
    let too_old = asked.at.saturating_sub(u64::try_from(staleness_max.as_millis()).unwrap());
    let newest = newest(setting, item, |commit| {
        position.is_some_and(|position| commit.position <= position) || commit.at < too_old
    });
    let Some(newest) = newest else { return };
    setting.api.count(|tally| tally.judged += 1);
    if version < newest && promised() {
        setting.found(format!(
            "the API's server {server} answers {path} with version {version} though {newest} was committed before what the answer promises ({position:?}, or {too_old}): {answer:?}"
        ));
    }
}

fn newest(setting: &Setting, item: i32, counts: impl Fn(&Committed) -> bool) -> Option<i64> {
    let committed = setting.committed.lock().unwrap();
    committed.get(&item)?.iter().filter(|commit| counts(commit)).map(|commit| commit.version).max()
}

fn newest_position(setting: &Setting) -> Option<Lsn> {
    setting.committed.lock().unwrap().values().flatten().map(|commit| commit.position).max()
}

async fn read_on_and_on(setting: Arc<Setting>, mut reader: Reader) {
    while let Some(turn) = setting.filler_turn().await {
        let answered = reader.read(&setting).await.is_some();
        drop(turn);
        let pause = if answered { reader.random.random_range(0..4) } else { 5 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn write_and_read(setting: Arc<Setting>, mut reader: Reader) {
    let address = Address::parse(&setting.primary, &|_| None).unwrap();
    let mut client = None;
    while let Some(turn) = setting.writer_turn().await {
        if client.as_ref().is_none_or(Client::is_closed) {
            client = postgres::connect(&address).await.ok();
        }
        let item = writer::item(&mut reader.random);
        if let Some(client) = &client
            && let Ok(Some(written)) = writer::single(&setting, client, item).await
        {
            reader.read_own(&setting, item, written).await;
        }
        drop(turn);
        tokio::time::sleep(Duration::from_millis(reader.random.random_range(0..20))).await;
    }
}

/// Compares everything that both servers answer with the database; what is not so. Nobody may write meanwhile. With
/// `recovers`, each must have come back to hits before.
pub(super) async fn compare(stage: &Stage, recovers: bool) -> Vec<String> {
    let setting = &*stage.ground.setting;
    let resources = Resource::all();
    let all: Vec<_> = resources.iter().map(|resource| format!("({})", resource.sql)).collect();
    let sql = format!("select array[{}]", all.join(", "));
    let truth: Vec<Option<String>> = stage.ground.admin().await.query_one(&sql, &[]).await.unwrap().get(0);
    let pairs: Vec<_> = resources.iter().zip(&truth).collect();
    // A server that crashed in this cycle is behind positions from before it for a while.
    *setting.api.token.lock().unwrap() = None;
    setting.committed.lock().unwrap().clear();
    let mut findings = Vec::new();
    for server in 0..SERVERS {
        stand(stage, server).await;
        if recovers {
            let mut client = http::Client::default();
            let hit = |answer: &Answer| answer.cache.contains("; hit");
            let hit = insist(setting, server, &mut client, &Resource::item(1).path, hit).await;
            findings.extend(hit.err().map(|last| format!("{STUCK} the API's server {server} makes no hits: {last}")));
        }
        let parts = pairs.chunks(pairs.len().div_ceil(COMPARERS)).map(|part| compare_some(setting, server, part));
        findings.extend(join_all(parts).await.into_iter().flatten());
    }
    findings
}

/// Waits until a server serves. It may have given up at its start, when something that it needs was away.
async fn stand(stage: &Stage, server: usize) {
    let setting = &*stage.ground.setting;
    let deadline = Instant::now() + CALM_MAX;
    while setting.api.servers.port(server).is_none() && Instant::now() < deadline {
        if is_away(setting, server) {
            stage.start_api(server);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn compare_some(setting: &Setting, server: usize, part: &[(&Resource, &Option<String>)]) -> Vec<String> {
    let mut client = http::Client::default();
    let mut findings = Vec::new();
    for &(resource, truth) in part {
        let answers = |answer: &Answer| matches!(answer.status, 200 | 404);
        let answer = match insist(setting, server, &mut client, &resource.path, answers).await {
            Ok(answer) => answer,
            Err(last) => {
                return vec![format!("{STUCK} the API's server {server} does not answer {}: {last}", resource.path)];
            }
        };
        setting.api.count(|tally| {
            tally.at_rest += 1;
            tally.hits_at_rest += u64::from(answer.cache.contains("; hit"));
        });
        let value = (answer.status == 200).then_some(&answer.body);
        if value != truth.as_ref() {
            let path = &resource.path;
            findings.push(format!("the API's server {server} answers {path} with {answer:?}, not with {truth:?}"));
        }
    }
    findings
}

/// Asks until the answer is as wanted; what the last one was, if that never comes.
async fn insist(
    setting: &Setting,
    server: usize,
    client: &mut http::Client,
    path: &str,
    wanted: impl Fn(&Answer) -> bool,
) -> Result<Answer, String> {
    let deadline = Instant::now() + CALM_MAX;
    loop {
        let port = setting.api.servers.port(server);
        let last = match port {
            None => "it is away".to_owned(),
            Some(port) => match tokio::time::timeout(ANSWER_MAX, client.get(port, path, "")).await {
                Ok(Ok(answer)) if wanted(&answer) => return Ok(answer),
                other => format!("{other:?}"),
            },
        };
        if Instant::now() > deadline {
            return Err(last);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
