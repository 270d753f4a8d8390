//! The beginning of a session: what Redis remembers is compared with what the source will send.
//!
//! Owns the order: ask, judge, wait for what may be committed and not yet visible, flush. It must not judge by itself;
//! [`crate::coherence::history`] does. Invariants: nothing is invalidated before history is proven or begun anew; of
//! the daemons that share an outbox, one at a time does that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::session::Landing;
use crate::coherence::history::{Present, Remembered, doubt};
use crate::coherence::primary::{Primary, PrimaryError};
use crate::sink::{Pulse, Sink, Unproven};
use crate::source::outbox::Consumer;
use crate::source::outbox::entry::OutboxError;
use crate::source::outbox::survey::{self, unlock_history};

/// How long a flush waits for transactions that were in progress: one that committed already and waits for a
/// synchronous standby may be among them.
const IN_PROGRESS_MAX: Duration = Duration::from_secs(5);

/// Goes on from what Redis remembers if that is proven to have no gap, and otherwise begins a new epoch. An outbox is
/// read by this name, if one is.
pub(super) async fn resume(
    mut sink: Box<Sink>,
    primary: Arc<Primary>,
    consumer: Option<Arc<Consumer>>,
    mut present: Present,
) -> (Box<Sink>, Landing) {
    let landing = match consumer {
        None => {
            let remembered = sink.remembered().await;
            compare(&mut sink, &primary, &remembered, present).await
        }
        Some(consumer) => {
            // However long that takes: nobody else is to wait for a Redis that only we do not reach.
            sink.remembered().await;
            let landing = match take_over(&mut sink, &primary, &consumer, &mut present).await {
                Ok(remembered) => {
                    let dataset = sink.dataset().map(ToOwned::to_owned);
                    match compare(&mut sink, &primary, &remembered, present).await {
                        Landing::Resumed(_) if sink.dataset() != dataset.as_deref() => Landing::Unproven,
                        landing => landing,
                    }
                }
                Err(error) => Landing::Unread(error),
            };
            match unlock_history(primary.client()).await {
                Ok(()) => landing,
                Err(error) => Landing::Unread(error),
            }
        }
    };
    (sink, landing)
}

/// Waits for its turn among the daemons that share an outbox. From then on the outbox takes no confirmation for another
/// dataset, so what it says was counted can be held against what this one remembers.
async fn take_over(
    sink: &mut Sink,
    primary: &Primary,
    consumer: &Consumer,
    present: &mut Present,
) -> Result<Remembered, OutboxError> {
    const ASK_AGAIN_AFTER: Duration = Duration::from_millis(20);
    while !survey::lock_history(primary.client()).await? {
        // It is not Redis that we wait for.
        sink.pulse().begin();
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
    loop {
        let dataset = sink.dataset().unwrap_or_default().to_owned();
        present.batches = Some(survey::take_over(primary.client(), consumer, &dataset).await?);
        let remembered = sink.remembered().await;
        if sink.dataset() == Some(&*dataset) {
            // Whoever shares the work goes on meanwhile, with positions from after this one's beginning.
            present.end = survey::end(primary.client()).await?;
            return Ok(remembered);
        }
    }
}

async fn compare(sink: &mut Sink, primary: &Primary, remembered: &Remembered, mut present: Present) -> Landing {
    present.recorded = sink.recorded();
    let found = sink.take_doubt().or_else(|| doubt(remembered, &present));
    let started = match &found {
        None => {
            sink.go_on(remembered);
            remembered.started.unwrap_or_default()
        }
        Some(doubt) => {
            if let Err(error) = wait_for_those_in_progress(primary, &sink.pulse()).await {
                sink.doubt(doubt.clone());
                return Landing::Unasked(error);
            }
            if let Err(Unproven) = sink.flush(doubt, &present).await {
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
async fn wait_for_those_in_progress(primary: &Primary, pulse: &Pulse) -> Result<(), PrimaryError> {
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
        pulse.begin();
    }
    Ok(())
}
