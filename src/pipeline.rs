//! The owner loop: joins source, rules, gate, ledger and sink, which do not know one another.
//!
//! Owns what happens from one connection to the next: when to try again, when to stop, when a slot has to be
//! made anew. Within one connection, [`session`] owns the loop. Invariant: a batch in flight is never
//! overtaken by what the next connection sends.

mod aside;
mod batcher;
mod errand;
mod part;
mod repeats;
mod resume;
mod session;
mod streams;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, Notices};
use crate::change::Lsn;
use crate::coherence::history::{Origin, Present};
use crate::coherence::primary::{INSTANCE, Primary, PrimaryError, SlotFacts};
use crate::config::Settings;
use crate::postgres::{ConnectError, PREREQUISITE_STATE, ServerError, UNDEFINED_OBJECT, setup};
use crate::rules::{PlanError, Planner, RuleSet};
use crate::sink::Sink;
use crate::source::replication::assemble::AssembleError;
use crate::source::replication::connection::{Connection, ConnectionError};
use crate::source::replication::pgoutput;
use crate::source::replication::stream::Stream;
use session::{SILENCE_MAX, Session};

/// A connection that held for so long was a good one: the next failure is a new one.
const HELD_LONG: Duration = Duration::from_secs(1);

/// Why the daemon stopped though nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file says to stop at such a change.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// PostgreSQL refused the first connection, and would refuse the next.
    #[error(transparent)]
    Refused(ConnectError),
    /// The slot or the publication cannot be used; waiting would not help.
    #[error("the replication slot `{slot}` cannot be used: {error}")]
    Slot {
        /// Its name.
        slot: String,
        /// What the server said.
        error: ServerError,
    },
    /// The publication is gone.
    #[error("there is no publication `{0}` any more: run `unstale setup`")]
    Unpublished(String),
    /// The server is not one that decides visibility.
    #[error(transparent)]
    NotPrimary(PrimaryError),
}

