//! SIGTERM and SIGINT.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::failure::Failure;

/// The exit code of a process that SIGINT ended, as shells report it.
const INTERRUPTED: i32 = 130;

/// Returns a token that the first SIGTERM or SIGINT cancels. A second one ends the process at once.
pub(super) fn stop_on_signals() -> Result<CancellationToken, Failure> {
    let stop = CancellationToken::new();
    let first = stop.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        first.cancel();
        next().await;
        std::process::exit(INTERRUPTED);
    });
    Ok(stop)
}
