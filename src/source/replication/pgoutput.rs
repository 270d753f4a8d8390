//! The decoder of pgoutput, logical replication protocol version 1.
//!
//! Owns the byte layout. It must not know transactions or what a relation is for. Source: the
//! PostgreSQL manual, "Logical Replication Message Formats". Invariants: total over any bytes (an
//! error, never a panic); a decoded message leaves no byte over; values share the message's memory.

use std::time::{Duration, SystemTime};

use bytes::{Buf as _, Bytes};

use crate::change::{Cell, Lsn, RelationId, Xid};

/// A decoded message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A committed transaction begins.
    Begin {
        /// Where its commit record starts.
        commit_lsn: Lsn,
        /// When it committed.
        at: SystemTime,
        /// Its id.
        xid: Xid,
    },
    /// It is complete.
    Commit {
        /// Where its commit record starts.
        commit_lsn: Lsn,
        /// Where the record ends.
        end_lsn: Lsn,
    },
    /// The transaction came from elsewhere by replication.
    Origin,
    /// A table's description, before its first change and again when it changed.
    Relation(RelationBody),
    /// A type's name; only for types that are not built in.
    Type,
    /// A new row.
    Insert {
        /// The table.
        relation: RelationId,
        /// The row.
        new: Tuple,
    },
    /// A changed row.
    Update {
        /// The table.
        relation: RelationId,
        /// What the log carries of the old row.
        old: OldTuple,
        /// The new row.
        new: Tuple,
    },
    /// A deleted row.
    Delete {
        /// The table.
        relation: RelationId,
        /// What the log carries of it.
        old: OldTuple,
    },
    /// Truncated tables.
    Truncate {
        /// The tables.
        relations: Vec<RelationId>,
    },
    /// What `pg_logical_emit_message` wrote.
    Logical {
        /// Whether it belongs to the transaction around it.
        transactional: bool,
        /// Its prefix.
        prefix: Bytes,
        /// Its content.
        content: Bytes,
    },
}

/// The description of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationBody {
    /// Its OID.
    pub id: RelationId,
    /// The schema; empty for `pg_catalog`.
    pub schema: String,
    /// The name.
    pub table: String,
    /// The replica identity: `d`efault, `n`othing, `f`ull or `i`ndex.
    pub identity: u8,
    /// The columns, in order.
    pub columns: Vec<ColumnBody>,
}

impl RelationBody {
    /// The types of its columns that are not built in: some may be domains. PostgreSQL's
    /// `FirstNormalObjectId` is the first OID that is not its own.
    pub fn custom_types(&self) -> Vec<u32> {
        const FIRST_NORMAL_OBJECT_ID: u32 = 16384;
        self.columns.iter().map(|column| column.type_oid).filter(|oid| *oid >= FIRST_NORMAL_OBJECT_ID).collect()
    }
}

/// The description of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnBody {
    /// Whether it is part of the replica identity.
    pub in_identity: bool,
    /// The name.
    pub name: String,
    /// The OID of its type.
    pub type_oid: u32,
}

/// The columns of a row; [`Cell::Absent`] is a TOAST value that did not change.
pub type Tuple = Vec<Cell>;

/// What a message carries of the old row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OldTuple {
    /// Nothing: no column of the replica identity changed.
    Unchanged,
    /// The columns of the identity; the others read NULL and mean "not sent".
    Key(Tuple),
    /// Every column.
    Full(Tuple),
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends before it is complete.
    #[error("a pgoutput `{0}` message ends too early")]
    Truncated(char),
    /// Bytes are left over.
    #[error("a pgoutput `{0}` message is longer than its content")]
    Trailing(char),
    /// The first byte names no message of protocol version 1.
    #[error("pgoutput sent a message of unknown type {0:?}")]
    UnknownMessage(char),
    /// A byte that says what follows has a value it cannot have.
    #[error("a pgoutput `{message}` message has {byte:?} where {expected} belongs")]
    Unexpected {
        /// The message's type.
        message: char,
        /// The byte.
        byte: char,
        /// What belongs there.
        expected: &'static str,
    },
    /// A name is not UTF-8.
    #[error("a pgoutput `{0}` message has a name that is not UTF-8")]
    Name(char),
}

/// Microseconds from 1970 to 2000, where PostgreSQL's clock begins.
const POSTGRES_EPOCH_MICROS: u64 = 946_684_800_000_000;

