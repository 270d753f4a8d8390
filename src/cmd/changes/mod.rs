//! The sources of `dry-run` and `replay`, and the way from their changes to plans.
//!
//! Owns the arguments that name a source, and the loop. It must not know what becomes of a plan. Invariants: exactly
//! one source is read; a transaction's changes make one plan, or several of bounded size.

mod desk;
mod letters;
mod source;

use std::io::{self, Seek as _};
use std::path::PathBuf;
use std::sync::Arc;

use tokio_postgres::Client;

use self::desk::{Desk, Lookups, Strangers};
use self::source::{Item, Origin, Source, Way};
use super::{Failure, Loaded};
use crate::catalog::{Catalog, Table};
use crate::change::{Lsn, TableName};
use crate::config::{Mode, Problems, Settings};
use crate::nearest::nearest;
use crate::plan::Plan;
use crate::postgres;
use crate::postgres::catalog;
use crate::rules::RuleSet;
use crate::source::outbox::entry::OutboxError;
use crate::source::outbox::pending::{self, Moment};

/// A transaction with more ops is planned in parts, so that memory stays bounded.
pub(super) const OPS_MAX: usize = 100_000;

/// Where changes come from.
#[derive(Debug, clap::Args)]
pub(super) struct SourceArgs {
    #[command(flatten)]
    which: Which,
    /// Of the table, only the rows for which this SQL condition holds
    #[arg(long = "where", value_name = "SQL", requires = "table")]
    condition: Option<String>,
    /// Stop after so many changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Ask no lookups: everything that a rule with `for_each` could delete takes the place of the answer
    #[arg(long)]
    no_lookups: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// A recording of changes (NDJSON); `-` reads standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The rows of a table as they are now, whatever the rules' `ops`, `changed` and `when` say
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// What is pending in the replication slot, or in the outbox; it stays there
    #[arg(long)]
    slot: bool,
    /// The changes that a rule could not be held against when the daemon met them
    #[arg(long)]
    dead: bool,
}

impl SourceArgs {
    /// Whether standard input is read.
    pub(super) fn reads_input(&self) -> bool {
        self.which.file.as_ref().is_some_and(|file| file.as_os_str() == "-")
    }
}

/// What is to be read, and how far.
pub(super) struct Changes {
    origin: Origin,
    /// The tables of the database, where the source asks for them.
    catalog: Option<Catalog>,
    limit: Option<u32>,
    no_lookups: bool,
}

impl Changes {
    /// Finds what the arguments name. A recording and dead letters need no database.
    pub(super) async fn find(args: &SourceArgs, settings: &Settings) -> Result<Self, Failure> {
        let SourceArgs { which, condition, limit, no_lookups } = args;
        if condition.is_some() && which.table.is_none() {
            return Err(Failure::usage("--where chooses among the rows of a table; name it with --table"));
        }
        let (mut catalog, mut found, mut moment) = (None, None, None);
        if which.slot || which.table.is_some() {
            let client = postgres::connect(&settings.postgres).await?;
            let read = catalog::read(&client).await?;
            found = which.table.as_deref().map(|table| find_table(table, &read)).transpose()?;
            catalog = Some(read);
            if which.slot && settings.mode == Mode::Outbox {
                require_outbox(&client, settings).await?;
                moment = Some(Moment::now(&client).await?);
            }
        }
        let origin = match (&which.file, found) {
            (Some(_), _) if args.reads_input() => Origin::Input(None),
            (Some(file), _) => Origin::File(file.clone()),
            (None, Some((table, root))) => Origin::Table { table: Box::new(table), root, condition: condition.clone() },
            (None, None) if which.slot => moment.map_or(Origin::Slot, Origin::Outbox),
            (None, None) => Origin::Dead,
        };
        Ok(Self { origin, catalog, limit: *limit, no_lookups: *no_lookups })
    }

    /// The rules of a file as the daemon has them: with every schema filled in, if the database was asked.
    pub(super) fn rules(&self, loaded: &Loaded) -> Result<Arc<RuleSet>, Failure> {
        let Some(catalog) = &self.catalog else { return Ok(Arc::new(loaded.rules.clone())) };
        let mut problems = Problems::default();
        let rules = loaded.rules.clone().resolve(catalog, &mut problems);
        match problems.is_empty() {
            true => Ok(Arc::new(rules)),
            false => {
                problems.sort();
                Err(loaded.failure(&problems))
            }
        }
    }

    /// Who plans by these rules. With `required`, a database that is away is a failure once a lookup has to be asked.
    pub(super) fn desk(&self, rules: Arc<RuleSet>, settings: &Settings, required: bool) -> Desk {
        let lookups = match self.no_lookups {
            true => Lookups::Off,
            false => Lookups::Unasked { address: Box::new(settings.postgres.clone()), required },
        };
        Desk::new(rules, lookups)
    }

    /// Keeps what standard input says, so that it can be read more than once.
    pub(super) fn keep_input(&mut self) -> Result<(), Failure> {
        if let Origin::Input(kept @ None) = &mut self.origin {
            let mut file = tempfile::tempfile()?;
            io::copy(&mut io::stdin().lock(), &mut file)?;
            file.rewind()?;
            *kept = Some(file);
        }
        Ok(())
    }

    /// Reads no further than this many changes from now on.
    pub(super) fn stop_after(&mut self, changes: u64) {
        self.limit = Some(u32::try_from(changes).unwrap_or(u32::MAX));
    }

    /// Whether it is dead letters that are read.
    pub(super) fn is_dead(&self) -> bool {
        matches!(self.origin, Origin::Dead)
    }

