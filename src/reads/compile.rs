//! From raw reads to a set of reads: every path and template parsed, every name checked.
//!
//! Owns [`ReadSet`]. It must not see YAML, SQL or servers. Invariants: a set exists only if all its reads are sound; no
//! two of its reads answer one path, or may ever cache under one name.

use std::ops::Range;
use std::time::Duration;

use indexmap::IndexSet;

use super::path::Path;
use super::read::{Parameter, ParameterSource, Read};
use crate::config::{Problems, RawRead, Settings, Spanned};
use crate::key::{Glob, RESERVED, TAG};
use crate::nearest::nearest;
use crate::plan::Removal;
use crate::rules::{Filter, Image, Part, Reference, Template};

/// All reads of one file.
#[derive(Clone, Debug, Default)]
pub struct ReadSet {
    reads: Vec<Read>,
    session: Option<usize>,
}

/// Paths that the API answers itself.
const KEPT_PATHS: [&str; 4] = ["/stats", "/events", "/openapi.json", "/healthz"];

/// Headers that may not become part of a key.
const CREDENTIALS: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// What templates call the JSON that was read, in front of one of its fields.
const VALUE: &str = "value";

const TIMEOUT: Duration = Duration::from_secs(5);

impl ReadSet {
    /// Compiles the reads of a file.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them.
    pub fn compile(raw: Vec<RawRead>, settings: &Settings) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let named = settings.api.session.as_ref().map(|session| &session.read);
        let session = named.and_then(|name| find_session(name, &raw, &mut problems));
        let mut reads = Vec::with_capacity(raw.len());
        for (at, raw) in raw.into_iter().enumerate() {
            let compiler = Compiler { settings, is_session: session == Some(at), problems: &mut problems };
            reads.extend(compiler.read(raw));
        }
        check_paths(&reads, &mut problems);
        check_names(&reads, &settings.namespace, &mut problems);
        problems.sort();
        if problems.is_empty() { Ok(Self { reads, session }) } else { Err(problems) }
    }

    /// The reads, in the order of the file.
    pub fn reads(&self) -> &[Read] {
        &self.reads
    }

    /// The read that resolves a token, if there is one.
    pub fn session(&self) -> Option<&Read> {
        self.reads.get(self.session?)
    }

    /// The read of this name.
    pub fn find(&self, name: &str) -> Option<&Read> {
        self.reads.iter().find(|read| read.name == name)
    }

    /// Every name that the reads may have written, each once: what a new epoch empties, with what the rules name.
    pub fn removals(&self) -> Vec<Removal> {
        self.reads.iter().flat_map(Read::removals).collect::<IndexSet<_>>().into_iter().collect()
    }
}

fn find_session(name: &Spanned<String>, reads: &[RawRead], problems: &mut Problems) -> Option<usize> {
    let found = reads.iter().position(|read| read.name.value == name.value);
    if found.is_none() {
        let advice = match nearest(&name.value, reads.iter().map(|read| read.name.value.as_str())) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "add it under `reads:`".to_owned(),
        };
        problems.push(name.span.clone(), "`session` does not name a read", advice);
    }
    found
}

/// What one read is compiled with.
struct Compiler<'a> {
    settings: &'a Settings,
    is_session: bool,
    problems: &'a mut Problems,
}

/// A text of the file and the template that it is.
struct Text {
    text: Spanned<String>,
    template: Template,
}

impl Text {
    fn at(&self, reference: &Reference) -> Range<usize> {
        self.text.part(&reference.span)
    }

    fn into_template(self) -> Spanned<Template> {
        Spanned { value: self.template, span: self.text.span }
    }
}

