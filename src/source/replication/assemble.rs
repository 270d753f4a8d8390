//! From decoded messages to changes: relations remembered, rows completed, transactions followed.
//!
//! Owns what the log leaves implicit: an update that sends no old row says that its identity did
//! not change; an unchanged TOAST value is the old one. It must not know rules. Invariant: a value
//! is filled in only where the log implies it, and a message out of place is an error.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::pgoutput::{Message, OldTuple, RelationBody, Tuple};
use crate::change::{
    Begin, Cell, Change, Column, ColumnKind, Operation, Relation, RelationId, Row, SourceEvent, TableName,
};
use crate::source::events::{EventReader, WantedEvents};

/// Why messages do not make a stream of transactions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// A change names a table that was never described.
    #[error("the log changes relation {0}, which it never described")]
    UnknownRelation(u32),
    /// A message came inside or outside of a transaction where it cannot.
    #[error("the log has {0} where it cannot be")]
    OutOfPlace(&'static str),
    /// A row has another number of columns than its table.
    #[error("a row of {table} has {found} columns; the log described {described}")]
    Columns {
        /// The table.
        table: TableName,
        /// Columns of the row.
        found: usize,
        /// Columns of the description.
        described: usize,
    },
}

/// The prefix of the logical messages that `unstale.emit` writes.
const EVENT: &[u8] = b"unstale.event";

/// The prefix of the logical messages that the event trigger writes.
const DDL: &[u8] = b"unstale.ddl";

/// A relation and which of its columns are booleans.
#[derive(Debug)]
struct KnownRelation {
    relation: Arc<Relation>,
    booleans: Vec<usize>,
    identity_is_full: bool,
}

/// What the log's description of a relation leaves open. The catalog knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelationContext {
    /// The table that rules name, if it is another one.
    pub root: Option<TableName>,
    /// The other names by which rules may mean the relation.
    pub also: Vec<TableName>,
    /// The type beneath each domain among the types of its columns.
    pub bases: HashMap<u32, u32>,
}

impl RelationContext {
    /// The context of a relation with this name and these ancestors, nearest first. The table that
    /// rules name is the relation itself, or the nearest above it that has rules, or the root.
    pub fn of(
        name: &TableName,
        ancestors: Vec<TableName>,
        has_rules_for: &dyn Fn(&TableName) -> bool,
        bases: HashMap<u32, u32>,
    ) -> Self {
        let root = match has_rules_for(name) {
            true => None,
            false => ancestors.iter().find(|table| has_rules_for(table)).or(ancestors.last()).cloned(),
        };
        Self { root, also: ancestors, bases }
    }
}

/// Follows one replication stream.
#[derive(Debug, Default)]
pub struct Assembler {
    relations: HashMap<RelationId, KnownRelation>,
    /// What the descriptions of relations leave open.
    contexts: HashMap<RelationId, RelationContext>,
    events: EventReader,
    /// Values come in the encoding of the database, which is not that of keys.
    is_raw: bool,
    in_transaction: bool,
    ready: VecDeque<SourceEvent>,
}

impl Assembler {
    /// Follows a stream from its beginning. `is_raw`: values come in the encoding of the database,
    /// so those that are not ASCII are not known.
    pub fn new(wanted: WantedEvents, is_raw: bool) -> Self {
        Self { events: EventReader::new(wanted), is_raw, ..Self::default() }
    }

    /// Sets what the description of a relation leaves open. Must be called before each description
    /// of the relation.
    pub fn set_context(&mut self, relation: RelationId, context: RelationContext) {
        self.contexts.insert(relation, context);
    }

