//! The rows of a table as they are now, each as the insert that it might have been.
//!
//! Owns the query. It must not know rules. Invariants: nothing is written, whatever the condition
//! says; values have the text that the log would give them; rows are read one by one, however many
//! there are.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio_postgres::{Client, Error, SimpleQueryMessage, SimpleQueryRow, SimpleQueryStream};

use crate::catalog::{CatalogColumn, Table, quote, quote_table};
use crate::change::{Cell, Change, Column, ColumnKind, Operation, Relation, RelationId, Row, TableName};

/// The rows of a table, on their way.
pub struct TableRows {
    rows: Pin<Box<SimpleQueryStream>>,
    relation: Arc<Relation>,
    /// The connection ends with it.
    _client: Client,
}

impl std::fmt::Debug for TableRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableRows").field("relation", &self.relation).finish_non_exhaustive()
    }
}

impl TableRows {
    /// Begins to read the rows of a table for which an SQL condition holds, at most `limit` of
    /// them. Their changes say that the table is called `name`: a partition's that of its root. An
    /// error if the server refuses the condition, which it does before it reads anything.
    pub async fn open(
        client: Client,
        table: &Table,
        name: TableName,
        condition: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Self, Error> {
        client.batch_execute("begin isolation level repeatable read, read only").await?;
        let query = query(table, condition, limit);
        // A statement that can be prepared is one statement. It is not run as such, because then
        // values come in PostgreSQL's binary form, and a cast to text is not always what the log
        // has: of a `char(n)`, for one.
        client.prepare(&query).await?;
        let rows = Box::pin(client.simple_query_raw(&query).await?);
        let column =
            |column: &CatalogColumn| Column { name: column.name.clone(), kind: column.kind, in_identity: true };
        let columns = table.columns.iter().map(column).collect();
        let relation = Arc::new(Relation { id: RelationId::default(), name, also: Vec::new(), columns });
        Ok(Self { rows, relation, _client: client })
    }

    /// The next row.
    pub async fn next(&mut self) -> Result<Option<Change>, Error> {
        while let Some(message) = self.rows.next().await {
            if let SimpleQueryMessage::Row(row) = message? {
                return self.change(&row).map(Some);
            }
        }
        Ok(None)
    }

    fn change(&self, row: &SimpleQueryRow) -> Result<Change, Error> {
        let cell = |(at, column): (usize, &Column)| -> Result<Cell, Error> {
            Ok(match (row.try_get(at)?, column.kind) {
                (None, _) => Cell::Null,
                (Some("t"), ColumnKind::Boolean) => Cell::of("true"),
                (Some(_), ColumnKind::Boolean) => Cell::of("false"),
                (Some(text), _) => Cell::Value(Bytes::copy_from_slice(text.as_bytes())),
            })
        };
        let cells = self.relation.columns.iter().enumerate().map(cell).collect::<Result<Vec<_>, Error>>()?;
        let relation = Arc::clone(&self.relation);
        Ok(Change { relation, operation: Operation::Insert, old: None, new: Some(Row::new(cells)) })
    }
}

fn query(table: &Table, condition: Option<&str>, limit: Option<u32>) -> String {
    let columns: Vec<_> = table.columns.iter().map(|column| quote(&column.name)).collect();
    let mut query = format!("select {} from {}", columns.join(", "), quote_table(&table.name));
    if let Some(condition) = condition {
        // The line break ends a comment that the condition may end with. No parentheses that it
        // could close.
        query.push_str(&format!(" where {condition}\n"));
    }
    if let Some(limit) = limit {
        query.push_str(&format!(" limit {limit}"));
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Identity;

    #[test]
    fn names_are_quoted_and_a_condition_stays_in_its_place() {
        let column = |name: &str| CatalogColumn {
            name: name.to_owned(),
            type_name: "text".to_owned(),
            kind: ColumnKind::Text,
            not_null: true,
            ..CatalogColumn::default()
        };
        let table = Table {
            name: TableName::new("public", "Order"),
            columns: vec![column("id"), column("user"), column("a\"b")],
            primary_key: Vec::new(),
            unique: Vec::new(),
            foreign_keys: Vec::new(),
            identity: Identity::Full,
            unlogged: false,
            leaves: Vec::new(),
            ..Table::default()
        };
        assert_eq!(query(&table, None, None), "select id, \"user\", \"a\"\"b\" from public.\"Order\"");
        let expected = "select id, \"user\", \"a\"\"b\" from public.\"Order\" where id > 1 -- or so\n limit 5";
        assert_eq!(query(&table, Some("id > 1 -- or so"), Some(5)), expected);
    }
}
