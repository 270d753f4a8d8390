//! Whether the slot exists and is healthy, and whether it may fill the disk or lose log that it
//! needs.
//!
//! Owns these checks. It must not move or drop a slot. Invariant: what a version of PostgreSQL does
//! not have is not a finding.

use std::collections::HashMap;

use serde::Deserialize;

use super::probe::PostgresProbe;
use crate::cmd::check::cost::RELOAD;
use crate::cmd::check::finding::{Finding, Findings, Stage};
use crate::cmd::display::size;
use crate::cmd::preflight::history;
use crate::install::slot;

/// More log than this kept for the slot is a finding, in bytes.
const RETAINED_MAX: i64 = 1 << 30;

/// The slot as JSON, because its columns differ between versions; how much log is kept for it; the
/// database.
const SLOT: &str = "select to_jsonb(s)::text, pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::int8, \
     current_database()::text from pg_replication_slots s where slot_name = $1";

const SETTINGS: &str = "select name, setting from pg_settings where name in ('max_slot_wal_keep_size', \
     'max_wal_size', 'idle_replication_slot_timeout', 'synchronized_standby_slots')";

/// The columns of `pg_replication_slots` that are checked. Older versions lack some.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SlotRow {
    plugin: Option<String>,
    database: Option<String>,
    active: bool,
    wal_status: Option<String>,
    invalidation_reason: Option<String>,
    failover: Option<bool>,
}