/// A PostgreSQL timestamp, in microseconds since 2000, as system time.
pub(super) fn from_postgres_time(micros: i64) -> SystemTime {
    let epoch = SystemTime::UNIX_EPOCH + Duration::from_micros(POSTGRES_EPOCH_MICROS);
    let distance = Duration::from_micros(micros.unsigned_abs());
    let moment = if micros < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
    moment.unwrap_or(epoch)
}

/// System time as PostgreSQL's clients send it: microseconds since 2000.
pub(super) fn to_postgres_time(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let micros = since.as_micros().saturating_sub(u128::from(POSTGRES_EPOCH_MICROS));
    i64::try_from(micros).unwrap_or(i64::MAX)
}

/// Decodes one message.
pub fn decode(bytes: Bytes) -> Result<Message, DecodeError> {
    let mut reader = MessageReader { message: '?', bytes };
    reader.message = char::from(reader.u8()?);
    let message = match reader.message {
        'B' => Message::Begin {
            commit_lsn: reader.lsn()?,
            at: from_postgres_time(reader.i64()?),
            xid: Xid::new(reader.u32()?),
        },
        'C' => {
            reader.u8()?;
            let (commit_lsn, end_lsn) = (reader.lsn()?, reader.lsn()?);
            reader.i64()?;
            Message::Commit { commit_lsn, end_lsn }
        }
        'O' => {
            reader.lsn()?;
            reader.text()?;
            Message::Origin
        }
        'R' => Message::Relation(reader.relation()?),
        'Y' => {
            reader.u32()?;
            reader.text()?;
            reader.text()?;
            Message::Type
        }
        'I' => {
            let relation = RelationId::new(reader.u32()?);
            reader.expect(b'N', "`N`")?;
            Message::Insert { relation, new: reader.tuple()? }
        }
        'U' => {
            let relation = RelationId::new(reader.u32()?);
            let old = match reader.u8()? {
                b'N' => OldTuple::Unchanged,
                kind => {
                    let old = reader.old_tuple(kind)?;
                    reader.expect(b'N', "`N`")?;
                    old
                }
            };
            Message::Update { relation, old, new: reader.tuple()? }
        }
        'D' => {
            let relation = RelationId::new(reader.u32()?);
            let kind = reader.u8()?;
            Message::Delete { relation, old: reader.old_tuple(kind)? }
        }
        'T' => {
            let count = reader.u32()?;
            reader.u8()?;
            // The count is the sender's claim: memory grows with what is really there.
            let relations = (0..count).map(|_| reader.u32().map(RelationId::new)).collect::<Result<_, _>>()?;
            Message::Truncate { relations }
        }
        'M' => {
            let transactional = reader.u8()? & 1 == 1;
            reader.lsn()?;
            let prefix = reader.c_string()?;
            let length = reader.u32()?;
            Message::Logical { transactional, prefix, content: reader.take(length)? }
        }
        unknown => return Err(DecodeError::UnknownMessage(unknown)),
    };
    match reader.bytes.is_empty() {
        true => Ok(message),
        false => Err(DecodeError::Trailing(reader.message)),
    }
}

struct MessageReader {
    message: char,
    bytes: Bytes,
}

impl MessageReader {
    fn truncated<T>(&self, value: Option<T>) -> Result<T, DecodeError> {
        value.ok_or(DecodeError::Truncated(self.message))
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        let value = self.bytes.try_get_u8().ok();
        self.truncated(value)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        let value = self.bytes.try_get_u16().ok();
        self.truncated(value)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        let value = self.bytes.try_get_u32().ok();
        self.truncated(value)
    }

    fn i64(&mut self) -> Result<i64, DecodeError> {
        let value = self.bytes.try_get_i64().ok();
        self.truncated(value)
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        let value = self.bytes.try_get_u64().ok();
        self.truncated(value).map(Lsn::new)
    }