impl Compiler<'_> {
    fn read(mut self, raw: RawRead) -> Option<Read> {
        let namespace = self.settings.namespace.as_str();
        let sets = format!("{namespace}{TAG}");
        let key = self.template(raw.key, namespace);
        let version = raw.version.and_then(|text| self.template(text, namespace));
        let tags: Vec<_> = raw.tags.into_iter().filter_map(|text| self.template(text, &sets)).collect();
        let path = match Path::parse(&raw.path) {
            Ok(path) => Some(path),
            Err(error) => {
                self.problems.push(raw.path.part(&error.span), error.message, error.advice);
                None
            }
        };
        let (key, path) = (key?, path?);
        let mut parameters: Vec<_> =
            path.names().iter().map(|name| Parameter { name: name.clone(), source: ParameterSource::Path }).collect();
        self.vary(&raw.vary.query, ParameterSource::Query, &mut parameters);
        self.vary(&raw.vary.header, ParameterSource::Header, &mut parameters);
        if self.is_session {
            parameters = self.session(&path, &parameters, &key);
        }
        self.check_references(&key, &parameters, false);
        version.iter().for_each(|version| self.check_references(version, &parameters, false));
        tags.iter().for_each(|tag| self.check_references(tag, &parameters, true));
        self.check_key(&key, &parameters);
        Some(Read {
            appended: appended(&parameters, &key.template),
            named: named(&parameters, std::iter::once(&key).chain(&version).chain(&tags).map(|text| &text.template)),
            span: raw.name.span,
            name: raw.name.value,
            path,
            key: key.into_template(),
            tags: tags.into_iter().map(Text::into_template).collect(),
            version: version.map(Text::into_template),
            sql: raw.sql,
            parameters,
            ttl: raw.ttl,
            jitter: raw.jitter,
            stale_while_revalidate: raw.stale_while_revalidate,
            negative_ttl: raw.negative_ttl,
            max_staleness: raw.max_staleness.unwrap_or(self.settings.api.max_staleness),
            timeout: raw.timeout.unwrap_or(TIMEOUT),
            replica: raw.replica,
        })
    }

    fn template(&mut self, text: Spanned<String>, prefix: &str) -> Option<Text> {
        match Template::parse(&text.value, prefix, Some(VALUE)) {
            Ok(template) => Some(Text { text, template }),
            Err(error) => {
                self.problems.push(text.part(&error.span), error.message, error.advice);
                None
            }
        }
    }

    /// Adds what the read varies by to its parameters.
    fn vary(&mut self, names: &[Spanned<String>], source: ParameterSource, parameters: &mut Vec<Parameter>) {
        for text in names {
            let name = match source {
                ParameterSource::Header => text.value.to_ascii_lowercase(),
                ParameterSource::Path | ParameterSource::Query | ParameterSource::Session => text.value.clone(),
            };
            let is_sound =
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
            let (message, advice) = if !is_sound {
                ("not the name of a parameter", "expected letters, digits, `_` and `-`")
            } else if source == ParameterSource::Header && CREDENTIALS.contains(&name.as_str()) {
                ("credentials may not become part of a key", "resolve them by `api.session`")
            } else if parameters.iter().any(|known| known.name == name) {
                ("two parameters of one name: templates could not tell them apart", "rename one of them")
            } else {
                parameters.push(Parameter { name, source });
                continue;
            };
            self.problems.push(text.span.clone(), message, advice);
        }
    }

    /// The one parameter of the read that resolves a token.
    fn session(&mut self, path: &Path, others: &[Parameter], key: &Text) -> Vec<Parameter> {
        if let Some(other) = others.first() {
            let message = format!("the read of `session` is asked by the token alone, not by `{}`", other.name);
            self.problems.push(path.span(), message, "remove the parameters of its path and its `vary`");
        }
        let references: Vec<_> = key.template.references().collect();
        let [reference] = &*references else {
            let message = "the key of the session has exactly one reference, which stands for the token's sha256";
            self.problems.push(key.text.span.clone(), message, "write `session:{token}`");
            // What the templates name is another problem only once this is settled.
            return references.iter().map(|reference| of_session(reference)).collect();
        };
        if reference.filters.contains(&Filter::Sha256) {
            let advice = format!("write `{{{}}}`", reference.column);
            self.problems.push(key.at(reference), "it is the token's sha256 already", advice);
        }
        vec![of_session(reference)]
    }

    /// Whether every reference of a template names a parameter, or a field of the value where that is known.
    fn check_references(&mut self, text: &Text, parameters: &[Parameter], may_read_value: bool) {
        for reference in text.template.references() {
            let column = &reference.column;
            let is_known = parameters.iter().any(|parameter| parameter.name == *column);
            let (message, advice) = match reference.image {
                Image::Either if is_known => continue,
                Image::Lookup if may_read_value => continue,
                Image::Either => ("there is no such parameter".to_owned(), known(column, parameters)),
                Image::Lookup => {
                    let advice = "only `tags` may name its fields".to_owned();
                    ("the value is not known yet when it is looked for".to_owned(), advice)
                }
                Image::Old | Image::New => {
                    let advice = if is_known { format!("write `{{{column}}}`") } else { known(column, parameters) };
                    ("a read has no row before and after".to_owned(), advice)
                }
            };
            self.problems.push(text.at(reference), message, advice);
        }
    }

    /// Whether the key tells requests apart.
    fn check_key(&mut self, key: &Text, parameters: &[Parameter]) {
        for parameter in parameters.iter().filter(|parameter| parameter.source == ParameterSource::Path) {
            if !key.template.references().any(|reference| reference.column == parameter.name) {
                let message = format!("the key does not tell one `{}` of the path from another", parameter.name);
                self.problems.push(key.text.span.clone(), message, format!("add `:{{{}}}`", parameter.name));
            }
        }
        for pair in key.template.parts().windows(2) {
            if let [Part::Reference(_), Part::Reference(second)] = pair {
                let message = "nothing tells where the value before this one ends";
                self.problems.push(key.at(second), message, "put something between them, as in `{a}:{b}`");
            }
        }
    }
}

