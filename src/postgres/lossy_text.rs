//! Texts from PostgreSQL that need not be UTF-8.
//!
//! Owns how they are read. It must not know what they mean. Invariant: reading one never fails. In
//! a database without an encoding (SQL_ASCII) a name may have any bytes, and one that no rule uses
//! must not stop anything.

use std::error::Error;

use tokio_postgres::types::{FromSql, Kind, Type};

/// A text in which what is not UTF-8 was replaced, so that it equals nothing that a rule names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LossyText(pub(crate) String);

impl<'a> FromSql<'a> for LossyText {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(String::from_utf8_lossy(raw).into_owned()))
    }

    fn accepts(ty: &Type) -> bool {
        is_text(ty)
    }
}

/// Types whose binary form is their text.
fn is_text(ty: &Type) -> bool {
    matches!(*ty, Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::JSON | Type::UNKNOWN)
        || matches!(ty.kind(), Kind::Enum(_))
}

/// The texts of an array.
pub(crate) fn strings(texts: Vec<LossyText>) -> Vec<String> {
    texts.into_iter().map(|LossyText(text)| text).collect()
}
