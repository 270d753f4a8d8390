//! Why a session ends, what the daemon does about it, and what the operator can do.
//!
//! Owns the table of [`SessionError::policy`]. It must not act on it; [`super::run`] does.
//! Invariant: the table names every error, so that a new one does not compile before its row is
//! written.

use std::time::Duration;

use crate::coherence::primary::PrimaryError;
use crate::postgres::{ConnectError, ServerError, StatementError, UNDEFINED_OBJECT, session};
use crate::rules::PlanError;
use crate::sink::NameTaken;
use crate::source::outbox::entry::OutboxError;
use crate::source::replication::assemble::AssembleError;
use crate::source::replication::connection::ConnectionError;
use crate::source::replication::pgoutput::DecodeError;

/// SQLSTATE: another process reads the slot.
const OBJECT_IN_USE: &str = "55006";

/// Why a session ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The replication connection failed.
    #[error(transparent)]
    Replication(#[from] ConnectionError),
    /// A message in the log cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The messages in the log do not make transactions.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// A rule says to stop at such a change.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The primary did not answer a question.
    #[error(transparent)]
    Primary(#[from] PrimaryError),
    /// The catalog cannot be read.
    #[error("the catalog of PostgreSQL cannot be read")]
    Catalog(#[source] StatementError),
    /// The catalog's answer cannot be read.
    #[error("the catalog of PostgreSQL answered with the snapshot {0:?}")]
    CatalogUnreadable(String),
    /// The outbox cannot be read.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// A daemon with other rules reads the outbox.
    #[error("a daemon with other rules has taken over the outbox")]
    Superseded,
    /// Another daemon reads the outbox, and the rules allow only one.
    #[error("another daemon works on the outbox, and rules with `set` or `stream` allow one at a time")]
    OutboxTaken,
    /// The table was created again, truncated or restored under the session.
    #[error("the outbox was replaced while it was read")]
    OutboxReplaced,
    /// No outbox has this consumer.
    #[error("there is no outbox with the consumer `{0}`")]
    NoOutbox(String),
    /// The publication does not exist.
    #[error("there is no publication `{0}`")]
    NoPublication(String),
    /// The server does not let this slot be read.
    #[error("the replication slot `{slot}` cannot be used")]
    SlotUnusable {
        /// The slot's name.
        slot: String,
        /// What the server said.
        #[source]
        source: ServerError,
    },
    /// The slot has log from before its publication was created, and the server skipped changes
    /// there.
    #[error("the slot has log from before its publication was created")]
    PublicationGap,
    /// The slot could not be created again.
    #[error("the replication slot could not be created again")]
    RecreateSlot(#[source] StatementError),
    /// PostgreSQL did not answer within the time that a healthy server needs.
    #[error("PostgreSQL did not answer within {} seconds", .0.as_secs())]
    Unanswered(Duration),
    /// Nothing arrived on the replication connection, not even a sign of life.
    #[error("PostgreSQL has been silent for {} seconds", .0.as_secs())]
    Silent(Duration),
    /// Redis took nothing for the time that `redis_down_max` allows.
    #[error("Redis has accepted no invalidation for {} seconds, and PostgreSQL must be able to shut down", .0.as_secs())]
    RedisAway(Duration),
    /// The dataset in Redis may not be the one whose history was proven.
    #[error("Redis was replaced, lost writes, or another daemon writes to it")]
    Unproven,
    /// What could not be converted is in force, so values are converted again.
    #[error("what could not be converted to UTF-8 is passed")]
    Converts,
    /// Another service uses the name in Redis.
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
}

/// What the daemon does about an error, and what the operator can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) reaction: Reaction,
    /// None if the error itself says what to do.
    pub(super) advice: Option<&'static str>,
}

/// What the daemon does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Connects again after a pause. The next session goes on from what Redis remembers.
    Reconnect,
    /// The same, until another daemon has stopped.
    StandBy,
    /// The same, but history is not proven any more: a new epoch begins unless the next session
    /// proves it.
    CompareHistories,
    /// Drops the slot and creates it again. Changes were missed, so a new epoch begins.
    RecreateSlot,
    /// Stops if no session has begun yet: then the configuration is wrong. Later, during a
    /// failover, it connects again.
    StopAtStart(Fault),
    /// Stops. Waiting would not help.
    Stop(Fault),
}

/// Whose fault it is that the daemon stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A change was made at which a rule says to stop.
    Change,
    /// The configuration is wrong, or `setup` was not run.
    Configuration,
    /// PostgreSQL cannot be used, for reasons of its own.
    Server,
}

/// Why the daemon stopped although no signal asked it to.
#[derive(Debug, thiserror::Error)]
#[error("the daemon stopped")]
pub struct RunError {
    /// Whose fault it is.
    pub fault: Fault,
    /// What the operator can do, unless the cause says it.
    pub advice: Option<&'static str>,
    /// Why.
    pub source: Box<SessionError>,
}

