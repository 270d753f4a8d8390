//! The replication slot that is recorded from: making one, naming one, and why one cannot be read.
//!
//! Owns what the user is told about slots. It must not read one. Invariant: a name that gets here is safe inside of the
//! replication protocol's quotes.

use std::time::Duration;

use crate::cmd::Failure;
use crate::cmd::changes::printable;
use crate::postgres::{PREREQUISITE_STATE, UNDEFINED_OBJECT};
use crate::source::replication::connection::{Connection, ConnectionError};

/// SQLSTATE: somebody else reads the slot.
const IN_USE: &str = "55006";

/// Makes a slot that goes when the connection does. What was committed before is not in it.
pub(super) async fn create(connection: &mut Connection) -> Result<String, Failure> {
    /// A slot begins when the transactions that are under way have ended.
    const NOTE_AFTER: Duration = Duration::from_secs(2);
    let slot = format!("unstale_record_{:08x}", rand::random::<u32>());
    let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT");
    let created = connection.query(&command);
    tokio::pin!(created);
    let created = tokio::select! {
        biased;
        created = &mut created => created,
        () = tokio::time::sleep(NOTE_AFTER) => {
            eprintln!("note: waiting for the transactions that are under way to end");
            created.await
        }
    };
    created.map_err(|error| unread(&slot, error))?;
    Ok(slot)
}

/// Why a slot cannot be read, or not any more.
pub(super) fn unread(slot: &str, error: ConnectionError) -> Failure {
    let ConnectionError::Server(refusal) = &error else { return Failure::unavailable(error.to_string()) };
    let refused = printable(&refusal.to_string());
    match refusal.sqlstate.as_str() {
        IN_USE => Failure::unavailable(format!(
            "the replication slot `{slot}` is being read by somebody else; leave --slot out to record from a slot of its own"
        )),
        UNDEFINED_OBJECT | PREREQUISITE_STATE => {
            Failure::configuration(format!("the replication slot `{slot}` cannot be read: {refused}"))
        }
        _ => Failure::unavailable(format!("the replication slot `{slot}` cannot be read: {refused}")),
    }
}

/// A name that PostgreSQL takes for a slot.
pub(super) fn name(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    match plain && (1..=63).contains(&text.len()) {
        true => Ok(text.to_owned()),
        false => Err("expected 1 to 63 lower-case letters, digits and `_`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::ServerError;

    #[test]
    fn a_name_is_safe_in_quotes() {
        let long = "x".repeat(63);
        for text in ["mine", "a_1", long.as_str()] {
            assert_eq!(name(text), Ok(text.to_owned()));
        }
        let long = "x".repeat(64);
        for text in ["", "Mine", "a\"b", "a b", "ü", long.as_str()] {
            assert!(name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_has_the_code_of_its_cause() {
        let check = |sqlstate: &str, code: u8, word: &str| {
            let error = ServerError { sqlstate: sqlstate.to_owned(), message: "no\u{1b}".to_owned(), detail: None };
            let failure = unread("mine", ConnectionError::Server(error));
            assert!(failure.code == code && failure.message.contains(word), "{failure:?}");
            assert!(!failure.message.contains('\u{1b}'), "{failure:?}");
        };
        check("55006", 69, "leave --slot out");
        check("42704", 78, "`mine`");
        check("55000", 78, "`mine`");
        check("53400", 69, "`mine`");
        assert_eq!(unread("mine", ConnectionError::Protocol("x".to_owned())).code, 69);
    }
}
