//! The shape of `invalidation.yaml`: which fields there are, and of what kind.
//!
//! Owns settings and raw rules. It must not know what templates or columns mean. Invariant: a
//! [`Document`] exists only if the whole file has the right shape.

use std::ops::Range;
use std::time::Duration;

use redis::IntoConnectionInfo as _;

use super::node::{Fields, Node, Spanned, as_word, parse};
use super::problem::Problems;
use crate::change::Operation;
use crate::postgres::Address;

/// A whole file, read.
#[derive(Debug)]
pub struct Document {
    /// Everything but the rules.
    pub settings: Settings,
    /// The rules, not yet compiled, in the order of the file.
    pub rules: Vec<RawRule>,
}

/// Where changes come from, where effects go, and what to do in doubt.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to reach PostgreSQL.
    pub postgres: Address,
    /// How changes are read.
    pub mode: Mode,
    /// The name of the replication slot.
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
}

/// How changes are read from PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Logical replication.
    Slot,
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

/// One rule, as the file has it.
#[derive(Debug)]
pub struct RawRule {
    /// Its name: the key in `rules:`.
    pub name: Spanned<String>,
    /// `table:`.
    pub table: Spanned<String>,
    /// `ops:`; all of them when the field is missing.
    pub operations: Vec<Operation>,
    /// `changed:`.
    pub changed: Vec<Spanned<String>>,
    /// `delete:`.
    pub delete: Vec<Spanned<String>>,
    /// `bump:`.
    pub bump: Vec<Spanned<String>>,
    /// `publish:`.
    pub publish: Vec<RawPublish>,
}

/// One message of a rule, as the file has it.
#[derive(Debug)]
pub struct RawPublish {
    /// `channel:`.
    pub channel: Spanned<String>,
    /// `data:`.
    pub data: RawData,
}

/// The shape of a message: JSON in which every text is a template.
#[derive(Debug)]
pub enum RawData {
    /// A template.
    Template(Spanned<String>),
    /// A number, a boolean or null, as it stands.
    Literal(serde_json::Value),
    /// A list.
    List(Vec<RawData>),
    /// An object.
    Object(Vec<(String, RawData)>),
}

const DEFAULT_POSTGRES: &str = "postgres://postgres@127.0.0.1:5432/postgres";
const REDIS_DOWN_MAX: Duration = Duration::from_secs(30);
const REDIS_DOWN_MAX_LEAST: Duration = Duration::from_secs(1);
const DEFAULT_REDIS: &str = "redis://127.0.0.1:6379";

/// Fields that the language has and this version does not read yet.
const LATER: &[&str] = &["lookups", "reads", "tests", "api"];
const LATER_IN_RULES: &[&str] = &["when", "for_each", "event", "tags", "pattern", "set", "stream", "again_after"];

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
    let sections = ["source", "target", "defaults", "rules"].map(|name| (name, fields.take(name)));
    fields.finish(LATER);
    let [source, target, defaults, rules] = sections;

    let (postgres, mode, slot, publication) = read_source(source, environment, problems);
    let (redis, namespace, redis_down_max) = read_target(target, problems);
    let (truncate, unknown) = read_defaults(defaults, problems);
    let rules = read_rules(rules, problems);
    let settings = Settings {
        postgres: postgres?,
        mode,
        slot,
        publication,
        redis: redis?,
        namespace,
        redis_down_max,
        truncate,
        unknown,
    };
    Some(Document { settings, rules })
}

type Section = (&'static str, Option<Spanned<Node>>);

fn open<'p>((name, node): Section, problems: &'p mut Problems) -> Option<Fields<'p>> {
    let node = node.unwrap_or(Spanned { value: Node::Null, span: 0..0 });
    Fields::of(node, format!("`{name}`"), problems)
}

