//! Prefixes of keys from the names of tables: `feature_flags` makes `feature-flag`.
//!
//! Owns these names. It must not know YAML or templates. Invariants: a name contains only letters,
//! digits and `-`, so it can neither end a template's literal nor look like a name and a value; no
//! name is used twice.

use std::collections::BTreeSet;

use crate::key::{RESERVED, TAG};

/// Words with an irregular singular.
const IRREGULAR: &[(&str, &str)] = &[
    ("caches", "cache"),
    ("children", "child"),
    ("cookies", "cookie"),
    ("data", "data"),
    ("indices", "index"),
    ("men", "man"),
    ("movies", "movie"),
    ("news", "news"),
    ("people", "person"),
    ("series", "series"),
    ("species", "species"),
    ("statuses", "status"),
    ("women", "woman"),
];

/// The names in use.
#[derive(Debug, Default)]
pub(super) struct TakenNames(BTreeSet<String>);

impl TakenNames {
    /// Takes the first free candidate; if none is free, the last one with a number.
    pub(super) fn take(&mut self, candidates: &[String]) -> String {
        let numbered = candidates.last().map(String::as_str).unwrap_or_default();
        let numbered = (2_u64..).map(|number| format!("{numbered}-{number}"));
        let mut free = candidates.iter().cloned().chain(numbered).filter(|name| !self.0.contains(name));
        let name = free.next().expect("there are more numbers than names");
        self.0.insert(name.clone());
        name
    }
}

/// The name of one row of a table. It never equals a prefix that unstale itself uses, such as
/// `tag`.
pub(super) fn row_of(table: &str) -> String {
    let name = singular(&slug(table, "table"));
    let reserved = [RESERVED, TAG].iter().any(|prefix| prefix.trim_end_matches(':') == name);
    if reserved { format!("{name}-row") } else { name }
}

/// Lower-case words separated by `-`, from `snake_case`, `camelCase` or any other text; `nameless`
/// if there is no letter or digit in it.
pub(super) fn slug(name: &str, nameless: &str) -> String {
    let mut slug = String::new();
    let mut after_small = false;
    for character in name.chars() {
        if !character.is_alphanumeric() {
            after_small = false;
            separate(&mut slug);
            continue;
        }
        if character.is_uppercase() && after_small {
            separate(&mut slug);
        }
        slug.extend(character.to_lowercase().filter(|lower| lower.is_alphanumeric()));
        after_small = !character.is_uppercase();
    }
    match slug.trim_end_matches('-') {
        "" => nameless.to_owned(),
        slug => slug.to_owned(),
    }
}

fn separate(slug: &mut String) {
    if !slug.is_empty() && !slug.ends_with('-') {
        slug.push('-');
    }
}

/// Puts the last word into the singular, by a few rules of English.
fn singular(slug: &str) -> String {
    let (before, word) = match slug.rsplit_once('-') {
        Some((before, word)) => (format!("{before}-"), word),
        None => (String::new(), slug),
    };
    format!("{before}{}", singular_word(word))
}

fn singular_word(word: &str) -> String {
    if let Some((_, singular)) = IRREGULAR.iter().find(|(plural, _)| *plural == word) {
        return (*singular).to_owned();
    }
    if let Some(stem) = word.strip_suffix("ies").filter(|stem| stem.len() > 1) {
        return format!("{stem}y");
    }
    let stem = match word {
        _ if ["ss", "us", "is"].iter().any(|end| word.ends_with(end)) => word,
        _ if ["sses", "shes", "ches", "xes"].iter().any(|end| word.ends_with(end)) => {
            word.strip_suffix("es").unwrap_or(word)
        }
        _ => word.strip_suffix('s').filter(|stem| stem.len() > 1).unwrap_or(word),
    };
    stem.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_called_after_its_table() {
        let check = |table: &str, expected: &str| assert_eq!(row_of(table), expected, "{table}");
        check("users", "user");
        check("feature_flags", "feature-flag");
        check("UserAccounts", "user-account");
        check("companies", "company");
        check("addresses", "address");
        check("boxes", "box");
        check("status", "status");
        check("people", "person");
        check("order_statuses", "order-status");
        check("s", "s");
        check("membership", "membership");
        check("we\"ird: {name}\n", "we-ird-name");
        check("!!!", "table");
        check("Übungen", "übungen");
        check("tags", "tag-row");
        check("unstale", "unstale-row");
        check("unstale:", "unstale-row");
        check("a  b", "a-b");
    }

    #[test]
    fn no_name_is_given_twice() {
        let mut names = TakenNames::default();
        let mut take = |candidates: &[&str]| {
            let candidates: Vec<_> = candidates.iter().map(ToString::to_string).collect();
            names.take(&candidates)
        };
        assert_eq!(take(&["user"]), "user");
        assert_eq!(take(&["user", "app-user"]), "app-user");
        assert_eq!(take(&["user", "app-user"]), "app-user-2");
        assert_eq!(take(&["app-user-2"]), "app-user-2-2");
        assert_eq!(take(&["user", "app-user"]), "app-user-3");
    }
}
