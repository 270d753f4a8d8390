//! From a name back to the values from which a template renders it.
//!
//! Owns the search. It must not know rows. Invariants: a value is returned only if no other value
//! at its place gives the same name; a name that no row can give is not matched.

use std::collections::HashMap;
use std::ops::Range;

use percent_encoding::percent_decode;

use super::filter::Filter;
use super::template::{Reference, Template, TemplatePart};

/// The value of one reference of a template, as far as a name determines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceValue<'t> {
    /// The reference.
    pub reference: &'t Reference,
    /// The value after the filters; `None` if several values are possible.
    pub value: Option<Vec<u8>>,
}

impl Template {
    /// The value of each reference if the template renders to this name; `None` if it cannot.
    pub fn invert(&self, name: &[u8]) -> Option<Vec<ReferenceValue<'_>>> {
        let first = earliest(self.parts(), name)?;
        let last = latest(self.parts(), name)?;
        let mut given = Vec::new();
        for (at, part) in self.parts().iter().enumerate() {
            let TemplatePart::Reference(reference) = part else { continue };
            let place = gap(self.parts(), &first, at, name.len());
            let certain =
                place.as_ref().filter(|place| gap(self.parts(), &last, at, name.len()).as_ref() == Some(*place));
            let value = certain.and_then(|place| name.get(place.clone())).map(<[u8]>::to_vec);
            given.push(ReferenceValue { reference, value });
        }
        is_consistent(&given).then_some(given)
    }
}

/// The place of each literal of the template in a name; `None` for other parts.
type Places = Vec<Option<Range<usize>>>;

/// Places every literal as far to the left as possible.
fn earliest(parts: &[TemplatePart], name: &[u8]) -> Option<Places> {
    let mut places = Vec::with_capacity(parts.len());
    let (mut from, mut floating) = (0, false);
    for (at, part) in parts.iter().enumerate() {
        let TemplatePart::Literal(literal) = part else {
            floating = true;
            places.push(None);
            continue;
        };
        let rest = name.get(from..)?;
        let start = match (floating, at + 1 == parts.len()) {
            (false, _) => rest.starts_with(literal).then_some(0)?,
            (true, true) => rest.ends_with(literal).then(|| rest.len() - literal.len())?,
            (true, false) => find(rest, literal)?,
        };
        places.push(Some(from + start..from + start + literal.len()));
        (from, floating) = (from + start + literal.len(), false);
    }
    (floating || from == name.len()).then_some(places)
}

/// Places every literal as far to the right as possible.
fn latest(parts: &[TemplatePart], name: &[u8]) -> Option<Places> {
    let reversed = |bytes: &[u8]| bytes.iter().rev().copied().collect::<Vec<_>>();
    let mirrored = parts.iter().rev().map(|part| match part {
        TemplatePart::Literal(literal) => TemplatePart::Literal(reversed(literal)),
        TemplatePart::Reference(_) | TemplatePart::Any => TemplatePart::Any,
    });
    let mut places = earliest(&mirrored.collect::<Vec<_>>(), &reversed(name))?;
    places.reverse();
    let mirror = |place: Range<usize>| name.len() - place.end..name.len() - place.start;
    Some(places.into_iter().map(|place| place.map(mirror)).collect())
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    // A literal is never empty.
    text.windows(part.len().max(1)).position(|window| window == part)
}

/// The place of the part at `at` between the literals, if no other part is there or the place is
/// empty.
fn gap(parts: &[TemplatePart], places: &[Option<Range<usize>>], at: usize, end: usize) -> Option<Range<usize>> {
    let place = |at: usize| places.get(at).cloned().flatten();
    let before = (0..at).rev().find_map(|other| Some((other, place(other)?)));
    let after = (at + 1..parts.len()).find_map(|other| Some((other, place(other)?)));
    let start = before.as_ref().map_or(0, |(_, place)| place.end);
    let end = after.as_ref().map_or(end, |(_, place)| place.start);
    let first = before.map_or(0, |(other, _)| other + 1);
    let beyond = after.map_or(parts.len(), |(other, _)| other);
    (beyond - first == 1 || start == end).then_some(start..end)
}