fn of_session(reference: &Reference) -> Parameter {
    Parameter { name: reference.column.clone(), source: ParameterSource::Session }
}

/// Which parameter may have been meant.
fn known(name: &str, parameters: &[Parameter]) -> String {
    let names: Vec<_> = parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean `{{{near}}}`?"),
        None if names.is_empty() => "the read has no parameters: its path and `vary` name none".to_owned(),
        None => {
            let names: Vec<_> = names.iter().map(|name| format!("`{{{name}}}`")).collect();
            format!("expected one of {}", names.join(", "))
        }
    }
}

/// What the key does not name, and how it is appended.
fn appended(parameters: &[Parameter], key: &Template) -> Vec<(usize, Vec<u8>)> {
    let is_named = |parameter: &Parameter| key.references().any(|reference| reference.column == parameter.name);
    let varied = |parameter: &Parameter| matches!(parameter.source, ParameterSource::Query | ParameterSource::Header);
    let missing = parameters.iter().enumerate().filter(|(_, parameter)| varied(parameter) && !is_named(parameter));
    missing.map(|(at, parameter)| (at, format!("{}=", parameter.name).into_bytes())).collect()
}

/// The parameters that some name is made of, and whether their case is folded there.
fn named<'a>(parameters: &[Parameter], templates: impl Iterator<Item = &'a Template>) -> Vec<(usize, bool)> {
    let references: Vec<_> =
        templates.flat_map(Template::references).filter(|reference| reference.image != Image::Lookup).collect();
    let named = |(at, parameter): (usize, &Parameter)| {
        let mut uses = references.iter().filter(|reference| reference.column == parameter.name).peekable();
        uses.peek()?;
        let folds = |filter: &Filter| matches!(filter, Filter::Lower | Filter::Upper);
        Some((at, uses.any(|reference| reference.filters.iter().any(folds))))
    };
    parameters.iter().enumerate().filter_map(named).collect()
}

fn check_paths(reads: &[Read], problems: &mut Problems) {
    let mut router = matchit::Router::new();
    for read in reads {
        let (path, name) = (read.path.as_str(), &read.name);
        if KEPT_PATHS.contains(&path) {
            problems.push(read.path.span(), "this path is kept for the API itself", "choose another path");
        }
        let message = match router.insert(path, ()) {
            Ok(()) => continue,
            Err(matchit::InsertError::Conflict { with }) => {
                let other = reads.iter().find(|other| other.path.as_str() == with);
                let other = other.map_or(with.as_str(), |other| other.name.as_str());
                format!("the path of read `{name}` is that of `{other}`, too")
            }
            Err(error) => format!("the path of read `{name}` is none: {error}"),
        };
        problems.push(read.path.span(), message, "choose another path");
    }
}

