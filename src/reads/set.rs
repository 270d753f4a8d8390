//! All reads of one file.
//!
//! Owns [`ReadSet`]. It must not see YAML, SQL or servers. Invariant: a set exists only if all its
//! reads are valid and no two of them conflict.

use std::sync::Arc;

use indexmap::IndexSet;

use super::compile::ReadCompiler;
use super::conflicts;
use super::read::Read;
use crate::config::{Problems, RawRead, Settings, Spanned};
use crate::nearest::nearest;
use crate::plan::Removal;
use crate::rules::Folding;

/// All reads of one file.
#[derive(Clone, Debug, Default)]
pub struct ReadSet {
    reads: Vec<Read>,
    session: Option<usize>,
}

impl ReadSet {
    /// Compiles the reads of a file.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them, each at its place in the file.
    pub fn compile(raw: Vec<RawRead>, settings: &Settings) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let named = settings.api.session.as_ref().map(|session| &session.read);
        let session = named.and_then(|name| find_session(name, &raw, &mut problems));
        let mut reads = Vec::with_capacity(raw.len());
        for (at, raw) in raw.into_iter().enumerate() {
            let compiler = ReadCompiler::new(settings, session == Some(at), &mut problems);
            reads.extend(compiler.compile(raw));
        }
        conflicts::check(&reads, &settings.namespace, &mut problems);
        problems.sort();
        if problems.is_empty() { Ok(Self { reads, session }) } else { Err(problems) }
    }

    /// Folds case in names as this database does.
    pub fn fold_as(&mut self, folding: &Arc<Folding>) {
        self.reads.iter_mut().for_each(|read| read.fold_as(folding));
    }

    /// Whether some name folds case.
    pub fn folds_case(&self) -> bool {
        self.reads.iter().any(Read::folds_case)
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

    /// Every name that the reads may have written, each once. A new epoch removes them, as it
    /// removes what the rules name.
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

#[cfg(test)]
pub(super) mod tests {
    use super::super::compile::TIMEOUT;
    use super::super::read::{Parameter, ParameterSource};
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

    /// One read with these fields has these problems.
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
        assert!(set.session().is_none() && set.find("missing").is_none());
        assert_eq!(set.removals().len(), 2);
    }

    #[test]
    fn a_session_takes_the_sha256_of_its_token() {
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
            &["token|sha256: the parameter already is the token's sha256; write `{token}`"],
        );
        check(
            "path: '/s/{id}', key: 'session:{id}'",
            &["/s/{id}: the read of `session` takes the token alone, not `id`; \
                 remove the parameters of its path and its `vary`"],
        );
        for key in ["session", "session:{a}:{b}"] {
            let message = "the key of the session must have exactly one reference, which stands for the token's sha256";
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
                "user:{idd}: the key is the same for every `id` of the path; add `:{id}`",
                "idd: there is no such parameter; did you mean `{id}`?",
            ],
        );
        check(
            "path: '/u/{id}', key: 'u:{id}', version: 'v:{other}'",
            &["other: there is no such parameter; expected one of `{id}`"],
        );
        check(
            "path: /u, key: 'u:{id}'",
            &["id: there is no such parameter; the read has no parameters: its path and `vary` name none"],
        );
        check("path: '/u/{id}', key: 'u:{new.id}'", &["new.id: a read has no `old` and `new` row; write `{id}`"]);
        let early = "the value is not known when its key is looked up; only `tags` may name fields of the value";
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
        check("path: '/{a}/{b}', key: 'k:{a}'", &["k:{a}: the key is the same for every `b` of the path; add `:{b}`"]);
        check(
            "path: '/{a}/{b}', key: 'k:{a}{b}'",
            &["b: nothing separates this value from the one before; add a separator between them, as in `{a}:{b}`"],
        );
        check(
            "path: /a, key: k, vary: {query: ['a b', page, page], header: [Authorization, Page]}",
            &[
                "a b: not a valid parameter name; expected letters, digits, `_` and `-`",
                "page: two parameters have this name, so templates cannot tell them apart; rename one of them",
                "Authorization: credentials must not become part of a key; resolve them by `api.session`",
                "Page: two parameters have this name, so templates cannot tell them apart; rename one of them",
            ],
        );
        for (key, beginning, what) in [
            ("tag:x", "tag:", "the sets of `tags`"),
            ("t{a}", "tag:", "the sets of `tags`"),
            ("unstale:x", "unstale:", "the state of unstale"),
        ] {
            let expected =
                format!("{key}: names that begin with `{beginning}` are reserved for {what}; choose another prefix");
            check(&format!("path: /a, key: '{key}', vary: {{query: a}}"), &[expected.as_str()]);
        }
    }

    #[test]
    fn two_reads_have_nothing_in_common() {
        let check = |one: &str, other: &str, expected: &[&str]| {
            let reads = format!("  one: {{sql: select 1, {one}}}\n  two: {{sql: select 1, {other}}}\n");
            assert_eq!(problems(&reads), expected, "{one} {other}");
        };
        let apart = "give each a prefix of its own";
        let keys = |key: &str| format!("{key}: a key of read `two` may equal a key of read `one`; {apart}");
        check("path: '/a/{x}', key: 'user:{x}'", "path: '/b/{x}', key: 'user:{x}:orgs'", &[&keys("user:{x}:orgs")]);
        check("path: '/a/{x}', key: 'a:{x}', version: 'v:1'", "path: '/b/{x}', key: 'a:{x}'", &[&keys("a:{x}")]);
        check("path: '/a/{x}', key: 'a:{x}', vary: {query: q}", "path: /b, key: 'a:1?'", &[&keys("a:1?")]);
        check(
            "path: '/a/{x}', key: 'a:{x}', version: 'v:{x}'",
            "path: '/b/{x}', key: 'v:{x}'",
            &[&format!("v:{{x}}: a key of read `two` may equal a version key of read `one`; {apart}")],
        );
        let paths = "read `two` has the same path as read `one`; choose another path";
        check("path: '/a/{x}', key: 'a:{x}'", "path: '/a/{y}', key: 'b:{y}'", &[&format!("/a/{{y}}: {paths}")]);
        check(
            "path: '/a/{x}', key: 'a:{x}'",
            "path: '/stats', key: 'b'",
            &["/stats: the API itself uses this path; choose another path"],
        );
        let sound = "  one: {path: '/a/{x}', key: 'a:{x}', version: 'v:{x}', sql: select 1}\n  \
                     two: {path: /a/b, key: 'ab:1', version: 'v:b', sql: select 1}\n  \
                     three: {path: '/a/{y}/b', key: 'aby:{y}', sql: select 1}\n";
        assert!(compile(sound).is_ok());
    }
}