    /// Begins to read, from the beginning.
    pub(super) async fn read<const N: usize>(
        &self,
        desks: [Desk; N],
        settings: &Settings,
        ops_max: usize,
    ) -> Result<Portions<N>, Failure> {
        let source = Source::open(&self.origin, settings, self.limit).await?;
        let strangers = Strangers::default();
        let limit = self.limit.map(u64::from);
        Ok(Portions { source, desks, strangers, waiting: None, ended: false, changes: 0, limit, ops_max })
    }
}

/// A table by its name, and the root of its tree of partitions if it is one.
fn find_table(name: &str, catalog: &Catalog) -> Result<(Table, Option<TableName>), Failure> {
    let wanted = TableName::parse(name);
    let Some(table) = catalog.find(&wanted) else { return Err(no_table(&wanted, catalog)) };
    let root = catalog.tables.iter().find(|root| root.name != table.name && root.leaves.contains(&table.name));
    Ok((table.clone(), root.map(|root| root.name.clone())))
}

/// There is no such table, but perhaps one that was meant.
pub(super) fn no_table(name: &TableName, catalog: &Catalog) -> Failure {
    let mut names = catalog.tables.iter().map(|table| &table.name);
    let elsewhere = names.clone().find(|known| known.table == name.table).map(ToString::to_string);
    let near = elsewhere.or_else(|| {
        let near = nearest(&name.table, names.clone().map(|known| known.table.as_str()))?;
        let known = names.find(|known| known.table == near)?;
        Some(if name.schema.is_empty() { known.table.clone() } else { known.to_string() })
    });
    let advice = match near {
        Some(near) => format!("did you mean `{}`?", printable(&near)),
        None => "name it as `table` or `schema.table`".to_owned(),
    };
    Failure::usage(format!("there is no table `{}` in the database; {advice}", printable(&name.to_string())))
}

/// Fails if the database has no outbox.
pub(super) async fn require_outbox(client: &Client, settings: &Settings) -> Result<(), Failure> {
    match pending::is_there(client).await? {
        true => Ok(()),
        false => Err(Failure::configuration(format!(
            "{}: there is no outbox (table unstale.outbox); run `unstale setup`",
            settings.postgres
        ))),
    }
}

/// Why what is in the outbox is not to be had.
pub(super) fn unseen(error: OutboxError) -> Failure {
    match error {
        OutboxError::Query(error) => error.into(),
        OutboxError::Entry { .. } | OutboxError::Position(_) => Failure::findings(printable(&error.to_string())),
    }
}

/// What several changes of one transaction come to, by each of the rule sets.
pub(super) struct Portion<const N: usize> {
    pub(super) plans: [Plan; N],
    /// A transaction begins with it; otherwise one that was too large goes on.
    pub(super) begins: bool,
    /// The number of its first change, from 1.
    pub(super) change: u64,
    /// The position of its transaction, where that is known.
    pub(super) lsn: Lsn,
    /// The id of the dead letter it is made of.
    pub(super) letter: Option<String>,
}

/// The changes of a source on their way to plans.
pub(super) struct Portions<const N: usize> {
    source: Source,
    desks: [Desk; N],
    strangers: Strangers,
    /// Read, and part of the next portion.
    waiting: Option<Item>,
    ended: bool,
    changes: u64,
    limit: Option<u64>,
    ops_max: usize,
}

impl<const N: usize> Portions<N> {
    /// The next plans, which may be empty.
    pub(super) async fn next(&mut self) -> Result<Option<Portion<N>>, Failure> {
        let first = match self.waiting.take() {
            Some(item) => Some(item),
            None => self.item().await?,
        };
        let Some(mut item) = first else { return Ok(None) };
        let mut portion = Portion {
            plans: std::array::from_fn(|_| Plan::default()),
            begins: !item.continues,
            change: self.changes,
            lsn: item.commit.lsn,
            letter: None,
        };
        loop {
            let known = self.desks.iter().any(|desk| desk.knows(&item));
            self.strangers.count(&item, known);
            for (desk, plan) in self.desks.iter_mut().zip(&mut portion.plans) {
                desk.plan(&item, plan)?;
            }
            if let (Way::Only(letter), true) = (&item.way, known) {
                portion.letter = Some(letter.id.clone());
            }
            match self.item().await? {
                Some(next) if next.continues && portion.plans.iter().all(|plan| plan.len() < self.ops_max) => {
                    item = next;
                }
                next => {
                    self.waiting = next;
                    break;
                }
            }
        }
        for (desk, plan) in self.desks.iter_mut().zip(&mut portion.plans) {
            desk.resolve(plan).await?;
        }
        Ok(Some(portion))
    }

    /// How many changes were read.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// What there is to say of changes that no rule is about.
    pub(super) fn note(&self) -> Option<String> {
        self.strangers.note()
    }

    async fn item(&mut self) -> Result<Option<Item>, Failure> {
        if self.ended || self.limit.is_some_and(|limit| self.changes >= limit) {
            return Ok(None);
        }
        let desks = &self.desks;
        let item = self.source.next(&|table| desks.iter().any(|desk| desk.has_rules_for(table))).await?;
        self.ended = item.is_none();
        self.changes += u64::from(item.is_some());
        Ok(item)
    }
}

/// Text for a terminal.
pub(super) fn printable(text: &str) -> String {
    super::display::printable(text.as_bytes())
}

/// Whether what was written has a reader; one that left early is no error.
pub(super) fn has_reader(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}
