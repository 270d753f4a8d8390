//! Every limit on what comes from outside, in one place.
//!
//! Owns the numbers and what happens above them. It must not know who applies a limit. Invariant:
//! above a limit more is removed than was asked for, never less; what is left out is counted by
//! rule, logged, and shown by `unstale status`.

/// The longest name of a key, a tag, a channel or a stream that a rule makes, in bytes, and the
/// longest value in one. Above it the name counts as not known, so the rule removes everything that
/// it can name. A message to a channel or stream with such a name becomes a dead letter.
pub const NAME_BYTES_MAX: usize = 2 << 10;

/// The longest value that is hashed for a name, sent as a field of a message, or given to a lookup,
/// in bytes. Above it a hashed value and an argument count as not known, and a field is null.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// The longest JSON object that a rule with `set` writes, in bytes. Above it the key is deleted.
pub const SET_BYTES_MAX: usize = 8 << 20;

/// The longest content of an event, in bytes. Above it none of the event's fields is known, and the
/// content is not parsed.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// How much of a longer content is searched for the event's name, in bytes.
pub const EVENT_HEAD_BYTES_MAX: usize = 8 << 10;

/// The longest value that is taken from an entry of the outbox, in bytes. A longer one counts as
/// not known.
pub const ENTRY_VALUE_BYTES_MAX: usize = 8 << 20;

/// The longest value in the change of a dead letter, in bytes. A longer one is left out, so that it
/// counts as not known when the change is planned again.
pub const DEAD_LETTER_VALUE_BYTES_MAX: usize = 64 << 10;

/// How much the remembered descriptions of JSON rows, and of entries of the outbox, may take, in
/// bytes. Above it all are forgotten, and made or asked for again.
pub const SHAPES_BYTES_MAX: usize = 4 << 20;

/// The most descriptions of tables with the rules bound to them. Above it all are forgotten, and
/// bound again.
pub const BOUND_TABLES_MAX: usize = 16 << 10;

/// The largest message from a PostgreSQL server, in bytes: a row is at most 1 GB, and its old image
/// as much again.
pub const SERVER_MESSAGE_BYTES_MAX: usize = 0x7FFF_FFFF;

/// The most memory that the buffer for messages from the server keeps after a large one, in bytes.
pub const IDLE_BUFFER_BYTES_MAX: usize = 1 << 20;
