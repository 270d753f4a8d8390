//! The answers of PostgreSQL and Redis.
//!
//! Owns what the exit code says. Invariant: the answer of one server does not depend on the other.

use super::source::{SourceConnection, SourceStatus};
use super::target::{self, TargetStatus};
use crate::cmd::failure::Failure;
use crate::coherence::watermark::Names;
use crate::config::Settings;

/// What PostgreSQL and Redis answered, or why one of them did not.
pub(super) struct ServerStatus<'a> {
    pub(super) settings: &'a Settings,
    pub(super) source: Result<SourceStatus, Failure>,
    pub(super) target: Result<TargetStatus, Failure>,
}

impl<'a> ServerStatus<'a> {
    pub(super) async fn ask(settings: &'a Settings, connection: &mut SourceConnection) -> Self {
        let names = Names::new(&settings.namespace, &settings.slot);
        let (source, target) = tokio::join!(connection.ask(settings), target::read(&settings.redis, &names));
        Self { settings, source, target: target.map_err(Failure::from) }
    }

    /// Fails if a server did not answer. The reason is part of what is printed.
    pub(super) fn outcome(self) -> Result<(), Failure> {
        let failures = [self.source.err(), self.target.err()].into_iter().flatten();
        match failures.map(|failure| failure.exit).max() {
            None => Ok(()),
            Some(exit) => Err(Failure::silent(exit)),
        }
    }
}