    /// Takes one message. The events that follow from it are then ready.
    pub fn take(&mut self, message: Message) -> Result<(), AssembleError> {
        match message {
            Message::Begin { commit_lsn, at, xid } => {
                self.expect_transaction(false, "a transaction inside another")?;
                self.in_transaction = true;
                self.ready.push_back(SourceEvent::Begin(Begin { xid, commit_lsn, at }));
            }
            Message::Commit { end_lsn, .. } => {
                self.expect_transaction(true, "a commit without a transaction")?;
                self.in_transaction = false;
                self.ready.push_back(SourceEvent::Commit { end_lsn });
            }
            Message::Relation(body) => self.describe(body),
            Message::Insert { relation, new } => {
                let known = self.known(relation)?;
                let new = known.row(new)?;
                self.change(relation, Operation::Insert, None, Some(new))?;
            }
            Message::Update { relation, old, new } => {
                let known = self.known(relation)?;
                let mut new = known.row(new)?;
                let old = known.old_row(old, Some(&new))?;
                // An unchanged TOAST value is the old one, where that is known.
                for (cell, before) in new.cells_mut().iter_mut().zip(old.cells()) {
                    if *cell == Cell::Absent {
                        cell.clone_from(before);
                    }
                }
                self.change(relation, Operation::Update, Some(old), Some(new))?;
            }
            Message::Delete { relation, old } => {
                let known = self.known(relation)?;
                let old = known.old_row(old, None)?;
                self.change(relation, Operation::Delete, Some(old), None)?;
            }
            Message::Truncate { relations } => {
                for relation in relations {
                    self.change(relation, Operation::Truncate, None, None)?;
                }
            }
            Message::Logical { transactional: true, prefix, content } if prefix.as_ref() == EVENT => {
                self.expect_transaction(true, "an event without a transaction")?;
                self.ready.extend(self.events.emitted(&content).map(SourceEvent::Change));
            }
            Message::Logical { transactional: true, prefix, .. } if prefix.as_ref() == DDL => {
                self.expect_transaction(true, "a notice without a transaction")?;
                self.ready.push_back(SourceEvent::Ddl);
            }
            Message::Origin | Message::Type | Message::Logical { .. } => {}
        }
        Ok(())
    }

    /// The next event that is ready.
    pub fn next_event(&mut self) -> Option<SourceEvent> {
        self.ready.pop_front()
    }

    /// The last description of a relation.
    pub fn relation(&self, id: RelationId) -> Option<&Relation> {
        self.relations.get(&id).map(|known| known.relation.as_ref())
    }

    fn expect_transaction(&self, inside: bool, what: &'static str) -> Result<(), AssembleError> {
        if self.in_transaction == inside { Ok(()) } else { Err(AssembleError::OutOfPlace(what)) }
    }

    fn known(&self, id: RelationId) -> Result<&KnownRelation, AssembleError> {
        self.relations.get(&id).ok_or(AssembleError::UnknownRelation(id.oid()))
    }

    fn change(
        &mut self,
        id: RelationId,
        operation: Operation,
        old: Option<Row>,
        new: Option<Row>,
    ) -> Result<(), AssembleError> {
        self.expect_transaction(true, "a change without a transaction")?;
        let relation = Arc::clone(&self.known(id)?.relation);
        let (mut old, mut new) = (old, new);
        if self.is_raw {
            // Only now: an unchanged value must not take the place of one that is not known.
            [&mut old, &mut new].into_iter().flatten().for_each(forget_beyond_ascii);
        }
        self.ready.push_back(SourceEvent::Change(Change { relation, operation, old, new }));
        Ok(())
    }

