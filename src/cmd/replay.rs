//! `unstale replay`: does to Redis what changes would have done.
//!
//! Owns consent, rate and progress. It must not decide what is done; the rules do. Invariants:
//! nothing is written before the user agreed to the whole plan; a change may be replayed any number
//! of times, because a value that may be older than what Redis holds is deleted and never written.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;
use tokio_postgres::Client;

use super::changes::summary::Summary;
use super::changes::{Changes, ChangesArgs, PlanChunk};
use super::config_file::ConfigFile;
use super::failure::{Failure, with_causes};
use super::preflight::history;
use super::stdout::{has_reader, print};
use crate::change::Lsn;
use crate::plan::{Op, Plan, RuleId};
use crate::postgres;
use crate::sink::Sink;

/// The most ops that are sent at once.
const BATCH_OPS_MAX: usize = 4096;

#[derive(Debug, clap::Args)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    changes: ChangesArgs,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// At most this many ops a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

pub(super) async fn run(config: &Path, args: ReplayArgs) -> Result<(), Failure> {
    args.require_consent_possible()?;
    let file = ConfigFile::read(config)?;
    let settings = &file.settings;
    let mut changes = Changes::find(&args.changes, settings).await?;
    // Both servers must answer before the user is asked.
    let client = postgres::connect(&settings.postgres).await?;
    history::require_same_database(settings, &client).await?;
    let rules = changes.rules(&file, Some(&client)).await?;
    let mut sink = file.sink(&rules)?;
    sink.connect().await?;
    changes.keep_input()?;

    let resolver = || [changes.resolver(rules.clone(), settings, true)];
    let mut summary = Summary::default();
    let mut chunks = changes.read(resolver(), settings, BATCH_OPS_MAX).await?;
    while let Some(PlanChunk { plans: [plan], begins, .. }) = chunks.next().await? {
        summary.add(&plan, begins);
    }
    let found = chunks.changes();
    eprint!("{}{}{}", summary.table(&rules, found), summary.warnings(&rules, settings.max_keys), summary.dead(&rules));
    if let Some(note) = chunks.note() {
        eprintln!("{note}");
    }
    drop(chunks);
    let nothing = summary.ops() == 0 && !(changes.are_dead_letters() && found > 0);
    if !nothing && !args.is_agreed()? {
        return Err(Failure::findings("nothing was applied: the plan was not confirmed"));
    }

    let mut applier = Applier::new(client, sink, args.rate, summary.ops());
    if !nothing {
        // Changes that arrived after the summary were not agreed to.
        let resolver = resolver();
        changes.stop_after(found);
        let mut chunks = changes.read(resolver, settings, BATCH_OPS_MAX).await?;
        while let Some(chunk) = chunks.next().await? {
            applier.take(chunk).await?;
        }
        applier.flush().await?;
    }
    applier.progress.finish_and_clear();
    print(&format!("applied {} ops of {found} changes\n", applier.applied))
}

impl ReplayArgs {
    /// Fails if the user has not agreed and cannot be asked.
    fn require_consent_possible(&self) -> Result<(), Failure> {
        let terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        if self.yes || (terminal && !self.changes.reads_input()) {
            return Ok(());
        }
        Err(Failure::usage(
            "replay writes to Redis, and there is no terminal to ask on; see what it would do with `unstale dry-run`, then add --yes",
        ))
    }

    /// Whether the user agrees.
    fn is_agreed(&self) -> Result<bool, Failure> {
        if self.yes {
            return Ok(true);
        }
        eprint!("apply? [y/N] ");
        has_reader(std::io::stderr().flush())?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }
}

/// Applies plans, batch by batch.
struct Applier {
    client: Client,
    sink: Sink,
    batch: Plan,
    batch_max: usize,
    pace: Pace,
    /// The dead letters whose ops are all in the batch or applied.
    dead_letters: Vec<String>,
    /// The ops that were added to a batch. Those of the last one may not be applied yet.
    taken: u64,
    applied: u64,
    progress: ProgressBar,
}

