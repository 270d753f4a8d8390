//! Why no draft could be made.
//!
//! Owns the messages. It must not know exit codes.

/// Why no draft could be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// The database does not have a table that was asked for.
    #[error(
        "there is no table {name}{}",
        .near.as_ref().map(|near| format!("; did you mean {near}?")).unwrap_or_default()
    )]
    UnknownTable {
        /// The name that was given, printable.
        name: String,
        /// A similar name that exists.
        near: Option<String>,
    },
    /// The search path, given here, has no tables.
    #[error("the search path ({0}) has no tables; name some, as in `--tables schema.table`")]
    NoTables(String),
    /// No table can have a rule; the reasons.
    #[error("no table can have a rule: {}", .0.join("; "))]
    NoRules(Vec<String>),
}
