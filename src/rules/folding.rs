//! How `lower` and `upper` fold case: as a database does, as far as that is known.
//!
//! Owns what is known. It must not ask a database. Invariant: a value is folded only if the
//! database folds it in the same way; otherwise the result is not known, and a name that contains
//! it is a glob.

use std::collections::BTreeSet;

/// A direction in which case is folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterCase {
    /// `lower`.
    Lower,
    /// `upper`.
    Upper,
}

/// How a database folds case. The default folds by Unicode's rules, for commands that ask no
/// database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folding {
    database: Option<DatabaseFolding>,
}

/// What is known of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DatabaseFolding {
    /// Whether it is known how characters beyond ASCII are folded.
    beyond_ascii: bool,
    lower: OddCharacters,
    upper: OddCharacters,
}

/// The characters that the database folds otherwise than Unicode says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OddCharacters {
    /// Whether any of them is ASCII.
    any_ascii: bool,
    all: BTreeSet<char>,
}

impl OddCharacters {
    fn new(all: impl IntoIterator<Item = char>) -> Self {
        let all: BTreeSet<char> = all.into_iter().collect();
        Self { any_ascii: all.iter().any(char::is_ascii), all }
    }
}

impl Folding {
    /// A database that folds by Unicode's rules, except for these characters. Without
    /// `beyond_ascii`, it is not known how it folds other characters than those of ASCII.
    pub fn of_database(
        beyond_ascii: bool,
        odd_lower: impl IntoIterator<Item = char>,
        odd_upper: impl IntoIterator<Item = char>,
    ) -> Self {
        let (lower, upper) = (OddCharacters::new(odd_lower), OddCharacters::new(odd_upper));
        Self { database: Some(DatabaseFolding { beyond_ascii, lower, upper }) }
    }

    /// A database of which nothing is known.
    pub fn unknown() -> Self {
        let letters = || ('A'..='Z').chain('a'..='z');
        Self::of_database(false, letters(), letters())
    }

    /// The value in the other case; none if it is not known how the database folds it.
    pub(super) fn fold(&self, case: LetterCase, value: &[u8]) -> Option<Vec<u8>> {
        if !self.is_known(case, value) {
            return None;
        }
        match std::str::from_utf8(value) {
            Ok(text) if !text.is_ascii() => Some(case.fold(text).into_bytes()),
            // What is not UTF-8 (an SQL_ASCII database) is folded byte by byte.
            _ => Some(match case {
                LetterCase::Lower => value.to_ascii_lowercase(),
                LetterCase::Upper => value.to_ascii_uppercase(),
            }),
        }
    }

    /// Whether it is known how the database folds the value.
    pub(super) fn is_known(&self, case: LetterCase, value: &[u8]) -> bool {
        let Some(database) = &self.database else { return true };
        let odd = match case {
            LetterCase::Lower => &database.lower,
            LetterCase::Upper => &database.upper,
        };
        if value.is_ascii() {
            return !odd.any_ascii || !value.iter().any(|byte| odd.all.contains(&char::from(*byte)));
        }
        let Ok(text) = std::str::from_utf8(value) else { return false };
        let is_known = |character: char| !odd.all.contains(&character) && !depends_on_context(character);
        database.beyond_ascii && text.chars().all(is_known)
    }

