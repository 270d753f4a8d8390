//! The promise under torture: writers, fillers, readers by HTTP and a daemon that is killed over and over, while
//! everything around them fails on schedule; after each cycle every cached value is compared with the database.
//!
//! Owns the cycle and the verdict. `make test` runs it for a while in every mode, and
//! `make torture ARGS="--for 1h --seed 7 --mode outbox"` in one, as long as told. A debug build can be a mutant:
//! `UNSTALE_MUTANT=no-gate cargo test --test it torture::nothing_stale_survives`; the scripts that find every mutant
//! for certain are in `mutants`. Invariants: what counts as stale
//! is decided by the database and by the watermark alone, never by what the daemon says of itself; an epoch that
//! no fault explains is a finding too, because a flush hides what was lost.

#![allow(clippy::print_stdout)]

mod api;
mod fault;
mod filler;
mod mode;
mod oracle;
mod stage;
mod writer;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use unstale::mutant::Mutant;

use fault::Fault;
use mode::Mode;
use stage::Stage;

/// How long the writers and the faults of one cycle run.
const CYCLE: Duration = Duration::from_millis(600);

/// After every so many cycles the API is waited for to make hits again.
const RECOVERIES: u64 = 8;

/// How a finding is printed.
const FINDING: &str = "found: ";

/// How one begins that is no stale value: the watermark does not move.
const STUCK: &str = "stuck:";

/// The tests here use all of the machine, one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// What to do, and for how long.
#[derive(Clone, Debug)]
struct Options {
    time: Duration,
    seed: u64,
    mode: Mode,
    mutant: Option<Mutant>,
}

impl Options {
    /// From the words in `UNSTALE_TORTURE`, as in `--for 1h --seed 7 --mode outbox`.
    fn from_environment(time: Duration) -> Self {
        let name = std::env::var("UNSTALE_MUTANT").unwrap_or_default();
        let mutant = Mutant::ALL.into_iter().find(|mutant| mutant.name() == name);
        let mut options = Self { time, seed: rand::random(), mode: Mode::Slot, mutant };
        let text = std::env::var("UNSTALE_TORTURE").unwrap_or_default();
        let mut words = text.split_whitespace();
        while let Some(word) = words.next() {
            let value = words.next().unwrap_or_else(|| panic!("{word} needs a value"));
            match word {
                "--for" => options.time = humantime::parse_duration(value).unwrap(),
                "--seed" => options.seed = value.parse().unwrap(),
                "--mode" => {
                    let mode = Mode::ALL.into_iter().find(|mode| mode.name() == value);
                    options.mode = mode.unwrap_or_else(|| panic!("there is no mode {value}"));
                }
                other => panic!("expected --for DURATION, --seed NUMBER or --mode NAME, not {other}"),
            }
        }
        options
    }
}

/// What happened, in numbers, and what was wrong.
#[derive(Debug, Default)]
struct Report {
    cycles: u64,
    fills: u64,
    refused: u64,
    commits: u64,
    compared: u64,
    sampled: u64,
    by_http: api::Tally,
    faults: BTreeMap<&'static str, u64>,
    epochs: BTreeMap<String, u64>,
    findings: Vec<String>,
    /// What struck in the cycle before.
    before: Vec<Fault>,
}

impl Report {
    fn print(&self, options: &Options) {
        let mutant = options.mutant.map_or("none", Mutant::name);
        println!(
            "mode {}, seed {}, mutant {mutant}: {} cycles with a kill -9 each, {} commits, {} fills accepted, {} refused, {} values compared, {} sampled in flight, {} findings",
            options.mode.name(),
            options.seed,
            self.cycles,
            self.commits,
            self.fills,
            self.refused,
            self.compared,
            self.sampled,
            self.findings.len()
        );
        println!("{}", self.by_http);
        for finding in &self.findings {
            println!("{FINDING}{finding}");
        }
        println!("faults {:?}\nepochs {:?}", self.faults, self.epochs);
    }
}

/// Runs cycles until the time is over or something was found.
async fn torture(options: &Options) -> Report {
    let mut random = StdRng::seed_from_u64(options.seed);
    let mut report = Report::default();
    let mut stage = Stage::set(options.mode, options.mutant).await;
    let setting = Arc::clone(&stage.ground.setting);
    let writers = writer::start(&setting, &mut random);
    let fillers = filler::start(&setting, &mut random);
    let readers = api::start(&setting, &mut random);
    let sampler = oracle::start_sampler(&setting);
    let end = Instant::now() + options.time;
    while Instant::now() < end && report.findings.is_empty() {
        cycle(&mut stage, options, &mut random, &mut report).await;
    }
    setting.finish();
    for task in writers.into_iter().chain(fillers).chain(readers).chain([sampler]) {
        task.await.unwrap();
    }
    report.findings.extend(setting.take_findings());
    setting.count_into(&mut report);
    report
}

