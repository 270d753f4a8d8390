//! The sets that a cached value joins, so that a rule can remove it by its tags.
//!
//! Owns how sets follow from the arguments and from the value's own fields. Invariant: a value
//! whose sets are not all known is not cached.

use std::collections::HashMap;

use serde_json::value::RawValue;

use super::read::{Arguments, Read};
use crate::key::CacheKey;
use crate::rules::{Image, Reference, Rendered, Resolved};

impl Read {
    /// Whether every field of the value that `tags` name is there and plain, and folded as the
    /// database folds it. A rule could not find the value by a field that is absent, NULL, an array
    /// or an object.
    pub fn has_tag_fields(&self, value: &[u8]) -> bool {
        let fields = fields(value);
        let mut references = self.tags.iter().flat_map(|tag| tag.value.references());
        let is_known =
            |reference: &Reference| fields.get(&reference.column).is_some_and(|field| reference.is_known(field));
        references.all(|reference| reference.image != Image::Lookup || is_known(reference))
    }

    /// The sets that a value joins; without the value, only those that need none of its fields. A
    /// field or argument that is absent, NULL or not plain makes no set.
    pub fn tags(&self, arguments: &Arguments, value: Option<&[u8]>) -> Vec<CacheKey> {
        let fields = match value.filter(|_| self.tags_need_value()) {
            Some(value) => fields(value),
            None => HashMap::new(),
        };
        let sets = self.tags.iter().filter_map(|tag| {
            let mut references = tag.value.references();
            let rendered = tag.value.render(|_| {
                let value = references.next().and_then(|reference| match reference.image {
                    Image::Lookup => fields.get(&reference.column).map(Vec::as_slice),
                    _ => self.argument(&reference.column, arguments),
                });
                value.map_or(Resolved::Nothing, Resolved::Value)
            });
            match rendered {
                Rendered::Key(set) => Some(set),
                Rendered::Glob(_) | Rendered::Nothing => None,
            }
        });
        sets.collect()
    }

    /// Whether some set depends on the value.
    pub fn tags_need_value(&self) -> bool {
        self.tags.iter().any(|tag| tag.value.references().any(|reference| reference.image == Image::Lookup))
    }
}

/// The plain fields of a JSON object, as PostgreSQL writes them as text.
fn fields(value: &[u8]) -> HashMap<String, Vec<u8>> {
    let object: HashMap<String, &RawValue> = serde_json::from_slice(value).unwrap_or_default();
    object.into_iter().filter_map(|(name, value)| Some((name, plain(value.get())?))).collect()
}

fn plain(json: &str) -> Option<Vec<u8>> {
    match json.bytes().next()? {
        b'"' => serde_json::from_str::<String>(json).ok().map(String::into_bytes),
        b'{' | b'[' | b'n' => None,
        _ => Some(json.as_bytes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use crate::reads::names::tests::{arguments, read, shown};

    #[test]
    fn a_value_has_all_fields_that_its_tags_name() {
        let tagged = read("path: '/a/{id}', key: 'a:{id}', tags: 'by:{value.author}'");
        for (value, expected) in [
            (r#"{"author": 7}"#, true),
            (r#"{"author": "x"}"#, true),
            (r#"{"author": null}"#, false),
            (r#"{"author": [1]}"#, false),
            (r#"{"autor": 7}"#, false),
            ("7", false),
        ] {
            assert_eq!(tagged.has_tag_fields(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn a_value_joins_sets() {
        let read = read(
            "path: '/a/{id}', key: 'a:{id}', vary: {query: page}, \
             tags: [all, 'one:{id|upper}', 'page:{page}', 'of:{value.user_id}', 'in:{value.n}:{id}']",
        );
        assert!(read.tags_need_value());
        let check = |values: &[&str], value: Option<&str>, expected: &[&str]| {
            let sets = read.tags(&arguments(values), value.map(str::as_bytes));
            assert_eq!(shown(&sets), expected, "{values:?} {value:?}");
        };
        let always = ["v1:tag:all", "v1:tag:one:X"];
        check(&["x", "-"], None, &always);
        check(&["x", "2"], None, &[&always[..], &["v1:tag:page:2"]].concat());
        check(
            &["x", "-"],
            Some(r#"{"user_id": "u\"1", "n": 7.50, "more": {"user_id": 1}}"#),
            &[&always[..], &["v1:tag:of:u\"1", "v1:tag:in:7.50:x"]].concat(),
        );
        check(&["x", "-"], Some(r#"{"user_id": null, "n": true}"#), &[&always[..], &["v1:tag:in:true:x"]].concat());
        check(&["x", "-"], Some(r#"{"user_id": ["a"], "n": {}}"#), &always);
        check(&["x", "-"], Some("[1]"), &always);
        check(&["x", "-"], Some("not json"), &always);
    }
}
