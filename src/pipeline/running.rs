//! Something that runs in the background, at most one at a time.
//!
//! Owns the future. It must not know what it is about. Invariant: waiting is cancel-safe: a future
//! that is not finished stays.

use futures_util::future::BoxFuture;

/// A future that may be under way.
pub(super) struct Running<T>(Option<BoxFuture<'static, T>>);

impl<T> Default for Running<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Running<T> {
    pub(super) fn start(&mut self, future: impl Future<Output = T> + Send + 'static) {
        debug_assert!(self.0.is_none(), "one at a time");
        self.0 = Some(Box::pin(future));
    }

    pub(super) fn is_running(&self) -> bool {
        self.0.is_some()
    }

    /// Waits until it is finished, and for ever if nothing runs. Cancel-safe.
    pub(super) async fn finished(&mut self) -> T {
        let Some(future) = &mut self.0 else { return std::future::pending().await };
        let output = future.await;
        self.0 = None;
        output
    }
}
