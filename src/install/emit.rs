//! The function `unstale.emit`, by which applications emit events.
//!
//! Owns `sql/emit.sql`, and how an installed function is recognised. It must not know which rules
//! use events. Invariant: one function serves both modes, so installing for one takes nothing from
//! the other.

use tokio_postgres::{Client, Error};

use super::script;

/// Creates the function, or replaces one of another version.
pub const EMIT: &str = include_str!("../../sql/emit.sql");

/// The function, as it is in a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmitFunction {
    /// There is none.
    Missing,
    /// Another version of unstale installed it.
    Outdated,
    /// It is the one that this version installs.
    Current,
    /// It was not installed by unstale.
    Foreign,
}

impl EmitFunction {
    /// What is wrong with it, if something is.
    pub const fn fault(self) -> Option<&'static str> {
        match self {
            Self::Missing => Some("there is no function unstale.emit(text, jsonb)"),
            Self::Outdated => {
                Some("unstale.emit is of another version, which writes only to the log or only to the outbox")
            }
            Self::Foreign => Some("unstale.emit(text, jsonb) was not installed by unstale; rename or drop it"),
            Self::Current => None,
        }
    }
}

/// Looks at the function. The role needs no privilege on its schema.
pub async fn read(client: &Client) -> Result<EmitFunction, Error> {
    const INSTALLED: &str = "select p.prosecdef and p.prosrc = $1, obj_description(p.oid, 'pg_proc') = 'made by unstale' \
         from pg_proc p join pg_namespace n on n.oid = p.pronamespace \
         where n.nspname = 'unstale' and p.proname = 'emit' and oidvectortypes(p.proargtypes) = 'text, jsonb'";
    let body = script::body(EMIT, "$emit$");
    Ok(match client.query_opt(INSTALLED, &[&body]).await? {
        None => EmitFunction::Missing,
        Some(row) if row.get(0) => EmitFunction::Current,
        Some(row) if row.get::<_, Option<bool>>(1) == Some(true) => EmitFunction::Outdated,
        Some(_) => EmitFunction::Foreign,
    })
}
