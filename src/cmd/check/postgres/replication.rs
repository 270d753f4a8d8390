//! Whether the log can be streamed: free slots and WAL senders, the role's privilege, and a
//! replication connection.
//!
//! Owns these checks. It must not start to stream. Invariant: what counts is whether a replication
//! connection opens; attributes of the role only explain why it does not.

use std::time::Duration;

use super::probe::PostgresProbe;
use crate::catalog::quote;
use crate::cmd::check::cost::RESTART;
use crate::cmd::check::finding::{Finding, Findings, Stage};
use crate::cmd::failure::with_causes;
use crate::coherence::primary::INSTANCE;
use crate::postgres::ConnectError;
use crate::source::replication::connection::Connection;

/// How long the replication connection may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// How much a full setting is raised.
const MORE: i32 = 4;

/// SQLSTATE: the role lacks a privilege.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

impl PostgresProbe<'_> {
    pub(super) async fn replication(&self, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
        const OURS: &str = "select count(*) > 0, coalesce(bool_or(active), false) from pg_replication_slots \
             where slot_name = $1";
        let ours = self.client.query_one(OURS, &[&self.settings.slot]).await?;
        let (exists, active): (bool, bool) = (ours.get(0), ours.get(1));
        let facts = &self.facts;
        let slots = (!exists && facts.slots >= facts.slots_max).then(|| {
            self.full("replication-slots", "max_replication_slots", facts.slots_max)
                .why("unstale needs a slot of its own")
                .fix("drop a slot that is not used (see pg_replication_slots), or run this and restart PostgreSQL:")
        });
        findings.pass_or(format!("replication slots: {} of {} in use", facts.slots, facts.slots_max), slots);
        if !active && facts.senders >= facts.senders_max {
            findings.add(
                self.full("wal-senders", "max_wal_senders", facts.senders_max)
                    .why("a WAL sender process streams the log")
                    .fix("run this and restart PostgreSQL:"),
            );
            return Ok(());
        }
        findings.pass(format!("WAL senders: {} of {} in use", facts.senders, facts.senders_max));
        let instance: String = self.client.query_one(INSTANCE, &[]).await?.get(0);
        match tokio::time::timeout(ANSWER_MAX, self.stream(&instance)).await {
            Ok(Ok(passed)) => findings.pass(passed),
            Ok(Err(finding)) => findings.add(*finding),
            Err(_) => findings.add(self.unstreamed("it does not answer in time")),
        }
        Ok(())
    }

    fn full(&self, id: &'static str, setting: &str, most: i32) -> Finding {
        let statement = format!("ALTER SYSTEM SET {setting} = {};", most.saturating_add(MORE));
        let message = format!("{}: {setting} = {most}, and all are in use", self.name);
        Finding::error(id, message).statement(Stage::Settings, statement, RESTART)
    }

    /// Opens a replication connection and asks which server answers.
    async fn stream(&self, instance: &str) -> Result<String, Box<Finding>> {
        let refused = |text: String| Box::new(self.unstreamed(&text));
        let mut connection = match Connection::open(self.address).await {
            Ok(connection) => connection,
            Err(ConnectError::Refused(error)) if error.sqlstate == INSUFFICIENT_PRIVILEGE => {
                return Err(Box::new(self.unprivileged()));
            }
            Err(error) => return Err(refused(with_causes(&error))),
        };
        let system = connection.query("IDENTIFY_SYSTEM").await.map_err(|error| refused(with_causes(&error)))?;
        let found = connection.query(INSTANCE).await.map_err(|error| refused(with_causes(&error)))?;
        let found = found.into_iter().flatten().flatten().next().unwrap_or_default();
        if found != instance {
            let message = format!("{}: source.url leads to more than one server", self.name);
            let finding = Finding::configuration("other-server", message)
                .why("unstale must ask the server that sends the log which commits are visible")
                .fix("name the servers one by one in source.url, and add target_session_attrs=primary");
            return Err(Box::new(finding));
        }
        let system: Vec<String> = system.into_iter().flatten().flatten().collect();
        let [identifier, timeline, ..] = &*system else {
            return Err(refused("IDENTIFY_SYSTEM returned no text".to_owned()));
        };
        Ok(format!("replication connection as role {}: system {identifier}, timeline {timeline}", self.facts.role))
    }

    fn unprivileged(&self) -> Finding {
        let role = quote(&self.facts.role);
        Finding::error("replication-privilege", format!("{}: the role {role} may not stream the log", self.name))
            .why("a slot is read over a replication connection, which needs a role with REPLICATION")
            .fix("run this as superuser; on Amazon RDS, grant the role rds_replication instead:")
            .statement(
                Stage::Role,
                format!("ALTER ROLE {role} REPLICATION;"),
                "locks nothing; takes effect with the next connection",
            )
    }

    fn unstreamed(&self, reason: &str) -> Finding {
        let message = format!("{} accepts SQL but no replication connection: {reason}", self.name);
        Finding::error("replication-connection", message)
            .why("the log is streamed over a replication connection, which no connection pooler supports")
            .fix("point source.url at PostgreSQL itself, and let pg_hba.conf accept the role and the database from this machine")
    }
}
