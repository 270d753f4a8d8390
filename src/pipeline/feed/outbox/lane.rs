//! A connection that claims, and what is open in its transaction.
//!
//! Owns what it is doing. It must not decide when to claim or to commit. Invariant: one thing at a time.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Step;
use crate::coherence::horizon::Floor;
use crate::coherence::primary::Primary;
use crate::coherence::progress::Ticket;
use crate::config::Settings;
use crate::mutant::{self, Mutant};
use crate::pipeline::error::SessionError;
use crate::source::outbox::Consumer;
use crate::source::outbox::claim::{Claim, Claimant};
use crate::source::outbox::entry::OutboxError;

/// How often a connection that waits says that it does; far below the limit that [`Claimant`] sets.
const STAY_EVERY: Duration = Duration::from_secs(10);

/// A connection that claims.
pub(super) struct Lane {
    state: State,
    /// The transactions of the application that were taken in it, if any.
    pub(super) tickets: Option<RangeInclusive<Ticket>>,
    /// How many entries those are.
    pub(super) entries: usize,
    /// The highest number that was known to be given when its transaction began.
    pub(super) given: i64,
    /// When something was last said over it.
    spoke: Instant,
}

/// What Redis has counted, and which dataset of it: everything that is known to be in force is in there.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    pub(super) consumer: Arc<Consumer>,
    pub(super) dataset: String,
    pub(super) batches: u64,
}

/// What a lane is doing.
enum State {
    /// It has no transaction.
    Free(Claimant),
    /// It has one, and waits.
    Open(Claimant),
    Busy {
        task: Task,
        has_begun: bool,
        run: Step<(Claimant, Result<Option<Claim>, OutboxError>)>,
    },
    /// On its way from one of these to another.
    Changing,
}

/// What a lane is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Claim,
    Commit,
    /// Ends a transaction in which nothing was taken.
    Leave,
    /// Says that whoever has the connection is alive.
    Stay,
}

impl Lane {
    /// Connects to the server that `primary` is connected to.
    pub(super) async fn open(settings: &Settings, primary: &Primary) -> Result<Self, SessionError> {
        let client = primary.another(&settings.postgres).await?.into_client();
        let claimant = Claimant::new(client).await?;
        Ok(Self { state: State::Free(claimant), tickets: None, entries: 0, given: 0, spoke: Instant::now() })
    }

    pub(super) fn is_free(&self) -> bool {
        matches!(self.state, State::Free(_))
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// What it is busy with, and for how long.
    pub(super) fn task(&self) -> Option<(Task, Duration)> {
        match self.state {
            State::Busy { task, .. } => Some((task, self.spoke.elapsed())),
            State::Free(_) | State::Open(_) | State::Changing => None,
        }
    }

    /// Whether it has waited for so long that it should say so.
    pub(super) fn is_silent(&self) -> bool {
        self.spoke.elapsed() >= STAY_EVERY
    }

    /// Begins something, if the lane is not busy.
    pub(super) fn begin(&mut self, task: Task, floor: &Floor, counted: &Counted) {
        let (claimant, has_begun) = match std::mem::replace(&mut self.state, State::Changing) {
            State::Free(claimant) => (claimant, false),
            State::Open(claimant) => (claimant, true),
            other => return self.state = other,
        };
        if !has_begun {
            self.given = floor.given();
        }
        self.spoke = Instant::now();
        let run = run(claimant, task, has_begun, floor.at(), counted.clone());
        self.state = State::Busy { task, has_begun, run: Box::pin(run) };
    }

    /// Waits until what it is busy with is done, and forever if it is not; then what that was, and what was claimed.
    /// Cancel-safe.
    pub(super) async fn done(&mut self) -> Result<(Task, Option<Claim>), OutboxError> {
        let State::Busy { task, has_begun, run } = &mut self.state else { return std::future::pending().await };
        let (task, has_begun, (claimant, done)) = (*task, *has_begun, run.await);
        self.spoke = Instant::now();
        self.state = match task {
            Task::Stay if !has_begun => State::Free(claimant),
            Task::Claim | Task::Stay => State::Open(claimant),
            Task::Commit | Task::Leave => State::Free(claimant),
        };
        Ok((task, done?))
    }
}

async fn run(
    mut claimant: Claimant,
    task: Task,
    has_begun: bool,
    floor: i64,
    Counted { consumer, dataset, batches }: Counted,
) -> (Claimant, Result<Option<Claim>, OutboxError>) {
    let done = async {
        match task {
            Task::Claim => {
                // Answered before anything is taken: outside of a transaction what is taken would be gone.
                if !has_begun {
                    claimant.begin().await?;
                }
                let claim = claimant.claim(floor).await?;
                if mutant::is(Mutant::CommitBeforeRedis) {
                    claimant.commit(&consumer, &dataset, batches).await?;
                    claimant.begin().await?;
                }
                return Ok(Some(claim));
            }
            Task::Commit => claimant.commit(&consumer, &dataset, batches).await?,
            Task::Leave => claimant.leave().await?,
            Task::Stay => claimant.stay().await?,
        }
        Ok(None)
    };
    let done = done.await;
    (claimant, done)
}