/// What happens to the daemon or to a server, one at a time.
enum Move {
    Kill,
    Start,
    KillSecond,
    KillApi(usize),
    StartApi(usize),
    /// Sends one of its servers a signal.
    SignalApi(usize, &'static str),
    Strike(Fault),
}

/// What happens to one of the API's servers: now and then it is killed and started again, or stands still.
fn against_the_api(random: &mut StdRng) -> Vec<(Duration, Move)> {
    let server = random.random_range(0..api::SERVERS);
    let at = CYCLE.mul_f64(random.random_range(0.05..0.8));
    let then = at + Duration::from_millis(random.random_range(10..250));
    match random.random_range(0..8) {
        0 | 1 => vec![(at, Move::KillApi(server)), (then, Move::StartApi(server))],
        2 | 3 => vec![(at, Move::SignalApi(server, "STOP")), (then, Move::SignalApi(server, "CONT"))],
        _ => Vec::new(),
    }
}

async fn cycle(stage: &mut Stage, options: &Options, random: &mut StdRng, report: &mut Report) {
    let ground = Arc::clone(&stage.ground);
    let setting = &ground.setting;
    let least = usize::from(options.mutant.is_some());
    let faults: Vec<Fault> =
        (0..random.random_range(least..4)).map(|_| Fault::draw(options.mode, options.mutant, random)).collect();
    let may_lose = faults.iter().any(|fault| fault.is_grave());
    let epochs = setting.epochs().await;
    setting.begin_cycle(!may_lose);
    let kill_at = CYCLE.mul_f64(random.random_range(0.05..0.95));
    let start_at = kill_at + Duration::from_millis(random.random_range(0..30));
    let mut moves = vec![(kill_at, Move::Kill), (start_at, Move::Start)];
    if options.mode.is_outbox() {
        stage.start_second();
        if random.random() {
            moves.push((CYCLE.mul_f64(random.random_range(0.05..0.95)), Move::KillSecond));
        }
    }
    moves.extend(against_the_api(random));
    let mut beside = Vec::new();
    let began = tokio::time::Instant::now();
    for &fault in &faults {
        let at = CYCLE.mul_f64(random.random_range(0.0..0.8));
        if fault.is_grave() {
            moves.push((at, Move::Strike(fault)));
            continue;
        }
        let (ground, mut random) = (Arc::clone(&ground), StdRng::from_rng(random));
        beside.push(tokio::spawn(async move {
            tokio::time::sleep_until(began + at).await;
            (fault, fault.strike(&ground, &mut random).await)
        }));
    }
    moves.sort_by_key(|(at, _)| *at);
    let mut struck = Vec::new();
    for (at, next) in moves {
        tokio::time::sleep_until(began + at).await;
        match next {
            Move::Kill => stage.kill_daemon(),
            Move::Start => stage.start_daemon(),
            Move::KillSecond => stage.kill_second(),
            Move::KillApi(server) => setting.api.kill(server),
            Move::StartApi(server) => stage.start_api(server),
            Move::SignalApi(server, name) => setting.api.servers.signal(server, name),
            Move::Strike(fault) => struck.push((fault, fault.strike_gravely(stage, random).await)),
        }
    }
    for task in beside {
        struck.push(task.await.unwrap());
    }
    for (fault, _) in struck.iter().filter(|(_, struck)| *struck) {
        *report.faults.entry(fault.name()).or_default() += 1;
    }
    tokio::time::sleep_until(began + CYCLE).await;

    stage.calm().await;
    setting.pause_writers().await;
    if let Err(stuck) = stage.fence().await {
        report.findings.push(format!("{STUCK} cycle {} with {faults:?}: {stuck}", report.cycles));
        return;
    }
    setting.pause_fillers().await;
    report.cycles += 1;
    report.findings.extend(setting.take_findings());
    let (compared, stale) = oracle::compare(stage).await;
    report.compared += compared;
    let context = format!("after cycle {} with {faults:?}", report.cycles);
    report.findings.extend(stale.into_iter().map(|stale| format!("{context}: {stale}")));
    // What they find missing they fill: only now, when what the cycle left was looked at.
    for found in api::compare(stage, report.cycles.is_multiple_of(RECOVERIES)).await {
        let stuck = found.starts_with(STUCK);
        report.findings.push(if stuck { format!("{found}; {context}") } else { format!("{context}: {found}") });
    }
    let now = setting.epochs().await;
    // What one daemon noticed, another that is at work too may notice a cycle later.
    let before =
        if options.mode.is_outbox() { std::mem::replace(&mut report.before, faults.clone()) } else { Vec::new() };
    let may_explain: Vec<_> = faults.iter().chain(&before).collect();
    let unexplained: Vec<_> = now
        .iter()
        .filter(|(reason, count)| {
            epochs.get(*reason).unwrap_or(&0) < *count
                && !may_explain.iter().any(|fault| fault.explains(reason, options.mode, &report.faults))
        })
        .collect();
    if !unexplained.is_empty() {
        report
            .findings
            .push(format!("cycle {} with {faults:?}: epochs that nothing explains: {unexplained:?}", report.cycles));
    }
    for (reason, count) in &now {
        let before = epochs.get(reason).copied().unwrap_or(0);
        *report.epochs.entry(reason.clone()).or_default() += count.checked_sub(before).unwrap_or(*count);
    }
    setting.resume();
}

fn run(options: &Options) -> Report {
    println!("torture for {:?} in mode {} with seed {}", options.time, options.mode.name(), options.seed);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let report = runtime.block_on(torture(options));
    report.print(options);
    report
}

/// Runs, and fails if anything was found or too little was looked at.
fn survive(options: &Options) {
    let report = run(options);
    assert!(report.findings.is_empty(), "seed {}: {:#?}", options.seed, report.findings);
    assert!(report.fills > 100 && report.compared > 100 && report.sampled > 100, "{report:?}");
    let by_http = &report.by_http;
    assert!(by_http.judged > 100 && by_http.own_writes > 20 && by_http.hits_at_rest > 100, "{report:?}");
}

#[test]
fn nothing_stale_survives() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    survive(&Options::from_environment(Duration::from_secs(180)));
}

#[test]
fn nothing_stale_survives_in_outbox_mode() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for mode in Mode::OUTBOX {
        survive(&Options { mode, ..Options::from_environment(Duration::from_secs(60)) });
    }
}
