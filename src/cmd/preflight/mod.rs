//! What must hold before anything is installed or run: the file fits the database.
//!
//! Owns which mismatches stop `setup`, `run` and `serve`. [`catalog_fit`], [`cascades`],
//! [`folding`] and [`read_review`] hold what `check` finds by the same questions. Invariant:
//! nothing is changed in the database.

pub(super) mod cascades;
pub(super) mod catalog_fit;
pub(super) mod folding;
pub(super) mod history;
pub(super) mod read_review;

use indexmap::IndexMap;
use std::sync::Arc;

use tokio_postgres::Client;

use self::catalog_fit::CatalogFit;
use super::config_file::ConfigFile;
use super::failure::Failure;
use crate::catalog::{Catalog, QueryRelation, RelationKind, Table};
use crate::change::TableName;
use crate::coherence::primary::PrimaryError;
use crate::config::{Mode, Problems};
use crate::install::{emit, outbox};
use crate::lookups;
use crate::plan::Removal;
use crate::postgres;
use crate::postgres::catalog;
use crate::postgres::publication::Publication;
use crate::query;
use crate::reads::ReadSet;
use crate::rules::{Capture, Folding, Remedy, RuleSet, Widening};
use crate::watch::{Carrier, Watched, WatchedTable, WatchedView};

/// A database whose tables and lookups fit the rules.
pub(super) struct Preflight {
    pub(super) client: Client,
    /// The rules, with every table's schema filled in.
    pub(super) rules: RuleSet,
    /// The identities that are too narrow; [`Preflight::require_identities`] makes them a failure.
    pub(super) widenings: Vec<Widening>,
    /// What the triggers of an outbox have to record. Empty in slot mode.
    pub(super) captures: Vec<Capture>,
    /// How the database folds case.
    #[cfg(feature = "api")]
    pub(super) folding: Arc<Folding>,
    pub(super) catalog: Catalog,
    narrow: Problems,
}

impl Preflight {
    /// Compares a file with its database. Unknown tables and columns, tables that are never logged,
    /// and lookups that cannot be asked are a failure.
    pub(super) async fn compare(file: &ConfigFile) -> Result<Self, Failure> {
        let settings = &file.settings;
        let client = postgres::connect(&settings.postgres).await?;
        client.batch_execute(postgres::session::LONG_LIVED).await?;
        if client.query_one("select pg_is_in_recovery()", &[]).await?.get(0) {
            return Err(Failure::configuration(format!("{}: {}", settings.postgres, PrimaryError::Standby)));
        }
        let mut catalog: Catalog = catalog::read(&client).await?;
        catalog.limits = postgres::identity::read(&client, &catalog, &file.rules.tables()).await?;
        let CatalogFit { mut rules, unknown, unlogged, narrow, widenings } =
            CatalogFit::of(&file.rules, &catalog, settings.mode);
        let mut problems = unknown;
        problems.append(unlogged);
        lookups::check(&rules, &client, &mut problems).await?;
        if !problems.is_empty() {
            problems.sort();
            return Err(file.failure(&problems));
        }
        let folding = bind(&client, &catalog, &mut rules, &file.reads).await?;
        #[cfg(not(feature = "api"))]
        let _ = folding;
        let captures = match settings.mode {
            Mode::Slot => Vec::new(),
            Mode::Outbox => rules.captures(&catalog),
        };
        Ok(Self {
            client,
            rules,
            widenings,
            captures,
            #[cfg(feature = "api")]
            folding,
            catalog,
            narrow,
        })
    }

    /// What the daemon watches: the tables of the rules, and the materialized views of the reads.
    pub(super) async fn watched(&self, file: &ConfigFile) -> Result<Watched, Failure> {
        let known = |name: &TableName| self.catalog.find(name).map(|table| (name.clone(), table.id));
        let tables = self.rules.tables().into_iter().filter_map(known);
        let tables = tables.map(|(name, id)| WatchedTable { name, id }).collect();
        let mut views: IndexMap<TableName, Vec<Removal>> = IndexMap::new();
        for read in file.reads.reads() {
            let Ok(query) = query::analyse(&self.client, &read.sql.value).await? else { continue };
            let is_view = |relation: &&QueryRelation| relation.kind == RelationKind::MaterializedView;
            for view in query.relations.iter().filter(is_view) {
                views.entry(view.name.clone()).or_default().extend(read.removals());
            }
        }
        let carrier = match file.settings.mode {
            Mode::Slot => Carrier::Publication(file.settings.publication.clone()),
            Mode::Outbox => Carrier::Triggers {
                settings: Box::new(file.settings.clone()),
                captures: self.captures.clone(),
                events: self.rules.has_events(),
            },
        };
        let views = views.into_iter().map(|(name, removals)| WatchedView { name, removals }).collect();
        Ok(Watched { tables, views, carrier })
    }

