//! The changes that `dry-run` and `replay` read, and the way from them to plans.
//!
//! Owns which source the flags name. [`source`] reads changes, [`resolver`] turns them into plans,
//! [`chunks`] joins both, and [`summary`] counts. It must not know what becomes of a plan.
//! Invariant: exactly one source is read.

mod args;
mod chunks;
mod dead_letters;
mod resolver;
mod source;
pub(super) mod summary;
mod unmatched;

use std::io::{self, Seek as _};
use std::sync::Arc;

use tokio_postgres::Client;

pub(super) use self::args::ChangesArgs;
pub(super) use self::chunks::{PlanChunk, PlanChunks};
use self::resolver::{Lookups, Resolver};
use self::source::{ChangeSource, SourceSpec};
use super::config_file::ConfigFile;
use super::failure::Failure;
use super::outbox::require_outbox;
use super::preflight::{self, catalog_fit};
use super::tables::find_table;
use crate::catalog::{Catalog, Table};
use crate::change::TableName;
use crate::config::{Mode, Settings};
use crate::postgres;
use crate::postgres::catalog;
use crate::rules::RuleSet;
use crate::source::outbox::pending::Moment;

/// A transaction with more ops is planned in chunks of this size, so that memory stays bounded.
pub(super) const OPS_MAX: usize = 100_000;

/// The changes that the flags name.
pub(super) struct Changes {
    spec: SourceSpec,
    /// The tables of the database, if the source is one of its own.
    catalog: Option<Catalog>,
    /// The connection over which they were read.
    client: Option<Client>,
    limit: Option<u32>,
    no_lookups: bool,
}

impl Changes {
    /// Finds what the flags name. A recording and dead letters need no database.
    pub(super) async fn find(args: &ChangesArgs, settings: &Settings) -> Result<Self, Failure> {
        let ChangesArgs { source, condition, limit, no_lookups } = args;
        if condition.is_some() && source.table.is_none() {
            return Err(Failure::usage("--where selects rows of a table; name the table with --table"));
        }
        let (mut catalog, mut found, mut moment, mut connected) = (None, None, None, None);
        if source.slot || source.table.is_some() {
            let client = postgres::connect(&settings.postgres).await?;
            let read = catalog::read(&client).await?;
            found = source.table.as_deref().map(|table| find_partition(table, &read)).transpose()?;
            catalog = Some(read);
            if source.slot && settings.mode == Mode::Outbox {
                require_outbox(&client, settings).await?;
                moment = Some(Moment::now(&client).await?);
            }
            connected = Some(client);
        }
        let spec = match (&source.file, found) {
            (Some(_), _) if args.reads_input() => SourceSpec::Input(None),
            (Some(file), _) => SourceSpec::File(file.clone()),
            (None, Some((table, root))) => {
                SourceSpec::Table { table: Box::new(table), root, condition: condition.clone() }
            }
            (None, None) if source.slot => moment.map_or(SourceSpec::Slot, SourceSpec::Outbox),
            (None, None) => SourceSpec::DeadLetters,
        };
        Ok(Self { spec, catalog, client: connected, limit: *limit, no_lookups: *no_lookups })
    }

    /// The rules of a file as the daemon has them, as far as a database was asked for the changes
    /// or is `connected`: with every schema filled in, and what only the database says of them.
    pub(super) async fn rules(&self, file: &ConfigFile, connected: Option<&Client>) -> Result<Arc<RuleSet>, Failure> {
        let mut rules = match &self.catalog {
            Some(catalog) => catalog_fit::resolve(file, catalog)?,
            None => file.rules.clone(),
        };
        if let Some(client) = connected.or(self.client.as_ref()) {
            let catalog = match &self.catalog {
                Some(catalog) => catalog,
                None => &catalog::read(client).await?,
            };
            preflight::bind(client, catalog, &mut rules, &file.reads).await?;
        }
        Ok(Arc::new(rules))
    }

    /// A resolver for these rules. With `required`, a database that is not available is a failure
    /// once a lookup has to be asked.
    pub(super) fn resolver(&self, rules: Arc<RuleSet>, settings: &Settings, required: bool) -> Resolver {
        let lookups = match self.no_lookups {
            true => Lookups::Off,
            false => Lookups::Unconnected { address: Box::new(settings.postgres.clone()), required },
        };
        Resolver::new(rules, lookups)
    }

    /// Copies standard input to a temporary file, so that it can be read more than once.
    pub(super) fn keep_input(&mut self) -> Result<(), Failure> {
        if let SourceSpec::Input(kept @ None) = &mut self.spec {
            let mut file = tempfile::tempfile()?;
            io::copy(&mut io::stdin().lock(), &mut file)?;
            file.rewind()?;
            *kept = Some(file);
        }
        Ok(())
    }

    /// Limits the next reading to this many changes.
    pub(super) fn stop_after(&mut self, changes: u64) {
        self.limit = Some(u32::try_from(changes).unwrap_or(u32::MAX));
    }

    /// Whether the source is the dead letters.
    pub(super) fn are_dead_letters(&self) -> bool {
        matches!(self.spec, SourceSpec::DeadLetters)
    }

    /// Opens the source and reads it from its beginning.
    pub(super) async fn read<const N: usize>(
        &self,
        resolvers: [Resolver; N],
        settings: &Settings,
        ops_max: usize,
    ) -> Result<PlanChunks<N>, Failure> {
        let source = ChangeSource::open(&self.spec, settings, self.limit).await?;
        Ok(PlanChunks::new(source, resolvers, self.limit.map(u64::from), ops_max))
    }
}

/// A table by its name, and the root of its partition tree if it is a partition.
fn find_partition(name: &str, catalog: &Catalog) -> Result<(Table, Option<TableName>), Failure> {
    let table = find_table(name, catalog)?;
    let root = catalog.tables.iter().find(|root| root.name != table.name && root.leaves.contains(&table.name));
    Ok((table.clone(), root.map(|root| root.name.clone())))
}
