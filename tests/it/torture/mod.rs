//! The promise under torture: writers, fillers, readers by HTTP and a daemon that is killed again
//! and again, while faults strike everything around them. After each cycle every cached value is
//! compared with the database.
//!
//! Owns the options, the report and the length of a run. `make test` runs each mode for a short
//! time, and `make torture ARGS="--for 1h --seed 7 --mode outbox"` runs one mode for as long as it
//! is told. A debug build can be a mutant: `UNSTALE_MUTANT=no-gate cargo test --test it
//! torture::nothing_stale_survives -- --exact --nocapture`. A run finds a mutant by chance; the
//! scripts of `mutants` find each for certain. Invariant: what counts as stale is decided by the
//! database and by the watermark alone, never by what the daemon says of itself.

#![allow(clippy::print_stdout)]

mod api;
mod cluster;
mod cycle;
mod ddl;
mod fault;
mod filler;
mod mode;
mod oracle;
mod query;
mod state;
mod targets;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use unstale::mutant::Mutant;

use cluster::Cluster;
use fault::Fault;
use mode::Mode;

/// How long a run takes by default: in `make test`, and in `make torture`.
const SHORT: Duration = Duration::from_secs(12);
const LONG: Duration = Duration::from_secs(180);

/// How much longer a run may take until enough was compared. A loaded machine needs it.
const EXTENSION_MAX: Duration = Duration::from_secs(300);

/// The beginning of a finding that is not a stale value: the watermark does not move.
const STUCK: &str = "stuck:";

/// The options of a run.
#[derive(Clone, Debug)]
struct Options {
    time: Duration,
    seed: u64,
    mode: Mode,
    mutant: Option<Mutant>,
}

impl Options {
    /// The words in `UNSTALE_TORTURE`, as in `--for 1h --seed 7 --mode outbox`.
    fn from_environment() -> Self {
        let name = std::env::var("UNSTALE_MUTANT").unwrap_or_default();
        let mutant = Mutant::ALL.into_iter().find(|mutant| mutant.name() == name);
        let told = std::env::var("UNSTALE_TORTURE").ok();
        let time = if told.is_some() { LONG } else { SHORT };
        let mut options = Self { time, seed: rand::random(), mode: Mode::Slot, mutant };
        let mut words = told.as_deref().unwrap_or_default().split_whitespace();
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

/// What happened in a run, in numbers, and what was wrong.
#[derive(Debug, Default)]
struct Report {
    cycles: u64,
    fills: u64,
    refused: u64,
    commits: u64,
    compared: u64,
    sampled: u64,
    by_http: api::HttpCounts,
    faults: BTreeMap<&'static str, u64>,
    epochs: BTreeMap<String, u64>,
    findings: Vec<String>,
    /// The faults of the previous cycle.
    before: Vec<Fault>,
}

impl Report {
    fn print(&self, options: &Options) {
        let mutant = options.mutant.map_or("none", Mutant::name);
        println!(
            "mode {}, seed {}, mutant {mutant}: {} cycles with a kill -9 each, {} commits, {} fills accepted, \
             {} refused, {} values compared at rest, {} meanwhile, {} findings",
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
            println!("found: {finding}");
        }
        println!("faults {:?}\nepochs {:?}", self.faults, self.epochs);
    }
}

impl Report {
    /// Whether enough was compared for a run without findings to mean something.
    fn is_enough(&self) -> bool {
        let http = &self.by_http;
        let values = self.fills > 100 && self.compared > 100 && self.sampled > 100;
        values && http.judged > 100 && http.own_writes > 20 && http.hits_at_rest > 100
    }
}

/// Runs cycles until the time is over and enough was compared, or until something was found.
async fn torture(options: &Options) -> Report {
    let mut random = StdRng::seed_from_u64(options.seed);
    let mut report = Report::default();
    let mut cluster = Cluster::start(options.mode, options.mutant).await;
    let state = Arc::clone(&cluster.targets.state);
    let writers = writer::start(&state, &mut random);
    let fillers = filler::start(&state, &mut random);
    let readers = api::start(&state, &mut random);
    let sampler = oracle::start_sampler(&state);
    let end = Instant::now() + options.time;
    while report.findings.is_empty() && goes_on(&report, end) {
        cycle::run(&mut cluster, options, &mut random, &mut report).await;
        state.count_into(&mut report);
    }
    state.finish();
    for task in writers.into_iter().chain(fillers).chain(readers).chain([sampler]) {
        task.await.unwrap();
    }
    report.findings.extend(state.take_findings());
    state.count_into(&mut report);
    report
}

fn goes_on(report: &Report, end: Instant) -> bool {
    let now = Instant::now();
    now < end || !report.is_enough() && now < end + EXTENSION_MAX
}

/// Runs, and fails if anything was found or too little was compared.
fn survive(options: &Options) {
    println!("torture for {:?} in mode {} with seed {}", options.time, options.mode.name(), options.seed);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let report = runtime.block_on(torture(options));
    report.print(options);
    assert!(report.findings.is_empty(), "seed {}: {:#?}", options.seed, report.findings);
    assert!(report.is_enough(), "{report:?}");
}

#[test]
fn nothing_stale_survives() {
    survive(&Options::from_environment());
}

#[test]
fn nothing_stale_survives_in_outbox_mode() {
    for mode in Mode::OUTBOX {
        survive(&Options { mode, ..Options::from_environment() });
    }
}
