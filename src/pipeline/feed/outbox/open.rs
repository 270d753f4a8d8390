//! Opening the outbox.
//!
//! Owns the order of the questions before anything is claimed. Invariant: a daemon whose rules need
//! the order of commits works alone.

use std::sync::Arc;
use std::time::Duration;

use super::feed::OutboxFeed;
use super::lane::Lane;
use super::reader::{OutboxReader, consumer};
use crate::change::Lsn;
use crate::coherence::history::{Origin, Present};
use crate::coherence::primary::Primary;
use crate::coherence::server::ServerIdentity;
use crate::config::Settings;
use crate::pipeline::error::SessionError;
use crate::pipeline::feed::earlier::EarlierSessions;
use crate::pipeline::feed::opened::OpenSource;
use crate::rules::RuleSet;
use crate::source::events::WantedEvents;
use crate::source::outbox::CHANNEL;
use crate::source::outbox::entry::OutboxError;
use crate::source::outbox::survey::{self, OutboxFacts, SurveyStatements};

/// How long opening may take: much longer than a healthy server needs.
const OPEN_MAX: Duration = Duration::from_secs(60);

/// Begins to read the outbox: takes the right to do so, then opens the connections that claim.
pub(in crate::pipeline::feed) async fn open(
    settings: &Settings,
    rules: &RuleSet,
    earlier: &EarlierSessions,
) -> Result<OpenSource<OutboxFeed>, SessionError> {
    let opened = tokio::time::timeout(OPEN_MAX, try_open(settings, rules, earlier)).await;
    opened.unwrap_or(Err(SessionError::Unanswered(OPEN_MAX)))
}

async fn try_open(
    settings: &Settings,
    rules: &RuleSet,
    earlier: &EarlierSessions,
) -> Result<OpenSource<OutboxFeed>, SessionError> {
    let consumer = Arc::new(consumer(settings, rules));
    let (primary, wakeup) = Primary::first(&settings.postgres).await?;
    let primary = Arc::new(primary);
    if !survey::enter(primary.client(), rules.needs_order()).await? {
        return Err(SessionError::OutboxTaken);
    }
    let facts = survey::facts(primary.client(), &settings.slot).await?;
    let Some(facts) = facts else { return Err(SessionError::NoOutbox(settings.slot.clone())) };
    let OutboxFacts { file, last, recovered } = facts;
    let ServerIdentity { system, timeline, .. } = primary.identity().clone();
    // The daemon that started last has the rules that count. One that reconnects does not take over
    // from it.
    if earlier.streamed && survey::is_superseded(primary.client(), &consumer).await? {
        return Err(SessionError::Superseded);
    }
    // A transaction that notifies cannot be prepared. Where some may be, no writer is asked to
    // notify.
    let notifies = settings.notify && !survey::prepares(primary.client()).await?;
    if notifies {
        let listened = primary.client().batch_execute(&format!("listen {CHANNEL}")).await;
        listened.map_err(OutboxError::from)?;
    }
    let statements = Arc::new(SurveyStatements::prepare(primary.client()).await?);
    let (wanted, as_stored) = (WantedEvents::of(rules.event_fields()), earlier.as_stored);
    let lanes = [Lane::open(&primary, &wanted, as_stored).await?, Lane::open(&primary, &wanted, as_stored).await?];
    let reader = OutboxReader { consumer, file };
    let origin = Origin { system, timeline, recovered, source: reader.source("") };
    // Nothing is proven yet: the first survey does that. The rest is asked when it is this daemon's
    // turn.
    let present = Present { origin, slot: Lsn::ZERO, end: Lsn::ZERO, recorded: Lsn::ZERO, batches: Some(0) };
    let wakeup = notifies.then_some(wakeup);
    let feed = OutboxFeed::new(Arc::clone(&primary), statements, reader, lanes, wakeup, last);
    Ok(OpenSource { feed, primary, present, as_stored })
}
