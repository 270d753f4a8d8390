//! The sections of `invalidation.yaml`.
//!
//! Owns the list of sections. It must not know what templates or columns mean. Invariant: a
//! [`Document`] exists only if the whole file has the right shape.

use super::api::read_api;
use super::defaults::{Defaults, read_defaults};
use super::fields::{Fields, Section};
use super::lookup::{RawLookup, read_lookups};
use super::node::Node;
use super::problem::Problems;
use super::read::{RawRead, read_reads};
use super::rule::{RawRule, read_rules};
use super::settings::Settings;
use super::source::{SourceSection, read_source};
use super::span::Spanned;
use super::target::read_target;
use super::test::{RawTest, read_tests};
use super::yaml;

/// A parsed file.
#[derive(Debug)]
pub struct Document {
    /// The sections `source`, `target`, `defaults` and `api`.
    pub settings: Settings,
    /// The rules in the order of the file, not compiled.
    pub rules: Vec<RawRule>,
    /// The lookups of rules.
    pub lookups: Vec<RawLookup>,
    /// The reads in the order of the file, not compiled.
    pub reads: Vec<RawRead>,
    /// The tests of the rules.
    pub tests: Vec<RawTest>,
}

impl Document {
    /// Parses a file. `environment` resolves `${VAR}` and libpq's variables.
    ///
    /// # Errors
    ///
    /// Every problem of the file, in its order.
    pub fn parse(text: &str, environment: &impl Fn(&str) -> Option<String>) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let document = yaml::parse(text, &mut problems).and_then(|mut root| {
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
        None => fields.problems().push(start, "the file has no `version`", "add `version: 1` as the first line"),
    }
    let names = ["source", "target", "defaults", "rules", "lookups", "reads", "api", "tests"];
    let sections = names.map(|name| (name, fields.take(name)));
    fields.finish();
    let [source, target, defaults, rules, lookups, reads, api, tests] = sections;

    let SourceSection { postgres, mode, notify, slot, publication } = read_source(source, environment, problems);
    let (redis, namespace, redis_down_max) = read_target(target, problems);
    let Defaults { truncate, unknown, ttl, max_keys } = read_defaults(defaults, problems);
    let (rules, lookups, tests) = read_sections([rules, lookups, tests], problems);
    let reads = read_reads(Fields::of_section(reads, problems).map(Fields::rest).unwrap_or_default(), problems);
    let api = Fields::of_section(api, problems).map(|fields| read_api(fields, environment)).unwrap_or_default();
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

/// Reads the rules, their lookups and their tests.
fn read_sections(
    [rules, lookups, tests]: [Section; 3],
    problems: &mut Problems,
) -> (Vec<RawRule>, Vec<RawLookup>, Vec<RawTest>) {
    let lookups = Fields::of_section(lookups, problems).map(Fields::rest).unwrap_or_default();
    let lookups = read_lookups(lookups, problems);
    let tests = read_tests(tests.1, problems);
    if rules.1.is_none() {
        problems.push(0..1, "the file has no `rules`", "add `rules:` with at least one rule");
        return (Vec::new(), lookups, tests);
    }
    let Some(fields) = Fields::of_section(rules, problems) else { return (Vec::new(), lookups, tests) };
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
    use crate::config::rule::RawAction;
    use crate::config::{Mode, Truncate, Unknown};

    fn parse_with(text: &str) -> Result<Document, Problems> {
        Document::parse(text, &|_| None)
    }

    /// Every problem as `text of the span: advice`.
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
        assert!(matches!(&*document.rules[0].actions, [RawAction::Delete(key)] if key.value == "user:{id}"));
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
