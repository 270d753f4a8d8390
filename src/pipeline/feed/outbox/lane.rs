//! A connection that claims, and what is open in its transaction.
//!
//! Owns what the connection is doing. It must not decide when to claim or to commit. Invariant: one
//! task at a time.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use crate::coherence::horizon::Floor;
use crate::coherence::primary::Primary;
use crate::coherence::progress::Ticket;
use crate::mutant::{self, Mutant};
use crate::pipeline::error::SessionError;
use crate::source::events::WantedEvents;
use crate::source::outbox::Consumer;
use crate::source::outbox::claim::{Claim, Claimant, Hold};
use crate::source::outbox::entry::OutboxError;

/// How often a waiting connection sends an empty statement: far below the time-out that
/// [`Claimant`] sets.
const STAY_EVERY: Duration = Duration::from_secs(10);

/// A connection that claims.
pub(super) struct Lane {
    state: LaneState,
    /// The application's transactions that were claimed in the open transaction, if any.
    pub(super) tickets: Option<RangeInclusive<Ticket>>,
    /// The lowest number of their entries.
    pub(super) first: Option<i64>,
    /// The highest entry that their lookups may have seen.
    pub(super) looked_to: Option<i64>,
    /// How many entries these have.
    pub(super) entries: usize,
    /// The highest entry number known to be given when the open transaction began.
    pub(super) given: i64,
    /// When a statement was last sent.
    spoke: Instant,
}

/// How many batches which dataset in Redis has counted. Everything known to be in force is among
/// them.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    pub(super) consumer: Arc<Consumer>,
    pub(super) dataset: String,
    pub(super) batches: u64,
}

/// What a lane is doing.
enum LaneState {
    /// No transaction is open.
    Free(Claimant),
    /// A transaction is open, and waits.
    Open(Claimant),
    Busy {
        task: Task,
        has_begun: bool,
        run: BoxFuture<'static, (Claimant, Result<Option<Claim>, OutboxError>)>,
    },
    /// Between two of these.
    Changing,
}

/// A task of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Claim,
    Commit,
    /// Ends a transaction in which nothing was claimed.
    Leave,
    /// Keeps the server from ending the connection.
    Stay,
}

impl Lane {
    /// Connects to the server that `primary` is connected to.
    pub(super) async fn open(primary: &Primary, wanted: &WantedEvents, as_stored: bool) -> Result<Self, SessionError> {
        let client = primary.another().await?.into_client();
        let claimant = Claimant::new(client, wanted.clone(), as_stored).await?;
        Ok(Self {
            state: LaneState::Free(claimant),
            tickets: None,
            first: None,
            looked_to: None,
            entries: 0,
            given: 0,
            spoke: Instant::now(),
        })
    }

    pub(super) fn is_free(&self) -> bool {
        matches!(self.state, LaneState::Free(_))
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, LaneState::Open(_))
    }

    /// The task under way, and for how long.
    pub(super) fn task(&self) -> Option<(Task, Duration)> {
        match self.state {
            LaneState::Busy { task, .. } => Some((task, self.spoke.elapsed())),
            LaneState::Free(_) | LaneState::Open(_) | LaneState::Changing => None,
        }
    }

    /// Whether [`Task::Stay`] is due.
    pub(super) fn is_silent(&self) -> bool {
        self.spoke.elapsed() >= STAY_EVERY
    }

    /// Begins a task, unless one is under way.
    pub(super) fn begin(&mut self, task: Task, floor: &Floor, counted: &Counted) {
        let (claimant, has_begun) = match std::mem::replace(&mut self.state, LaneState::Changing) {
            LaneState::Free(claimant) => (claimant, false),
            LaneState::Open(claimant) => (claimant, true),
            other => return self.state = other,
        };
        if !has_begun {
            self.given = floor.given();
        }
        self.spoke = Instant::now();
        let hold = self.first.zip(self.looked_to).map(|(id, until)| Hold { id, until });
        let run = run(claimant, task, has_begun, floor.at(), hold, counted.clone());
        self.state = LaneState::Busy { task, has_begun, run: Box::pin(run) };
    }

    /// Waits until the task is done, and for ever if there is none. Returns the task and what was
    /// claimed. Cancel-safe.
    pub(super) async fn done(&mut self) -> Result<(Task, Option<Claim>), OutboxError> {
        let LaneState::Busy { task, has_begun, run } = &mut self.state else { return std::future::pending().await };
        let (task, has_begun, (claimant, done)) = (*task, *has_begun, run.await);
        self.spoke = Instant::now();
        self.state = match task {
            Task::Stay if !has_begun => LaneState::Free(claimant),
            Task::Claim | Task::Stay => LaneState::Open(claimant),
            Task::Commit | Task::Leave => LaneState::Free(claimant),
        };
        Ok((task, done?))
    }
}

async fn run(
    mut claimant: Claimant,
    task: Task,
    has_begun: bool,
    floor: i64,
    hold: Option<Hold>,
    Counted { consumer, dataset, batches }: Counted,
) -> (Claimant, Result<Option<Claim>, OutboxError>) {
    let done = async {
        match task {
            Task::Claim => {
                // Before the claim: outside of a transaction, what is claimed would be lost.
                if !has_begun {
                    claimant.begin().await?;
                }
                let claim = claimant.claim(floor).await?;
                if mutant::is(Mutant::CommitBeforeRedis) {
                    claimant.commit(&consumer, &dataset, batches, None).await?;
                    claimant.begin().await?;
                }
                return Ok(Some(claim));
            }
            Task::Commit => claimant.commit(&consumer, &dataset, batches, hold).await?,
            Task::Leave => claimant.leave().await?,
            Task::Stay => claimant.stay().await?,
        }
        Ok(None)
    };
    let done = done.await;
    (claimant, done)
}
