//! The names under which a read caches its values: key, version key, and the key of a version.
//!
//! Owns how a name is made of arguments, and back. Invariants: two requests that may have different
//! answers have different names; a name that other arguments could make too is not used.

use super::read::{Arguments, Parameter, Read};
use crate::key::{CacheKey, Glob};
use crate::plan::Removal;
use crate::rules::{Filter, Image, Reference, Rendered, Resolved, Template};

/// The longest name, in bytes, so that clients cannot fill Redis with invented names.
const NAME_MAX: usize = 1024;

impl Read {
    /// The key of a value, without its version. None: the value must not be cached, because
    /// - other arguments make the same key (`permission:{a}:{b}` with a colon in a value);
    /// - a parameter in some template is absent, and no rule makes a name of an absent value;
    /// - a value whose case is folded is not ASCII, or it is not known how the database folds it;
    /// - the key is too long.
    pub fn key(&self, arguments: &Arguments) -> Option<CacheKey> {
        let may_be_named = |&(at, folds): &(usize, bool)| {
            let value = arguments.get(at).and_then(Option::as_ref);
            value.is_some_and(|value| !folds || value.is_ascii() && self.is_known(at, value))
        };
        let key = self.render(&self.key.value, arguments);
        if !self.named.iter().all(may_be_named)
            || self.key.value.references().nth(1).is_some() && !is_made_once(&self.key.value, &key)
        {
            return None;
        }
        if self.appended.is_empty() {
            return Some(key).filter(|key| key.as_bytes().len() <= NAME_MAX);
        }
        let mut name = key.into_bytes();
        // The values behind it are URL-encoded, so the last `?` of the name is this one.
        name.push(b'?');
        let mut separator = None;
        for (at, label) in &self.appended {
            let Some(Some(value)) = arguments.get(*at) else { continue };
            name.extend(separator.replace(b'&'));
            name.extend_from_slice(label);
            name.extend_from_slice(&Filter::Urlencode.apply(value));
        }
        (name.len() <= NAME_MAX).then(|| CacheKey::new(name))
    }

    /// Whether it is known what all names make of a parameter's value.
    fn is_known(&self, parameter: usize, value: &[u8]) -> bool {
        let Some(Parameter { name, .. }) = self.parameters.get(parameter) else { return false };
        let is_ours = |reference: &&Reference| reference.image != Image::Lookup && reference.column == *name;
        self.references().filter(is_ours).all(|reference| reference.is_known(value))
    }

    /// The key of a value of this version.
    pub fn versioned(key: &CacheKey, version: &str) -> CacheKey {
        let mut name = Vec::with_capacity(key.as_bytes().len() + 1 + version.len());
        name.extend_from_slice(key.as_bytes());
        name.push(b'@');
        name.extend_from_slice(version.as_bytes());
        CacheKey::new(name)
    }

    /// The version key that the value depends on, if the read has one.
    pub fn version_key(&self, arguments: &Arguments) -> Option<CacheKey> {
        self.version.as_ref().map(|version| self.render(&version.value, arguments))
    }

    /// Every key under which a value may be cached, versions included.
    pub fn glob(&self) -> Glob {
        let mut glob = self.key.value.glob();
        for (mark, is_there) in [(b"?", self.is_extended()), (b"@", self.version.is_some())] {
            if is_there {
                glob.push_literal(mark);
                glob.push_any();
            }
        }
        glob
    }

    /// Whether parameters are appended to the key. No rule can name such a key.
    pub fn is_extended(&self) -> bool {
        !self.appended.is_empty()
    }

    /// Whether every name is the same for the parameter in upper and in lower case.
    pub fn folds(&self, parameter: &str) -> bool {
        let templates = std::iter::once(&self.key).chain(&self.tags).chain(&self.version);
        let mut references = templates.flat_map(|template| template.value.references());
        let is_named = self.key.value.references().any(|reference| reference.column == parameter);
        is_named
            && references.all(|reference| {
                let folds = |filter: &Filter| matches!(filter, Filter::Lower | Filter::Upper);
                reference.column != parameter || reference.filters.first().is_some_and(folds)
            })
    }

    /// The arguments of a key, with or without a version, as far as the key contains them. None if
    /// it is not a key of this read.
    pub fn arguments(&self, name: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
        if self.is_extended() {
            return None;
        }
        let mark = self.version.as_ref().and_then(|_| name.iter().rposition(|&byte| byte == b'@'));
        let bare = mark.and_then(|at| name.split_at_checked(at)).filter(|(_, version)| is_version(version));
        let given = self.key.value.invert(bare.map_or(name, |(bare, _)| bare))?;
        let value = |parameter: &Parameter| {
            given.iter().find(|given| given.reference.column == parameter.name).and_then(|given| given.value.clone())
        };
        Some(self.parameters.iter().map(value).collect())
    }