fn read_source(
    section: Section,
    environment: &impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> (Option<Address>, Mode, String, String) {
    let mut names = ["unstale".to_owned(), "unstale".to_owned()];
    let mut mode = Mode::Slot;
    let mut address = None;
    if let Some(mut fields) = open(section, problems) {
        let url = fields.text("url").unwrap_or(Spanned { value: DEFAULT_POSTGRES.to_owned(), span: 0..0 });
        match Address::parse(&url.value, environment) {
            Ok(parsed) => address = Some(parsed),
            Err(error) => fields.problems().push(
                url.span,
                format!("`source.url`: {error}"),
                "expected postgres://user@host:5432/database",
            ),
        }
        if let Some(text) = fields.text("mode") {
            if text.value == "outbox" {
                let message = "`mode: outbox` is not supported by this version of unstale";
                fields.problems().push(text.span, message, "use `slot`");
            } else {
                mode = as_word(&text, "mode", &[("slot", Mode::Slot)], fields.problems()).unwrap_or(mode);
            }
        }
        for (name, field) in names.iter_mut().zip(["slot", "publication"]) {
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
        fields.finish(&[]);
    }
    let [slot, publication] = names;
    (address, mode, slot, publication)
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
    let mut redis_down_max = REDIS_DOWN_MAX;
    if let Some(text) = fields.text("redis_down_max") {
        match humantime::parse_duration(&text.value) {
            Ok(duration) if duration >= REDIS_DOWN_MAX_LEAST => redis_down_max = duration,
            Ok(_) => fields.problems().push(
                text.span,
                "`redis_down_max` is too short: a healthy Redis may take longer for one batch",
                format!("expected at least `{}s`", REDIS_DOWN_MAX_LEAST.as_secs()),
            ),
            Err(error) => fields.problems().push(
                text.span,
                format!("`redis_down_max`: {error}"),
                "expected a duration such as `30s` or `5m`",
            ),
        }
    }
    fields.finish(&[]);
    (info, namespace, redis_down_max)
}

fn read_defaults(section: Section, problems: &mut Problems) -> (Truncate, Unknown) {
    let Some(mut fields) = open(section, problems) else { return (Truncate::Pattern, Unknown::Match) };
    let truncate = [("pattern", Truncate::Pattern), ("ignore", Truncate::Ignore), ("fail", Truncate::Fail)];
    let unknown = [("match", Unknown::Match), ("skip", Unknown::Skip), ("fail", Unknown::Fail)];
    let truncate = fields.word("truncate", &truncate).unwrap_or(Truncate::Pattern);
    let unknown = fields.word("unknown", &unknown).unwrap_or(Unknown::Match);
    fields.finish(&[]);
    (truncate, unknown)
}

fn read_rules(section: Section, problems: &mut Problems) -> Vec<RawRule> {
    if section.1.is_none() {
        problems.push(0..1, "the file has no `rules`", "add `rules:` with at least one rule");
        return Vec::new();
    }
    let Some(fields) = open(section, problems) else { return Vec::new() };
    let span = fields.span.clone();
    let entries = fields.rest();
    if entries.is_empty() {
        problems.push(span, "`rules` is empty", "add at least one rule");
    }
    entries.into_iter().filter_map(|(name, node)| read_rule(name, node, problems)).collect()
}

fn read_rule(name: Spanned<String>, node: Spanned<Node>, problems: &mut Problems) -> Option<RawRule> {
    let mut fields = Fields::of(node, format!("rule `{}`", name.value), problems)?;
    let table = fields.text("table");
    let words = Operation::ALL.map(|operation| (operation.word(), operation));
    let texts = fields.texts("ops");
    let operations: Vec<_> = match texts.is_empty() {
        true => Operation::ALL.to_vec(),
        false => texts.iter().filter_map(|text| as_word(text, "ops", &words, fields.problems())).collect(),
    };
    let changed = fields.texts("changed");
    let delete = fields.texts("delete");
    let bump = fields.texts("bump");
    let publish = match fields.take("publish") {
        None => Vec::new(),
        Some(Spanned { value: Node::List(items), .. }) => {
            items.into_iter().filter_map(|item| read_publish(item, fields.problems())).collect()
        }
        Some(node) => read_publish(node, fields.problems()).into_iter().collect(),
    };
    let nothing = delete.is_empty() && bump.is_empty() && publish.is_empty();
    let has_later_field = fields.has_any(LATER_IN_RULES);
    fields.finish(LATER_IN_RULES);
    if nothing && !has_later_field {
        let message = format!("rule `{}` does nothing", name.value);
        problems.push(name.span.clone(), message, "add `delete`, `bump` or `publish`");
    }
    if table.is_none() && !has_later_field {
        problems.push(name.span.clone(), format!("rule `{}` has no `table`", name.value), "add `table: NAME`");
    }
    Some(RawRule { table: table?, name, operations, changed, delete, bump, publish })
}

fn read_publish(node: Spanned<Node>, problems: &mut Problems) -> Option<RawPublish> {
    let mut fields = Fields::of(node, "`publish`", problems)?;
    let span: Range<usize> = fields.span.clone();
    let channel = fields.text("channel");
    if channel.is_none() {
        fields.problems().push(span, "`publish` has no `channel`", "expected `{channel: NAME, data: {…}}`");
    }
    let data = fields.take("data").map_or_else(|| RawData::Object(Vec::new()), read_data);
    fields.finish(&[]);
    Some(RawPublish { channel: channel?, data })
}

fn read_data(node: Spanned<Node>) -> RawData {
    match node.value {
        Node::Null => RawData::Literal(serde_json::Value::Null),
        Node::Bool(value) => RawData::Literal(value.into()),
        Node::Number(number) => RawData::Literal(number.into()),
        Node::Text(value) => RawData::Template(Spanned { value, span: node.span }),
        Node::List(items) => RawData::List(items.into_iter().map(read_data).collect()),
        Node::Map(entries) => {
            RawData::Object(entries.into_iter().map(|(key, value)| (key.value, read_data(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                "a: add `delete`, `bump` or `publish`",
                "a: add `table: NAME`",
                "tabel: did you mean `table`?",
                "7: write it in quotes",
                "b: add `delete`, `bump` or `publish`",
                "when: remove it for now",
            ]
        );
    }

    #[test]
    fn a_syntax_error_has_a_place() {
        let found = parse_with("version: 1\nrules: [\n").unwrap_err();
        assert!(found.iter().next().unwrap().span.start >= 11, "{found:?}");
    }

    #[test]
    fn a_secret_from_the_environment_is_never_repeated() {
        let text =
            format!("version: 1\nsource: {{url: \"${{U}}\", mode: \"${{U}}\"}}\ntarget: {{url: \"${{U}}\"}}\n{RULE}");
        let found = Document::parse(&text, &|_| Some("postgres//user:hunter2@host".to_owned())).unwrap_err();
        assert_eq!(found.iter().count(), 3);
        assert!(!found.render("f", &text, 1, false).contains("hunter2"), "{found:?}");
    }
}
