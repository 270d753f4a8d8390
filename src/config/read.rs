//! The shape of a read: its fields and their types.
//!
//! Owns raw reads and their defaults. It must not know what paths, templates or SQL mean;
//! [`crate::reads`] compiles them. Invariant: a raw read has a path, a key and SQL.

use std::time::Duration;

use super::fields::Fields;
use super::node::Node;
use super::problem::Problems;
use super::span::Spanned;

/// One read of the file.
#[derive(Clone, Debug)]
pub struct RawRead {
    /// Its name: the key in `reads:`.
    pub name: Spanned<String>,
    /// `path:`, as in `/users/{id}`.
    pub path: Spanned<String>,
    /// `key:`, a template.
    pub key: Spanned<String>,
    /// `sql:`, returns one row. Its first column is JSON; an optional second one is the expiry.
    pub sql: Spanned<String>,
    /// `ttl:`, how long a value is served without reading the database again.
    pub ttl: Duration,
    /// `jitter:`, the share of `ttl` by which expiry times vary.
    pub jitter: f64,
    /// `stale_while_revalidate:`, how much longer a value is served while it is being refreshed.
    pub stale_while_revalidate: Duration,
    /// `negative_ttl:`, how long a 404 is cached; none: it is not.
    pub negative_ttl: Option<Duration>,
    /// `vary:`, other parts of the request that the response depends on.
    pub vary: RawVary,
    /// `tags:`, templates.
    pub tags: Vec<Spanned<String>>,
    /// `version:`, a template.
    pub version: Option<Spanned<String>>,
    /// `max_staleness:`; none: that of `api:`.
    pub max_staleness: Option<Duration>,
    /// `timeout:`, of the query.
    pub timeout: Option<Duration>,
    /// `replica:`, whether the replica may be read.
    pub replica: bool,
}

/// Parameters in addition to those of the path.
#[derive(Clone, Debug, Default)]
pub struct RawVary {
    /// `query:`, names in the query string.
    pub query: Vec<Spanned<String>>,
    /// `header:`, names of headers.
    pub header: Vec<Spanned<String>>,
}

const TTL: Duration = Duration::from_secs(600);

/// Shorter values would expire before they are read.
const TTL_LEAST: Duration = Duration::from_secs(1);

/// The longest TTL. The sum of two is still valid in Redis.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const JITTER: f64 = 0.1;

/// With more jitter, some values would expire at once.
const JITTER_MAX: f64 = 0.9;

/// The longest time limit of a query.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// The required fields, each with an example.
const NEEDED: [(&str, &str); 3] =
    [("path", "/users/{id}"), ("key", "\"user:{id}\""), ("sql", "select json_build_object(…) from … where id = $1")];

/// Reads the section `reads`.
pub(super) fn read_reads(entries: Vec<(Spanned<String>, Spanned<Node>)>, problems: &mut Problems) -> Vec<RawRead> {
    entries.into_iter().filter_map(|(name, node)| read_read(name, node, problems)).collect()
}

fn read_read(name: Spanned<String>, node: Spanned<Node>, problems: &mut Problems) -> Option<RawRead> {
    let mut fields = Fields::of(node, format!("read `{}`", name.value), problems)?;
    let [path, key, sql] = NEEDED.map(|(field, example)| {
        if !fields.has_any(&[field]) {
            let message = format!("read `{}` has no `{field}`", name.value);
            fields.problems().push(name.span.clone(), message, format!("add `{field}: {example}`"));
        }
        fields.text(field)
    });
    let ttl = fields.duration("ttl", TTL_LEAST..=TTL_MAX);
    let jitter = fields.share("jitter", 0.0..=JITTER_MAX);
    let stale_while_revalidate = fields.duration("stale_while_revalidate", Duration::ZERO..=TTL_MAX);
    let negative_ttl = fields.duration("negative_ttl", TTL_LEAST..=TTL_MAX);
    let vary = fields.take("vary").map(|node| read_vary(node, fields.problems()));
    let tags = fields.texts("tags");
    let version = fields.text("version");
    let max_staleness = fields.duration("max_staleness", super::api::STALENESS_LEAST..=super::api::STALENESS_MAX);
    let timeout = fields.duration("timeout", Duration::from_millis(1)..=TIMEOUT_MAX);
    let replica = fields.flag("replica");
    fields.finish();
    Some(RawRead {
        name,
        path: path?,
        key: key?,
        sql: sql?,
        ttl: ttl.unwrap_or(TTL),
        jitter: jitter.unwrap_or(JITTER),
        stale_while_revalidate: stale_while_revalidate.unwrap_or_default(),
        negative_ttl,
        vary: vary.unwrap_or_default(),
        tags,
        version,
        max_staleness,
        timeout,
        replica: replica.unwrap_or(true),
    })
}