impl PostgresProbe<'_> {
    pub(super) async fn slot(&self, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
        let rows = self.client.query(SETTINGS, &[]).await?;
        let settings: HashMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let row = self.client.query_opt(SLOT, &[&self.settings.slot]).await?;
        let Some(row) = row else {
            findings.add(match history::is_remembered(self.settings, self.client).await? {
                true => self.slot_gone(),
                false => self.no_slot(),
            });
            self.limits(&settings, findings);
            return Ok(());
        };
        let slot: SlotRow = serde_json::from_str(row.get(0)).unwrap_or_default();
        let retained = row.get::<_, Option<i64>>(1).unwrap_or(0);
        if let Some(finding) = self.other_owner(&slot, row.get(2)).or_else(|| self.unusable(&slot)) {
            findings.add(finding);
        } else {
            let state = if slot.active { "being read" } else { "not being read" };
            findings.pass(format!("slot {}: {state}", self.settings.slot));
            let found = self.endangered(&slot).or_else(|| self.retains(&slot, retained));
            findings.pass_or(format!("log kept for the slot: {}", size(retained)), found);
            let standbys = settings.get("synchronized_standby_slots").is_some_and(|slots| !slots.is_empty());
            if standbys && slot.failover == Some(false) {
                findings.add(self.left_behind());
            }
        }
        self.limits(&settings, findings);
        Ok(())
    }

    fn create(&self) -> String {
        slot::create(&self.settings.slot, self.facts.version)
    }

    fn no_slot(&self) -> Finding {
        let slot = &self.settings.slot;
        Finding::error("slot-missing", format!("{} has no replication slot `{slot}`", self.name))
            .why("the slot is how PostgreSQL knows which changes were invalidated")
            .fix("`unstale setup` creates it, or run this:")
            .statement(Stage::Slot, self.create(), format!("{}; does nothing before wal_level is logical", slot::COST))
    }

    /// The slot was there when the daemon ran.
    fn slot_gone(&self) -> Finding {
        let slot = &self.settings.slot;
        let message = format!("{} has no replication slot `{slot}`, which a daemon has read", self.name);
        Finding::warning("slot-missing", message)
            .why("what was committed since it was dropped cannot be read any more")
            .fix("`unstale run` creates it and empties the cache")
    }

    fn other_owner(&self, slot: &SlotRow, database: &str) -> Option<Finding> {
        let plugin = slot.plugin.as_deref().unwrap_or("none");
        let owner = slot.database.as_deref().unwrap_or("none");
        if plugin == "pgoutput" && owner == database {
            return None;
        }
        let name = &self.settings.slot;
        let message = format!("{}: the slot `{name}` belongs to database {owner} and plugin {plugin}", self.name);
        let finding = Finding::configuration("slot-owner", message);
        Some(finding.why("another application uses it").fix("choose another name for source.slot"))
    }

    fn unusable(&self, slot: &SlotRow) -> Option<Finding> {
        if slot.wal_status.as_deref() != Some("lost") {
            return None;
        }
        let name = &self.settings.slot;
        let reason = slot.invalidation_reason.as_deref().map_or_else(String::new, |reason| format!(" ({reason})"));
        let finding = Finding::error("slot-lost", format!("{}: the slot `{name}` is lost{reason}", self.name))
            .why("PostgreSQL removed log that it needs: changes were missed, so the cache will be emptied once")
            .fix("`unstale run` replaces it by itself; or run this:")
            .statement(
                Stage::Slot,
                format!("SELECT pg_drop_replication_slot('{name}');"),
                "locks nothing; the next `unstale run` begins a new epoch, which empties the cache",
            )
            .statement(Stage::Slot, self.create(), "waits until every running transaction has ended");
        Some(finding)
    }

    fn endangered(&self, slot: &SlotRow) -> Option<Finding> {
        if slot.wal_status.as_deref() != Some("unreserved") {
            return None;
        }
        let name = &self.settings.slot;
        let message = format!("{}: the slot `{name}` is about to be lost", self.name);
        let finding = Finding::warning("slot-endangered", message)
            .why("it is further behind than max_slot_wal_keep_size allows; when it is lost, the cache is emptied")
            .fix("start `unstale run` at once, or raise max_slot_wal_keep_size, which takes effect with a reload");
        Some(finding)
    }

    fn retains(&self, slot: &SlotRow, retained: i64) -> Option<Finding> {
        if retained <= RETAINED_MAX {
            return None;
        }
        let name = &self.settings.slot;
        let message = format!("{}: PostgreSQL keeps {} of log for the slot `{name}`", self.name, size(retained));
        let fix = match slot.active {
            true => "see in the log of `unstale run` what it waits for",
            false => "start `unstale run`, or remove the slot with `unstale teardown`",
        };
        let why = "the log fills the disk, and the cache is as far behind";
        Some(Finding::warning("slot-lag", message).why(why).fix(fix))
    }

    fn left_behind(&self) -> Finding {
        let slot = &self.settings.slot;
        let message = format!("{}: the slot `{slot}` does not survive a failover", self.name);
        let connection = format!("replication=database dbname={}", self.settings.postgres.database);
        let command = format!("ALTER_REPLICATION_SLOT {slot} (FAILOVER true)");
        Finding::warning("slot-failover", message)
            .why("standbys synchronize slots, but not this one, so the cache is emptied after a failover")
            .fix(format!("stop `unstale run`, then: psql '{connection}' -c '{command}'"))
    }

    /// Settings with which a slot that is not read fills the disk, or is lost too early.
    fn limits(&self, settings: &HashMap<String, String>, findings: &mut Findings) {
        let megabytes = |name: &str| settings.get(name).and_then(|value| value.parse::<i64>().ok());
        let keep = megabytes("max_slot_wal_keep_size").unwrap_or(-1);
        let checkpoint = megabytes("max_wal_size").unwrap_or(0);
        let finding = if keep < 0 {
            let message = format!("{} keeps log for slots without limit (max_slot_wal_keep_size = -1)", self.name);
            let finding = Finding::warning("slot-unlimited", message)
                .why("a slot that is no longer read fills the disk, and PostgreSQL stops")
                .fix("set how much the disk can hold; beyond that, the slot is lost and the cache is emptied once:");
            Some(finding.statement(Stage::Settings, "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB';", RELOAD))
        } else if keep < checkpoint {
            let message = format!("{} keeps only {keep} MB of log for slots (max_slot_wal_keep_size)", self.name);
            let finding = Finding::warning("slot-limit", message)
                .why("as much may be written between two checkpoints, so the slot is lost if unstale is down for minutes")
                .fix("raise it above max_wal_size:");
            let statement = format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{}MB';", checkpoint.saturating_mul(10));
            Some(finding.statement(Stage::Settings, statement, RELOAD))
        } else {
            None
        };
        findings.pass_or(format!("max_slot_wal_keep_size {keep} MB"), finding);
        let idle = settings.get("idle_replication_slot_timeout").filter(|timeout| *timeout != "0");
        if let Some(timeout) = idle {
            let message = format!("{} invalidates slots that are not read for {timeout} s", self.name);
            let finding = Finding::warning("slot-timeout", message)
                .why("if unstale is down for longer, its slot is lost and the cache is emptied once")
                .fix("set idle_replication_slot_timeout longer than any maintenance takes");
            findings.add(finding);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_of_any_version_is_read() {
        let older =
            r#"{"plugin": "pgoutput", "database": "d", "active": true, "wal_status": "reserved", "xmin": null}"#;
        let slot: SlotRow = serde_json::from_str(older).unwrap();
        assert!(slot.active && slot.failover.is_none() && slot.invalidation_reason.is_none(), "{slot:?}");
        let newer = r#"{"plugin": null, "active": false, "failover": false, "invalidation_reason": "wal_removed"}"#;
        let slot: SlotRow = serde_json::from_str(newer).unwrap();
        assert_eq!((slot.failover, slot.invalidation_reason.as_deref()), (Some(false), Some("wal_removed")));
    }
}