impl SessionError {
    /// Whether a text of the database has no equivalent in UTF-8, or is not valid in its encoding.
    pub(super) fn is_not_convertible(&self) -> bool {
        let error = match self {
            Self::Replication(ConnectionError::Server(error))
            | Self::Outbox(OutboxError::Statement(StatementError::Refused(error))) => error,
            _ => return false,
        };
        session::NOT_CONVERTIBLE.contains(&error.sqlstate.as_str())
    }

    /// The table: for each error, what the daemon does and what the operator can do.
    pub(super) fn policy(&self) -> Policy {
        use Fault::{Change, Configuration};
        use Reaction::{CompareHistories, Reconnect, RecreateSlot, StandBy, Stop, StopAtStart};
        let (reaction, advice) = match self {
            Self::Connect(error) | Self::Primary(PrimaryError::Connect(error)) => return connect_policy(error),
            _ if self.is_not_convertible() => (
                Reconnect,
                Some(
                    "meanwhile values that are not ASCII count as not known, so rules that name them delete by pattern",
                ),
            ),
            Self::Converts => (Reconnect, None),
            Self::Replication(ConnectionError::Server(error)) => match error.sqlstate.as_str() {
                OBJECT_IN_USE => (StandBy, None),
                // Until version 17 this is how PostgreSQL reports a publication gap.
                UNDEFINED_OBJECT => (RecreateSlot, None),
                _ => (Reconnect, None),
            },
            Self::Replication(ConnectionError::Io(_)) => (Reconnect, Some("see the log of PostgreSQL")),
            Self::Replication(ConnectionError::Protocol(_)) | Self::Decode(_) | Self::Assemble(_) => (
                Reconnect,
                Some("if this persists, check that source.url leads to PostgreSQL 15 to 18 itself, and report it"),
            ),
            Self::Plan(_) => (Stop(Change), None),
            Self::Primary(PrimaryError::OtherServer | PrimaryError::Standby) => (StopAtStart(Configuration), None),
            Self::Primary(PrimaryError::Query(_) | PrimaryError::Silent | PrimaryError::Unreadable(_))
            | Self::Catalog(StatementError::Broken(_))
            | Self::CatalogUnreadable(_)
            | Self::RecreateSlot(StatementError::Broken(_)) => (Reconnect, Some("see the log of PostgreSQL")),
            Self::Catalog(StatementError::Refused(_)) | Self::RecreateSlot(StatementError::Refused(_)) => {
                (Reconnect, None)
            }
            Self::Outbox(OutboxError::Statement(StatementError::Refused(_)) | OutboxError::Entry { .. }) => {
                (Reconnect, None)
            }
            Self::Outbox(OutboxError::Statement(StatementError::Broken(_)) | OutboxError::Position(_)) => {
                (Reconnect, Some("see the log of PostgreSQL"))
            }
            Self::Superseded => (StandBy, Some("give all daemons of an outbox the same rules")),
            Self::OutboxTaken => (StandBy, None),
            Self::OutboxReplaced => (CompareHistories, None),
            Self::NoOutbox(_) | Self::NoPublication(_) => (Stop(Configuration), Some("run `unstale setup`")),
            Self::SlotUnusable { .. } => (Stop(Configuration), None),
            Self::PublicationGap => (RecreateSlot, None),
            Self::Unanswered(_) | Self::Silent(_) => {
                (Reconnect, Some("check PostgreSQL and the network between it and this daemon"))
            }
            Self::RedisAway(_) => (Reconnect, Some("check that Redis runs and that target.url is right")),
            Self::Unproven => (CompareHistories, None),
            // A process that was frozen finds another service in its place, and waits for its end.
            Self::NameTaken(taken) => (if taken.was_ours { StandBy } else { Stop(Configuration) }, None),
        };
        Policy { reaction, advice }
    }
}

fn connect_policy(error: &ConnectError) -> Policy {
    let (reaction, advice) = match error {
        ConnectError::Unreachable(_) => {
            (Reaction::Reconnect, Some("check that PostgreSQL runs and that source.url is right"))
        }
        ConnectError::Refused(_) if error.is_transient() => (Reaction::Reconnect, None),
        ConnectError::Refused(_) | ConnectError::Login(_) => (Reaction::StopAtStart(Fault::Configuration), None),
        ConnectError::Tls(_) => (
            Reaction::StopAtStart(Fault::Configuration),
            Some("check sslmode and sslrootcert in source.url, and the server's certificate"),
        ),
        ConnectError::Protocol(_) => {
            (Reaction::StopAtStart(Fault::Server), Some("point source.url at PostgreSQL itself"))
        }
    };
    Policy { reaction, advice }
}

impl Reaction {
    /// Whether the daemon stops; `streamed` if a session has begun before.
    pub(super) fn stops(self, streamed: bool) -> Option<Fault> {
        match self {
            Self::Stop(fault) => Some(fault),
            Self::StopAtStart(fault) => (!streamed).then_some(fault),
            Self::Reconnect | Self::StandBy | Self::CompareHistories | Self::RecreateSlot => None,
        }
    }

    /// What the log says that the daemon does, if it does not stop.
    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::Reconnect | Self::StopAtStart(_) | Self::Stop(_) => "trying again",
            Self::StandBy => "this daemon stands by",
            Self::CompareHistories => "comparing histories again",
            Self::RecreateSlot => "the slot is created again",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::change::TableName;

