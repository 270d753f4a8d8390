//! Lookups that a delete leaves without an answer, because PostgreSQL deletes or detaches the rows
//! that they read together with the row.
//!
//! Owns the question which tables a lookup reads. It must not know how rows disappear;
//! [`Catalog::leaving_with`] does. Invariant: if it is not known what a lookup reads, it counts as
//! reading everything.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use tokio_postgres::Client;

use crate::catalog::{Catalog, QueryRelation};
use crate::change::{Operation, TableName};
use crate::query;
use crate::rules::{Rule, RuleSet, Trigger};

/// A rule whose lookup finds nothing, or less, once a row is deleted.
pub(in crate::cmd) struct Cascade {
    /// The rule's position in the file.
    pub(in crate::cmd) rule: usize,
    /// What the lookup reads and PostgreSQL deletes or detaches; none if it is not known what it
    /// reads.
    pub(in crate::cmd) reads: Option<TableName>,
}

/// The rules whose lookups a delete leaves without an answer.
pub(in crate::cmd) async fn find(
    client: &Client,
    catalog: &Catalog,
    rules: &RuleSet,
) -> Result<Vec<Cascade>, tokio_postgres::Error> {
    let mut found = Vec::new();
    let mut known: BTreeMap<usize, Option<Vec<QueryRelation>>> = BTreeMap::new();
    for (position, rule) in rules.rules().iter().enumerate() {
        let Some(for_each) = rule.for_each.as_ref().filter(|_| is_triggered(rule)) else { continue };
        let table = &rule.table.value;
        let leaving = catalog.leaving_with(catalog.find(table).map_or(table, |table| &table.name));
        let Some(lookup) = rules.lookups().get(for_each.lookup).filter(|_| !leaving.is_empty()) else { continue };
        let relations = match known.entry(for_each.lookup) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(relations(client, &lookup.sql.value).await?),
        };
        match relations {
            None => found.push(Cascade { rule: position, reads: None }),
            Some(relations) => {
                let leaves = |relation: &&QueryRelation| {
                    std::iter::once(&relation.name).chain(&relation.ancestors).any(|name| leaving.contains(name))
                };
                let read = relations.iter().find(leaves).map(|relation| relation.name.clone());
                found.extend(read.map(|read| Cascade { rule: position, reads: Some(read) }));
            }
        }
    }
    Ok(found)
}

fn is_triggered(rule: &Rule) -> bool {
    rule.trigger == Trigger::Table && rule.operations.contains(&Operation::Delete)
}

/// The relations that a query reads; none if that is not known.
async fn relations(client: &Client, sql: &str) -> Result<Option<Vec<QueryRelation>>, tokio_postgres::Error> {
    let query = query::analyse(client, sql).await?.ok();
    let known = query.filter(|query| query.unseen.is_none() && query.functions.is_empty());
    Ok(known.map(|query| query.relations))
}
