//! The shape of `invalidation.yaml`: which fields there are, and of what kind.
//!
//! Owns the sections, the daemon's settings and their defaults. It must not know what templates or columns mean.
//! Invariant: a [`Document`] exists only if the whole file has the right shape.

use std::time::Duration;

use redis::IntoConnectionInfo as _;

use super::api::{Api, read_api};
use super::node::{Fields, Node, Spanned, parse};
use super::problem::Problems;
use super::read::{RawRead, read_reads};
use super::rule::{RawLookup, RawRule, read_lookups, read_rules};
use super::test::{RawTest, read_tests};
use crate::postgres::Address;

/// A whole file, read.
#[derive(Debug)]
pub struct Document {
    /// Everything but the rules and the reads.
    pub settings: Settings,
    /// The rules, not yet compiled, in the order of the file.
    pub rules: Vec<RawRule>,
    /// The queries that rules may ask.
    pub lookups: Vec<RawLookup>,
    /// What the read API answers, not yet compiled, in the order of the file.
    pub reads: Vec<RawRead>,
    /// What is expected of the rules.
    pub tests: Vec<RawTest>,
}

/// Where changes come from, where effects go, and what to do in doubt.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to reach PostgreSQL.
    pub postgres: Address,
    /// How changes are read.
    pub mode: Mode,
    /// Whether writers wake a sleeping daemon, in [`Mode::Outbox`].
    pub notify: bool,
    /// The name of the replication slot; of whoever reads the outbox, in [`Mode::Outbox`].
    pub slot: String,
    /// The name of the publication.
    pub publication: String,
    /// How to reach Redis.
    pub redis: redis::ConnectionInfo,
    /// Prefix of everything written to Redis.
    pub namespace: String,
    /// With Redis away for longer, the replication connection is closed: PostgreSQL cannot shut down while
    /// what it sent is not confirmed.
    pub redis_down_max: Duration,
    /// What a truncate does.
    pub truncate: Truncate,
    /// What a filter makes of an old value that is not known.
    pub unknown: Unknown,
    /// How long what is written to Redis lives after it was written last, unless a rule says otherwise.
    pub ttl: Duration,
    /// The most ops of one transaction that are named one by one.
    pub max_keys: usize,
    /// How the read API serves.
    pub api: Api,
}

/// How changes are read from PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Logical replication.
    Slot,
    /// Triggers that write to a table, which is emptied.
    Outbox,
}

/// What a truncate does to the keys of a table's templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// Delete by the glob of every template.
    Pattern,
    /// Nothing.
    Ignore,
    /// Stop with an error.
    Fail,
}

/// What a filter makes of an old value that the log does not carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// It counts as changed.
    Match,
    /// It counts as unchanged.
    Skip,
    /// Stop with an error.
    Fail,
}

const DEFAULT_POSTGRES: &str = "postgres://postgres@127.0.0.1:5432/postgres";
const REDIS_DOWN_MAX: Duration = Duration::from_secs(30);
const REDIS_DOWN_MAX_LEAST: Duration = Duration::from_secs(1);
const DEFAULT_REDIS: &str = "redis://127.0.0.1:6379";

const TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Below, version keys would go while readers use them.
const TTL_LEAST: Duration = Duration::from_secs(60);
const MAX_KEYS: u64 = 1_000_000;

impl Document {
    /// Reads a file. `environment` answers both `${VAR}` and libpq's variables.
    pub fn parse(text: &str, environment: &impl Fn(&str) -> Option<String>) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let document = parse(text, &mut problems).and_then(|mut root| {
            root.interpolate(environment, &mut problems);
            read_document(root, environment, &mut problems)
        });
        problems.sort();
        match document {
            Some(document) if problems.is_empty() => Ok(document),
            _ => Err(problems),
        }
    }
}

fn read_document(
    root: Spanned<Node>,
    environment: &impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> Option<Document> {
    let mut fields = Fields::of(root, "the file", problems)?;
    let start = fields.span.start..fields.span.start + 1;
    match fields.take("version") {
        Some(Spanned { value: Node::Number(number), .. }) if number.as_u64() == Some(1) => {}
        Some(node) => fields.problems().push(node.span, "unknown `version`", "expected `version: 1`"),
        None => fields.problems().push(start, "the file has no `version`", "begin it with `version: 1`"),
    }
    let names = ["source", "target", "defaults", "rules", "lookups", "reads", "api", "tests"];
    let sections = names.map(|name| (name, fields.take(name)));
    fields.finish();
    let [source, target, defaults, rules, lookups, reads, api, tests] = sections;

    let Source { postgres, mode, notify, slot, publication } = read_source(source, environment, problems);
    let (redis, namespace, redis_down_max) = read_target(target, problems);
    let Defaults { truncate, unknown, ttl, max_keys } = read_defaults(defaults, problems);
    let (rules, lookups, tests) = read_sections([rules, lookups, tests], problems);
    let reads = read_reads(open(reads, problems).map(Fields::rest).unwrap_or_default(), problems);
    let api = open(api, problems).map(|fields| read_api(fields, environment)).unwrap_or_default();
    let settings = Settings {
        postgres: postgres?,
        mode,
        notify,
        slot,
        publication,
        redis: redis?,
        namespace,
        redis_down_max,
        truncate,
        unknown,
        ttl,
        max_keys,
        api,
    };
    Some(Document { settings, rules, lookups, reads, tests })
}

type Section = (&'static str, Option<Spanned<Node>>);

fn open<'p>((name, node): Section, problems: &'p mut Problems) -> Option<Fields<'p>> {
    let node = node.unwrap_or(Spanned { value: Node::Null, span: 0..0 });
    Fields::of(node, format!("`{name}`"), problems)
}