    fn take(&mut self, length: u32) -> Result<Bytes, DecodeError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let value = (length <= self.bytes.len()).then(|| self.bytes.split_to(length));
        self.truncated(value)
    }

    fn c_string(&mut self) -> Result<Bytes, DecodeError> {
        let end = self.bytes.iter().position(|&byte| byte == 0);
        let text = self.truncated(end)?;
        let text = self.bytes.split_to(text);
        self.bytes.advance(1);
        Ok(text)
    }

    /// A name. One that is not UTF-8, as there may be in a database without an encoding, is read
    /// lossily, so that it is not the name of anything in a rule.
    fn text(&mut self) -> Result<String, DecodeError> {
        Ok(String::from_utf8_lossy(&self.c_string()?).into_owned())
    }

    fn unexpected(&self, byte: u8, expected: &'static str) -> DecodeError {
        DecodeError::Unexpected { message: self.message, byte: char::from(byte), expected }
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), DecodeError> {
        match self.u8()? {
            found if found == byte => Ok(()),
            found => Err(self.unexpected(found, expected)),
        }
    }

    fn old_tuple(&mut self, kind: u8) -> Result<OldTuple, DecodeError> {
        match kind {
            b'K' => self.tuple().map(OldTuple::Key),
            b'O' => self.tuple().map(OldTuple::Full),
            other => Err(self.unexpected(other, "`K`, `O` or `N`")),
        }
    }

    fn tuple(&mut self) -> Result<Tuple, DecodeError> {
        let count = usize::from(self.u16()?);
        // Each column takes at least one byte, so a false count cannot reserve more than was sent.
        let mut cells = Vec::with_capacity(count.min(self.bytes.len()));
        for _ in 0..count {
            cells.push(match self.u8()? {
                b'n' => Cell::Null,
                b'u' => Cell::Absent,
                b't' | b'b' => {
                    let length = self.u32()?;
                    Cell::Value(self.take(length)?)
                }
                other => return Err(self.unexpected(other, "a column's kind")),
            });
        }
        Ok(cells)
    }

    fn relation(&mut self) -> Result<RelationBody, DecodeError> {
        let id = RelationId::new(self.u32()?);
        let (schema, table, identity) = (self.text()?, self.text()?, self.u8()?);
        let count = self.u16()?;
        let column = |reader: &mut Self| {
            let in_identity = reader.u8()? & 1 == 1;
            let (name, type_oid) = (reader.text()?, reader.u32()?);
            reader.u32()?;
            Ok(ColumnBody { in_identity, name, type_oid })
        };
        let columns = (0..count).map(|_| column(self)).collect::<Result<_, _>>()?;
        Ok(RelationBody { id, schema, table, identity, columns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn update(old: &[u8]) -> Vec<u8> {
        let mut message = b"U\0\0\0\x07".to_vec();
        message.extend_from_slice(old);
        message.extend_from_slice(b"N\0\x03t\0\0\0\x02u1nu");
        message
    }

    #[test]
    fn columns_are_three_valued() {
        let decoded = decode(update(b"").into()).unwrap();
        let new = vec![Cell::of("u1"), Cell::Null, Cell::Absent];
        assert_eq!(decoded, Message::Update { relation: RelationId::new(7), old: OldTuple::Unchanged, new });
        let decoded = decode(update(b"K\0\x01t\0\0\0\x01x").into()).unwrap();
        assert!(matches!(decoded, Message::Update { old: OldTuple::Key(key), .. } if key == [Cell::of("x")]));
    }

    #[test]
    fn every_shorter_and_longer_message_is_an_error() {
        let whole = update(b"O\0\x02nt\0\0\0\x03abc");
        for length in 0..whole.len() {
            let error = decode(Bytes::copy_from_slice(&whole[..length])).unwrap_err();
            assert!(matches!(error, DecodeError::Truncated(_)), "{length}: {error}");
        }
        let mut longer = whole;
        longer.push(0);
        assert_eq!(decode(longer.into()), Err(DecodeError::Trailing('U')));
    }

    #[test]
    fn a_claimed_length_reserves_nothing() {
        assert!(decode(Bytes::from_static(b"I\0\0\0\x01N\xff\xff")).is_err());
        assert!(decode(Bytes::from_static(b"T\xff\xff\xff\xff\0")).is_err());
        assert!(decode(Bytes::from_static(b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff")).is_err());
    }

    #[test]
    fn streaming_messages_are_refused() {
        for kind in [b"S", b"E", b"c", b"A"] {
            assert!(matches!(decode(Bytes::from_static(kind)), Err(DecodeError::UnknownMessage(_))));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(bytes.into());
        }

        #[test]
        fn no_bytes_after_a_known_type_make_it_panic(
            kind in proptest::sample::select(b"BCORYIUDTM".to_vec()),
            rest in proptest::collection::vec(prop_oneof![any::<u8>(), proptest::sample::select(b"\0\x01NKOtunb".to_vec())], 0..80),
        ) {
            let mut bytes = vec![kind];
            bytes.extend(rest);
            let _ = decode(bytes.into());
        }

        #[test]
        fn times_survive_the_round_trip(micros in 0..4_000_000_000_000_000_i64) {
            prop_assert_eq!(to_postgres_time(from_postgres_time(micros)), micros);
        }
    }
}
