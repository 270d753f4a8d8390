//! Checks of the server itself: its version, its role, its log, and the function that emits events.

use super::probe::{PostgresFacts, PostgresProbe};
use crate::cmd::check::cost::RESTART;
use crate::cmd::check::finding::{Finding, Findings, Stage};
use crate::coherence::primary::PrimaryError;
use crate::install::ddl_notice;
use crate::install::emit::{self, EmitFunction};
use crate::install::setup::{DDL_NOTICE_COST, FUNCTION_COST};
use crate::install::step::PlannedStatement;
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
        if !rules.has_events() {
            return Ok(());
        }
        let found = emit::read(self.client).await?;
        let finding = found.fault().map(|fault| {
            let finding = Finding::error("emit-missing", format!("{}: {fault}", self.name))
                .why("applications emit events with it, and rules with `event` wait for them");
            match found {
                EmitFunction::Foreign => finding.fix("then run `unstale setup`"),
                _ => finding.fix("run `unstale setup`, or sql/emit.sql").statement(
                    Stage::Events,
                    emit::EMIT.trim_end(),
                    FUNCTION_COST,
                ),
            }
        });
        findings.pass_or("function unstale.emit", finding);
        Ok(())
    }

    /// Whether the daemon is told of DDL at once.
    pub(super) async fn ddl_notice(&self, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
        let found = ddl_notice::read(self.client).await?;
        if found.is_current {
            findings.pass("event triggers for DDL");
            return Ok(());
        }
        if !found.may_create {
            findings.pass(format!("event triggers for DDL: none; {}", ddl_notice::WITHOUT_DDL_NOTICE));
            return Ok(());
        }
        let what = if found.is_installed() { "are not those of this version" } else { "are missing" };
        let finding = Finding::warning("ddl-notice", format!("{}: the event triggers for DDL {what}", self.name))
            .why("without them the daemon notices a changed table up to two seconds later")
            .fix("run `unstale setup`, or sql/ddl_notice.sql as superuser")
            .planned(Stage::Events, PlannedStatement::new(ddl_notice::DDL_NOTICE.trim_end(), DDL_NOTICE_COST));
        findings.add(finding);
        Ok(())
    }
}
