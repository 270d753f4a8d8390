//! Whether equal values of a type have one text form or several.
//!
//! Owns the list of types. It must not know what the values are for. Rules render keys from the
//! text that PostgreSQL writes, so a value cached under another form of the same number, such as
//! `user:07`, would never be removed. Invariant: an unknown type counts as having several forms.

use tokio_postgres::types::{Kind, Type};

/// The text forms of equal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// One, and the server accepts no other.
    Text,
    /// One, but the server accepts others.
    One,
    /// Forms that differ in case.
    Folded,
    /// Several, such as `1.5` and `1.50`.
    Several,
}

impl Notation {
    /// The notation of a type.
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