/// Whether a row can have these values: a filter restricts its results, and a column has one value.
fn is_consistent(given: &[ReferenceValue<'_>]) -> bool {
    let mut known: HashMap<_, &[u8]> = HashMap::new();
    given.iter().all(|given| {
        let Some(value) = &given.value else { return true };
        let Reference { image, column, filters, .. } = given.reference;
        let words: Vec<_> = filters.iter().map(|filter| filter.word()).collect();
        let same = *known.entry((format!("{image:?}"), column, words)).or_insert(value) == &**value;
        same && filters.last().is_none_or(|filter| filter.can_make(value))
    })
}

impl Filter {
    /// Its word in templates.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, filter)| *filter == self).map_or("", |(word, _)| word)
    }

    /// Whether there is a value of which it makes this one.
    fn can_make(self, value: &[u8]) -> bool {
        match self {
            Self::Lower | Self::Upper => self.apply(value) == value,
            Self::Sha256 => value.len() == 64 && value.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
            Self::Urlencode => self.apply(&percent_decode(value).collect::<Vec<_>>()) == value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The values, `?` where there are several possibilities.
    fn invert(template: &Template, name: &str) -> Option<String> {
        let given = template.invert(name.as_bytes())?;
        let shown = given.iter().map(|given| match &given.value {
            Some(value) => format!("{}={}", given.reference.column, String::from_utf8_lossy(value)),
            None => format!("{}=?", given.reference.column),
        });
        Some(shown.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_name_tells_what_it_was_made_of() {
        let check = |template: &str, name: &str, expected: Option<&str>| {
            let template = Template::parse(template, "v1:", Some("m")).unwrap();
            assert_eq!(invert(&template, name).as_deref(), expected, "{template:?} {name}");
        };
        check("user:{id}", "v1:user:7", Some("id=7"));
        check("user:{id}", "v1:user:", Some("id="));
        check("user:{id}", "v1:users:7", None);
        check("user:{id}", "user:7", None);
        check("all", "v1:all", Some(""));
        check("all", "v1:all!", None);
        check("a:{x}:{y}", "v1:a:1:2", Some("x=1 y=2"));
        check("a:{x}:{y}", "v1:a:1:2:3", Some("x=? y=?"));
        check("a:{x}:{y}", "v1:a:1", None);
        check("a:{x}{y}", "v1:a:12", Some("x=? y=?"));
        check("a:{x}{y}", "v1:a:", Some("x= y="));
        check("a:{x}:z", "v1:a:z:z", Some("x=z"));
        check("a:{x}b", "v1:a:bb", Some("x=b"));
        check("a:{x}:{x}", "v1:a:1:1", Some("x=1 x=1"));
        check("a:{x}:{x}", "v1:a:1:2", None);
        check("a:{old.x}:{new.x}", "v1:a:1:2", Some("x=1 x=2"));
        check("k:{m.id}", "v1:k:7", Some("id=7"));
        check("e:{email|lower}", "v1:e:ann@x.io", Some("email=ann@x.io"));
        check("e:{email|lower}", "v1:e:Ann@x.io", None);
        check("e:{email|upper|lower}", "v1:e:ann", Some("email=ann"));
        check("s:{token|sha256}", "v1:s:7", None);
        check("s:{token|sha256}", &format!("v1:s:{}", "0a".repeat(32)), Some(&format!("token={}", "0a".repeat(32))));
        check("u:{path|urlencode}", "v1:u:a%20b", Some("path=a%20b"));
        check("u:{path|urlencode}", "v1:u:a b", None);
    }

    #[test]
    fn a_pattern_matches_more_than_it_tells() {
        let check = |template: &str, name: &str, expected: Option<&str>| {
            let template = Template::parse_pattern(template, "", None).unwrap();
            assert_eq!(invert(&template, name).as_deref(), expected, "{template:?} {name}");
        };
        check("search:{id}:*", "search:7:x", Some("id=7"));
        check("search:{id}:*", "search:7:x:y", Some("id=?"));
        check("search:*:{id}", "search:x", None);
        check("page*", "pages", Some(""));
    }

    proptest! {
        /// Whatever a template renders it is found to be made of, unless there are several
        /// possibilities.
        #[test]
        fn what_is_rendered_is_found_again(x in "[ab:]{0,4}", y in "[ab:]{0,4}") {
            use super::super::template::{Rendered, Resolved};
            let template = Template::parse("k:{x}:{y}b", "", None).unwrap();
            let values = [x.as_bytes(), y.as_bytes()];
            let Rendered::Key(key) = template.render(|at| Resolved::Value(values[at])) else { panic!() };
            let given = template.invert(key.as_bytes()).unwrap();
            for (given, value) in given.iter().zip(values) {
                prop_assert!(given.value.as_deref().is_none_or(|found| found == value), "{key} {given:?}");
            }
        }
    }
}
