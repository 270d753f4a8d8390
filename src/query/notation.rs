//! In how many ways values of a type that are equal may be written.
//!
//! Owns that list. It must not know what the values are for: a rule makes its keys of what PostgreSQL writes, so nothing would
//! ever remove what is cached under another way of writing the same, `user:07`. Invariant: of a type that is not known it is several.

use tokio_postgres::types::{Kind, Type};

/// In how many ways values that are equal may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// One, and the server takes no other.
    Text,
    /// One, and the server takes others for it.
    One,
    /// They differ in upper and lower case.
    Folded,
    /// Several: `1.5` and `1.50` are equal.
    Several,
}

impl Notation {
    /// That of a type.
    pub fn of(kind: &Type) -> Self {
        match *kind {
            Type::TEXT | Type::VARCHAR | Type::NAME => Self::Text,
            Type::INT2
            | Type::INT4
            | Type::INT8
            | Type::OID
            | Type::UUID
            | Type::BOOL
            | Type::DATE
            | Type::TIMESTAMP => Self::One,
            _ => match kind.kind() {
                Kind::Enum(_) => Self::Text,
                Kind::Domain(base) => Self::of(base),
                _ if kind.name() == "citext" => Self::Folded,
                _ => Self::Several,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_written_as_its_base() {
        let domain = |base: Type| Type::new("d".to_owned(), 50_000, Kind::Domain(base), "public".to_owned());
        assert_eq!(Notation::of(&domain(Type::UUID)), Notation::One);
        assert_eq!(Notation::of(&domain(Type::NUMERIC)), Notation::Several);
        let citext = Type::new("citext".to_owned(), 50_001, Kind::Simple, "public".to_owned());
        assert_eq!(Notation::of(&domain(citext)), Notation::Folded);
        for loose in [Type::TEXT_ARRAY, Type::BPCHAR, Type::FLOAT8, Type::TIMESTAMPTZ, Type::JSONB] {
            assert_eq!(Notation::of(&loose), Notation::Several, "{loose}");
        }
    }
}
