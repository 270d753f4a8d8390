//! Why a command did not succeed, and its exit code.
//!
//! Owns which exit code each error has, and how errors and their causes are printed. It must not
//! know which command failed.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use super::logging::colours;
pub(super) use crate::causes::with_causes;
use crate::config::Problems;
use crate::postgres::{ConnectError, ServerError};
use crate::sink::SinkError;
use crate::source::recording::RecordingError;

/// The exit codes other than 0. 69 and 78 are those of `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Exit {
    /// A check, a test or a comparison found something.
    Findings = 1,
    /// The command was called wrongly, or its input is malformed.
    Usage = 2,
    /// A server is not available. The command may succeed later.
    Unavailable = 69,
    /// The configuration cannot be used.
    Configuration = 78,
}

/// Why a command did not succeed: its exit code, and a message for the user.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    /// Empty if everything was printed already.
    pub(super) message: String,
}

impl Failure {
    /// A check, a test or a comparison found something.
    pub(super) fn findings(message: impl Into<String>) -> Self {
        Self { exit: Exit::Findings, message: message.into() }
    }

    /// The command was called wrongly, or its input is malformed.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, message: message.into() }
    }

    /// A server is not available.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self { exit: Exit::Unavailable, message: message.into() }
    }

    /// The configuration cannot be used.
    pub(super) fn configuration(message: impl Into<String>) -> Self {
        Self { exit: Exit::Configuration, message: message.into() }
    }

    /// Everything was printed already; only the exit code is left.
    pub(super) fn silent(exit: Exit) -> Self {
        Self { exit, message: String::new() }
    }

    /// Problems of a configuration file with this text, each shown at its place.
    pub(super) fn problems(problems: &Problems, path: &Path, text: &str) -> Self {
        Self::configuration(problems.render(&path.display().to_string(), text, 1, colours()))
    }

    /// A line of a recording that is not a change, shown at its place.
    pub(super) fn recording(name: &str, error: RecordingError) -> Self {
        match error {
            RecordingError::Io(error) => Self::usage(format!("cannot read {name}: {error}")),
            RecordingError::Line { line, column, message, text } => {
                let mut problems = Problems::default();
                let at = column.saturating_sub(1).min(text.len());
                problems.push(
                    at..at + 1,
                    message,
                    "expected one change: {\"table\":…,\"op\":…,\"old\":{…},\"new\":{…}}",
                );
                Self::usage(problems.render(name, &text, line, colours()))
            }
        }
    }

    /// Whether the command may succeed once a server is back.
    pub(super) fn is_unavailable(&self) -> bool {
        self.exit == Exit::Unavailable
    }

    /// Prints the message to standard error. Returns the exit code.
    pub(super) fn report(self) -> ExitCode {
        let message = self.message.trim_end();
        if !message.is_empty() {
            // Standard error may be closed.
            let _ = writeln!(std::io::stderr(), "{message}");
        }
        ExitCode::from(self.exit as u8)
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let message = with_causes(&error);
        match &error {
            ConnectError::Unreachable(_) | ConnectError::Protocol(_) => Self::unavailable(message),
            // Wrong credentials or certificate files are an error of the file. The server is
            // available.
            _ if error.is_transient() => Self::unavailable(message),
            ConnectError::Refused(_) | ConnectError::Tls(_) | ConnectError::Login(_) => Self::configuration(message),
        }
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        let message = with_causes(&error);
        // A wrong password is an error of the file. The server is available.
        match error.is_login_refused() {
            true => Self::configuration(message),
            false => Self::unavailable(message),
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refusal) => Self::findings(format!("PostgreSQL: {}", ServerError::from(refusal))),
            None => Self::unavailable(format!("the connection to PostgreSQL broke: {}", with_causes(&error))),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::findings(error.to_string())
    }
}
