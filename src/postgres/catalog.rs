//! Queries of PostgreSQL's catalog: tables, columns, identities, partitions.
//!
//! Owns the queries. It must not check the result; the rules do. Invariant: what a table is, is
//! read here and nowhere else.

use std::collections::HashMap;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};

use super::lossy_text::{LossyText, strings};
use crate::catalog::{Catalog, CatalogColumn, ForeignKey, Generation, Identity, IdentityLimits, Table, TableMember};
use crate::change::{ColumnKind, RelationId, TableName};

/// Tables with their partitions and children.
const TABLES: &str = include_str!("../../sql/catalog.sql");

/// Columns and keys of tables.
const COLUMNS: &str = include_str!("../../sql/catalog_columns.sql");

/// The tables that names mean, in the order of the names; NULL for a name that no table has.
const FIND: &str = "select coalesce((select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace \
     where c.relname = w.name and n.nspname = w.schema and c.relkind in ('r', 'p')), 0)::oid \
     from unnest($1::text[], $2::text[]) with ordinality w (schema, name, place) order by place";

/// Compiling these queries would take longer than running them.
const NO_JIT: &str = "set jit = off";

/// Reads the whole catalog of a database.
pub async fn read(client: &Client) -> Result<Catalog, Error> {
    client.batch_execute(NO_JIT).await?;
    let path = client.query_one("select current_schemas(false)::text[]", &[]).await?;
    let relations = relations(client, None).await?;
    let all: Vec<_> = relations.iter().map(|relation| relation.id).collect();
    let tables = tables(client, &relations, &all).await?;
    Ok(Catalog { tables, search_path: strings(path.get(0)), limits: IdentityLimits::default() })
}

/// Reads these tables, with their partitions and children. One that does not exist any more is left
/// out.
pub async fn read_tables(client: &Client, ids: &[RelationId]) -> Result<Vec<Table>, Error> {
    client.batch_execute(NO_JIT).await?;
    let relations = relations(client, Some(ids)).await?;
    tables(client, &relations, ids).await
}

/// The OIDs of the tables that have these names, schema included.
pub async fn find(client: &Client, names: &[&TableName]) -> Result<Vec<Option<RelationId>>, Error> {
    let schemas: Vec<_> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<_> = names.iter().map(|name| name.table.as_str()).collect();
    let rows = client.query(FIND, &[&schemas, &tables]).await?;
    let id = |row: &Row| Some(row.get::<_, u32>(0)).filter(|oid| *oid != 0).map(RelationId::new);
    Ok(rows.iter().map(id).collect())
}

/// A name that need not be UTF-8.
fn table_name(row: &Row, schema: &str, name: &str) -> TableName {
    let [LossyText(schema), LossyText(name)] = [row.get(schema), row.get(name)];
    TableName::new(schema, name)
}

/// A table or one of its partitions or children, without its columns.
struct RelationRow {
    id: RelationId,
    name: TableName,
    is_partitioned: bool,
    is_partition: bool,
    unlogged: bool,
    identity: Identity,
    row_security: bool,
    file: u32,
    parents: Vec<RelationId>,
}

async fn relations(client: &Client, ids: Option<&[RelationId]>) -> Result<Vec<RelationRow>, Error> {
    let ids: Option<Vec<u32>> = ids.map(|ids| ids.iter().map(|id| id.oid()).collect());
    let statement = client.prepare_typed(TABLES, &[Type::OID_ARRAY]).await?;
    let rows = client.query(&statement, &[&ids]).await?;
    let relation = |row: &Row| RelationRow {
        id: RelationId::new(row.get("id")),
        name: table_name(row, "schema", "name"),
        is_partitioned: row.get("partitioned"),
        is_partition: row.get("partition"),
        unlogged: row.get("unlogged"),
        identity: identity(
            row.get::<_, i8>("identity"),
            row.get::<_, Option<Vec<LossyText>>>("identity_columns").map(strings),
        ),
        row_security: row.get("row_security"),
        file: row.get("file"),
        parents: row.get::<_, Vec<u32>>("parents").into_iter().map(RelationId::new).collect(),
    };
    Ok(rows.iter().map(relation).collect())
}

/// The tables with these OIDs, complete.
async fn tables(client: &Client, relations: &[RelationRow], ids: &[RelationId]) -> Result<Vec<Table>, Error> {
    let oids: Vec<u32> = ids.iter().map(|id| id.oid()).collect();
    let statement = client.prepare_typed(COLUMNS, &[Type::OID_ARRAY]).await?;
    let rows = client.query(&statement, &[&oids]).await?;
    let details: HashMap<RelationId, &Row> = rows.iter().map(|row| (RelationId::new(row.get("id")), row)).collect();
    let tree = Tree::of(relations);
    let wanted = relations.iter().filter(|relation| ids.contains(&relation.id) || ids.len() == relations.len());
    Ok(wanted.map(|relation| table(relation, details.get(&relation.id).copied(), &tree)).collect())
}

