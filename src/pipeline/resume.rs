//! The beginning of a session: what Redis remembers is compared with what the source will send.
//!
//! Owns the order: ask, judge, wait for what may be committed and not yet visible, flush. It must not judge by itself;
//! [`crate::coherence::history`] does. Invariants: nothing is invalidated before history is proven or begun anew; of
//! the daemons that share an outbox, one at a time does that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::feed::outbox::Reader;
use super::session::Landing;
use crate::coherence::history::{Origin, Present, Remembered, find_gap};
use crate::coherence::primary::{Primary, PrimaryError};
use crate::sink::{Liveness, Sink, Unproven};
use crate::source::outbox::entry::OutboxError;
use crate::source::outbox::survey;

/// How long a flush waits for transactions that were in progress: one that committed already and waits for a
/// synchronous standby may be among them.
const IN_PROGRESS_MAX: Duration = Duration::from_secs(5);

/// Goes on from what Redis remembers if that is proven to have no gap, and otherwise begins a new epoch. If an outbox is
/// read, its reader is needed.
pub(super) async fn resume(
    mut sink: Box<Sink>,
    primary: Arc<Primary>,
    reader: Option<Reader>,
    mut present: Present,
) -> (Box<Sink>, Landing) {
    let remembered = sink.remembered().await;
    let Some(reader) = reader else {
        let landing = compare(&mut sink, &primary, &remembered, &present, &present.origin).await;
        return (sink, landing);
    };
    // Only now, however long that took: nobody else is to wait for a Redis that only we do not reach.
    let landing = tokio::select! {
        biased;
        landing = take_turn(&mut sink, &primary, &reader, &mut present) => landing.unwrap_or_else(Landing::Unread),
        // The locks go with the connection, which nobody else uses meanwhile.
        never = survey::stay(primary.client()) => match never {},
    };
    match survey::unlock_history(primary.client()).await {
        Ok(()) => (sink, landing),
        Err(error) => (sink, Landing::Unread(error)),
    }
}

/// Compares when it is its turn among the daemons that share an outbox. What the outbox says was counted can be held against
/// what this dataset remembers only if it was this one that counted it; from then on it is.
async fn take_turn(
    sink: &mut Sink,
    primary: &Primary,
    reader: &Reader,
    present: &mut Present,
) -> Result<Landing, OutboxError> {
    const ASK_AGAIN_AFTER: Duration = Duration::from_millis(20);
    while !survey::lock_history(primary.client()).await? {
        // It is not Redis that we wait for.
        sink.liveness().restart();
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
    let dataset = sink.dataset().unwrap_or_default();
    let (counted, counted_by) = survey::take_over(primary.client(), &reader.consumer, &dataset).await?;
    let remembered = sink.remembered().await;
    if sink.dataset().as_ref() != Some(&dataset) {
        return Ok(Landing::Unproven);
    }
    present.batches = Some(counted);
    present.origin.source = reader.source(counted_by.as_deref().unwrap_or_default());
    // Whoever shares the work goes on meanwhile, with positions from after this one's beginning.
    present.end = survey::end(primary.client()).await?;
    let origin = Origin { source: reader.source(&dataset), ..present.origin.clone() };
    let landing = compare(sink, primary, &remembered, present, &origin).await;
    Ok(match landing {
        Landing::Resumed(_) if sink.dataset() != Some(dataset) => Landing::Unproven,
        landing => landing,
    })
}

/// Goes on, or begins a new epoch; from then on Redis remembers `origin`.
async fn compare(
    sink: &mut Sink,
    primary: &Primary,
    remembered: &Remembered,
    present: &Present,
    origin: &Origin,
) -> Landing {
    let present = Present { recorded: sink.recorded(), ..present.clone() };
    let reported = sink.take_reported_gap();
    let found = reported.clone().or_else(|| find_gap(remembered, &present));
    let started = match &found {
        None => {
            sink.go_on(remembered);
            if remembered.origin.as_ref() != Some(origin)
                && let Err(Unproven) = sink.adopt(origin).await
            {
                return Landing::Unproven;
            }
            remembered.started.unwrap_or_default()
        }
        Some(gap) => {
            if let Err(error) = wait_for_those_in_progress(primary, &sink.liveness()).await {
                sink.report_gap(gap.clone());
                return Landing::Unasked(error);
            }
            let present = Present { origin: origin.clone(), ..present };
            if let Err(Unproven) = sink.flush(gap, &present).await {
                // No comparison would find it again.
                reported.into_iter().for_each(|gap| sink.report_gap(gap));
                return Landing::Unproven;
            }
            present.end
        }
    };
    Landing::Resumed(started)
}

/// A change that was missed may have been committed and not yet be visible; flushed before that, its old value
/// could come back. Which transactions those are nobody can tell from those that still run, so this waits
/// for all of them, though not for ever.
async fn wait_for_those_in_progress(primary: &Primary, liveness: &Liveness) -> Result<(), PrimaryError> {
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
        // It is not Redis that we wait for.
        liveness.restart();
    }
    Ok(())
}