/// Runs until `stop` says so, or until something happens that waiting does not mend. What was received
/// whole is then put into force first, within `drain_max`.
pub async fn run(
    settings: &Settings,
    rules: Arc<RuleSet>,
    sink: Sink,
    stop: &CancellationToken,
    drain_max: Duration,
) -> Result<(), RunError> {
    let mut idle_sink = Some(Box::new(sink));
    let with_messages = rules.has_events();
    let mut planner = Planner::new(rules);
    let mut backoff = Backoff::default();
    let mut notices = Notices::default();
    let mut slot = SlotCondition::default();
    loop {
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            opened = open(settings, with_messages, &mut slot) => opened,
        };
        let trouble = match opened {
            Ok(source) => {
                slot.streamed = true;
                let began = Instant::now();
                let mut session = Session::new(settings, source, planner, idle_sink.take());
                let ended = session.run(stop, drain_max).await;
                if began.elapsed() > HELD_LONG {
                    backoff.reset();
                    notices.reset();
                }
                match &ended {
                    Err(SessionError::Broken(trouble)) => {
                        // Before the wait for what is in flight: that may be what the trouble is.
                        say(settings, trouble, &mut notices);
                        if trouble.is_gap_in_publication() {
                            slot.gap_at = Some(session.confirmed());
                        }
                    }
                    Ok(()) | Err(SessionError::Fatal(_)) => {}
                }
                (planner, idle_sink) = session.into_parts(stop).await;
                match ended {
                    Ok(()) => return Ok(()),
                    Err(SessionError::Fatal(error)) => return Err(error),
                    Err(SessionError::Broken(_)) => None,
                }
            }
            // In the middle of a failover either may hold for a while.
            Err(SessionError::Fatal(RunError::NotPrimary(error))) if slot.streamed => Some(Trouble::Primary(error)),
            Err(SessionError::Fatal(error)) => return Err(error),
            Err(SessionError::Broken(Trouble::Connect(error))) if !slot.streamed && !error.is_transient() => {
                return Err(RunError::Refused(error));
            }
            Err(SessionError::Broken(trouble)) => Some(trouble),
        };
        if let Some(trouble) = trouble {
            say(settings, &trouble, &mut notices);
        }
        if idle_sink.is_none() {
            // Told to stop while Redis did not answer.
            return Ok(());
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

/// Says why there is no replication, unless that was said a moment ago.
fn say(settings: &Settings, trouble: &Trouble, notices: &mut Notices) {
    if notices.due() {
        tracing::warn!(postgres = %settings.postgres, "no replication: {trouble}; trying again");
    }
}

/// What is known of the slot from earlier connections.
#[derive(Debug, Default)]
struct SlotCondition {
    /// It was read before, so it was there.
    streamed: bool,
    /// Where it stood when it met log from before the publication existed: it cannot get past that.
    gap_at: Option<Lsn>,
}

/// A source that is being read, and what is known at that moment.
struct Source {
    stream: Stream,
    primary: Arc<Primary>,
    present: Present,
}

/// Why one connection to the source ended.
#[derive(Debug)]
enum SessionError {
    /// Another connection may go on.
    Broken(Trouble),
    /// It would not.
    Fatal(RunError),
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Decode(#[from] pgoutput::DecodeError),
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    #[error(transparent)]
    Primary(#[from] PrimaryError),
    #[error("the catalog did not answer: {0}")]
    Catalog(String),
    #[error("PostgreSQL has been silent for {} seconds", SILENCE_MAX.as_secs())]
    Silent,
    #[error("PostgreSQL does not answer")]
    Unanswered,
    #[error("the slot has log from before its publication existed")]
    Skipped,
    #[error("the slot could not be made anew: {0}")]
    Recreate(tokio_postgres::Error),
    #[error("nothing could be put into force in Redis for {} seconds, and PostgreSQL must be able to shut down", .0.as_secs())]
    RedisAway(Duration),
    #[error("Redis is not the one it was, lost writes, or another daemon is at work")]
    Unproven,
}

impl Trouble {
    /// Whether the slot stands where its publication did not exist. PostgreSQL reports that as an error for
    /// ever, from version 18 on as a warning with which changes are left out.
    fn is_gap_in_publication(&self) -> bool {
        match self {
            Self::Skipped => true,
            Self::Connection(ConnectionError::Server(error)) => error.sqlstate == UNDEFINED_OBJECT,
            _ => false,
        }
    }
}

impl<E: Into<Trouble>> From<E> for SessionError {
    fn from(error: E) -> Self {
        match error.into() {
            Trouble::Primary(PrimaryError::Connect(error)) => Self::Broken(Trouble::Connect(error)),
            Trouble::Primary(error @ (PrimaryError::OtherServer | PrimaryError::Standby)) => {
                Self::Fatal(RunError::NotPrimary(error))
            }
            trouble => Self::Broken(trouble),
        }
    }
}

impl From<PlanError> for SessionError {
    fn from(error: PlanError) -> Self {
        Self::Fatal(error.into())
    }
}

/// How long a server may take to answer the few questions before it streams.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// How long a new slot may take: it waits for all transactions that are under way.
const RECREATE_MAX: Duration = Duration::from_secs(600);

/// Begins to read the slot, then looks at it: from then on nobody else can move it.
async fn open(settings: &Settings, with_messages: bool, condition: &mut SlotCondition) -> Result<Source, SessionError> {
    let silent = |_| SessionError::from(Trouble::Unanswered);
    let (mut connection, instance) = tokio::time::timeout(OPEN_MAX, async {
        let mut connection = Connection::open(&settings.postgres).await?;
        let instance = one_text(connection.query(INSTANCE).await?);
        Ok::<_, SessionError>((connection, instance))
    })
    .await
    .map_err(silent)??;
    let primary = Arc::new(Primary::connect(&settings.postgres, &instance).await?);
    if let Some(gap_at) = condition.gap_at.take() {
        let facts = primary.facts(&settings.slot, &settings.publication).await?;
        // Further on, somebody else made it anew meanwhile.
        if facts.confirmed.is_some_and(|confirmed| confirmed <= gap_at) {
            condition.gap_at = Some(gap_at);
            recreate(settings, &primary).await?;
            condition.gap_at = None;
        }
    }
    let started = async {
        let identity = connection.query("IDENTIFY_SYSTEM").await?;
        Ok::<_, ConnectionError>((
            identity,
            Stream::start(connection, &settings.slot, &settings.publication, with_messages).await,
        ))
    };
    let (identity, started) = tokio::time::timeout(OPEN_MAX, started).await.map_err(silent)??;
    let stream = match started {
        Ok(stream) => stream,
        Err(ConnectionError::Server(error)) if [PREREQUISITE_STATE, UNDEFINED_OBJECT].contains(&&*error.sqlstate) => {
            let facts = primary.facts(&settings.slot, &settings.publication).await?;
            let gone = facts.confirmed.is_none() && condition.streamed;
            if !(facts.published && (facts.lost || gone)) {
                return Err(SessionError::Fatal(RunError::Slot { slot: settings.slot.clone(), error }));
            }
            recreate(settings, &primary).await?;
            return Err(Trouble::Connection(ConnectionError::Server(error)).into());
        }
        Err(error) => return Err(error.into()),
    };
    let facts = primary.facts(&settings.slot, &settings.publication).await?;
    if !facts.published {
        return Err(SessionError::Fatal(RunError::Unpublished(settings.publication.clone())));
    }
    let SlotFacts { confirmed, recovered, end, .. } = facts;
    let mut columns = identity.into_iter().flatten().map(Option::unwrap_or_default);
    let (system, timeline) = (columns.next().unwrap_or_default(), columns.next().unwrap_or_default());
    let present = Present {
        origin: Origin { system, timeline, recovered },
        slot: confirmed.unwrap_or(end),
        end,
        recorded: Lsn::ZERO,
    };
    Ok(Source { stream, primary, present })
}

fn one_text(rows: Vec<Vec<Option<String>>>) -> String {
    rows.into_iter().flatten().flatten().next().unwrap_or_default()
}

/// Makes the slot anew. What it had not sent is lost, which the history will show: a new epoch follows.
async fn recreate(settings: &Settings, primary: &Primary) -> Result<(), SessionError> {
    let facts = primary.facts(&settings.slot, &settings.publication).await?;
    if !facts.published {
        return Err(SessionError::Fatal(RunError::Unpublished(settings.publication.clone())));
    }
    let recreated = tokio::time::timeout(RECREATE_MAX, setup::recreate_slot(primary.client(), &settings.slot)).await;
    recreated.map_err(|_| Trouble::Unanswered)?.map_err(Trouble::Recreate)?;
    tracing::warn!(slot = settings.slot, "the slot was of no use any more and was made anew: changes were missed");
    Ok(())
}