/// Who is below whom.
struct Tree<'a> {
    by_id: HashMap<RelationId, &'a RelationRow>,
    children: HashMap<RelationId, Vec<&'a RelationRow>>,
}

impl<'a> Tree<'a> {
    fn of(relations: &'a [RelationRow]) -> Self {
        let by_id = relations.iter().map(|relation| (relation.id, relation)).collect();
        let mut children: HashMap<_, Vec<_>> = HashMap::new();
        for relation in relations {
            relation.parents.iter().for_each(|parent| children.entry(*parent).or_default().push(relation));
        }
        Self { by_id, children }
    }

    /// The relation itself, then everything below it, each once.
    fn members(&self, root: &'a RelationRow) -> Vec<TableMember> {
        let mut found: Vec<&RelationRow> = vec![root];
        let mut known: std::collections::HashSet<_> = std::iter::once(root.id).collect();
        let mut next = 0;
        while let Some(relation) = found.get(next) {
            let below = self.children.get(&relation.id).into_iter().flatten();
            found.extend(below.copied().filter(|child| known.insert(child.id)).collect::<Vec<_>>());
            next += 1;
        }
        if let Some(below) = found.get_mut(1..) {
            below.sort_by(|one, other| one.name.cmp(&other.name));
        }
        found.into_iter().map(|relation| self.member(relation)).collect()
    }

    fn member(&self, relation: &RelationRow) -> TableMember {
        let mut ancestors = relation.parents.clone();
        let mut next = 0;
        while let Some(above) = ancestors.get(next).and_then(|id| self.by_id.get(id)) {
            let new: Vec<_> = above.parents.iter().copied().filter(|id| !ancestors.contains(id)).collect();
            ancestors.extend(new);
            next += 1;
        }
        TableMember {
            id: relation.id,
            name: relation.name.clone(),
            ancestors,
            is_partition: relation.is_partition,
            has_rows: !relation.is_partitioned,
            identity: relation.identity.clone(),
            unlogged: relation.unlogged,
            file: relation.file,
        }
    }
}

fn table(relation: &RelationRow, details: Option<&Row>, tree: &Tree<'_>) -> Table {
    let members = tree.members(relation);
    let leaves: Vec<&TableMember> = members.iter().filter(|member| member.has_rows).collect();
    let identity = leaves.iter().map(|leaf| leaf.identity.clone()).reduce(common).unwrap_or(Identity::Full);
    let json = |name| details.and_then(|row| row.get::<_, Option<LossyText>>(name)).map(|LossyText(text)| text);
    Table {
        id: relation.id,
        name: relation.name.clone(),
        columns: details.map(columns).unwrap_or_default(),
        primary_key: json("primary_key").and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
        unique: json("unique_columns").and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default(),
        foreign_keys: foreign_keys(json("foreign_keys")),
        identity,
        unlogged: relation.unlogged,
        leaves: leaves.into_iter().map(|leaf| leaf.name.clone()).collect(),
        row_security: relation.row_security,
        members,
    }
}

fn columns(row: &Row) -> Vec<CatalogColumn> {
    let names = strings(row.get("names"));
    let not_null: Vec<bool> = row.get("not_null");
    let types = row.get::<_, Vec<u32>>("types").into_iter().zip(row.get::<_, Vec<u32>>("base_types"));
    let type_names = strings(row.get("type_names"));
    let generated = row.get::<_, Vec<String>>("generated").into_iter().zip(row.get::<_, Vec<i16>>("numbers"));
    let columns = names.into_iter().zip(not_null).zip(types).zip(type_names).zip(generated);
    let column = |((((name, not_null), (type_oid, base_oid)), type_name), (generated, number)): (_, (String, i16))| {
        CatalogColumn {
            name,
            number,
            type_name,
            kind: ColumnKind::of_type(base_oid),
            not_null,
            generated: match generated.as_str() {
                "s" => Generation::Stored,
                "v" => Generation::Virtual,
                _ => Generation::Never,
            },
            type_oid,
            base_oid,
        }
    };
    columns.map(column).collect()
}

fn foreign_keys(json: Option<String>) -> Vec<ForeignKey> {
    json.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default()
}

fn identity(kind: i8, columns: Option<Vec<String>>) -> Identity {
    match (u8::try_from(kind).map(char::from), columns) {
        (Ok('f'), _) => Identity::Full,
        (Ok('d' | 'i'), Some(columns)) if !columns.is_empty() => Identity::Columns(columns),
        _ => Identity::Nothing,
    }
}

/// The columns that both identities carry.
fn common(one: Identity, other: Identity) -> Identity {
    match (one, other) {
        (Identity::Nothing, _) | (_, Identity::Nothing) => Identity::Nothing,
        (Identity::Full, identity) | (identity, Identity::Full) => identity,
        (Identity::Columns(columns), Identity::Columns(others)) => {
            Identity::Columns(columns.into_iter().filter(|column| others.contains(column)).collect())
        }
    }
}
