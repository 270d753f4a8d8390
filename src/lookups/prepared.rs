//! Prepared lookups and their rows.
//!
//! Owns how a query's columns become text. It must not know rules' templates. Invariant: every
//! column is read as text, whatever its type, as the replication stream carries it.

use bytes::Bytes;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Column, Portal, Row, Statement, Transaction};

use crate::change::Cell;
use crate::plan::LookupCall;
use crate::postgres::TextParameter;
use crate::postgres::value_text::text_of;
use crate::rules::Lookup;

/// The most rows that are fetched at once.
pub(super) const ROWS_AT_ONCE: i32 = 256;

/// A lookup as the server has prepared it.
#[derive(Clone)]
pub(super) struct PreparedLookup {
    pub(super) statement: Statement,
    /// The names of the columns that it returns.
    pub(super) columns: Vec<String>,
}

impl PreparedLookup {
    pub(super) async fn new(client: &Client, lookup: &Lookup) -> Result<Self, tokio_postgres::Error> {
        let sql = lookup.sql.value.trim().trim_end_matches(';');
        let described = client.prepare(sql).await?;
        let columns: Vec<String> = described.columns().iter().map(|column| column.name().to_owned()).collect();
        // The server describes a domain as the type beneath it.
        let text = |column: &Column| {
            let name = format!("unstale_lookup.\"{}\"", column.name().replace('"', "\"\""));
            text_of(&name, column.type_().oid())
        };
        let texts: Vec<_> = described.columns().iter().map(text).collect();
        // The line break ends a comment at the end of the query.
        let statement = client.prepare(&format!("select {} from ({sql}\n) unstale_lookup", texts.join(", "))).await?;
        Ok(Self { statement, columns })
    }

    /// Sends a call. Returns its portal and the first rows.
    pub(super) async fn begin(
        &self,
        transaction: &Transaction<'_>,
        call: &LookupCall,
    ) -> Result<(Portal, Vec<Row>), tokio_postgres::Error> {
        let values: Vec<_> = call.arguments.iter().map(|argument| TextParameter(Some(argument))).collect();
        let parameters = values.iter().map(|value| value as &(dyn ToSql + Sync));
        let portal = transaction.bind_raw(&self.statement, parameters).await?;
        let rows = transaction.query_portal(&portal, ROWS_AT_ONCE).await?;
        Ok((portal, rows))
    }

    /// The columns of a row, by name.
    pub(super) fn cells(&self, row: &Row) -> Vec<(&str, Cell)> {
        let cell = |at: usize| match row.try_get::<_, Option<&str>>(at) {
            Ok(Some(text)) => Cell::Value(Bytes::copy_from_slice(text.as_bytes())),
            Ok(None) => Cell::Null,
            Err(_) => Cell::Absent,
        };
        self.columns.iter().enumerate().map(|(at, name)| (name.as_str(), cell(at))).collect()
    }
}