/// The section `source`.
struct Source {
    postgres: Option<Address>,
    mode: Mode,
    notify: bool,
    slot: String,
    publication: String,
}

fn read_source(section: Section, environment: &impl Fn(&str) -> Option<String>, problems: &mut Problems) -> Source {
    let name = || "unstale".to_owned();
    let mut source = Source { postgres: None, mode: Mode::Slot, notify: true, slot: name(), publication: name() };
    let Some(mut fields) = open(section, problems) else { return source };
    let url = fields.text("url").unwrap_or(Spanned { value: DEFAULT_POSTGRES.to_owned(), span: 0..0 });
    match Address::parse(&url.value, environment) {
        Ok(parsed) => source.postgres = Some(parsed),
        Err(error) => fields.problems().push(
            url.span,
            format!("`source.url`: {error}"),
            "expected postgres://user@host:5432/database",
        ),
    }
    let modes = [("slot", Mode::Slot), ("outbox", Mode::Outbox)];
    source.mode = fields.word("mode", &modes).unwrap_or(source.mode);
    for (field, name) in [("slot", &mut source.slot), ("publication", &mut source.publication)] {
        let Some(text) = fields.text(field) else { continue };
        let advice = match field {
            "slot" if !is_slot_name(&text.value) => "expected 1 to 63 lower-case letters, digits and `_`",
            "publication" if !(1..=63).contains(&text.value.len()) => "expected 1 to 63 bytes",
            _ => {
                *name = text.value;
                continue;
            }
        };
        fields.problems().push(text.span, format!("`{field}` is not a name PostgreSQL takes"), advice);
    }
    let outbox = fields.take("outbox");
    fields.finish();
    if let Some(mut fields) = outbox.and_then(|node| Fields::of(node, "`outbox`", problems)) {
        source.notify = fields.flag("notify").unwrap_or(true);
        fields.finish();
    }
    source
}

fn is_slot_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn read_target(section: Section, problems: &mut Problems) -> (Option<redis::ConnectionInfo>, String, Duration) {
    let Some(mut fields) = open(section, problems) else { return (None, String::new(), REDIS_DOWN_MAX) };
    let url = fields.text("url").unwrap_or(Spanned { value: DEFAULT_REDIS.to_owned(), span: 0..0 });
    // The library's own message may repeat the URL, and with it the password.
    let info = url.value.as_str().into_connection_info().ok();
    if info.is_none() {
        fields.problems().push(
            url.span,
            "`target.url` is not a Redis URL",
            "expected redis://host:6379/0, rediss://… or unix:///path",
        );
    }
    let namespace = fields.text("namespace").map_or_else(String::new, |text| text.value);
    let redis_down_max =
        fields.duration("redis_down_max", REDIS_DOWN_MAX_LEAST..=Duration::MAX).unwrap_or(REDIS_DOWN_MAX);
    fields.finish();
    (info, namespace, redis_down_max)
}

/// The section `defaults`.
struct Defaults {
    truncate: Truncate,
    unknown: Unknown,
    ttl: Duration,
    max_keys: usize,
}

fn read_defaults(section: Section, problems: &mut Problems) -> Defaults {
    let mut defaults =
        Defaults { truncate: Truncate::Pattern, unknown: Unknown::Match, ttl: TTL, max_keys: to_usize(MAX_KEYS) };
    let Some(mut fields) = open(section, problems) else { return defaults };
    let truncate = [("pattern", Truncate::Pattern), ("ignore", Truncate::Ignore), ("fail", Truncate::Fail)];
    let unknown = [("match", Unknown::Match), ("skip", Unknown::Skip), ("fail", Unknown::Fail)];
    defaults.truncate = fields.word("truncate", &truncate).unwrap_or(defaults.truncate);
    defaults.unknown = fields.word("unknown", &unknown).unwrap_or(defaults.unknown);
    defaults.ttl = fields.duration("ttl", TTL_LEAST..=Duration::MAX).unwrap_or(defaults.ttl);
    defaults.max_keys = fields.count("max_keys").map_or(defaults.max_keys, to_usize);
    fields.finish();
    defaults
}

