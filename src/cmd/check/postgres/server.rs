//! Checks of the server itself: its version, its role, its log, and the function that emits events.

use super::probe::{PostgresFacts, PostgresProbe};
use crate::cmd::check::cost::RESTART;
use crate::cmd::check::finding::{Finding, Findings, Stage};
use crate::coherence::primary::PrimaryError;
use crate::install::emit::EMIT;
use crate::rules::RuleSet;

/// The major versions that are supported.
const OLDEST: i32 = 15;
const NEWEST: i32 = 18;

impl PostgresProbe<'_> {
    /// Whether the version supports the other checks.
    pub(super) fn version(&self, findings: &mut Findings) -> bool {
        let PostgresFacts { version, version_text, .. } = &self.facts;
        let name = &self.name;
        if *version < OLDEST {
            let message = format!("{name} is version {version_text}; at least {OLDEST} is needed");
            findings.add(
                Finding::error("postgres-version", message)
                    .why("older versions lack features of publications and slots that unstale uses")
                    .fix("upgrade PostgreSQL"),
            );
            return false;
        }
        let newer = (*version > NEWEST).then(|| {
            let message = format!("{name} is version {version_text}; unstale is tested up to {NEWEST}");
            Finding::warning("postgres-version", message)
                .why("it may work, but it is not tested")
                .fix("upgrade unstale")
        });
        findings.pass_or(format!("version {version_text}"), newer);
        true
    }

    pub(super) fn is_primary(&self, findings: &mut Findings) -> bool {
        if self.facts.standby {
            let message = format!("{}: {}", self.name, PrimaryError::Standby);
            let why = "replication was not checked";
            findings.add(Finding::configuration("postgres-standby", message).why(why));
        }
        !self.facts.standby
    }

    pub(super) fn log(&self, findings: &mut Findings) {
        let level = &self.facts.wal_level;
        let finding = (level != "logical").then(|| {
            Finding::error("wal-level", format!("{} runs with wal_level = {level}", self.name))
                .why("PostgreSQL logs what changed in a row only with wal_level = logical")
                .fix("run this and restart PostgreSQL; a managed server has its own setting for it:")
                .statement(Stage::Settings, "ALTER SYSTEM SET wal_level = 'logical';", RESTART)
        });
        findings.pass_or(format!("wal_level {level}"), finding);
    }

    /// Whether applications can emit the events of the rules.
    pub(super) async fn events(&self, rules: &RuleSet, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
        const INSTALLED: &str = "select exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace \
             where n.nspname = 'unstale' and p.proname = 'emit' and oidvectortypes(p.proargtypes) = 'text, jsonb' \
             and p.prosrc like '%pg_logical_emit_message%')";
        if !rules.has_events() {
            return Ok(());
        }
        let installed: bool = self.client.query_one(INSTALLED, &[]).await?.get(0);
        let finding = (!installed).then(|| {
            let message = format!("{} has no function unstale.emit(text, jsonb) that writes to the log", self.name);
            Finding::error("emit-missing", message)
                .why("applications emit events with it, and rules with `event` wait for them")
                .fix("run `unstale setup`, or sql/emit.sql")
                .statement(Stage::Events, EMIT.trim_end(), "locks nothing; creates a schema and a function in it")
        });
        findings.pass_or("function unstale.emit", finding);
        Ok(())
    }
}
