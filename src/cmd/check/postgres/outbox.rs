//! Whether the outbox is what the rules need, and whether it is written, emptied and vacuumed.
//!
//! Owns these checks; [`outbox::compare`] compares what must be installed. It must not remove an
//! entry. Invariant: triggers that no rule needs are a warning, never an error.

use super::probe::PostgresProbe;
use crate::catalog::{Catalog, quote};
use crate::cmd::check::cost::{AT_ONCE, RELOAD, RESTART};
use crate::cmd::check::finding::{Finding, Findings, Stage};
use crate::install::error::InstallError;
use crate::install::outbox::{self, OutboxDifference, OutboxPart, locks};
use crate::rules::RuleSet;

/// An entry older than this is a finding, in seconds.
const AGE_MAX: i64 = 60;

/// More entries than this are not counted.
const ENTRIES_COUNTED: i64 = 1_000_000;

/// A notification queue that is fuller than this is a finding. Above a half, writers stop
/// notifying.
const QUEUE_MAX: f64 = 0.25;

/// The privileges that the daemon needs on each object, as in GRANT, and whether the role has them
/// all.
const PRIVILEGES: &str = "with ours as (select oid from pg_namespace where nspname = 'unstale'), \
     wanted (name, privileges) as (values ('outbox', 'SELECT, INSERT, UPDATE, DELETE'), ('consumer', 'SELECT, UPDATE'), \
       ('shape', 'SELECT'), ('bell', 'USAGE, SELECT, UPDATE'), ('outbox_id_seq', 'SELECT'), ('counted', 'SELECT, UPDATE')) \
     select 'USAGE ON SCHEMA unstale', has_schema_privilege(oid, 'USAGE') from ours \
     union all select privileges || ' ON ' || case c.relkind when 'S' then 'SEQUENCE ' else '' end || 'unstale.' || name, \
       (select bool_and(case c.relkind when 'S' then has_sequence_privilege(c.oid, p) else has_table_privilege(c.oid, p) end) \
          from unnest(string_to_array(privileges, ', ')) p) \
     from wanted join pg_class c on c.relname = name join ours on c.relnamespace = ours.oid";

