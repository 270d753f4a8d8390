//! One read, and the names that its arguments make.
//!
//! Owns how a cached value is called: the key, what is appended to it, its version, the sets it joins. It must not know
//! how a request is asked. Invariants: two requests that may be answered differently have different names; a name
//! that could be made of other arguments, too, is not given.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use serde_json::value::RawValue;

use super::path::Path;
use crate::config::Spanned;
use crate::key::{CacheKey, Glob};
use crate::plan::Removal;
use crate::rules::{Filter, Image, Rendered, Resolved, Template};

/// A named, cached query.
#[derive(Clone, Debug)]
pub struct Read {
    /// The name in the file.
    pub name: String,
    /// Where the file says the name.
    pub span: Range<usize>,
    /// Where it is asked.
    pub path: Path,
    /// What its values are called, with the namespace.
    pub key: Spanned<Template>,
    /// The sets that its values join, with the namespace.
    pub tags: Vec<Spanned<Template>>,
    /// The version key that its values depend on, with the namespace.
    pub version: Option<Spanned<Template>>,
    /// The query. Its first column is JSON; the second, if there is one, says until when that is valid.
    pub sql: Spanned<String>,
    /// `$1`, `$2`, … of the query, in this order.
    pub parameters: Vec<Parameter>,
    /// How long a value is served without a look at the database.
    pub ttl: Duration,
    /// The share of `ttl` by which values end at different times, from 0 to 0.9.
    pub jitter: f64,
    /// How much longer a value is served while it is read anew.
    pub stale_while_revalidate: Duration,
    /// How long it is known that there is nothing; if none, not at all.
    pub negative_ttl: Option<Duration>,
    /// Cached values are served only while the daemon was heard of within this.
    pub max_staleness: Duration,
    /// How long the query may take.
    pub timeout: Duration,
    /// Whether a replica may be read.
    pub replica: bool,
    /// The parameters that the key does not name, each with the label under which it is appended.
    pub(super) appended: Vec<(usize, Vec<u8>)>,
    /// The parameters that some name is made of, and whether their case is folded there.
    pub(super) named: Vec<(usize, bool)>,
}

/// The longest name under which anything is cached, in bytes: who makes names up is not to fill Redis.
const NAME_MAX: usize = 1024;

/// What a request decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// What templates call it; a header's name is in lower case.
    pub name: String,
    /// Where in the request it is.
    pub source: ParameterSource,
}

/// Where in a request a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterSource {
    /// A segment of the path.
    Path,
    /// The query string.
    Query,
    /// A header.
    Header,
    /// The bearer token: its sha256 in lower-case hexadecimal digits.
    Session,
}

/// The parameters' values, in their order. None is one that is absent, or empty where that may be: NULL to the SQL.
pub type Arguments = [Option<Vec<u8>>];