    /// Fails if a key needs an old value that the log does not carry. A partition or child that
    /// came after `setup` is no reason: what is not known of its rows is deleted by pattern. The
    /// triggers of an outbox record the whole old row.
    pub(super) fn require_identities(&self, file: &ConfigFile) -> Result<(), Failure> {
        for widening in &self.widenings {
            if let Remedy::Nothing(reason) = &widening.remedy {
                tracing::warn!(table = %widening.table, "rules delete by pattern what they do not know: {reason}");
            }
        }
        if self.narrow.is_empty() {
            return Ok(());
        }
        let mut refused = Problems::default();
        let tables = self.catalog.tables.iter().cloned().map(Table::with_widest_identity).collect();
        let widest = Catalog { tables, ..self.catalog.clone() };
        self.rules.check_identities(&widest, &mut refused);
        if !refused.is_empty() {
            return Err(file.failure(&self.narrow));
        }
        for widening in self.widenings.iter().filter(|widening| !matches!(widening.remedy, Remedy::Nothing(_))) {
            tracing::warn!(
                table = %widening.table,
                "partitions or children log less of the old row than the rules need, so their changes delete by \
                 pattern; run `unstale setup` to widen their replica identity"
            );
        }
        Ok(())
    }

    /// Fails if what `setup` creates is not what the rules need.
    pub(super) async fn require_setup(&self, file: &ConfigFile) -> Result<(), Failure> {
        match file.settings.mode {
            Mode::Slot => self.require_slot(file).await,
            Mode::Outbox => self.require_outbox(file).await,
        }
    }

    /// Fails if a read does not fit the database, or could serve values that no rule removes.
    #[cfg(feature = "api")]
    pub(super) async fn require_reads(&self, file: &ConfigFile) -> Result<(), Failure> {
        let mut problems = Problems::default();
        for read in file.reads.reads() {
            let review = read_review::ReadReview::of(&self.client, file, &self.rules, read).await?;
            problems.append(review.problems);
            for lint in review.lints.into_iter().filter(|lint| lint.certain) {
                problems.push(lint.span, lint.message, lint.fix);
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort();
        Err(file.failure(&problems))
    }

    /// Fails if the outbox is missing or belongs to another consumer, or if the triggers of a table
    /// are not what its rules need. Triggers that no rule needs are not a failure.
    async fn require_outbox(&self, file: &ConfigFile) -> Result<(), Failure> {
        let events = self.rules.has_events();
        let comparison = outbox::compare(&self.client, &file.settings, &self.captures, events).await?;
        comparison.require_possible().map_err(|error| Failure::configuration(error.to_string()))?;
        let needed =
            comparison.differences.into_iter().filter(|difference| difference.part != outbox::OutboxPart::Surplus);
        let (minor, needed): (Vec<_>, Vec<_>) = needed.partition(|difference| difference.is_minor);
        for difference in minor {
            tracing::warn!("{}; run `unstale setup`", difference.wrong.join("; "));
        }
        require_none(needed.into_iter().flat_map(|difference| difference.wrong).collect())
    }

    /// Fails if the slot or the publication is missing, or if the publication does not carry a
    /// table. A slot that was there when the daemon ran is created again by the daemon.
    async fn require_slot(&self, file: &ConfigFile) -> Result<(), Failure> {
        const STATE: &str = "select exists (select from pg_replication_slots where slot_name = $1), \
             current_setting('wal_level')";
        let settings = &file.settings;
        let row = self.client.query_one(STATE, &[&settings.slot]).await?;
        if row.get::<_, &str>(1) != "logical" {
            let message = "PostgreSQL runs with wal_level below `logical`; run ALTER SYSTEM SET wal_level = logical, and restart it";
            return Err(Failure::configuration(message));
        }
        let mut missing = Vec::new();
        if self.rules.has_events() {
            missing.extend(emit::read(&self.client).await?.fault().map(ToOwned::to_owned));
        }
        if !row.get::<_, bool>(0) && !history::is_remembered(settings, &self.client).await? {
            missing.push(format!("there is no replication slot `{}`", settings.slot));
        }
        match Publication::read(&self.client, &settings.publication).await? {
            None => missing.push(format!("there is no publication `{}`", settings.publication)),
            Some(publication) => {
                for table in self.rules.tables().into_iter().filter_map(|name| self.catalog.find(name)) {
                    let faults = publication.faults(&settings.publication, table);
                    // What came after `setup` is deleted by pattern again and again, and said.
                    let is_new = faults.len() == 1 && table.members.len() > 1 && publication.carries_some(table);
                    if !is_new || publication.narrows(table) || !publication.every_change {
                        missing.extend(faults);
                    }
                }
                missing.dedup();
            }
        }
        require_none(missing)
    }
}

/// Tells the rules what only the database says: whose lookups a delete leaves without an answer,
/// and how it folds case. Returns the latter.
pub(super) async fn bind(
    client: &Client,
    catalog: &Catalog,
    rules: &mut RuleSet,
    reads: &ReadSet,
) -> Result<Arc<Folding>, tokio_postgres::Error> {
    for cascade in cascades::find(client, catalog, rules).await? {
        rules.void_on_delete(cascade.rule);
    }
    let folding = Arc::new(folding::ask(client, catalog, rules, reads).await?);
    rules.fold_as(&folding);
    Ok(folding)
}

/// Fails if `setup` has something to create or to change.
fn require_none(missing: Vec<String>) -> Result<(), Failure> {
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Failure::configuration(format!("{}; run `unstale setup`", missing.join("; ")))),
    }
}