impl Applier {
    fn new(client: Client, sink: Sink, rate: Option<u32>, ops: u64) -> Self {
        let progress = match std::io::stderr().is_terminal() {
            true => ProgressBar::new(ops),
            false => ProgressBar::hidden(),
        };
        let style = ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} ops, {eta} left");
        let progress = progress.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            client,
            sink,
            batch: Plan::default(),
            batch_max: batch_max(rate),
            pace: Pace::new(rate),
            dead_letters: Vec::new(),
            taken: 0,
            applied: 0,
            progress,
        }
    }

    /// Adds a plan to the batch, and applies full batches. The second deletes of `again_after` are
    /// left out: they are for fillers that read before the change was visible, and those have
    /// finished.
    async fn take(&mut self, chunk: PlanChunk<1>) -> Result<(), Failure> {
        let [plan] = chunk.plans;
        // Equal messages of two transactions are not duplicates.
        self.batch.begin_transaction();
        for (rule, op) in plan.ops() {
            add(&mut self.batch, rule, op);
            self.taken += 1;
            if self.batch.len() >= self.batch_max {
                self.flush().await?;
                self.batch.begin_transaction();
            }
        }
        if plan.dead_letters().is_empty() && plan.dead_letters_dropped().is_empty() {
            self.dead_letters.extend(chunk.dead_letter);
        }
        Ok(())
    }

    /// Applies the batch.
    async fn flush(&mut self) -> Result<(), Failure> {
        let batch = std::mem::take(&mut self.batch);
        let applied = self.applied;
        let stopped = |error: &dyn std::error::Error| {
            Failure::unavailable(format!(
                "{}\n{applied} ops were applied; replay again from the beginning, which is harmless",
                with_causes(error)
            ))
        };
        if !batch.is_empty() {
            let fresh = fresh_position(&self.client).await?;
            self.sink.replay(&batch, fresh).await.map_err(|error| stopped(&error))?;
        }
        if !self.dead_letters.is_empty() {
            self.sink.forget_dead(&self.dead_letters).await.map_err(|error| stopped(&error))?;
            self.dead_letters.clear();
        }
        self.applied = self.taken;
        self.progress.set_position(self.applied);
        if let Some(until) = self.pace.after(self.applied) {
            tokio::time::sleep_until(until).await;
        }
        Ok(())
    }
}

/// Adds an op of one plan to another.
fn add(plan: &mut Plan, rule: RuleId, op: Op<'_>) {
    match op {
        Op::Delete(key) => plan.delete(rule, key.clone()),
        Op::Set(value) => plan.set(rule, value.clone()),
        Op::Pattern(glob) => plan.pattern(rule, glob.clone()),
        Op::Tag(set) => plan.tag(rule, set.clone()),
        Op::Tags(glob) => plan.tags(rule, glob.clone()),
        Op::Bump(key, lsn) => plan.bump(rule, key.clone(), lsn),
        Op::Publish(publish) => plan.publish(rule, publish.clone()),
        Op::Stream(entry) => plan.stream(rule, entry.clone()),
    }
}

/// A position that no version key has yet, and that no transaction ends at: within a message that
/// no publication carries, and that moves the log on. `started` rises to it, and a version key that
/// a reader makes from that must not be what a transaction raises one to.
async fn fresh_position(client: &Client) -> Result<Lsn, Failure> {
    const FRESH: &str = "select pg_logical_emit_message(false, 'unstale', 'position')::text";
    let position: String = client.query_one(FRESH, &[]).await?.try_get(0)?;
    position
        .parse()
        .map(Lsn::just_before)
        .map_err(|error| Failure::unavailable(format!("PostgreSQL returned an invalid position {position:?}: {error}")))
}

/// How many ops are sent at once: at most those of a tenth of a second.
fn batch_max(rate: Option<u32>) -> usize {
    let tenth = rate.map_or(usize::MAX, |rate| usize::try_from(rate / 10).unwrap_or(usize::MAX));
    tenth.clamp(1, BATCH_OPS_MAX)
}

/// Limits the ops a second.
struct Pace {
    rate: Option<u32>,
    began: Instant,
}

impl Pace {
    fn new(rate: Option<u32>) -> Self {
        Self { rate, began: Instant::now() }
    }

    /// Until when to wait after this many ops in total.
    fn after(&self, ops: u64) -> Option<Instant> {
        let seconds = Duration::try_from_secs_f64(ops as f64 / f64::from(self.rate?)).ok()?;
        self.began.checked_add(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Glob;
    use crate::plan::{Publish, SetValue, StreamAppend};

    #[test]
    fn a_rate_makes_small_batches_and_pauses() {
        assert_eq!([None, Some(1), Some(25), Some(1000), Some(u32::MAX)].map(batch_max), [4096, 1, 2, 100, 4096]);
        let pace = Pace::new(Some(20));
        assert_eq!(pace.after(50), Some(pace.began + Duration::from_millis(2500)));
        assert_eq!(Pace::new(None).after(u64::MAX), None);
    }

    #[test]
    fn every_op_is_taken_over() {
        let rule = RuleId::of("r");
        let mut glob = Glob::new();
        glob.push_any();
        let mut plan = Plan::default();
        plan.delete(rule, "a".into());
        let value = SetValue { key: "b".into(), body: b"{}".to_vec(), ttl: Duration::from_secs(1), lsn: Lsn::new(7) };
        plan.set(rule, value);
        plan.pattern(rule, glob.clone());
        plan.tag(rule, "c".into());
        plan.tags(rule, glob);
        plan.bump(rule, "d".into(), Lsn::new(7));
        plan.publish(rule, Publish { channel: "e".into(), data: b"1".to_vec() });
        plan.stream(rule, StreamAppend { stream: "f".into(), data: b"1".to_vec(), maxlen: 3 });
        let mut copy = Plan::default();
        plan.ops().for_each(|(rule, op)| add(&mut copy, rule, op));
        assert_eq!(copy.ops().collect::<Vec<_>>(), plan.ops().collect::<Vec<_>>());
        assert_eq!(copy.len(), 8);
    }
}