fn read_vary(node: Spanned<Node>, problems: &mut Problems) -> RawVary {
    let Some(mut fields) = Fields::of(node, "`vary`", problems) else { return RawVary::default() };
    let vary = RawVary { query: fields.texts("query"), header: fields.texts("header") };
    fields.finish();
    vary
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    const RULE: &str = "version: 1\nrules: {r: {table: t, delete: 'k:{a}'}}\n";

    fn read(read: &str) -> RawRead {
        let text =
            format!("{RULE}reads:\n  user: {{path: '/users/{{id}}', key: 'user:{{id}}', sql: select 1{read}}}\n");
        Document::parse(&text, &|_| None).unwrap_or_else(|found| panic!("{read}: {found:?}")).reads.remove(0)
    }

    /// Every problem as `text at fault: advice`.
    fn problems(reads: &str) -> Vec<String> {
        let text = format!("{RULE}reads: {reads}\n");
        let found = Document::parse(&text, &|_| None).expect_err("the reads have problems");
        found.iter().map(|problem| format!("{}: {}", &text[problem.span.clone()], problem.advice)).collect()
    }

    #[test]
    fn defaults_fill_what_is_missing() {
        let read = read("");
        assert_eq!((read.ttl, read.jitter, read.replica), (Duration::from_secs(600), 0.1, true));
        assert_eq!((read.stale_while_revalidate, read.negative_ttl), (Duration::ZERO, None));
        assert!(read.vary.query.is_empty() && read.tags.is_empty() && read.version.is_none() && read.timeout.is_none());
        assert!(Document::parse(RULE, &|_| None).unwrap().reads.is_empty());
        assert!(Document::parse(&format!("{RULE}reads:\n"), &|_| None).unwrap().reads.is_empty());
    }

    #[test]
    fn every_field_is_read() {
        let read = read(
            ", ttl: 1h, stale_while_revalidate: 30s, negative_ttl: 5s, vary: {query: page, header: [x-a, x-b]}, \
             tags: 'team:{id}', version: 'v:{id}', max_staleness: 20s, timeout: 2s, replica: false",
        );
        let seconds = |duration: Duration| duration.as_secs();
        assert_eq!((seconds(read.ttl), seconds(read.stale_while_revalidate)), (3600, 30));
        assert_eq!(read.negative_ttl.map(seconds), Some(5));
        assert_eq!((read.max_staleness.map(seconds), read.timeout.map(seconds)), (Some(20), Some(2)));
        let texts =
            |texts: &[Spanned<String>]| texts.iter().map(|text| text.value.clone()).collect::<Vec<_>>().join(" ");
        assert_eq!((texts(&read.vary.query), texts(&read.vary.header)), ("page".to_owned(), "x-a x-b".to_owned()));
        assert_eq!((texts(&read.tags), texts(read.version.as_slice())), ("team:{id}".to_owned(), "v:{id}".to_owned()));
        assert!(!read.replica);
    }

    #[test]
    fn a_share_is_written_in_several_ways() {
        let check = |jitter: &str, expected: f64| {
            let found = read(&format!(", jitter: {jitter}")).jitter;
            assert!((found - expected).abs() < 1e-9, "{jitter}: {found}");
        };
        check("10%", 0.1);
        check("2.5 %", 0.025);
        check("'0.2'", 0.2);
        check("0.2", 0.2);
        check("0", 0.0);
        check("90%", 0.9);
    }

    #[test]
    fn every_problem_is_found_at_once() {
        let reads = "{a: {pth: /a, ttl: 1ms, jitter: 10}, b: 7, \
                     c: {path: 3, key: k, sql: s, vary: [page], replica: maybe, jitter: some, negative_ttl: 5}, \
                     d: {path: /d, key: k, sql: s, vary: {qury: page}, max_staleness: 1ms, timeout: 1h}}";
        assert_eq!(
            problems(reads),
            [
                "a: add `path: /users/{id}`",
                "a: add `key: \"user:{id}\"`",
                "a: add `sql: select json_build_object(…) from … where id = $1`",
                "pth: did you mean `path`?",
                "1ms: expected at least `1s`",
                "10: expected `0%` to `90%`",
                "7: expected `field: value` lines here",
                "3: write it in quotes",
                "[: expected `field: value` lines here",
                "maybe: write `true` or `false`",
                "some: expected `0%` to `90%`",
                "5: write `5s` for seconds",
                "qury: did you mean `query`?",
                "1ms: expected at least `1s`",
                "1h: expected at most `1m`",
            ]
        );
        assert_eq!(problems("7"), ["7: expected `field: value` lines here"]);
    }
}