impl PostgresProbe<'_> {
    pub(super) async fn outbox(
        &self,
        rules: &RuleSet,
        catalog: &Catalog,
        findings: &mut Findings,
    ) -> Result<(), tokio_postgres::Error> {
        let captures = rules.captures(catalog);
        let comparison = outbox::compare(self.client, self.settings, &captures, rules.has_events()).await?;
        if let Some(other) = comparison.other_consumer {
            let message = format!("{}: the outbox of this database belongs to `{other}`", self.name);
            let finding = Finding::configuration("outbox-consumer", message)
                .why("a database has one outbox: each of two consumers would miss what the other removes")
                .fix(InstallError::OtherConsumer(other).to_string());
            findings.add(finding);
            return Ok(());
        }
        for column in &comparison.invisible {
            let message = format!("{}: {}", self.name, InstallError::Invisible(column.clone()));
            findings.add(Finding::configuration("outbox-virtual-column", message).why("its keys would become stale"));
        }
        if comparison.foreign_emit {
            let message = format!("{}: {}", self.name, InstallError::ForeignEmit);
            let why = "applications emit events with it, and rules with `event` wait for them";
            findings.add(Finding::error("emit-missing", message).why(why));
        }
        let is_there = comparison.differences.iter().all(|difference| difference.part != OutboxPart::Base);
        for text in comparison.unchanged {
            findings.pass(text);
        }
        for difference in &comparison.differences {
            findings.add(self.different(difference));
        }
        if !is_there {
            return Ok(());
        }
        for owner in outbox::powerless_owners(self.client).await? {
            let message = format!("{}: the role {owner} owns triggers and may not write to the outbox", self.name);
            let finding = Finding::error("outbox-owner", message)
                .why("triggers run with the privileges of their owner, so every write to those tables fails")
                .statement(Stage::Role, format!("GRANT INSERT ON unstale.outbox TO {};", quote(&owner)), AT_ONCE);
            findings.add(finding);
        }
        if self.privileges(findings).await? {
            self.depth(findings).await?;
        }
        Ok(())
    }

    fn different(&self, difference: &OutboxDifference) -> Finding {
        let message = format!("{}: {}", self.name, difference.wrong.join("; "));
        let finding = match &difference.part {
            OutboxPart::Base => {
                Finding::error("outbox-missing", message).why("triggers have no table to write changes to")
            }
            OutboxPart::Events => Finding::error("emit-missing", message)
                .why("applications emit events with it, and rules with `event` wait for them"),
            OutboxPart::Consumer => {
                Finding::error("outbox-unclaimed", message).why("a database has one outbox, for one consumer")
            }
            OutboxPart::Table(_) => {
                Finding::error("outbox-triggers", message).why("a change that no trigger records is never invalidated")
            }
            OutboxPart::Surplus => {
                Finding::warning("outbox-surplus", message).why("they write entries that no rule needs")
            }
        };
        finding.fix("run `unstale setup`, or the script of `unstale check --sql`").statement(
            Stage::Outbox,
            difference.script(),
            difference.cost.clone(),
        )
    }

    /// Whether the role has the privileges that `run` needs.
    async fn privileges(&self, findings: &mut Findings) -> Result<bool, tokio_postgres::Error> {
        let role = quote(&self.facts.role);
        let mut lacking = Vec::new();
        for row in self.client.query(PRIVILEGES, &[]).await? {
            if row.get::<_, Option<bool>>(1) != Some(true) {
                lacking.push(row.get::<_, String>(0));
            }
        }
        let finding = (!lacking.is_empty()).then(|| {
            let message = format!("{}: the role {role} may not empty the outbox", self.name);
            let finding = Finding::error("outbox-privilege", message)
                .why("`unstale run` removes entries, counts them and sends wakeups")
                .fix("run this as the role that ran `unstale setup`, or run `unstale setup` as this role:");
            lacking.iter().fold(finding, |finding, lacking| {
                finding.statement(Stage::Role, format!("GRANT {lacking} TO {role};"), AT_ONCE)
            })
        });
        findings.pass_or(format!("outbox: the role {role} may empty it"), finding);
        Ok(lacking.is_empty())
    }

    /// How many entries are waiting, and for how long.
    async fn depth(&self, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
        const DEPTH: &str = "select (select count(*) from (select from unstale.outbox limit $1) counted), \
             coalesce(extract(epoch from clock_timestamp() - (select at from unstale.outbox order by id limit 1)), 0)::int8";
        let row = self.client.query_one(DEPTH, &[&(ENTRIES_COUNTED + 1)]).await?;
        let (entries, age): (i64, i64) = (row.get(0), row.get::<_, i64>(1).max(0));
        let count = match entries {
            ..=ENTRIES_COUNTED => entries.to_string(),
            _ => format!("more than {ENTRIES_COUNTED}"),
        };
        let finding = (age > AGE_MAX).then(|| {
            let message = format!("{}: {count} entries are waiting in the outbox, the oldest for {age} s", self.name);
            Finding::warning("outbox-lag", message)
                .why("the cache is as far behind, and the table grows")
                .fix("start `unstale run`, or see in its log what it waits for; if you no longer need it: `unstale teardown`")
        });
        let oldest = if entries == 0 { String::new() } else { format!(", the oldest {age} s old") };
        findings.pass_or(format!("outbox: {count} entries{oldest}"), finding);
        Ok(())
    }

    /// Whether writers can wake a daemon that is waiting.
    pub(super) async fn wakeups(&self, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
        const STATE: &str = "select current_setting('max_prepared_transactions')::int, pg_notification_queue_usage()";
        if !self.settings.notify {
            findings.pass("wakeups: off, the daemon polls every 100 ms");
            return Ok(());
        }
        let row = self.client.query_one(STATE, &[]).await?;
        let (prepared, usage): (i32, f64) = (row.get(0), row.get(1));
        let mut found = Vec::new();
        if prepared > 0 {
            let message = format!(
                "{} runs with max_prepared_transactions = {prepared}, so writers do not wake the daemon",
                self.name
            );
            let finding = Finding::warning("outbox-wakeup", message)
                .why("a transaction that notifies cannot be prepared; without a wakeup, an entry waits for up to 100 ms")
                .fix("set source.outbox.notify: false; or, if no application prepares transactions, run this and restart PostgreSQL:")
                .statement(Stage::Settings, "ALTER SYSTEM SET max_prepared_transactions = 0;", RESTART);
            found.push(finding);
        }
        if usage > QUEUE_MAX {
            let message = format!("{}: the notification queue is {:.0} % full", self.name, usage * 100.0);
            let finding = Finding::warning("notify-queue", message)
                .why("when it is full, every commit that notifies fails; above a half, the triggers stop notifying")
                .fix("end the session that listens and keeps a transaction open; see the oldest xact_start in pg_stat_activity");
            found.push(finding);
        }
        findings.pass_or("wakeups: writers wake a waiting daemon", found);
        Ok(())
    }

    /// Whether autovacuum frees the space of removed entries.
    pub(super) async fn vacuum(&self, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
        const VACUUM: &str = "select current_setting('autovacuum'), exists (select from pg_class c \
             join pg_namespace n on n.oid = c.relnamespace cross join unnest(c.reloptions) option \
             where n.nspname = 'unstale' and c.relname = 'outbox' \
               and option in ('autovacuum_enabled=false', 'autovacuum_enabled=off', 'autovacuum_enabled=0'))";
        let row = self.client.query_one(VACUUM, &[]).await?;
        let why = "removed entries stay in the table, so it grows, and each poll takes longer";
        let finding = if row.get::<_, &str>(0) != "on" {
            let finding = Finding::warning("autovacuum", format!("{} runs without autovacuum", self.name)).why(why);
            Some(finding.statement(Stage::Settings, "ALTER SYSTEM SET autovacuum = on;", RELOAD))
        } else if row.get::<_, bool>(1) {
            let message = format!("{}: autovacuum is disabled for unstale.outbox", self.name);
            let statement = "ALTER TABLE unstale.outbox RESET (autovacuum_enabled);";
            let cost = "locks the outbox briefly against other changes of its definition";
            Some(Finding::warning("autovacuum", message).why(why).statement(Stage::Role, statement, cost))
        } else {
            None
        };
        findings.pass_or("autovacuum of the outbox", finding);
        Ok(())
    }

    /// What slot mode left in this database.
    pub(super) async fn left_slot(&self, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
        const LEFT: &str = "select count(*) > 0, coalesce(bool_or(active), false), \
             exists (select from pg_publication where pubname = $2) \
             from pg_replication_slots where slot_name = $1 and plugin = 'pgoutput' and database = current_database()";
        let (slot, publication) = (&self.settings.slot, &self.settings.publication);
        let row = self.client.query_one(LEFT, &[slot, publication]).await?;
        // A daemon with another file reads the slot.
        if row.get(1) {
            return Ok(());
        }
        if row.get(0) {
            let message = format!("{} still has the replication slot `{slot}`", self.name);
            let finding = Finding::warning("slot-leftover", message)
                .why("with source.mode: outbox it is not read, and PostgreSQL keeps log for it until the disk is full")
                // No statement of the script: a daemon of another file may be down for a moment.
                .fix(format!("if no other file uses it, run SELECT pg_drop_replication_slot('{slot}');"));
            findings.add(finding);
        }
        if row.get(2) {
            let message = format!("{} still has the publication `{publication}`", self.name);
            let finding = Finding::warning("publication-leftover", message)
                .why("with source.mode: outbox it is not used")
                .fix(format!("if no other file uses it, run DROP PUBLICATION {};", quote(publication)));
            findings.add(finding);
        }
        Ok(())
    }

    /// What outbox mode left in this database.
    pub(super) async fn left_outbox(&self, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
        const WORKS: &str = "select exists (select from pg_locks where locktype = 'advisory' and granted \
             and database = (select oid from pg_database where datname = current_database()) \
             and classid = $1::int4::oid and objid = $2::int4::oid)";
        // A daemon with another file empties it.
        if self.client.query_one(WORKS, &[&locks::LOCKS, &locks::WORK]).await?.get(0) {
            return Ok(());
        }
        if outbox::is_ours(self.client, &self.settings.slot).await? {
            let message = format!("{} still has an outbox, or triggers that write to it", self.name);
            let finding = Finding::warning("outbox-leftover", message)
                .why("with source.mode: slot it is not emptied, and each write pays for it")
                .fix("if no other file uses it, remove it by `unstale teardown` with a file that has source.mode: outbox");
            findings.add(finding);
        }
        Ok(())
    }
}
