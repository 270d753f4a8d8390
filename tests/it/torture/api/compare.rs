//! At rest, what the API answers must be what the database says.
//!
//! Owns that comparison. It must not know how a server comes to its answers. Invariant: a server
//! that does not answer is asked again until it has had more time than a loaded machine needs.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::http::{self, Answer};
use super::{ANSWER_MAX, Resource, SERVERS, is_away};
use crate::torture::STUCK;
use crate::torture::cluster::Cluster;
use crate::torture::state::{REST_MAX, RunState};

/// Connections at once to each server.
const CONNECTIONS: usize = 8;

/// Compares everything that both servers answer with the database; what differs. Writers must be
/// paused. With `recovers`, each server must make hits again first.
pub(in crate::torture) async fn compare(cluster: &Cluster, recovers: bool) -> Vec<String> {
    let state = &*cluster.targets.state;
    let resources = Resource::all();
    let all: Vec<_> = resources.iter().map(|resource| format!("({})", resource.sql)).collect();
    let sql = format!("select array[{}]", all.join(", "));
    let truth: Vec<Option<String>> = cluster.targets.admin().await.query_one(&sql, &[]).await.unwrap().get(0);
    let pairs: Vec<_> = resources.iter().zip(&truth).collect();
    // A PostgreSQL that crashed in this cycle is behind earlier positions for a while.
    *state.api.token.lock().unwrap() = None;
    state.committed.lock().unwrap().clear();
    let mut findings = Vec::new();
    for server in 0..SERVERS {
        wait_until_serving(cluster, server).await;
        if recovers {
            let mut client = http::Client::default();
            let hit = |answer: &Answer| answer.cache.contains("; hit");
            let hit = ask_until(state, server, &mut client, &Resource::item(1).path, hit).await;
            findings.extend(hit.err().map(|last| format!("{STUCK} the API's server {server} makes no hits: {last}")));
        }
        let parts = pairs.chunks(pairs.len().div_ceil(CONNECTIONS)).map(|part| compare_some(state, server, part));
        findings.extend(join_all(parts).await.into_iter().flatten());
    }
    findings
}

/// Waits until a server serves. It ends by itself if something that it needs is away at its start.
async fn wait_until_serving(cluster: &Cluster, server: usize) {
    let state = &*cluster.targets.state;
    let deadline = Instant::now() + REST_MAX;
    while state.api.servers.port(server).is_none() && Instant::now() < deadline {
        if is_away(state, server) {
            cluster.start_api(server);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn compare_some(state: &RunState, server: usize, part: &[(&Resource, &Option<String>)]) -> Vec<String> {
    let mut client = http::Client::default();
    let mut findings = Vec::new();
    for &(resource, truth) in part {
        let answers = |answer: &Answer| matches!(answer.status, 200 | 404);
        let answer = match ask_until(state, server, &mut client, &resource.path, answers).await {
            Ok(answer) => answer,
            Err(last) => {
                return vec![format!("{STUCK} the API's server {server} does not answer {}: {last}", resource.path)];
            }
        };
        state.api.count(|counts| {
            counts.at_rest += 1;
            counts.hits_at_rest += u64::from(answer.cache.contains("; hit"));
        });
        let value = (answer.status == 200).then_some(&answer.body);
        if value != truth.as_ref() {
            let path = &resource.path;
            findings.push(format!("the API's server {server} answers {path} with {answer:?}, not with {truth:?}"));
        }
    }
    findings
}

/// Asks until the answer is as wanted. If that never comes, an error tells the last answer.
async fn ask_until(
    state: &RunState,
    server: usize,
    client: &mut http::Client,
    path: &str,
    wanted: impl Fn(&Answer) -> bool,
) -> Result<Answer, String> {
    let deadline = Instant::now() + REST_MAX;
    loop {
        let port = state.api.servers.port(server);
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
