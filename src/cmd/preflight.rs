//! What must hold before anything is installed or run: the rules fit the database.
//!
//! Shared by `check`, `setup` and `run`, so that all three refuse the same things.

use tokio_postgres::Client;

use super::{Failure, Loaded};
use crate::catalog::Catalog;
use crate::coherence::primary::PrimaryError;
use crate::config::{Mode, Problems};
use crate::install::outbox;
use crate::postgres;
use crate::postgres::catalog;
use crate::rules::{Capture, RuleSet, Widening};

/// A file and the database it was compared with.
pub(super) struct Compared {
    pub(super) client: Client,
    /// The rules with every table's schema filled in.
    pub(super) rules: RuleSet,
    /// The identities that are too narrow; [`Compared::require_identities`] makes them a failure.
    pub(super) widenings: Vec<Widening>,
    /// What the triggers of an outbox have to write down; nothing in slot mode.
    pub(super) captures: Vec<Capture>,
    problems: Problems,
}

/// Reads the catalog; unknown tables and columns, and tables that are never logged, are a failure.
pub(super) async fn compare(loaded: &Loaded) -> Result<Compared, Failure> {
    let client = postgres::connect(&loaded.settings.postgres).await?;
    client.batch_execute(postgres::SESSION).await?;
    if client.query_one("select pg_is_in_recovery()", &[]).await?.get(0) {
        return Err(Failure::configuration(format!("{}: {}", loaded.settings.postgres, PrimaryError::Standby)));
    }
    let catalog: Catalog = catalog::read(&client).await?;
    let mut problems = Problems::default();
    let rules = loaded.rules.clone().resolve(&catalog, &mut problems);
    let mode = loaded.settings.mode;
    if mode == Mode::Slot {
        rules.check_logged(&catalog, &mut problems);
    }
    rules.check_lookups(&client, &mut problems).await?;
    if !problems.is_empty() {
        problems.sort();
        return Err(loaded.failure(&problems));
    }
    let (widenings, captures) = match mode {
        Mode::Slot => (rules.check_identities(&catalog, &mut problems), Vec::new()),
        // Triggers see the whole row before, also of a table that is not in the log.
        Mode::Outbox => (Vec::new(), rules.captures(&catalog)),
    };
    problems.sort();
    Ok(Compared { client, rules, widenings, captures, problems })
}

impl Compared {
    /// Fails if a key needs an old value that the log does not carry.
    pub(super) fn require_identities(&self, loaded: &Loaded) -> Result<(), Failure> {
        if self.problems.is_empty() { Ok(()) } else { Err(loaded.failure(&self.problems)) }
    }

    /// Fails if what `setup` makes is not what the rules need.
    pub(super) async fn require_setup(&self, loaded: &Loaded) -> Result<(), Failure> {
        match loaded.settings.mode {
            Mode::Slot => self.require_slot(loaded).await,
            Mode::Outbox => self.require_outbox(loaded).await,
        }
    }

    /// Fails if the outbox is missing or somebody else's, or the triggers of a table are not what its rules need.
    /// Triggers that no rule needs are no reason.
    async fn require_outbox(&self, loaded: &Loaded) -> Result<(), Failure> {
        let events = self.rules.has_events();
        let comparison = outbox::compare(&self.client, &loaded.settings, &self.captures, events).await?;
        if let Some(other) = comparison.other_consumer {
            return Err(Failure::configuration(outbox::InstallError::OtherConsumer(other).to_string()));
        }
        if let Some(column) = comparison.invisible.into_iter().next() {
            return Err(Failure::configuration(outbox::InstallError::Invisible(column).to_string()));
        }
        let needed =
            comparison.differences.into_iter().filter(|difference| difference.part != outbox::OutboxPart::Surplus);
        let (minor, needed): (Vec<_>, Vec<_>) = needed.partition(|difference| difference.is_minor);
        for difference in minor {
            tracing::warn!("{}; run `unstale setup`", difference.wrong.join("; "));
        }
        let wrong: Vec<String> = needed.into_iter().flat_map(|difference| difference.wrong).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Failure::configuration(format!("{}; run `unstale setup`", wrong.join("; "))))
    }

    /// Fails if the slot or the publication is missing, or the publication does not carry a table.
    async fn require_slot(&self, loaded: &Loaded) -> Result<(), Failure> {
        const STATE: &str = "select exists (select from pg_replication_slots where slot_name = $1), \
             (select array_agg(schemaname || '.' || tablename) from pg_publication_tables where pubname = $2), \
             (select pubviaroot from pg_publication where pubname = $2), current_setting('wal_level')";
        let settings = &loaded.settings;
        let row = self.client.query_one(STATE, &[&settings.slot, &settings.publication]).await?;
        if row.get::<_, &str>(3) != "logical" {
            let message = "PostgreSQL runs with wal_level below `logical`: run ALTER SYSTEM SET wal_level = logical and restart it";
            return Err(Failure::configuration(message));
        }
        let mut missing = Vec::new();
        const DIVERTED: &str = "select exists (select from pg_proc where oid = to_regprocedure('unstale.emit(text, jsonb)') \
             and prosrc like '%unstale.outbox%')";
        if self.rules.has_events() && self.client.query_one(DIVERTED, &[]).await?.get(0) {
            missing.push("unstale.emit writes to an outbox".to_owned());
        }
        if !row.get::<_, bool>(0) {
            missing.push(format!("there is no replication slot `{}`", settings.slot));
        }
        if row.get::<_, Option<bool>>(2).is_none() {
            missing.push(format!("there is no publication `{}`", settings.publication));
        } else {
            let carried: Vec<String> = row.get::<_, Option<_>>(1).unwrap_or_default();
            for table in self.uncarried(&carried).await? {
                missing.push(format!("the publication `{}` does not carry table {table}", settings.publication));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(Failure::configuration(format!("{}; run `unstale setup`", missing.join("; "))))
    }

    /// The rules' tables of which the publication carries nothing: neither they nor any partition.
    async fn uncarried(&self, carried: &[String]) -> Result<Vec<String>, Failure> {
        const LEAVES: &str = "select n.nspname || '.' || c.relname from pg_partition_tree($1::text::regclass) t \
             join pg_class c on c.oid = t.relid join pg_namespace n on n.oid = c.relnamespace where t.isleaf";
        let mut uncarried = Vec::new();
        for table in self.rules.tables() {
            if carried.contains(&table.to_string()) {
                continue;
            }
            let rows = self.client.query(LEAVES, &[&crate::catalog::quote_table(table)]).await?;
            let leaves: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            if leaves.is_empty() || !leaves.iter().all(|leaf| carried.contains(leaf)) {
                uncarried.push(table.to_string());
            }
        }
        Ok(uncarried)
    }
}
