//! Opening the replication slot.
//!
//! Owns the order of the questions before the log streams, and creating the slot again when it
//! cannot be used any more. Invariant: the slot's position is asked once the slot is read; from
//! then on no other process can move it.

use std::sync::Arc;
use std::time::Duration;

use super::earlier::EarlierSessions;
use super::opened::OpenSource;
use super::slot::SlotFeed;
use crate::change::Lsn;
use crate::coherence::history::{Origin, Present};
use crate::coherence::primary::{INSTANCE, Primary, SlotFacts};
use crate::coherence::server::ServerIdentity;
use crate::config::Settings;
use crate::install;
use crate::pipeline::error::SessionError;
use crate::postgres::{PREREQUISITE_STATE, UNDEFINED_OBJECT, session};
use crate::rules::RuleSet;
use crate::source::events::WantedEvents;
use crate::source::replication::assemble::Assembler;
use crate::source::replication::connection::{Connection, ConnectionError};
use crate::source::replication::stream::ReplicationStream;

/// How long a server may take to answer the few questions before it streams.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// How long a new slot may take: it waits for all transactions in progress.
const RECREATE_MAX: Duration = Duration::from_secs(600);

/// Begins to read the slot, then asks for its position.
pub(super) async fn open(
    settings: &Settings,
    rules: &RuleSet,
    earlier: &mut EarlierSessions,
) -> Result<OpenSource<SlotFeed>, SessionError> {
    let unanswered = |_| SessionError::Unanswered(OPEN_MAX);
    let (connection, instance) = tokio::time::timeout(OPEN_MAX, async {
        let mut connection = Connection::open(&settings.postgres).await?;
        if earlier.as_stored {
            connection.query(session::AS_STORED).await?;
        }
        let instance = one_text(connection.query(INSTANCE).await?);
        Ok::<_, SessionError>((connection, instance))
    })
    .await
    .map_err(unanswered)??;
    let primary = Arc::new(Primary::connect(connection.address(), &instance).await?);
    repair_gap(settings, &primary, earlier).await?;
    let with_messages = rules.has_events() || has_event_trigger(&primary).await?;
    let started = ReplicationStream::start(connection, &settings.slot, &settings.publication, with_messages);
    let started = tokio::time::timeout(OPEN_MAX, started).await.map_err(unanswered)?;
    let stream = match started {
        Ok(stream) => stream,
        Err(ConnectionError::Server(error)) if [PREREQUISITE_STATE, UNDEFINED_OBJECT].contains(&&*error.sqlstate) => {
            let facts = primary.facts(&settings.slot, &settings.publication).await?;
            // At the start, `run` refuses to begin without a slot unless Redis remembers one.
            let is_gone = facts.confirmed.is_none();
            if !(facts.published && (facts.lost || is_gone)) {
                return Err(SessionError::SlotUnusable { slot: settings.slot.clone(), source: error });
            }
            recreate(settings, &primary).await?;
            return Err(ConnectionError::Server(error).into());
        }
        Err(error) => return Err(error.into()),
    };
    let SlotFacts { confirmed, published, recovered, end, .. } =
        primary.facts(&settings.slot, &settings.publication).await?;
    if !published {
        return Err(SessionError::NoPublication(settings.publication.clone()));
    }
    let ServerIdentity { system, timeline, .. } = primary.identity().clone();
    let present = Present {
        origin: Origin { system, timeline, recovered, source: String::new() },
        slot: confirmed.unwrap_or(end),
        end,
        recorded: Lsn::ZERO,
        batches: None,
    };
    let assembler = Assembler::new(WantedEvents::of(rules.event_fields()), earlier.as_stored);
    let feed = SlotFeed::new(stream, assembler, Arc::clone(&primary));
    Ok(OpenSource { feed, primary, present, as_stored: earlier.as_stored })
}

/// Whether a trigger in the database writes a message for each DDL statement.
async fn has_event_trigger(primary: &Primary) -> Result<bool, SessionError> {
    const INSTALLED: &str = "select exists (select from pg_event_trigger where evtname like 'unstale\\_%')";
    let row = primary.client().query_one(INSTALLED, &[]).await;
    row.map(|row| row.get(0)).map_err(|error| SessionError::Catalog(error.into()))
}

fn one_text(rows: Vec<Vec<Option<String>>>) -> String {
    rows.into_iter().flatten().flatten().next().unwrap_or_default()
}

/// Creates the slot again if it stands where its publication did not exist.
async fn repair_gap(settings: &Settings, primary: &Primary, earlier: &mut EarlierSessions) -> Result<(), SessionError> {
    let Some(gap_at) = earlier.gap_at.take() else { return Ok(()) };
    let facts = primary.facts(&settings.slot, &settings.publication).await?;
    // Beyond the gap, another process has created it again meanwhile.
    if facts.confirmed.is_some_and(|confirmed| confirmed <= gap_at) {
        earlier.gap_at = Some(gap_at);
        recreate(settings, primary).await?;
        earlier.gap_at = None;
    }
    Ok(())
}

/// Creates the slot again. What it had not sent is lost, and the comparison of histories finds
/// that: a new epoch begins.
async fn recreate(settings: &Settings, primary: &Primary) -> Result<(), SessionError> {
    let facts = primary.facts(&settings.slot, &settings.publication).await?;
    if !facts.published {
        return Err(SessionError::NoPublication(settings.publication.clone()));
    }
    let slot = &settings.slot;
    let say = |text: &str| tracing::warn!(slot, "creating the slot again: {text}");
    let recreating = install::slot::recreate(primary.client(), &settings.postgres, slot, &say);
    let recreated = tokio::time::timeout(RECREATE_MAX, recreating).await;
    recreated
        .map_err(|_| SessionError::Unanswered(RECREATE_MAX))?
        .map_err(|error| SessionError::RecreateSlot(error.into()))?;
    tracing::warn!(
        slot = settings.slot,
        "the slot could not be used any more and was created again: changes were missed"
    );
    Ok(())
}
