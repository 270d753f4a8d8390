//! Why there is no draft.

/// Why there is no draft.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// A table was asked for that the database does not have.
    #[error(
        "there is no table {name}{}",
        .near.as_ref().map(|near| format!("; did you mean {near}?")).unwrap_or_default()
    )]
    UnknownTable {
        /// What was asked for, fit to be printed.
        name: String,
        /// What may have been meant.
        near: Option<String>,
    },
    /// There are no tables where we looked.
    #[error("there are no tables in the search path ({0}); name some, as in `--tables schema.table`")]
    NoTables(String),
    /// No table can have a rule, for these reasons.
    #[error("no table can have a rule: {}", .0.join("; "))]
    NoRules(Vec<String>),
}
