//! The settings of every session.
//!
//! Owns what makes two sessions write a value in the same text, and see the same rows. It must not
//! know what is asked. Invariant: no setting of a role, a database or the server reaches a text
//! that becomes part of a key.

/// The settings on which the text of values depends, with the value that every session has.
pub(crate) const TEXT: [(&str, &str); 6] = [
    ("bytea_output", "hex"),
    ("datestyle", "ISO, MDY"),
    ("extra_float_digits", "3"),
    ("intervalstyle", "postgres"),
    ("lc_monetary", "C"),
    ("timezone", "UTC"),
];

/// Row level security must not hide rows: a query that it concerns is an error.
const ALL_ROWS: (&str, &str) = ("row_security", "off");

/// What a database without an encoding holds cannot be converted: it is taken as it is.
const NO_ENCODING: &str = "select set_config('client_encoding', 'SQL_ASCII', false) \
     where current_setting('server_encoding') = 'SQL_ASCII';";

/// Text comes as the database has it, in its own encoding.
pub(crate) const AS_STORED: &str = "select set_config('client_encoding', current_setting('server_encoding'), false)";

/// SQLSTATEs: a text of the database has no equivalent in UTF-8, or is not valid in the encoding of
/// the database.
pub(crate) const NOT_CONVERTIBLE: [&str; 2] = ["22P05", "22021"];

/// The statements that begin a session.
pub(crate) fn statements() -> String {
    let set = TEXT.into_iter().chain([ALL_ROWS]).map(|(name, value)| format!("set {name} = '{value}';"));
    set.chain([NO_ENCODING.to_owned()]).collect()
}

/// The options that begin a replication session, as a server's command line has them.
pub(crate) fn options() -> String {
    let option = |(name, value): (&str, &str)| format!(" -c {name}={}", value.replace(' ', "\\ "));
    TEXT.into_iter().map(option).collect()
}

/// The value of one of the settings of [`TEXT`].
pub(crate) fn text_setting(name: &str) -> &'static str {
    TEXT.into_iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
}

/// The settings of long-lived connections. Time-outs that the role has set would end them, and
/// reading an outbox in a serializable transaction could make serializable writers fail.
pub(crate) const LONG_LIVED: &str = "select set_config(name, '0', false) from pg_settings where name in \
     ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_session_timeout', \
      'idle_in_transaction_session_timeout'); \
     set default_transaction_isolation = 'read committed'; set default_transaction_read_only = off";
