//! The beginning of a session: what Redis remembers is compared with what the slot will send.
//!
//! Owns the order: ask, judge, wait for what may be committed and not yet visible, flush. It must not judge by itself;
//! [`crate::coherence::history`] does. Invariant: nothing is invalidated before history is proven or begun anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::session::Landing;
use crate::coherence::history::{Present, doubt};
use crate::coherence::primary::{Primary, PrimaryError};
use crate::sink::{Pulse, Sink, Unproven};

/// How long a flush waits for transactions that were in progress: one that committed already and waits for a
/// synchronous standby may be among them.
const IN_PROGRESS_MAX: Duration = Duration::from_secs(5);

/// Goes on from what Redis remembers if that is proven to have no gap, and otherwise begins a new epoch.
pub(super) async fn resume(mut sink: Box<Sink>, primary: Arc<Primary>, mut present: Present) -> (Box<Sink>, Landing) {
    present.recorded = sink.recorded();
    let remembered = sink.remembered().await;
    let found = sink.take_doubt().or_else(|| doubt(&remembered, &present));
    let started = match &found {
        None => {
            sink.go_on(&remembered);
            remembered.started.unwrap_or_default()
        }
        Some(doubt) => {
            if let Err(error) = wait_for_those_in_progress(&primary, &sink.pulse()).await {
                sink.doubt(doubt.clone());
                return (sink, Landing::Unasked(error));
            }
            if let Err(Unproven) = sink.flush(doubt, &present).await {
                return (sink, Landing::Unproven);
            }
            present.end
        }
    };
    (sink, Landing::Resumed(started))
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
