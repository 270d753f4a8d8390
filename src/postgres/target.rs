//! Which of several servers is accepted: libpq's `target_session_attrs`.
//!
//! Owns the meaning of its values. It must not connect. Source: the PostgreSQL manual, libpq,
//! "Parameter Key Words". Invariant: with `any` no server is asked.

use super::parameters::InvalidAddress;

/// Which servers are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    /// Every server.
    Any,
    /// One whose transactions may write.
    ReadWrite,
    /// One whose transactions may not write.
    ReadOnly,
    /// One that follows no other.
    Primary,
    /// One that follows another.
    Standby,
    /// As `Standby`, and if there is none, any.
    PreferStandby,
}

/// What a server says of itself: whether it follows another, and whether transactions may not
/// write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerState {
    is_standby: bool,
    is_read_only: bool,
}

impl ServerState {
    /// The question, for connections of every kind.
    pub(crate) const QUESTION: &str = "select pg_is_in_recovery()::text, current_setting('transaction_read_only')";

    /// Reads the two columns of the answer.
    pub(crate) fn parse(standby: Option<&str>, read_only: Option<&str>) -> Self {
        Self { is_standby: standby == Some("true"), is_read_only: read_only == Some("on") }
    }
}

impl TargetSessionAttrs {
    /// Reads the value of the parameter.
    pub(super) fn parse(text: Option<&str>) -> Result<Self, InvalidAddress> {
        Ok(match text {
            None | Some("any") => Self::Any,
            Some("read-write") => Self::ReadWrite,
            Some("read-only") => Self::ReadOnly,
            Some("primary") => Self::Primary,
            Some("standby") => Self::Standby,
            Some("prefer-standby") => Self::PreferStandby,
            Some(_) => {
                let expected = "any, read-write, read-only, primary, standby or prefer-standby";
                return Err(InvalidAddress::Value("target_session_attrs", expected));
            }
        })
    }

    /// What is looked for among all hosts, one after the other.
    pub(super) fn passes(self) -> &'static [Self] {
        match self {
            Self::Any => &[Self::Any],
            Self::ReadWrite => &[Self::ReadWrite],
            Self::ReadOnly => &[Self::ReadOnly],
            Self::Primary => &[Self::Primary],
            Self::Standby => &[Self::Standby],
            Self::PreferStandby => &[Self::Standby, Self::Any],
        }
    }

    /// Whether a server has to be asked.
    pub(crate) fn asks(self) -> bool {
        self != Self::Any
    }

    /// Why a server is not accepted, in libpq's words.
    pub(super) fn refusal(self, state: ServerState) -> Option<&'static str> {
        let ServerState { is_standby, is_read_only } = state;
        match self {
            Self::ReadWrite if is_read_only => Some("session is read-only"),
            Self::ReadOnly if !is_read_only => Some("session is not read-only"),
            Self::Primary if is_standby => Some("server is in hot standby mode"),
            Self::Standby if !is_standby => Some("server is not in hot standby mode"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TargetSessionAttrs::{Any, Primary, ReadOnly, ReadWrite, Standby};
    use super::*;

    #[test]
    fn servers_are_accepted_as_libpq_accepts_them() {
        let check = |standby: &str, read_only: &str, accepted: &[TargetSessionAttrs]| {
            let state = ServerState::parse(Some(standby), Some(read_only));
            for target in [Any, ReadWrite, ReadOnly, Primary, Standby] {
                assert_eq!(target.refusal(state).is_none(), accepted.contains(&target), "{target:?}: {state:?}");
            }
        };
        check("false", "off", &[Any, ReadWrite, Primary]);
        check("false", "on", &[Any, ReadOnly, Primary]);
        check("true", "on", &[Any, ReadOnly, Standby]);
    }
}