/// Whether every name is of one kind, and of one read.
fn check_names(reads: &[Read], namespace: &str, problems: &mut Problems) {
    for (beginning, what) in [(RESERVED, "the state of this tool"), (TAG, "the sets of `tags`")] {
        let mut kept = Glob::new();
        kept.push_literal(format!("{namespace}{beginning}").as_bytes());
        kept.push_any();
        for name in reads.iter().flat_map(|read| read.version.iter().chain([&read.key])) {
            if name.value.glob().intersects(&kept) {
                let message = format!("names that begin with `{beginning}` are kept for {what}");
                problems.push(name.span.clone(), message, "choose another beginning");
            }
        }
    }
    let globs: Vec<_> = reads.iter().map(|read| (read, read.glob())).collect();
    for (at, (read, glob)) in globs.iter().enumerate() {
        if let Some((other, _)) = globs.iter().take(at).find(|(_, other)| glob.intersects(other)) {
            let message = format!("a key of read `{}` may be one of read `{}`, too", read.name, other.name);
            problems.push(read.key.span.clone(), message, "give each a beginning that tells them apart");
        }
        let is_version =
            |other: &&Read| other.version.as_ref().is_some_and(|version| version.value.glob().intersects(glob));
        if let Some(other) = reads.iter().find(is_version) {
            let message = format!("a key of read `{}` may be a version key of read `{}`", read.name, other.name);
            problems.push(read.key.span.clone(), message, "give each a beginning that tells them apart");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Document;

    const RULE: &str = "version: 1\ntarget: {namespace: 'v1:'}\nrules: {r: {table: t, delete: 'k:{a}'}}\n";

    /// The reads of these lines, in the namespace `v1:`; more sections may follow them.
    pub(in crate::reads) fn compile(reads: &str) -> Result<ReadSet, Problems> {
        let document = Document::parse(&format!("{RULE}reads:\n{reads}"), &|_| None)?;
        ReadSet::compile(document.reads, &document.settings)
    }

    /// Every problem as `text at fault: message; advice`.
    fn problems(reads: &str) -> Vec<String> {
        let text = format!("{RULE}reads:\n{reads}");
        let found = compile(reads).expect_err("the reads have problems");
        found.iter().map(|p| format!("{}: {}; {}", &text[p.span.clone()], p.message, p.advice)).collect()
    }

    /// One read of these fields, with these problems.
    fn check(fields: &str, expected: &[&str]) {
        assert_eq!(problems(&format!("  r: {{sql: select 1, {fields}}}\n")), expected, "{fields}");
    }

    #[test]
    fn a_read_is_compiled() {
        let set = compile(
            "  user:\n    path: /users/{id}\n    key: 'user:{id}'\n    sql: select 1\n    max_staleness: 3s\n    \
             vary: {query: [page], header: [X-Tenant]}\n  all: {path: /all, key: all, sql: select 2}\n",
        )
        .unwrap();
        assert_eq!(set.reads().iter().map(|read| read.name.as_str()).collect::<Vec<_>>(), ["user", "all"]);
        let user = set.find("user").unwrap();
        let parameters: Vec<_> = user.parameters.iter().map(|found| (found.name.as_str(), found.source)).collect();
        assert_eq!(
            parameters,
            [("id", ParameterSource::Path), ("page", ParameterSource::Query), ("x-tenant", ParameterSource::Header)]
        );
        assert_eq!((user.max_staleness.as_secs(), user.timeout), (3, TIMEOUT));
        assert_eq!(set.find("all").unwrap().max_staleness.as_secs(), 10);
        assert!(set.session().is_none() && set.find("nobody").is_none());
        assert_eq!(set.removals().len(), 2);
    }

    #[test]
    fn a_session_is_asked_by_the_sha256_of_its_token() {
        let set = compile(
            "  s: {path: /session, key: 'session:{token}', tags: ['of:{value.user_id}', 'one:{token}'], sql: select 1}\n\
             api: {session: s}\n",
        )
        .unwrap();
        let session = set.session().unwrap();
        assert_eq!(session.parameters, [Parameter { name: "token".to_owned(), source: ParameterSource::Session }]);
        let key = session.key(&[Some(b"9f86".to_vec())]).unwrap();
        assert_eq!(key.to_string(), "v1:session:9f86");

        let check = |fields: &str, expected: &[&str]| {
            let found = problems(&format!("  s: {{sql: select 1, {fields}}}\napi: {{session: s}}\n"));
            assert_eq!(found, expected, "{fields}");
        };
        check(
            "path: /s, key: 'session:{token|sha256}'",
            &["token|sha256: it is the token's sha256 already; write `{token}`"],
        );
        check(
            "path: '/s/{id}', key: 'session:{id}'",
            &["/s/{id}: the read of `session` is asked by the token alone, not by `id`; \
                 remove the parameters of its path and its `vary`"],
        );
        for key in ["session", "session:{a}:{b}"] {
            let message = "the key of the session has exactly one reference, which stands for the token's sha256";
            let expected = format!("{key}: {message}; write `session:{{token}}`");
            check(&format!("path: /s, key: '{key}'"), &[expected.as_str()]);
        }
        let misspelt = problems("  user: {path: /a, key: a, sql: select 1}\napi: {session: usr}\n");
        assert_eq!(misspelt, ["usr: `session` does not name a read; did you mean `user`?"]);
    }

    #[test]
    fn references_are_parameters() {
        check(
            "path: '/u/{id}', key: 'user:{idd}', vary: {query: idd2}",
            &[
                "user:{idd}: the key does not tell one `id` of the path from another; add `:{id}`",
                "idd: there is no such parameter; did you mean `{id}`?",
            ],
        );
        check(
            "path: '/u/{id}', key: 'u:{id}', version: 'v:{nobody}'",
            &["nobody: there is no such parameter; expected one of `{id}`"],
        );
        check(
            "path: /u, key: 'u:{id}'",
            &["id: there is no such parameter; the read has no parameters: its path and `vary` name none"],
        );
        check("path: '/u/{id}', key: 'u:{new.id}'", &["new.id: a read has no row before and after; write `{id}`"]);
        let early = "the value is not known yet when it is looked for; only `tags` may name its fields";
        check(
            "path: '/u/{id}', key: 'u:{id}:{value.a}', version: 'v:{value.b}', tags: 't:{value.c}'",
            &[&format!("value.a: {early}"), &format!("value.b: {early}")],
        );
        check(
            "path: '/u/{id}', key: 'u:{id', tags: '{id}'",
            &[
                "{id: a `{` that is never closed; write `{{` for a literal brace",
                "{id}: the template does not begin with a literal; begin it with a prefix of its own, as in `user:{id}`",
            ],
        );
        check("path: '/u/{id}', key: 'u:{id|lowr}'", &["id|lowr: unknown filter `lowr`; did you mean `lower`?"]);
    }

    #[test]
    fn a_key_tells_requests_apart() {
        check(
            "path: '/{a}/{b}', key: 'k:{a}'",
            &["k:{a}: the key does not tell one `b` of the path from another; add `:{b}`"],
        );
        check(
            "path: '/{a}/{b}', key: 'k:{a}{b}'",
            &["b: nothing tells where the value before this one ends; put something between them, as in `{a}:{b}`"],
        );
        check(
            "path: /a, key: k, vary: {query: ['a b', page, page], header: [Authorization, Page]}",
            &[
                "a b: not the name of a parameter; expected letters, digits, `_` and `-`",
                "page: two parameters of one name: templates could not tell them apart; rename one of them",
                "Authorization: credentials may not become part of a key; resolve them by `api.session`",
                "Page: two parameters of one name: templates could not tell them apart; rename one of them",
            ],
        );
        for (key, beginning, what) in [
            ("tag:x", "tag:", "the sets of `tags`"),
            ("t{a}", "tag:", "the sets of `tags`"),
            ("unstale:x", "unstale:", "the state of this tool"),
        ] {
            let expected =
                format!("{key}: names that begin with `{beginning}` are kept for {what}; choose another beginning");
            check(&format!("path: /a, key: '{key}', vary: {{query: a}}"), &[expected.as_str()]);
        }
    }

    #[test]
    fn two_reads_have_nothing_in_common() {
        let check = |one: &str, other: &str, expected: &[&str]| {
            let reads = format!("  one: {{sql: select 1, {one}}}\n  two: {{sql: select 1, {other}}}\n");
            assert_eq!(problems(&reads), expected, "{one} {other}");
        };
        let apart = "give each a beginning that tells them apart";
        let keys = |key: &str| format!("{key}: a key of read `two` may be one of read `one`, too; {apart}");
        check("path: '/a/{x}', key: 'user:{x}'", "path: '/b/{x}', key: 'user:{x}:orgs'", &[&keys("user:{x}:orgs")]);
        check("path: '/a/{x}', key: 'a:{x}', version: 'v:1'", "path: '/b/{x}', key: 'a:{x}'", &[&keys("a:{x}")]);
        check("path: '/a/{x}', key: 'a:{x}', vary: {query: q}", "path: /b, key: 'a:1?'", &[&keys("a:1?")]);
        check(
            "path: '/a/{x}', key: 'a:{x}', version: 'v:{x}'",
            "path: '/b/{x}', key: 'v:{x}'",
            &[&format!("v:{{x}}: a key of read `two` may be a version key of read `one`; {apart}")],
        );
        let paths = "the path of read `two` is that of `one`, too; choose another path";
        check("path: '/a/{x}', key: 'a:{x}'", "path: '/a/{y}', key: 'b:{y}'", &[&format!("/a/{{y}}: {paths}")]);
        check(
            "path: '/a/{x}', key: 'a:{x}'",
            "path: '/stats', key: 'b'",
            &["/stats: this path is kept for the API itself; choose another path"],
        );
        let sound = "  one: {path: '/a/{x}', key: 'a:{x}', version: 'v:{x}', sql: select 1}\n  \
                     two: {path: /a/b, key: 'ab:1', version: 'v:b', sql: select 1}\n  \
                     three: {path: '/a/{y}/b', key: 'aby:{y}', sql: select 1}\n";
        assert!(compile(sound).is_ok());
    }
}