impl Read {
    /// The name under which the value is cached, before its version. None: nothing may be cached, because
    /// - other arguments make the same name (`permission:{a}:{b}` with a colon in a value);
    /// - what a name is made of is absent, and no rule makes a name of what is not there;
    /// - a value whose case is folded is not ASCII, and databases differ in how they fold it;
    /// - the name is too long.
    pub fn key(&self, arguments: &Arguments) -> Option<CacheKey> {
        let may_be_named = |&(at, folds): &(usize, bool)| {
            arguments.get(at).and_then(Option::as_ref).is_some_and(|value| !folds || value.is_ascii())
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
        // No value has a bare `?` behind this one, so the last one of the name is where this begins.
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

    /// The name under which the value of a version is cached.
    pub fn versioned(key: &CacheKey, version: &str) -> CacheKey {
        let mut name = Vec::with_capacity(key.as_bytes().len() + 1 + version.len());
        name.extend_from_slice(key.as_bytes());
        name.push(b'@');
        name.extend_from_slice(version.as_bytes());
        CacheKey::new(name)
    }

    /// The version key that the value depends on, if any.
    pub fn version_key(&self, arguments: &Arguments) -> Option<CacheKey> {
        self.version.as_ref().map(|version| self.render(&version.value, arguments))
    }

    /// Whether every set that a value says itself can be told: a rule could not find the value by one that is absent,
    /// NULL, or no plain value in it.
    pub fn tells_its_tags(&self, value: &[u8]) -> bool {
        let fields = fields(value);
        let mut references = self.tags.iter().flat_map(|tag| tag.value.references());
        references.all(|reference| reference.image != Image::Lookup || fields.contains_key(&reference.column))
    }

    /// The sets that the value joins. Without the value, only those that need none of its fields; a template renders
    /// no set of what is absent, NULL, or no plain value.
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

    /// Whether some set can be told only from the value.
    pub fn tags_need_value(&self) -> bool {
        self.tags.iter().any(|tag| tag.value.references().any(|reference| reference.image == Image::Lookup))
    }

    /// Every name under which a value may be cached, versions included.
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

    /// Whether parameters are appended to the key: no rule names such a key one by one.
    pub fn is_extended(&self) -> bool {
        !self.appended.is_empty()
    }

    /// Whether every name that the parameter is part of is the same in upper and in lower case.
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

    /// The arguments that make a name, with or without a version, as far as it tells them; nothing if it is no name of
    /// this read's.
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

    /// What a new epoch must empty.
    pub(super) fn removals(&self) -> impl Iterator<Item = Removal> {
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

    fn argument<'a>(&self, name: &str, arguments: &'a Arguments) -> Option<&'a [u8]> {
        let at = self.parameters.iter().position(|parameter| parameter.name == name)?;
        arguments.get(at)?.as_deref()
    }
}

/// Whether it is what [`Read::versioned`] appends.
fn is_version(text: &[u8]) -> bool {
    text.strip_prefix(b"@").is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// Whether a template makes a name in one way only.
fn is_made_once(template: &Template, name: &CacheKey) -> bool {
    template.invert(name.as_bytes()).is_some_and(|given| given.iter().all(|given| given.value.is_some()))
}

/// The plain fields of a JSON object, as PostgreSQL writes them: a text without its quotes.
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
    use super::*;
    use crate::reads::compile::tests::compile;

    /// The read `r` of these fields.
    fn read(fields: &str) -> Read {
        let set = compile(&format!("  r: {{sql: select 1, {fields}}}\n")).unwrap_or_else(|found| panic!("{found:?}"));
        set.find("r").unwrap().clone()
    }

    fn arguments(values: &[&str]) -> Vec<Option<Vec<u8>>> {
        values.iter().map(|value| (*value != "-").then(|| value.as_bytes().to_vec())).collect()
    }

    fn shown(names: &[CacheKey]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_tells_its_arguments() {
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
    fn what_no_rule_could_find_is_not_cached() {
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
    fn a_value_tells_its_tags_or_is_not_cached() {
        let tagged = read("path: '/a/{id}', key: 'a:{id}', tags: 'by:{value.author}'");
        for (value, expected) in [
            (r#"{"author": 7}"#, true),
            (r#"{"author": "x"}"#, true),
            (r#"{"author": null}"#, false),
            (r#"{"author": [1]}"#, false),
            (r#"{"autor": 7}"#, false),
            ("7", false),
        ] {
            assert_eq!(tagged.tells_its_tags(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn what_folds_case_does_so_wherever_it_is_named() {
        let check = |fields: &str, expected: bool| assert_eq!(read(fields).folds("x"), expected, "{fields}");
        check("path: '/u/{x}', key: 'u:{x|lower}'", true);
        check("path: '/u/{x}', key: 'u:{x}'", false);
        check("path: '/u/{x}', key: 'u:{x|upper|sha256}', tags: 't:{x}'", false);
        check("path: '/u/{x}', key: 'u:{x|lower}', tags: 't:{x|lower}'", true);
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