fn to_usize(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// The rules, the lookups they use, and what tests them.
fn read_sections(
    [rules, lookups, tests]: [Section; 3],
    problems: &mut Problems,
) -> (Vec<RawRule>, Vec<RawLookup>, Vec<RawTest>) {
    let lookups = open(lookups, problems).map(Fields::rest).unwrap_or_default();
    let lookups = read_lookups(lookups, problems);
    let tests = read_tests(tests.1, problems);
    if rules.1.is_none() {
        problems.push(0..1, "the file has no `rules`", "add `rules:` with at least one rule");
        return (Vec::new(), lookups, tests);
    }
    let Some(fields) = open(rules, problems) else { return (Vec::new(), lookups, tests) };
    let span = fields.span.clone();
    let entries = fields.rest();
    if entries.is_empty() {
        problems.push(span, "`rules` is empty", "add at least one rule");
    }
    (read_rules(entries, problems), lookups, tests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Operation;

    fn parse_with(text: &str) -> Result<Document, Problems> {
        Document::parse(text, &|_| None)
    }

    /// Every problem as `text at fault: advice`.
    fn problems(text: &str) -> Vec<String> {
        let found = parse_with(text).expect_err("the file has problems");
        found.iter().map(|p| format!("{}: {}", &text[p.span.clone()], p.advice)).collect()
    }

    const RULE: &str = "rules:\n  user: {table: users, delete: [\"user:{id}\"]}\n";

    #[test]
    fn defaults_fill_what_is_missing() {
        let document = parse_with(&format!("version: 1\n{RULE}")).unwrap();
        let settings = document.settings;
        assert_eq!((settings.slot.as_str(), settings.publication.as_str()), ("unstale", "unstale"));
        assert_eq!((settings.truncate, settings.unknown), (Truncate::Pattern, Unknown::Match));
        assert_eq!(document.rules[0].delete[0].value, "user:{id}");
        assert_eq!(document.rules[0].operations, Operation::ALL);
    }

    #[test]
    fn every_problem_is_found_at_once() {
        let text = "version: 2\nsorce: {}\nsource: {slot: Bad, mode: slt}\ntarget: {url: 'http://x', redis_down_max: soon}\n\
                    defaults: {truncate: patern}\nrules:\n  a: {tabel: users, delete: 7}\n  b: {table: t}\n  c: {when: x}\n";
        assert_eq!(
            problems(text),
            [
                "2: expected `version: 1`",
                "sorce: did you mean `source`?",
                "Bad: expected 1 to 63 lower-case letters, digits and `_`",
                "slt: did you mean `slot`?",
                "http://x: expected redis://host:6379/0, rediss://… or unix:///path",
                "soon: expected a duration such as `30s` or `5m`",
                "patern: did you mean `pattern`?",
                "a: add `table: NAME` or `event: NAME`",
                "tabel: did you mean `table`?",
                "7: write it in quotes",
                "b: add `delete`, `bump`, `tags`, `pattern`, `set`, `publish` or `stream`",
                "c: add `table: NAME` or `event: NAME`",
            ]
        );
    }

    #[test]
    fn the_outbox_is_a_mode_with_settings_of_its_own() {
        let source = |text: &str| {
            let settings = parse_with(&format!("version: 1\nsource: {text}\n{RULE}")).unwrap().settings;
            (settings.mode, settings.notify)
        };
        assert_eq!(source("{mode: outbox}"), (Mode::Outbox, true));
        assert_eq!(source("{mode: outbox, outbox: {notify: false}}"), (Mode::Outbox, false));
        let text = format!("version: 1\nsource: {{mode: outbox, outbox: {{notfy: true, notify: 3}}}}\n{RULE}");
        assert_eq!(problems(&text), ["notfy: did you mean `notify`?", "3: write `true` or `false`"]);
    }

    #[test]
    fn a_syntax_error_has_a_place() {
        let found = parse_with("version: 1\nrules: [\n").unwrap_err();
        assert!(found.iter().next().unwrap().span.start >= 11, "{found:?}");
    }

    #[test]
    fn a_secret_from_the_environment_is_never_repeated() {
        let text = format!(
            "version: 1\nsource: {{url: \"${{U}}\", mode: \"${{U}}\"}}\ntarget: {{url: \"${{U}}\"}}\n{RULE}\
             api:\n  replica_url: ${{U}}\n  listen: ${{U}}\n  trusted_proxies: ${{U}}\n  cors: {{origins: \"${{U}}\"}}\n"
        );
        let found = Document::parse(&text, &|_| Some("postgres//user:hunter2@host".to_owned())).unwrap_err();
        assert_eq!(found.iter().count(), 7, "{found:?}");
        assert!(!found.render("f", &text, 1, false).contains("hunter2"), "{found:?}");
    }
}
