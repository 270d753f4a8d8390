//! Which dataset a Redis server holds, and the time by its clock.
//!
//! Owns how the replies to `INFO` and `TIME` are read. It must not know what is proven of a
//! dataset. Invariants: a replica is not taken for a primary; the clock never runs ahead of the
//! server's.

use std::time::{Duration, Instant};

use redis::{Cmd, ErrorKind, RedisError, Value};

/// A dataset. Another process, or another replication history, may hold other values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dataset {
    run_id: String,
    replication_id: String,
    /// The server was a replica: its history goes back to another server's.
    inherited: bool,
}

/// The command whose reply [`Dataset::parse`] reads.
pub(super) fn info() -> Cmd {
    let mut info = redis::cmd("INFO");
    info.arg("server").arg("replication");
    info
}

/// The command whose reply [`RedisClock::parse`] reads.
pub(super) fn time() -> Cmd {
    redis::cmd("TIME")
}

impl Dataset {
    /// Reads the text of `INFO`.
    ///
    /// # Errors
    ///
    /// `READONLY` if the server is a replica.
    pub(super) fn parse(info: &str) -> Result<Self, RedisError> {
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        if field("role") == "slave" {
            return Err(RedisError::from((
                ErrorKind::Server(redis::ServerErrorKind::ReadOnly),
                "READONLY",
                "this is a replica".to_owned(),
            )));
        }
        let inherited = field("master_replid2").bytes().any(|byte| byte != b'0');
        Ok(Self { run_id: field("run_id"), replication_id: field("master_replid"), inherited })
    }

    /// Reads the reply to [`info`].
    ///
    /// # Errors
    ///
    /// The reply is not text, or [`Dataset::parse`] refuses it.
    pub(super) fn from_reply(reply: &Value) -> Result<Self, RedisError> {
        Self::parse(&redis::from_redis_value_ref::<String>(reply)?)
    }

    /// The id of the server process.
    pub(super) fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Whether it holds what `earlier` held a moment ago and what was written since. A server takes
    /// a new replication id when it gets its first replica, and when it had none for
    /// `repl-backlog-ttl`. A server that was a replica also keeps the id of its former primary.
    pub(super) fn continues(&self, earlier: &Self) -> bool {
        self.run_id == earlier.run_id && (self.replication_id == earlier.replication_id || !self.inherited)
    }
}

/// The clock of Redis, as it was read last.
#[derive(Clone, Copy, Debug)]
pub(super) struct RedisClock {
    millis: u64,
    read: Instant,
}

impl RedisClock {
    /// Reads the reply to [`time`]. The server read its clock before the reply arrived, so the
    /// clock is never ahead.
    pub(super) fn parse(reply: &Value) -> Result<Self, RedisError> {
        let (seconds, micros): (u64, u64) = redis::from_redis_value_ref(reply)?;
        Ok(Self { millis: seconds * 1000 + micros / 1000, read: Instant::now() })
    }

    /// The time of the server at a moment of this process, in milliseconds since 1970.
    pub(super) fn at(self, moment: Instant) -> u64 {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        match moment.checked_duration_since(self.read) {
            Some(later) => self.millis.saturating_add(millis(later)),
            None => self.millis.saturating_sub(millis(self.read - moment).saturating_add(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dataset_is_identified_by_its_process_and_its_history() {
        let info = |role: &str, [run_id, replid, replid2]: [&str; 3]| {
            format!(
                "# Server\r\nrun_id:{run_id}\r\n# Replication\r\nrole:{role}\r\nmaster_replid:{replid}\r\nmaster_replid2:{replid2}\r\n"
            )
        };
        let dataset = |ids| Dataset::parse(&info("master", ids)).unwrap();
        let first = dataset(["a", "1", "0000"]);
        assert_eq!(first, Dataset { run_id: "a".to_owned(), replication_id: "1".to_owned(), inherited: false });
        assert!(dataset(["a", "1", "0000"]).continues(&first));
        assert!(dataset(["a", "2", "0000"]).continues(&first), "its first replica");
        assert!(!dataset(["a", "2", "f000"]).continues(&first), "it was a replica in between");
        assert!(!dataset(["b", "1", "0000"]).continues(&first), "another process");
        let error = Dataset::parse(&info("slave", ["a", "1", "0000"])).unwrap_err();
        assert_eq!(error.code(), Some("READONLY"));
    }

    #[test]
    fn the_clock_never_runs_ahead() {
        let read = Instant::now();
        let clock = RedisClock { millis: 10_000, read };
        assert_eq!(clock.at(read), 10_000);
        assert_eq!(clock.at(read + Duration::from_millis(250)), 10_250);
        assert_eq!(clock.at(read - Duration::from_micros(10_500)), 9_989);
    }
}