    /// The characters of ASCII that the database folds otherwise, in either case.
    pub fn odd_ascii(&self) -> String {
        let odd = self.database.iter().flat_map(|database| database.lower.all.iter().chain(&database.upper.all));
        odd.filter(|character| character.is_ascii()).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl LetterCase {
    /// A text by Unicode's rules.
    fn fold(self, text: &str) -> String {
        match self {
            Self::Lower => text.to_lowercase(),
            Self::Upper => text.to_uppercase(),
        }
    }

    /// Every character that has another case, as text, and its lower and upper case by Unicode's
    /// rules. Only ASCII, unless `beyond_ascii`.
    pub fn characters(beyond_ascii: bool) -> Vec<[String; 3]> {
        /// No character beyond has another case.
        const END: char = '\u{1FFFF}';
        let last = if beyond_ascii { END } else { '\x7F' };
        // A text in PostgreSQL cannot contain the first one.
        let texts = ('\x01'..=last).map(String::from);
        let all = texts.map(|text| [text.clone(), Self::Lower.fold(&text), Self::Upper.fold(&text)]);
        all.filter(|[text, lower, upper]| text != lower || text != upper).collect()
    }
}

/// Whether some database folds the character, or one beside it, by what surrounds it: the final
/// sigma; in Greek, the eta with an accent; accents and dots as characters of their own, which
/// Turkish, Lithuanian and Greek treat in their own ways.
fn depends_on_context(character: char) -> bool {
    matches!(character, 'Σ' | 'ή' | 'Ή' | '\u{300}'..='\u{36F}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(folding: &Folding, case: LetterCase, value: &str, expected: Option<&str>) {
        let folded = folding.fold(case, value.as_bytes()).map(|folded| String::from_utf8(folded).unwrap());
        assert_eq!(folded.as_deref(), expected, "{case:?} {value}");
    }

    #[test]
    fn without_a_database_unicode_decides() {
        let folding = Folding::default();
        check(&folding, LetterCase::Lower, "ILKER", Some("ilker"));
        check(&folding, LetterCase::Lower, "ΟΔΟΣ", Some("οδος"));
        check(&folding, LetterCase::Upper, "straße", Some("STRASSE"));
        assert_eq!(folding.fold(LetterCase::Lower, b"A\xff"), Some(b"a\xff".to_vec()));
        assert_eq!(folding.odd_ascii(), "");
    }

    #[test]
    fn what_the_database_folds_otherwise_is_not_known() {
        let turkish = Folding::of_database(true, ['I', 'İ'], ['i']);
        check(&turkish, LetterCase::Lower, "ILKER", None);
        check(&turkish, LetterCase::Lower, "ilker", Some("ilker"));
        check(&turkish, LetterCase::Upper, "ilker", None);
        check(&turkish, LetterCase::Upper, "Ay", Some("AY"));
        check(&turkish, LetterCase::Lower, "Öz", Some("öz"));
        check(&turkish, LetterCase::Lower, "İz", None);
        assert_eq!(turkish.odd_ascii(), "Ii");
    }

    #[test]
    fn what_depends_on_its_context_is_not_known() {
        let plain = Folding::of_database(true, [], []);
        check(&plain, LetterCase::Lower, "Ann@X.io", Some("ann@x.io"));
        check(&plain, LetterCase::Lower, "ÄÖ", Some("äö"));
        check(&plain, LetterCase::Lower, "ΟΔΟΣ", None);
        check(&plain, LetterCase::Upper, "ήλιος", None);
        check(&plain, LetterCase::Lower, "I\u{300}", None);
        assert_eq!(plain.fold(LetterCase::Lower, b"A\xff"), None);
    }

    #[test]
    fn of_an_unknown_database_only_what_has_no_letters_is_known() {
        check(&Folding::unknown(), LetterCase::Lower, "17-4", Some("17-4"));
        check(&Folding::unknown(), LetterCase::Lower, "a", None);
        check(&Folding::unknown(), LetterCase::Lower, "ß", None);
        let ascii = Folding::of_database(false, [], []);
        check(&ascii, LetterCase::Lower, "Ann", Some("ann"));
        check(&ascii, LetterCase::Lower, "Änn", None);
    }

    #[test]
    fn every_character_with_two_cases_is_asked_for() {
        let ascii = LetterCase::characters(false);
        assert_eq!((ascii.len(), &ascii[0]), (52, &["A", "a", "A"].map(String::from)));
        let all = LetterCase::characters(true);
        let has = |text: &str| all.iter().any(|[character, ..]| character == text);
        assert!(has("İ") && has("ß") && has("𐐀") && !has("7") && all.len() > 2500, "{}", all.len());
        let beyond = ('\u{20000}'..=char::MAX).filter(|c| c.is_lowercase() || c.is_uppercase());
        assert_eq!(beyond.count(), 0);
    }
}
