//! The filters of templates: `{email|lower}`.
//!
//! Owns what each filter does to a value's bytes. Invariant: total over any bytes.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use sha2::{Digest as _, Sha256};

use super::folding::{Folding, LetterCase};

/// A function from a value to a value, applied in a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Lower case, as PostgreSQL's `lower` gives it.
    Lower,
    /// Upper case, as PostgreSQL's `upper` gives it.
    Upper,
    /// SHA-256 in lower-case hexadecimal digits.
    Sha256,
    /// Percent-encoding of everything but RFC 3986's unreserved characters.
    Urlencode,
}

const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Filter {
    /// Every filter by its word.
    pub const WORDS: [(&'static str, Self); 4] =
        [("lower", Self::Lower), ("upper", Self::Upper), ("sha256", Self::Sha256), ("urlencode", Self::Urlencode)];

    /// The value after the filter, where no database is asked how it folds case.
    pub fn apply(self, value: &[u8]) -> Vec<u8> {
        self.apply_as(&Folding::default(), value).unwrap_or_default()
    }

    /// The value after the filter; none if it is not known how the database folds it.
    pub(super) fn apply_as(self, folding: &Folding, value: &[u8]) -> Option<Vec<u8>> {
        if let Some(case) = self.case() {
            return folding.fold(case, value);
        }
        Some(self.encode(value))
    }

    /// The case that it folds to, if it does.
    pub(super) fn case(self) -> Option<LetterCase> {
        match self {
            Self::Lower => Some(LetterCase::Lower),
            Self::Upper => Some(LetterCase::Upper),
            Self::Sha256 | Self::Urlencode => None,
        }
    }

    fn encode(self, value: &[u8]) -> Vec<u8> {
        match self {
            Self::Lower | Self::Upper => value.to_vec(),
            Self::Sha256 => {
                let digits = b"0123456789abcdef";
                let digit = |nibble: u8| digits.get(usize::from(nibble)).copied().unwrap_or(b'0');
                Sha256::digest(value).iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
            }
            Self::Urlencode => percent_encode(value, ENCODED).to_string().into_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_do_what_they_say() {
        let check = |filter: Filter, value: &str, expected: &str| {
            assert_eq!(String::from_utf8(filter.apply(value.as_bytes())).unwrap(), expected);
        };
        check(Filter::Lower, "Ann@X.io", "ann@x.io");
        check(Filter::Lower, "ÄÖ", "äö");
        check(Filter::Upper, "straße", "STRASSE");
        check(Filter::Sha256, "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        check(Filter::Urlencode, "a b/ü~", "a%20b%2F%C3%BC~");
        assert_eq!(Filter::Lower.apply(b"A\xff"), b"a\xff");
    }
}
