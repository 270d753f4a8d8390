//! One cycle: faults and a kill while writers and readers act, then rest, then the comparison with
//! the database.
//!
//! Owns the schedule of a cycle and its verdict. It must not know how a fault strikes. Invariants:
//! values are compared only when everything is in force and nothing acts; an epoch that no fault
//! explains is a finding, because a flush hides what was lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::cluster::Cluster;
use super::fault::Fault;
use super::state::RunState;
use super::{Options, Report, STUCK, api, oracle};

/// How long the writers and the faults of one cycle run.
const CYCLE: Duration = Duration::from_millis(600);

/// After every so many cycles the API must make hits again.
const RECOVERIES: u64 = 8;

/// What happens to a daemon or a server, one after the other.
enum Action {
    Kill,
    Start,
    KillSecond,
    KillApi(usize),
    StartApi(usize),
    /// Sends one of the API's servers a signal.
    SignalApi(usize, &'static str),
    Strike(Fault),
}

/// What happens to one of the API's servers: sometimes it is killed and started again, or stopped
/// for a while.
fn actions_on_api(random: &mut StdRng) -> Vec<(Duration, Action)> {
    let server = random.random_range(0..api::SERVERS);
    let at = CYCLE.mul_f64(random.random_range(0.05..0.8));
    let then = at + Duration::from_millis(random.random_range(10..250));
    match random.random_range(0..8) {
        0 | 1 => vec![(at, Action::KillApi(server)), (then, Action::StartApi(server))],
        2 | 3 => vec![(at, Action::SignalApi(server, "STOP")), (then, Action::SignalApi(server, "CONT"))],
        _ => Vec::new(),
    }
}

/// Runs one cycle, and adds to the report what happened in it.
pub(super) async fn run(cluster: &mut Cluster, options: &Options, random: &mut StdRng, report: &mut Report) {
    let targets = Arc::clone(&cluster.targets);
    let state = &targets.state;
    let least = usize::from(options.mutant.is_some());
    let faults: Vec<Fault> =
        (0..random.random_range(least..4)).map(|_| Fault::draw(options.mode, options.mutant, random)).collect();
    let epochs = state.epochs().await;
    state.begin_cycle(!faults.iter().any(|fault| fault.is_grave()));
    strike(cluster, options, &faults, random, report).await;
    cluster.calm().await;
    state.pause_writers().await;
    if let Err(stuck) = cluster.wait_until_in_force().await {
        report.findings.push(format!("{STUCK} cycle {} with {faults:?}: {stuck}", report.cycles));
        return;
    }
    state.pause_fillers().await;
    report.cycles += 1;
    compare(cluster, &format!("after cycle {} with {faults:?}", report.cycles), report).await;
    explain_epochs(state, &epochs, faults, options, report).await;
    state.resume();
}

/// Kills the daemon and lets the faults strike, until the time of the cycle is over.
async fn strike(cluster: &mut Cluster, options: &Options, faults: &[Fault], random: &mut StdRng, report: &mut Report) {
    let targets = Arc::clone(&cluster.targets);
    let kill_at = CYCLE.mul_f64(random.random_range(0.05..0.95));
    let start_at = kill_at + Duration::from_millis(random.random_range(0..30));
    let mut actions = vec![(kill_at, Action::Kill), (start_at, Action::Start)];
    if options.mode.is_outbox() {
        cluster.start_second();
        if random.random() {
            actions.push((CYCLE.mul_f64(random.random_range(0.05..0.95)), Action::KillSecond));
        }
    }
    actions.extend(actions_on_api(random));
    let mut beside = Vec::new();
    let began = tokio::time::Instant::now();
    for &fault in faults {
        let at = CYCLE.mul_f64(random.random_range(0.0..0.8));
        if fault.is_grave() {
            actions.push((at, Action::Strike(fault)));
            continue;
        }
        let (targets, mut random) = (Arc::clone(&targets), StdRng::from_rng(random));
        beside.push(tokio::spawn(async move {
            tokio::time::sleep_until(began + at).await;
            (fault, fault.strike(&targets, &mut random).await)
        }));
    }
    actions.sort_by_key(|(at, _)| *at);
    let mut struck = Vec::new();
    for (at, action) in actions {
        tokio::time::sleep_until(began + at).await;
        match action {
            Action::Kill => cluster.kill_daemon(),
            Action::Start => cluster.start_daemon(),
            Action::KillSecond => cluster.kill_second(),
            Action::KillApi(server) => targets.state.api.kill(server),
            Action::StartApi(server) => cluster.start_api(server),
            Action::SignalApi(server, name) => targets.state.api.servers.signal(server, name),
            Action::Strike(fault) => struck.push((fault, fault.strike_gravely(cluster, random).await)),
        }
    }
    for task in beside {
        struck.push(task.await.unwrap());
    }
    for (fault, _) in struck.iter().filter(|(_, struck)| *struck) {
        *report.faults.entry(fault.name()).or_default() += 1;
    }
    tokio::time::sleep_until(began + CYCLE).await;
}

/// Compares what is cached, and then what the API answers, with the database.
async fn compare(cluster: &Cluster, context: &str, report: &mut Report) {
    report.findings.extend(cluster.targets.state.take_findings());
    let (compared, stale) = oracle::compare(cluster).await;
    report.compared += compared;
    report.findings.extend(stale.into_iter().map(|stale| format!("{context}: {stale}")));
    // The API fills what it misses, so it is asked only now.
    for found in api::compare(cluster, report.cycles.is_multiple_of(RECOVERIES)).await {
        let stuck = found.starts_with(STUCK);
        report.findings.push(if stuck { format!("{found}; {context}") } else { format!("{context}: {found}") });
    }
}

/// Finds the epochs that began in this cycle and that none of its faults explains.
async fn explain_epochs(
    state: &RunState,
    before: &BTreeMap<String, u64>,
    faults: Vec<Fault>,
    options: &Options,
    report: &mut Report,
) {
    let now = state.epochs().await;
    // The second daemon may notice a cycle later what the first one noticed.
    let earlier =
        if options.mode.is_outbox() { std::mem::replace(&mut report.before, faults.clone()) } else { Vec::new() };
    let explains =
        |reason: &str| faults.iter().chain(&earlier).any(|fault| fault.explains(reason, options.mode, &report.faults));
    let unexplained: Vec<_> =
        now.iter().filter(|(reason, count)| before.get(*reason).unwrap_or(&0) < *count && !explains(reason)).collect();
    if !unexplained.is_empty() {
        let found = format!("cycle {} with {faults:?}: epochs that no fault explains: {unexplained:?}", report.cycles);
        report.findings.push(found);
    }
    for (reason, count) in &now {
        let before = before.get(reason).copied().unwrap_or(0);
        *report.epochs.entry(reason.clone()).or_default() += count.checked_sub(before).unwrap_or(*count);
    }
}
