//! Compares what is installed with what the rules need.
//!
//! Owns the order of the differences, and the comparison of the schema `unstale`. It must not
//! change anything.

use tokio_postgres::{Client, Error};

use super::difference::{OutboxDifference, OutboxPart};
use super::installed::{self, Installed};
use super::quoting::literal;
use super::{surplus, table};
use crate::config::Settings;
use crate::install::emit::{EMIT, EmitFunction};
use crate::install::error::InstallError;
use crate::rules::Capture;

const BASE: &str = include_str!("../../../sql/outbox.sql");

/// How the installed outbox differs from what the rules need.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// The differences, in the order in which they have to be fixed.
    pub differences: Vec<OutboxDifference>,
    /// What is up to date, in words.
    pub unchanged: Vec<String>,
    /// The slot name of the consumer, if it is not ours.
    pub other_consumer: Option<String>,
    /// Virtual generated columns that rules read. Triggers do not see their values.
    pub invisible: Vec<String>,
    /// The rules need `unstale.emit`, and a function of this name was not installed by unstale.
    pub foreign_emit: bool,
}

impl Comparison {
    /// Adds a part of the schema `unstale`, and the statement that fixes it if something is wrong.
    fn add(&mut self, part: OutboxPart, wrong: Option<&str>, statement: String) {
        let cost = "locks no table of an application; creates what is missing in the schema unstale".to_owned();
        let words = wrong.into_iter().map(ToOwned::to_owned).collect();
        let difference = OutboxDifference { part, wrong: words, statements: vec![statement], cost, is_minor: false };
        match wrong {
            None => self.unchanged.push(difference.subject()),
            Some(_) => self.differences.push(difference),
        }
    }
}

impl Comparison {
    /// Fails if the rest cannot or must not be installed.
    pub fn require_possible(&self) -> Result<(), InstallError> {
        if let Some(other) = &self.other_consumer {
            return Err(InstallError::OtherConsumer(other.clone()));
        }
        if self.foreign_emit {
            return Err(InstallError::ForeignEmit);
        }
        match self.invisible.first() {
            Some(column) => Err(InstallError::Invisible(column.clone())),
            None => Ok(()),
        }
    }
}

/// Compares what is installed with what the rules need.
pub async fn compare(
    client: &Client,
    settings: &Settings,
    captures: &[Capture],
    events: bool,
) -> Result<Comparison, Error> {
    let installed = installed::read(client).await?;
    let mut comparison = Comparison::default();
    compare_base(&installed, settings, events, &mut comparison);
    let mut tables = Vec::new();
    for capture in captures {
        if let Some(table) = installed::table(client, capture).await? {
            let invisible = table.columns.iter().filter(|column| column.is_virtual);
            comparison.invisible.extend(invisible.map(|column| format!("{}.{}", capture.table, column.name)));
            match table::compare(&installed, &table, settings.notify) {
                None => comparison.unchanged.push(format!("triggers of {}", capture.table)),
                Some(difference) => comparison.differences.push(difference),
            }
            tables.push(table);
        }
    }
    comparison.differences.extend(surplus::find(&installed, &tables));
    Ok(comparison)
}

fn compare_base(installed: &Installed, settings: &Settings, events: bool, comparison: &mut Comparison) {
    let wrong = (!installed.base).then_some("there is no outbox, or a part of it is missing");
    comparison.add(OutboxPart::Base, wrong, BASE.to_owned());
    comparison.foreign_emit = events && installed.emit == EmitFunction::Foreign;
    let replaces = installed.emit == EmitFunction::Outdated;
    if (events || replaces) && !comparison.foreign_emit {
        comparison.add(OutboxPart::Events, installed.emit.fault(), EMIT.to_owned());
    }
    let slot = &settings.slot;
    comparison.other_consumer = installed.consumers.iter().find(|consumer| *consumer != slot).cloned();
    if comparison.other_consumer.is_none() && installed.readable {
        let statement =
            format!("INSERT INTO unstale.consumer (slot) VALUES ({}) ON CONFLICT DO NOTHING;", literal(slot));
        let wrong = installed.consumers.is_empty().then_some("the outbox has no consumer");
        comparison.add(OutboxPart::Consumer, wrong, statement);
    }
}

/// The owners of capture functions that lack INSERT on the outbox: every write to their tables
/// fails.
pub async fn powerless_owners(client: &Client) -> Result<Vec<String>, Error> {
    let installed = installed::read(client).await?;
    let powerless = installed.functions.into_iter().filter(|function| !function.may_insert);
    let mut owners: Vec<String> = powerless.map(|function| function.owner).collect();
    owners.sort();
    owners.dedup();
    Ok(owners)
}

/// Whether any part of an outbox is installed.
pub async fn is_installed(client: &Client) -> Result<bool, Error> {
    Ok(installed::read(client).await?.is_any())
}

/// The slot name of the consumer of the outbox, if it has one: this one if there are several.
pub async fn consumer(client: &Client, slot: &str) -> Result<Option<String>, Error> {
    let consumers = installed::read(client).await?.consumers;
    let ours = consumers.iter().find(|consumer| *consumer == slot).cloned();
    Ok(ours.or_else(|| consumers.into_iter().next()))
}

/// Whether the schema `unstale` has a table of this name.
pub async fn has_table(client: &Client, table: &str) -> Result<bool, Error> {
    const EXISTS: &str = "select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                          where n.nspname = 'unstale' and c.relname = $1 and c.relkind = 'r')";
    Ok(client.query_one(EXISTS, &[&table]).await?.get(0))
}

/// Whether an outbox is installed that belongs to this slot, as far as the role can see.
pub async fn is_ours(client: &Client, slot: &str) -> Result<bool, Error> {
    let installed = installed::read(client).await?;
    let others = !installed.consumers.is_empty() && installed.consumers.iter().all(|consumer| consumer != slot);
    Ok(installed.is_any() && !others)
}
