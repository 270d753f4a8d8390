//! Observing the database: the questions about everything that is watched.
//!
//! Owns the questions, on a connection of its own. It must not compare. Invariant: one observation
//! shows one moment.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};

use super::state::{CatalogVersions, TableState, ViewState};
use super::watched::{Carrier, Watched};
use crate::catalog::Table;
use crate::change::{RelationId, TableName};
use crate::install::outbox::{self, OutboxPart};
use crate::postgres::catalog;
use crate::postgres::publication::Publication;

/// A digest of the types of each table that are not built in, and of how its virtual columns are
/// computed.
const TYPES: &str = include_str!("../../sql/catalog_types.sql");

/// The transactions that last wrote the catalog's rows about tables.
const VERSIONS: &str = include_str!("../../sql/catalog_versions.sql");

/// The materialized views that names mean, with what a refresh changes: each one, also
/// CONCURRENTLY, writes the row of `pg_class`.
const VIEWS: &str = "select w.place::int4, c.oid, c.xmin::text || ' ' || c.relfilenode from \
     unnest($1::text[], $2::text[]) with ordinality w (schema, name, place) \
     join pg_namespace n on n.nspname = w.schema \
     join pg_class c on c.relnamespace = n.oid and c.relname = w.name and c.relkind = 'm' order by 1";

/// Everything that is watched, at one moment.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The moment.
    pub at: SystemTime,
    /// How long the questions took.
    pub took: Duration,
    /// The state of each watched table, in their order.
    pub tables: Vec<TableState>,
    /// Every table that the rules concern, with the name in the rules: the watched tables, their
    /// partitions and children.
    pub members: Vec<(RelationId, TableName)>,
    /// The state of each watched view, in their order.
    pub views: Vec<ViewState>,
}

/// Observes over a connection of its own.
pub struct Observer {
    client: Client,
    watched: Arc<Watched>,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

impl Observer {
    /// Observes over this connection.
    pub fn new(client: Client, watched: Arc<Watched>) -> Self {
        Self { client, watched }
    }

    /// Observes now. `known` are the tables that the rules concern so far, in the order of the
    /// watched tables: each counts unless its name means another table now.
    pub async fn observe(&self, known: &[RelationId]) -> Result<Observation, Error> {
        let (began, at) = (Instant::now(), SystemTime::now());
        self.client.batch_execute("begin isolation level repeatable read read only").await?;
        let asked = self.ask(known).await;
        let ended = self.client.batch_execute("rollback").await;
        let (tables, members, views) = asked?;
        ended?;
        Ok(Observation { at, took: began.elapsed(), tables, members, views })
    }

    async fn ask(
        &self,
        known: &[RelationId],
    ) -> Result<(Vec<TableState>, Vec<(RelationId, TableName)>, Vec<ViewState>), Error> {
        let names: Vec<_> = self.watched.tables.iter().map(|table| &table.name).collect();
        let named = catalog::find(&self.client, &names).await?;
        let ids: Vec<_> = named.iter().zip(known).map(|(named, known)| named.unwrap_or(*known)).collect();
        let tables = catalog::read_tables(&self.client, &ids).await?;
        let tables: HashMap<RelationId, &Table> = tables.iter().map(|table| (table.id, table)).collect();
        let mut types = self.types(&ids).await?;
        let versions = self.versions(&tables).await?;
        let faults = self.faults(&ids, &tables).await?;
        let mut states = Vec::new();
        let mut members = Vec::new();
        for (((id, named), faults), watched) in ids.iter().zip(&named).zip(faults).zip(&self.watched.tables) {
            let table = tables.get(id).copied();
            let types = types.remove(id).unwrap_or_default();
            states.push(TableState::of(table, *named, types, &versions, faults));
            let of_table = table.into_iter().flat_map(|table| &table.members);
            members.extend(of_table.map(|member| (member.id, watched.name.clone())));
        }
        Ok((states, members, self.views().await?))
    }