    fn describe(&mut self, body: RelationBody) {
        let RelationContext { root, also, bases } = self.contexts.remove(&body.id).unwrap_or_default();
        let kind = |oid: u32| ColumnKind::of_type(*bases.get(&oid).unwrap_or(&oid));
        let identity_is_full = body.identity == b'f';
        let booleans = body.columns.iter().enumerate();
        let booleans = booleans.filter(|(_, column)| kind(column.type_oid) == ColumnKind::Boolean).map(|(at, _)| at);
        let booleans = booleans.collect();
        let columns = body.columns.into_iter().map(|column| Column {
            in_identity: column.in_identity || identity_is_full,
            kind: kind(column.type_oid),
            name: column.name,
        });
        let own = TableName::new(body.schema, body.table);
        let mut relation = Relation { id: body.id, name: own.clone(), also, columns: columns.collect() };
        if let Some(root) = root {
            relation.name = root;
            relation.also.push(own);
        }
        let name = relation.name.clone();
        relation.also.retain(|other| *other != name);
        let relation = Arc::new(relation);
        self.relations.insert(body.id, KnownRelation { relation, booleans, identity_is_full });
    }
}

/// Values that are not ASCII are not known.
fn forget_beyond_ascii(row: &mut Row) {
    for cell in row.cells_mut() {
        if matches!(cell, Cell::Value(value) if !value.is_ascii()) {
            *cell = Cell::Absent;
        }
    }
}

impl KnownRelation {
    fn row(&self, mut cells: Tuple) -> Result<Row, AssembleError> {
        if cells.len() != self.relation.columns.len() {
            let table = self.relation.name.clone();
            return Err(AssembleError::Columns { table, found: cells.len(), described: self.relation.columns.len() });
        }
        for &at in &self.booleans {
            if let Some(Cell::Value(value)) = cells.get_mut(at) {
                *value = Bytes::from_static(if value.as_ref() == b"t" { b"true" } else { b"false" });
            }
        }
        Ok(Row::new(cells))
    }

