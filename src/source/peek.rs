//! What is pending in a slot, read and not consumed.
//!
//! Owns the query and its way through decoder and assembler. It must not know rules. Invariants:
//! the slot stays where it is; messages are read one by one, however many are pending.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, RowStream};

use super::replication::assemble::{AssembleError, Assembler, RelationContext};
use super::replication::pgoutput::{self, DecodeError, Message, RelationBody};
use crate::change::{SourceEvent, TableName};
use crate::postgres::ancestry::{Ancestry, ancestry};

/// A change comes with at most its transaction's begin and commit and descriptions of its table and
/// types. The server counts all of them; this many for each change is enough but for the oddest
/// tables.
const MESSAGES_PER_CHANGE: u32 = 8;

/// Why what is pending cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PeekError {
    /// The server said no, or the connection broke.
    #[error(transparent)]
    Refused(#[from] tokio_postgres::Error),
    /// A message cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Messages do not make a stream of transactions.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
}

/// The pending transactions of a slot, on their way.
pub struct Peek {
    rows: Pin<Box<RowStream>>,
    assembler: Assembler,
    /// For questions: the other connection answers nothing before everything is read.
    catalog: Client,
    /// The connection ends with it.
    _client: Client,
}

impl std::fmt::Debug for Peek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peek").field("assembler", &self.assembler).finish_non_exhaustive()
    }
}

impl Peek {
    /// Begins to read a slot through a publication. Asks over another connection what the log does
    /// not carry. With a limit, the server stops at the end of a transaction by which there are so
    /// many changes.
    pub async fn open(
        client: Client,
        catalog: Client,
        slot: &str,
        publication: &str,
        limit: Option<u32>,
    ) -> Result<Self, PeekError> {
        const PEEK: &str = "select data from pg_logical_slot_peek_binary_changes($1::name, null, $2::int4, \
             'proto_version', '1', 'publication_names', $3::text, 'messages', 'true')";
        let messages_max = limit.map(|limit| limit.saturating_mul(MESSAGES_PER_CHANGE));
        let messages_max = messages_max.map(|messages| i32::try_from(messages).unwrap_or(i32::MAX));
        let publication = format!("\"{}\"", publication.replace('"', "\"\""));
        let parameters: [&(dyn ToSql + Sync); 3] = [&slot, &messages_max, &publication];
        let rows = Box::pin(client.query_raw(PEEK, parameters).await?);
        Ok(Self { rows, assembler: Assembler::default(), catalog, _client: client })
    }

    /// The next event. A table that `has_rules_for` does not know may be a partition of one that it
    /// does.
    pub async fn next_event(
        &mut self,
        has_rules_for: &dyn Fn(&TableName) -> bool,
    ) -> Result<Option<SourceEvent>, PeekError> {
        loop {
            if let Some(event) = self.assembler.next_event() {
                return Ok(Some(event));
            }
            let Some(row) = self.rows.next().await else { return Ok(None) };
            let row = row?;
            let message = pgoutput::decode(Bytes::copy_from_slice(row.try_get(0)?))?;
            if let Message::Relation(body) = &message {
                let context = ask_context(&self.catalog, body, has_rules_for).await?;
                self.assembler.set_context(body.id, context);
            }
            self.assembler.take(message)?;
        }
    }
}

/// What the description of a relation leaves open. A commit is in the log before it can be seen, so
/// the answer may be that of a moment before. Peeking and recording wait for a while until it is
/// settled.
pub async fn ask_context(
    client: &Client,
    body: &RelationBody,
    has_rules_for: &dyn Fn(&TableName) -> bool,
) -> Result<RelationContext, tokio_postgres::Error> {
    const ASK_AGAIN_AFTER: Duration = Duration::from_millis(5);
    const ASKED_MAX: u32 = 50;
    let (name, types) = (TableName::new(&body.schema, &body.table), body.custom_types());
    let mut asked = 1;
    loop {
        let Ancestry { ancestors, is_settled, bases, .. } = ancestry(client, body.id, &types).await?;
        if is_settled || asked >= ASKED_MAX {
            return Ok(RelationContext::of(&name, ancestors, has_rules_for, bases));
        }
        asked += 1;
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
}
