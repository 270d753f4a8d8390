//! A source that was opened.
//!
//! Owns what is known at that moment. It must not know which source it is.

use std::sync::Arc;

use crate::coherence::history::Present;
use crate::coherence::primary::Primary;

/// A source that was opened.
pub(in crate::pipeline) struct OpenSource<F> {
    pub(in crate::pipeline) feed: F,
    /// The server that decides visibility.
    pub(in crate::pipeline) primary: Arc<Primary>,
    /// What PostgreSQL says of its history.
    pub(in crate::pipeline) present: Present,
    /// Values come as the database has them: those that are not ASCII are not known.
    pub(in crate::pipeline) as_stored: bool,
}

impl<F> OpenSource<F> {
    pub(super) fn map<G>(self, feed: impl FnOnce(F) -> G) -> OpenSource<G> {
        let Self { feed: opened, primary, present, as_stored } = self;
        OpenSource { feed: feed(opened), primary, present, as_stored }
    }
}