    /// What a new epoch must remove.
    pub fn removals(&self) -> impl Iterator<Item = Removal> {
        let version = self.version.iter().map(|version| Removal::Keys(version.value.glob()));
        let tags = self.tags.iter().map(|tag| Removal::Tags(tag.value.glob()));
        std::iter::once(Removal::Keys(self.glob())).chain(version).chain(tags)
    }

    /// The name that a template makes; what is absent is empty.
    fn render(&self, template: &Template, arguments: &Arguments) -> CacheKey {
        let mut references = template.references();
        let rendered = template.render(|_| {
            let value = references.next().and_then(|reference| self.argument(&reference.column, arguments));
            Resolved::Value(value.unwrap_or_default())
        });
        match rendered {
            Rendered::Key(key) => key,
            // Neither a key nor a version has a `*` of its own, and every value is known.
            Rendered::Glob(_) | Rendered::Nothing => CacheKey::default(),
        }
    }
}

/// Whether [`Read::versioned`] appends this.
fn is_version(text: &[u8]) -> bool {
    text.strip_prefix(b"@").is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// Whether only one list of arguments makes this name.
fn is_made_once(template: &Template, name: &CacheKey) -> bool {
    template.invert(name.as_bytes()).is_some_and(|given| given.iter().all(|given| given.value.is_some()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::reads::set::tests::compile;
    use crate::rules::Folding;

    /// The read `r` with these fields.
    pub(in crate::reads) fn read(fields: &str) -> Read {
        let set = compile(&format!("  r: {{sql: select 1, {fields}}}\n")).unwrap_or_else(|found| panic!("{found:?}"));
        set.find("r").unwrap().clone()
    }

    pub(in crate::reads) fn arguments(values: &[&str]) -> Vec<Option<Vec<u8>>> {
        values.iter().map(|value| (*value != "-").then(|| value.as_bytes().to_vec())).collect()
    }

    pub(in crate::reads) fn shown(names: &[CacheKey]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn arguments_follow_from_a_key() {
        let check = |fields: &str, name: &str, expected: Option<&[&str]>| {
            let found = read(fields).arguments(name.as_bytes());
            assert_eq!(found, expected.map(arguments), "{fields} {name}");
        };
        check("path: '/users/{id}', key: 'user:{id}'", "v1:user:u1", Some(&["u1"]));
        check("path: '/users/{id}', key: 'user:{id}'", "v1:org:u1", None);
        check("path: '/p/{a}/{b}', key: 'p:{b}:{a}'", "v1:p:x:y", Some(&["y", "x"]));
        check("path: '/f/{id}', key: 'f:{id}', version: 'fv:{id}'", "v1:f:o1@77", Some(&["o1"]));
        check("path: '/f/{id}', key: 'f:{id}', version: 'fv:{id}'", "v1:f:a@b", Some(&["a@b"]));
        check("path: '/f/{id}', key: 'f:{id}', vary: {query: q}", "v1:f:o1?", None);
    }

    #[test]
    fn a_name_that_no_rule_can_make_is_not_used() {
        let check = |fields: &str, values: &[&str], is_cached: bool| {
            assert_eq!(read(fields).key(&arguments(values)).is_some(), is_cached, "{fields} {values:?}");
        };
        let tagged = "path: /articles, key: articles, vary: {query: author}, tags: 'by:{author}'";
        check(tagged, &["a1"], true);
        check(tagged, &["-"], false);
        let versioned = "path: /articles, key: articles, vary: {query: org}, version: 'v:{org}'";
        check(versioned, &["o1"], true);
        check(versioned, &["-"], false);
        let folded = "path: '/u/{x}', key: 'u:{x|lower}'";
        check(folded, &["Ann@x.io"], true);
        check(folded, &["Ä@x.io"], false);
        check("path: '/u/{x}', key: 'u:{x}'", &["Ä@x.io"], true);
        check("path: '/u/{x}', key: 'u:{x}'", &[&"x".repeat(1100)], false);
    }

    #[test]
    fn a_parameter_folds_if_every_template_folds_it() {
        let check = |fields: &str, expected: bool| assert_eq!(read(fields).folds("x"), expected, "{fields}");
        check("path: '/u/{x}', key: 'u:{x|lower}'", true);
        check("path: '/u/{x}', key: 'u:{x}'", false);
        check("path: '/u/{x}', key: 'u:{x|upper|sha256}', tags: 't:{x}'", false);
        check("path: '/u/{x}', key: 'u:{x|lower}', tags: 't:{x|lower}'", true);
    }

    #[test]
    fn a_name_that_the_database_may_fold_otherwise_is_not_used() {
        let mut folded = read("path: '/u/{x}', key: 'u:{x|lower}', tags: 't:{value.y|upper}'");
        folded.fold_as(&Folding::of_database(true, ['I'], ['i']).into());
        for (value, is_cached) in [("Ann", true), ("ilker", true), ("ILKER", false)] {
            assert_eq!(folded.key(&arguments(&[value])).is_some(), is_cached, "{value}");
        }
        assert!(folded.has_tag_fields(br#"{"y": "ann"}"#) && !folded.has_tag_fields(br#"{"y": "ilker"}"#));
    }

    /// An argument `-` is absent; an empty expectation is no key.
    #[test]
    fn arguments_make_a_key() {
        let check = |fields: &str, values: &[&str], expected: &str| {
            let key = read(fields).key(&arguments(values));
            assert_eq!(key.map(|key| key.to_string()).unwrap_or_default(), expected, "{fields} {values:?}");
        };
        check("path: /all, key: all", &[], "v1:all");
        check("path: '/users/{id}', key: 'user:{id}'", &["u1"], "v1:user:u1");
        check("path: '/users/{id}', key: 'user:{id}'", &["a:b?c@d*"], "v1:user:a:b?c@d*");
        check("path: '/u/{email}', key: 'user-email:{email|lower}'", &["Ann@X.io"], "v1:user-email:ann@x.io");

        let permission = "path: '/p/{a}/{b}', key: 'permission:{a}:{b}'";
        check(permission, &["u1", "o1"], "v1:permission:u1:o1");
        check(permission, &["u:1", "o1"], "");
        check(permission, &["u1", "o:1"], "");
        check(permission, &["u1", "o1:"], "");
        check("path: '/p/{a}/{b}', key: 'p:{a|urlencode}:{b|urlencode}'", &["u:1", "o1"], "v1:p:u%3A1:o1");
        check("path: '/p/{b}/{a}', key: 'p:{a}:{b}'", &["1", "2"], "v1:p:2:1");

        let page = "path: '/l/{id}', key: 'list:{id}', vary: {query: [page, size], header: [X-Tenant]}";
        check(page, &["1", "-", "-", "-"], "v1:list:1?");
        check(page, &["1", "2", "-", "t&u"], "v1:list:1?page=2&x-tenant=t%26u");
        check(page, &["1", "-", "20", "-"], "v1:list:1?size=20");
        check(page, &["1?page=2", "-", "-", "-"], "v1:list:1?page=2?");
        let named = "path: '/l/{id}', key: 'list:{x-tenant}:{id}', vary: {query: page, header: x-tenant}";
        check(named, &["1", "2", "t"], "v1:list:t:1?page=2");
        check(named, &["1", "2", "-"], "");
        check(named, &["1:2", "-", "t"], "");
    }

    #[test]
    fn a_value_may_depend_on_a_version() {
        let read = read("path: '/o/{id}/flags', key: 'flags:{id}', version: 'flags-version:{id}'");
        let arguments = arguments(&["o1"]);
        let key = read.key(&arguments).unwrap();
        assert_eq!(Read::versioned(&key, "17").to_string(), "v1:flags:o1@17");
        assert_eq!(read.version_key(&arguments).map(|key| key.to_string()).as_deref(), Some("v1:flags-version:o1"));
        assert_eq!(read.glob().to_string(), "v1:flags:*@*");
    }

    #[test]
    fn everything_that_is_written_can_be_removed() {
        let read = read(
            "path: '/a/{id}', key: 'a:{id}', vary: {query: page}, version: 'v:{id}', tags: ['t:{id}', 'u:{value.x}']",
        );
        let removals: Vec<_> = read.removals().collect();
        let shown: Vec<_> = removals.iter().map(|removal| format!("{removal:?}")).collect();
        assert!(matches!(&removals[0], Removal::Keys(glob) if glob.to_string() == r"v1:a:*\?*@*"), "{shown:?}");
        assert!(matches!(&removals[1], Removal::Keys(glob) if glob.to_string() == "v1:v:*"), "{shown:?}");
        assert!(matches!(&removals[2], Removal::Tags(glob) if glob.to_string() == "v1:tag:t:*"), "{shown:?}");
        assert!(matches!(&removals[3], Removal::Tags(glob) if glob.to_string() == "v1:tag:u:*"), "{shown:?}");
        let arguments = arguments(&["x", "2"]);
        let key = Read::versioned(&read.key(&arguments).unwrap(), "3");
        assert!(read.glob().matches(key.as_bytes()), "{key}");
    }
}
