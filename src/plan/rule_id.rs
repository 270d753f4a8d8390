//! What identifies a rule: a number made from its name, which is cheap to copy and to compare.
//!
//! Owns the number. It must not know rules or files. Invariant: a name gives the same number in
//! every file and every process, so that ops, repeats and notices still mean the same rule after
//! the file was reloaded.

use sha2::{Digest as _, Sha256};

/// The first 64 bits of the SHA-256 of a rule's name. Compiling a file fails if two of its rules
/// share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(u64);

impl RuleId {
    /// The number in 16 hexadecimal digits.
    pub fn to_hex(self) -> String {
        format!("{:016x}", self.0)
    }

    /// Reads what [`RuleId::to_hex`] wrote.
    pub fn from_hex(digits: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(digits).ok().filter(|text| text.len() == 16)?;
        u64::from_str_radix(text, 16).ok().map(Self)
    }

    /// No rule: removals of a new epoch have this id.
    pub const NONE: Self = Self(0);

    /// The rule of this name.
    pub fn of(name: &str) -> Self {
        let digest = Sha256::digest(name);
        Self(digest.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_depends_on_the_name_only() {
        // `printf abc | sha256sum` begins with these digits.
        assert_eq!(RuleId::of("abc"), RuleId(0xba78_16bf_8f01_cfea));
        assert_ne!(RuleId::of("user"), RuleId::of("users"));
        assert_ne!(RuleId::of(""), RuleId::NONE);
    }
}
