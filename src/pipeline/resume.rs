//! The beginning of a session: what Redis remembers is compared with what the source will send.
//!
//! Owns the order: take the name, ask, compare, wait for commits that may not be visible yet,
//! flush. It must not judge by itself; [`crate::coherence::history`] does. Invariants: nothing is
//! invalidated before history is proven or a new epoch has begun; of the daemons that share an
//! outbox, one at a time does this.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::SessionError;
use super::feed::outbox::OutboxReader;
use super::in_flight::Resumed;
use crate::coherence::history::{Origin, Present, Remembered, find_gap};
use crate::coherence::primary::{Primary, PrimaryError};
use crate::sink::{Liveness, OwnerRecord, Sink, Unproven};
use crate::source::outbox::survey;

/// How long a flush waits for transactions in progress: one that has committed and waits for a
/// synchronous standby may be among them.
const IN_PROGRESS_MAX: Duration = Duration::from_secs(5);

/// Goes on from what Redis remembers if that is proven to have no gap, and otherwise begins a new
/// epoch. `reader` is needed if the source is an outbox. `owner` is what this process says of
/// itself.
pub(super) async fn resume(
    mut sink: Box<Sink>,
    owner: OwnerRecord,
    primary: Arc<Primary>,
    reader: Option<OutboxReader>,
    mut present: Present,
) -> (Box<Sink>, Result<Resumed, SessionError>) {
    if let Err(taken) = sink.take_name(owner).await {
        return (sink, Err(taken.into()));
    }
    let remembered = sink.remembered().await;
    let Some(reader) = reader else {
        let resumed = compare(&mut sink, &primary, &remembered, &present, &present.origin).await;
        return (sink, resumed);
    };
    // Only now, however long Redis took: no other daemon must wait for a Redis that only this one
    // does not reach.
    let resumed = tokio::select! {
        biased;
        resumed = take_turn(&mut sink, &primary, &reader, &mut present) => resumed,
        // The locks end with the connection, which nothing else uses meanwhile.
        never = survey::stay(primary.client()) => match never {},
    };
    match survey::unlock_history(primary.client()).await {
        Ok(()) => (sink, resumed),
        Err(error) => (sink, Err(error.into())),
    }
}

/// Compares when it is this daemon's turn among those that share an outbox. What the outbox says
/// was counted can be compared with what this dataset remembers only if this dataset counted it.
/// From then on it does.
async fn take_turn(
    sink: &mut Sink,
    primary: &Primary,
    reader: &OutboxReader,
    present: &mut Present,
) -> Result<Resumed, SessionError> {
    const ASK_AGAIN_AFTER: Duration = Duration::from_millis(20);
    while !survey::lock_history(primary.client()).await? {
        // This is not a wait for Redis.
        sink.liveness().restart();
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
    let dataset = sink.dataset().unwrap_or_default();
    let (counted, counted_by) = survey::take_over(primary.client(), &reader.consumer, &dataset).await?;
    let remembered = sink.remembered().await;
    if sink.dataset().as_ref() != Some(&dataset) {
        return Err(SessionError::Unproven);
    }
    present.batches = Some(counted);
    present.origin.source = reader.source(counted_by.as_deref().unwrap_or_default());
    // Daemons that share the work go on meanwhile, with positions from after the beginning of this
    // session.
    present.end = survey::end(primary.client()).await?;
    let origin = Origin { source: reader.source(&dataset), ..present.origin.clone() };
    let resumed = compare(sink, primary, &remembered, present, &origin).await?;
    if sink.dataset() == Some(dataset) { Ok(resumed) } else { Err(SessionError::Unproven) }
}

/// Goes on, or begins a new epoch. From then on Redis remembers `origin`.
async fn compare(
    sink: &mut Sink,
    primary: &Primary,
    remembered: &Remembered,
    present: &Present,
    origin: &Origin,
) -> Result<Resumed, SessionError> {
    let present = Present { recorded: sink.recorded(), ..present.clone() };
    let reported = sink.take_reported_gap();
    let Some(gap) = reported.clone().or_else(|| find_gap(remembered, &present)) else {
        sink.resume_from(remembered);
        if remembered.origin.as_ref() != Some(origin) {
            sink.adopt(origin).await.map_err(|Unproven| SessionError::Unproven)?;
        }
        let started = remembered.started.unwrap_or_default();
        return Ok(Resumed { started, catalog: Some(remembered.catalog.clone()) });
    };
    if let Err(error) = wait_for_transactions_in_progress(primary, &sink.liveness()).await {
        sink.report_gap(gap);
        return Err(error.into());
    }
    let present = Present { origin: origin.clone(), ..present };
    if let Err(Unproven) = sink.flush(&gap, &present).await {
        // No comparison would find a reported gap again.
        reported.into_iter().for_each(|gap| sink.report_gap(gap));
        return Err(SessionError::Unproven);
    }
    Ok(Resumed { started: present.end, catalog: None })
}

/// A change that was missed may have been committed and not be visible yet. After a flush before
/// that, its old value could come back. Such transactions look like those that still run, so this
/// waits for all of them, though not for ever.
async fn wait_for_transactions_in_progress(primary: &Primary, liveness: &Liveness) -> Result<(), PrimaryError> {
    const ASK_AGAIN_AFTER: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + IN_PROGRESS_MAX;
    let barrier = primary.barrier().await?;
    while !primary.snapshot().await?.is_past_all_before(barrier) {
        if Instant::now() > deadline {
            tracing::warn!(
                "the cache is emptied while transactions are in progress; if one of them had committed already and \
                 waits for a synchronous standby, run with --flush once the standby is back"
            );
            break;
        }
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
        // This is not a wait for Redis.
        liveness.restart();
    }
    Ok(())
}
