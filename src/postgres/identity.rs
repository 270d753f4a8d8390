//! What decides which replica identities tables can have.
//!
//! Owns the question, `sql/identity.sql`. It must not choose an identity; the rules do.

use std::collections::HashMap;

use tokio_postgres::{Client, Error, Row};

use super::lossy_text::{LossyText, strings};
use crate::catalog::{Catalog, IdentityFacts, IdentityLimits};
use crate::change::{RelationId, TableName};

const IDENTITY: &str = include_str!("../../sql/identity.sql");

const VERSION: &str = "select current_setting('server_version_num')::int / 10000";

/// Asks about every table that holds rows of these tables.
pub async fn read(client: &Client, catalog: &Catalog, tables: &[&TableName]) -> Result<IdentityLimits, Error> {
    let tables = tables.iter().filter_map(|name| catalog.find(name));
    let leaves = tables.flat_map(|table| &table.members).filter(|member| member.has_rows);
    let ids: Vec<u32> = leaves.map(|leaf| leaf.id.oid()).collect();
    let major_version: i32 = client.query_one(VERSION, &[]).await?.get(0);
    let rows = client.query(IDENTITY, &[&ids]).await?;
    let tables: HashMap<_, _> = rows.iter().map(|row| (RelationId::new(row.get("id")), facts(row))).collect();
    Ok(IdentityLimits { major_version, tables })
}

fn facts(row: &Row) -> IdentityFacts {
    let json = |name| row.get::<_, Option<LossyText>>(name).map_or_else(|| "[]".to_owned(), |LossyText(text)| text);
    IdentityFacts {
        fitting: strings(row.get("fitting")).into_iter().collect(),
        unfinished: strings(row.get("unfinished")),
        indexes: serde_json::from_str(&json("indexes")).unwrap_or_default(),
        publications: serde_json::from_str(&json("publications")).unwrap_or_default(),
    }
}