    fn refusal(sqlstate: &str) -> ServerError {
        ServerError { sqlstate: sqlstate.to_owned(), message: "no".to_owned(), detail: None }
    }

    fn io_error() -> io::Error {
        io::ErrorKind::ConnectionReset.into()
    }

    fn truncated() -> PlanError {
        PlanError::Truncated { table: TableName::parse("t"), rule: "r".to_owned() }
    }

    #[test]
    fn every_error_has_a_reaction() {
        use Fault::{Change, Configuration, Server};
        use Reaction::{CompareHistories, Reconnect, RecreateSlot, StandBy, Stop, StopAtStart};
        let check = |error: SessionError, reaction: Reaction, advice: &str| {
            let policy = error.policy();
            assert_eq!(policy.reaction, reaction, "{error}");
            match advice {
                "" => assert_eq!(policy.advice, None, "{error}"),
                part => assert!(policy.advice.is_some_and(|advice| advice.contains(part)), "{error}: {policy:?}"),
            }
        };
        let server = |sqlstate| ConnectionError::Server(refusal(sqlstate)).into();
        check(ConnectError::Unreachable(Vec::new()).into(), Reconnect, "source.url");
        check(ConnectError::Refused(refusal("57P03")).into(), Reconnect, "");
        check(ConnectError::Refused(refusal("28P01")).into(), StopAtStart(Configuration), "");
        check(ConnectError::Login("no").into(), StopAtStart(Configuration), "");
        check(ConnectError::Tls("no".to_owned()).into(), StopAtStart(Configuration), "sslmode");
        check(ConnectError::Protocol("no".to_owned()).into(), StopAtStart(Server), "PostgreSQL itself");
        check(PrimaryError::from(ConnectError::Login("no")).into(), StopAtStart(Configuration), "");
        check(PrimaryError::OtherServer.into(), StopAtStart(Configuration), "");
        check(PrimaryError::Standby.into(), StopAtStart(Configuration), "");
        check(PrimaryError::Silent.into(), Reconnect, "log of PostgreSQL");
        check(ConnectionError::Io(io_error()).into(), Reconnect, "log of PostgreSQL");
        check(ConnectionError::Protocol("no".to_owned()).into(), Reconnect, "15 to 18");
        check(server("57P01"), Reconnect, "");
        check(server("55006"), StandBy, "");
        check(server("42704"), RecreateSlot, "");
        check(DecodeError::Truncated('B').into(), Reconnect, "report");
        check(AssembleError::UnknownRelation(7).into(), Reconnect, "report");
        check(truncated().into(), Stop(Change), "");
        check(SessionError::Catalog(StatementError::Refused(refusal("42501"))), Reconnect, "");
        check(SessionError::CatalogUnreadable("x".to_owned()), Reconnect, "log of PostgreSQL");
        check(SessionError::RecreateSlot(StatementError::Refused(refusal("53400"))), Reconnect, "");
        check(OutboxError::Statement(StatementError::Refused(refusal("57P01"))).into(), Reconnect, "");
        check(OutboxError::Position("x".to_owned()).into(), Reconnect, "log of PostgreSQL");
        check(OutboxError::Entry { id: 7, reason: "x".to_owned() }.into(), Reconnect, "");
        check(SessionError::Superseded, StandBy, "same rules");
        check(SessionError::OutboxTaken, StandBy, "");
        check(SessionError::OutboxReplaced, CompareHistories, "");
        check(SessionError::NoOutbox("u".to_owned()), Stop(Configuration), "setup");
        check(SessionError::NoPublication("u".to_owned()), Stop(Configuration), "setup");
        let unusable = SessionError::SlotUnusable { slot: "u".to_owned(), source: refusal("55000") };
        check(unusable, Stop(Configuration), "");
        check(SessionError::PublicationGap, RecreateSlot, "");
        check(SessionError::Unanswered(Duration::from_secs(30)), Reconnect, "network");
        check(SessionError::Silent(Duration::from_secs(60)), Reconnect, "network");
        check(SessionError::RedisAway(Duration::from_secs(60)), Reconnect, "target.url");
        check(SessionError::Unproven, CompareHistories, "");
        for (was_ours, reaction) in [(false, Stop(Configuration)), (true, StandBy)] {
            let (owner, key, redis) = (Box::default(), "k".to_owned(), "r".to_owned());
            check(NameTaken { owner, key, redis, was_ours }.into(), reaction, "");
        }
    }

    #[test]
    fn a_wrong_server_stops_the_daemon_only_at_the_start() {
        let check = |reaction: Reaction, at_start: Option<Fault>, later: Option<Fault>| {
            assert_eq!((reaction.stops(false), reaction.stops(true)), (at_start, later), "{reaction:?}");
        };
        check(Reaction::Stop(Fault::Change), Some(Fault::Change), Some(Fault::Change));
        check(Reaction::StopAtStart(Fault::Configuration), Some(Fault::Configuration), None);
        for reaction in [Reaction::Reconnect, Reaction::StandBy, Reaction::CompareHistories, Reaction::RecreateSlot] {
            check(reaction, None, None);
        }
    }
}