    /// The old row, as far as the log carries or implies it.
    fn old_row(&self, old: OldTuple, new: Option<&Row>) -> Result<Row, AssembleError> {
        let columns = self.relation.columns.iter();
        match old {
            OldTuple::Full(cells) => self.row(cells),
            OldTuple::Key(cells) => {
                let mut row = self.row(cells)?;
                for (cell, column) in row.cells_mut().iter_mut().zip(columns) {
                    if !column.in_identity {
                        *cell = Cell::Absent;
                    }
                }
                Ok(row)
            }
            // With a full identity the whole old row is always sent, so nothing is implied.
            OldTuple::Unchanged if self.identity_is_full => Ok(Row::new(vec![Cell::Absent; columns.len()])),
            OldTuple::Unchanged => {
                let unchanged = |(at, column): (usize, &Column)| match new {
                    Some(new) if column.in_identity => new.cell(at).clone(),
                    _ => Cell::Absent,
                };
                Ok(Row::new(columns.enumerate().map(unchanged).collect()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pgoutput::ColumnBody;
    use super::*;
    use crate::change::{Lsn, Xid};
    use std::time::SystemTime;

    /// The OID of PostgreSQL's `boolean`.
    const BOOLEAN: u32 = 16;
    const USERS: RelationId = RelationId::new(7);

    /// `users(id, email, admin boolean)`, the identity as given.
    fn describe(identity: u8, in_identity: &[&str]) -> Message {
        let column =
            |name: &str, type_oid| ColumnBody { in_identity: in_identity.contains(&name), name: name.into(), type_oid };
        let columns = vec![column("id", 25), column("email", 25), column("admin", BOOLEAN)];
        Message::Relation(RelationBody { id: USERS, schema: "public".into(), table: "users".into(), identity, columns })
    }

    fn begin() -> Message {
        Message::Begin { commit_lsn: Lsn::new(1), at: SystemTime::UNIX_EPOCH, xid: Xid::new(1) }
    }

    fn row(cells: [Cell; 3]) -> Tuple {
        cells.to_vec()
    }

    /// The only change that comes of the last of these messages.
    fn assemble(description: Message, message: Message) -> Change {
        let mut assembler = Assembler::default();
        for message in [description, begin(), message] {
            assembler.take(message).unwrap();
        }
        match (assembler.next_event(), assembler.next_event(), assembler.next_event()) {
            (Some(SourceEvent::Begin(_)), Some(SourceEvent::Change(change)), None) => change,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_update_without_an_old_row_implies_the_identity() {
        let new = row([Cell::of("u1"), Cell::of("a@x"), Cell::of("t")]);
        let update = Message::Update { relation: USERS, old: OldTuple::Unchanged, new: new.clone() };
        let change = assemble(describe(b'd', &["id"]), update.clone());
        assert_eq!(change.old.unwrap().cells(), [Cell::of("u1"), Cell::Absent, Cell::Absent]);
        assert_eq!(change.new.unwrap().cells(), [Cell::of("u1"), Cell::of("a@x"), Cell::of("true")]);
        let change = assemble(describe(b'i', &["id", "email"]), update);
        assert_eq!(change.old.unwrap().cells(), [Cell::of("u1"), Cell::of("a@x"), Cell::Absent]);
    }

    #[test]
    fn null_outside_of_an_old_key_means_not_sent() {
        let old = OldTuple::Key(row([Cell::of("u1"), Cell::Null, Cell::Null]));
        let change = assemble(describe(b'd', &["id"]), Message::Delete { relation: USERS, old });
        assert_eq!(change.old.unwrap().cells(), [Cell::of("u1"), Cell::Absent, Cell::Absent]);
    }

    #[test]
    fn unchanged_toast_is_taken_from_the_old_row() {
        let old = OldTuple::Full(row([Cell::of("u1"), Cell::of("long"), Cell::of("f")]));
        let new = row([Cell::of("u1"), Cell::Absent, Cell::Null]);
        let change = assemble(describe(b'f', &[]), Message::Update { relation: USERS, old, new: new.clone() });
        assert_eq!(change.new.unwrap().cells(), [Cell::of("u1"), Cell::of("long"), Cell::Null]);
        assert_eq!(change.old.unwrap().cells()[2], Cell::of("false"));
        let unknown = Message::Update { relation: USERS, old: OldTuple::Unchanged, new };
        assert_eq!(assemble(describe(b'd', &["id"]), unknown).new.unwrap().cells()[1], Cell::Absent);
    }

    #[test]
    fn a_description_sent_again_replaces_the_first() {
        let mut assembler = Assembler::default();
        assembler.take(describe(b'd', &["id"])).unwrap();
        let Message::Relation(mut wider) = describe(b'd', &["id"]) else { unreachable!() };
        wider.columns.push(ColumnBody { in_identity: false, name: "bio".into(), type_oid: 25 });
        assembler.take(Message::Relation(wider)).unwrap();
        assembler.take(begin()).unwrap();
        let short = Message::Insert { relation: USERS, new: row([Cell::Null, Cell::Null, Cell::Null]) };
        assert!(matches!(assembler.take(short), Err(AssembleError::Columns { found: 3, described: 4, .. })));
    }

    #[test]
    fn a_partition_speaks_for_its_root() {
        let mut assembler = Assembler::default();
        let root = Some(TableName::new("public", "people"));
        assembler.set_context(USERS, RelationContext { root, ..RelationContext::default() });
        assembler.take(describe(b'd', &["id"])).unwrap();
        assert_eq!(assembler.known(USERS).unwrap().relation.name, TableName::new("public", "people"));
    }

    #[test]
    fn messages_out_of_place_are_errors() {
        let truncate = || Message::Truncate { relations: vec![USERS] };
        let commit = || Message::Commit { commit_lsn: Lsn::ZERO, end_lsn: Lsn::ZERO };
        let check = |messages: Vec<Message>| {
            let mut assembler = Assembler::default();
            assert!(messages.into_iter().try_for_each(|message| assembler.take(message)).is_err());
        };
        check(vec![truncate()]);
        check(vec![begin(), truncate()]);
        check(vec![describe(b'd', &[]), truncate()]);
        check(vec![commit()]);
        check(vec![begin(), begin()]);
        check(vec![begin(), commit(), commit()]);
    }
}