    async fn types(&self, ids: &[RelationId]) -> Result<HashMap<RelationId, String>, Error> {
        let oids: Vec<u32> = ids.iter().map(|id| id.oid()).collect();
        let rows = self.client.query(TYPES, &[&oids]).await?;
        Ok(rows.iter().map(|row| (RelationId::new(row.get(0)), row.get(1))).collect())
    }

    async fn versions(
        &self,
        tables: &HashMap<RelationId, &Table>,
    ) -> Result<HashMap<RelationId, CatalogVersions>, Error> {
        let members: Vec<u32> =
            tables.values().flat_map(|table| &table.members).map(|member| member.id.oid()).collect();
        let publication = match &self.watched.carrier {
            Carrier::Publication(name) => Some(name),
            Carrier::Triggers { .. } => None,
        };
        let versions = |row: &Row| {
            let (id, own, links) = (row.get::<_, u32>(0), row.get::<_, String>(1), row.get::<_, String>(2));
            let versions = CatalogVersions { row: format!("{id} {own}"), links: format!("{id} {links}") };
            (RelationId::new(id), versions)
        };
        let statement = self.client.prepare_typed(VERSIONS, &[Type::OID_ARRAY, Type::TEXT]).await?;
        Ok(self.client.query(&statement, &[&members, &publication]).await?.iter().map(versions).collect())
    }

    async fn views(&self) -> Result<Vec<ViewState>, Error> {
        let views = &self.watched.views;
        let mut states = vec![ViewState::default(); views.len()];
        if views.is_empty() {
            return Ok(states);
        }
        let schemas: Vec<_> = views.iter().map(|view| view.name.schema.as_str()).collect();
        let names: Vec<_> = views.iter().map(|view| view.name.table.as_str()).collect();
        for row in self.client.query(VIEWS, &[&schemas, &names]).await? {
            let place = usize::try_from(row.get::<_, i32>(0)).unwrap_or_default();
            if let Some(state) = place.checked_sub(1).and_then(|at| states.get_mut(at)) {
                *state = ViewState { id: row.get(1), version: row.get(2) };
            }
        }
        Ok(states)
    }

    /// Why some changes of each table do not arrive.
    async fn faults(
        &self,
        ids: &[RelationId],
        tables: &HashMap<RelationId, &Table>,
    ) -> Result<Vec<Vec<String>>, Error> {
        match &self.watched.carrier {
            Carrier::Publication(name) => {
                let publication = Publication::read(&self.client, name).await?;
                let faults = |id| publication_faults(name, publication.as_ref(), tables.get(id).copied());
                Ok(ids.iter().map(faults).collect())
            }
            Carrier::Triggers { settings, captures, events } => {
                let comparison = outbox::compare(&self.client, settings, captures, *events).await?;
                let base = comparison.differences.iter().filter(|difference| difference.part == OutboxPart::Base);
                let base: Vec<String> = base.flat_map(|difference| difference.wrong.clone()).collect();
                let of_table = |name: &TableName| {
                    let is_ours = |part: &OutboxPart| matches!(part, OutboxPart::Table(table) if table == name);
                    let ours = comparison.differences.iter().filter(|found| is_ours(&found.part) && !found.is_minor);
                    base.iter().cloned().chain(ours.flat_map(|found| found.wrong.clone())).collect()
                };
                Ok(self.watched.tables.iter().map(|table| of_table(&table.name)).collect())
            }
        }
    }
}

/// Why some changes of a table do not arrive over a publication.
fn publication_faults(name: &str, publication: Option<&Publication>, table: Option<&Table>) -> Vec<String> {
    let Some(publication) = publication else { return vec![format!("there is no publication `{name}`")] };
    let Some(table) = table else { return Vec::new() };
    let mut faults = publication.faults(name, table);
    let unlogged = table.members.iter().find(|member| member.unlogged && member.has_rows);
    faults.extend(unlogged.map(|member| format!("{} is unlogged", member.name)));
    faults
}
