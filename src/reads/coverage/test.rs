//! Tests of the coverage lints: one read, its rules and relations, and the gaps that are found.

use super::gaps;
use crate::catalog::{QueryRelation, RelationKind};
use crate::change::TableName;
use crate::config::Document;
use crate::reads::ReadSet;
use crate::rules::{Lint, RuleSet};

fn relation(name: &str, columns: &[&str]) -> QueryRelation {
    QueryRelation {
        name: TableName::parse(name),
        kind: RelationKind::Table,
        ancestors: Vec::new(),
        companions: Vec::new(),
        is_looked_up: false,
        primary_key: vec!["id".to_owned()],
        columns: Some(columns.iter().map(|column| ((*column).to_owned(), true)).collect()),
    }
}

/// Every gap of the only read as `id certain: message; why; fix`.
fn found(read: &str, rules: &str, relations: &[QueryRelation]) -> Vec<String> {
    let text = format!("version: 1\nrules:\n{rules}reads:\n  x: {{sql: select 1, {read}}}\n");
    let document = Document::parse(&text, &|_| None).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
    let reads = ReadSet::compile(document.reads, &document.settings).unwrap();
    let rules = RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap();
    let gaps = gaps(&reads.reads()[0], relations, &rules, &document.settings.namespace);
    let show = |lint: &Lint| format!("{} {}: {}; {}; {}", lint.id, lint.certain, lint.message, lint.why, lint.fix);
    gaps.iter().map(show).collect()
}

fn check(read: &str, rules: &str, relations: &[QueryRelation], expected: &[&[&str]]) {
    let found = found(read, rules, relations);
    let matches = found.iter().zip(expected).all(|(found, parts)| parts.iter().all(|part| found.contains(part)));
    assert!(matches && found.len() == expected.len(), "{read}\n{rules}{found:#?}");
}

const USER: &str = "path: '/u/{id}', key: 'user:{id}'";

#[test]
fn a_rule_covers_if_it_makes_the_key() {
    let covered = |read: &str, action: &str| {
        check(read, &format!("  a: {{table: t, {action}}}\n"), &[relation("t", &["a"])], &[]);
    };
    let uncovered = |read: &str, action: &str, parts: &[&str]| {
        let rule = format!("  a: {{table: t, {action}}}\n");
        check(read, &rule, &[relation("t", &["a"])], &[&[&["read-uncovered true: no rule"][..], parts].concat()]);
    };
    covered(USER, "delete: 'user:{other}'");
    covered(USER, "delete: ['x:{a}', 'user:{a}']");
    covered(USER, "pattern: 'user:*'");
    covered(USER, "pattern: 'us*{a}'");
    uncovered(USER, "delete: 'users:{id}'", &["{table: t, delete: \"user:{…}\"}", "holds `id`"]);
    uncovered(USER, "delete: 'user:all'", &[]);
    uncovered(USER, "delete: 'user:{a}:{b}'", &[]);
    uncovered(USER, "pattern: 'user:*:x'", &[]);
    uncovered(USER, "publish: {channel: 'user:{id}'}", &[]);
    uncovered(USER, "tags: 'user:{id}'", &[]);
    uncovered("path: /all, key: 'user:all'", "delete: 'user:{id}'", &["delete: \"user:all\"}"]);
    let mail = "path: '/m/{mail}', key: 'mail:{mail|lower}'";
    covered(mail, "delete: 'mail:{email|lower}'");
    uncovered(mail, "delete: 'mail:{email}'", &["`mail:{email}` has other filters", "{…|lower}"]);
}

#[test]
fn what_a_name_ends_in_counts() {
    let t = || [relation("t", &["a"])];
    let version = "path: '/u/{id}', key: 'user:{id}', version: 'v:{id}'";
    check(version, "  a: {table: t, bump: 'v:{x}'}\n", &t(), &[]);
    check(version, "  a: {table: t, pattern: 'user:{id}*'}\n", &t(), &[]);
    check(version, "  a: {table: t, delete: 'v:{x}'}\n", &t(), &[]);
    let advice: &[&str] = &["end in their version: only `bump` reaches them", "bump: \"v:{…}\""];
    check(version, "  a: {table: t, delete: 'user:{id}'}\n", &t(), &[advice]);
    let vary = "path: '/u/{id}', key: 'user:{id}', vary: {query: [page]}";
    check(vary, "  a: {table: t, pattern: 'user:{x}?*'}\n", &t(), &[]);
    check(vary, "  a: {table: t, pattern: 'user:{x}*'}\n", &t(), &[]);
    let advice: &[&str] = &["what `vary` adds: only `tags`", "pattern: \"user:{…}?*\""];
    check(vary, "  a: {table: t, delete: 'user:{x}'}\n", &t(), &[advice]);
    let tags = "path: '/u/{id}', key: 'user:{id}', vary: {query: [page]}, tags: 'of:{value.owner}'";
    check(tags, "  a: {table: t, tags: 'of:{x}'}\n", &t(), &[]);
    check(tags, "  a: {table: t, delete: 'user:{x}'}\n", &t(), &[&["tags: \"of:{…}\""]]);
    let named = "path: '/u/{id}', key: 'user:{id}:{page}', vary: {query: [page]}";
    check(named, "  a: {table: t, delete: 'user:{x}:{y}'}\n", &t(), &[]);
}

#[test]
fn every_pair_is_told_and_ancestors_count() {
    let rules = "  a: {table: t, delete: 'user:{id}'}\n  b: {table: s, delete: 'other:{id}'}\n";
    let mut part = relation("t_1", &[]);
    part.ancestors = vec![TableName::parse("t")];
    let relations = [relation("t", &["a"]), relation("s", &["a"]), relation("u", &["a"]), part];
    check(USER, rules, &relations, &[&["when s changes", "table: s"], &["when u changes", "for up to 10m"]]);
    let event = "  e: {event: e, delete: 'user:{id}'}\n";
    check(USER, event, &[relation("t", &["a"])], &[&["read-uncovered false", "emits its event"]]);
}

#[test]
fn what_no_rule_can_see_needs_an_event() {
    for kind in [RelationKind::MaterializedView, RelationKind::ForeignTable, RelationKind::Sequence] {
        let relations = [QueryRelation { kind, ..relation("t", &["a"]) }];
        let rule = "  a: {table: t, delete: 'user:{id}'}\n";
        check(USER, rule, &relations, &[&["read-uninvalidatable true", "{event: …, delete: \"user:{…}\"}"]]);
        check(USER, "  e: {event: e, delete: 'user:{id}'}\n", &relations, &[]);
    }
}

#[test]
fn columns_that_no_rule_lists_are_told() {
    let narrow = "  a: {table: t, changed: [a, b], delete: 'user:{id}'}\n";
    check(USER, narrow, &[relation("t", &["id", "a", "b"])], &[]);
    let c: &[&str] = &["read-column true: read `x` uses t.c, and no rule fires when it changes", "add c to"];
    check(USER, narrow, &[relation("t", &["id", "a", "c"])], &[c]);
    let two = format!("{narrow}  b: {{table: t, changed: c, delete: 'user:{{id}}'}}\n");
    check(USER, &two, &[relation("t", &["id", "a", "c"])], &[]);
    let both: &[&str] = &["t.d, t.e, and no rule fires when they change", "`a` or `b`"];
    check(USER, &two, &[relation("t", &["d", "e"])], &[both]);
    let whole = format!("{narrow}  b: {{table: t, delete: 'user:{{id}}'}}\n");
    check(USER, &whole, &[relation("t", &["id", "a", "c"])], &[]);
    check(USER, narrow, &[QueryRelation { columns: None, ..relation("t", &[]) }], &[]);
    let view = QueryRelation { columns: Some([("c".to_owned(), false)].into()), ..relation("t", &[]) };
    check(USER, narrow, &[view], &[&["read-column false", "or a view in it does, t.c"]]);
    let when = "  a: {table: t, changed: a, when: 'new.n > 0', delete: 'user:{id}'}\n";
    check(USER, when, &[relation("t", &["c"])], &[&["read-column false"]]);
}

#[test]
fn operations_that_no_rule_fires_on_are_told() {
    let rule = |ops: &str| format!("  a: {{table: t, ops: {ops}, delete: 'user:{{id}}'}}\n");
    let t = || relation("t", &["id", "a"]);
    let looked_up = || QueryRelation { is_looked_up: true, ..t() };
    let inserted: &[&str] = &["read-uncovered false", "a row of t is inserted", "add `insert` to `ops`"];
    check(USER, &rule("[update, delete]"), &[looked_up()], &[]);
    check(USER, &rule("[update, delete]"), &[t()], &[inserted]);
    let negative = format!("{USER}, negative_ttl: 10m");
    check(&negative, &rule("[update, delete]"), &[looked_up()], &[inserted]);
    check(&negative, &rule("[insert, update, delete]"), &[looked_up()], &[]);
    let deleted: &[&str] = &["read-uncovered false", "a row of t is deleted", "add `delete` to `ops`"];
    check(USER, &rule("[insert, update]"), &[t()], &[deleted]);
    check(USER, &rule("update"), &[t()], &[inserted, deleted]);
    check(USER, &rule("[insert, delete]"), &[t()], &[&["read-uncovered false", "a row of t is updated"]]);
    check(USER, &rule("[insert, delete]"), &[relation("t", &["id"])], &[]);
}

#[test]
fn an_image_that_a_row_does_not_have_removes_nothing() {
    let rule = |template: &str| format!("  a: {{table: t, delete: '{template}'}}\n");
    let t = || relation("t", &["id", "a"]);
    let message = |done: &'static str| ["read-uncovered false", done, "without `old.` or `new.`"];
    check(USER, &rule("user:{new.id}"), &[t()], &[&message("a row of t is deleted")]);
    check(USER, &rule("user:{old.id}"), &[t()], &[&message("a row of t is inserted")]);
    let (updated, deleted) = (message("a row of t is updated"), message("a row of t is deleted"));
    check(USER, &rule("user:{new.a}"), &[t()], &[&updated, &deleted]);
    check(USER, &rule("user:{id}"), &[t()], &[]);
}

#[test]
fn a_row_comes_after_and_goes_before_what_it_refers_to() {
    let rules = |ops: &str| {
        format!(
            "  a: {{table: t, ops: update, delete: 'user:{{id}}'}}\n  \
                 b: {{table: s, ops: {ops}, delete: 'user:{{t_id}}'}}\n"
        )
    };
    let with = |name: &str, companion: &str| {
        let companions = vec![TableName::parse(companion)];
        QueryRelation { companions, ..relation(name, &["id"]) }
    };
    let s = || relation("s", &["id"]);
    check(USER, &rules("[insert, delete]"), &[with("t", "s"), s()], &[]);
    let [inserted, deleted]: [&[&str]; 2] = [&["a row of t is inserted"], &["a row of t is deleted"]];
    check(USER, &rules("insert"), &[with("t", "s"), s()], &[deleted, &["a row of s is deleted"]]);
    check(USER, &rules("[insert, delete]"), &[relation("t", &["id"]), s()], &[inserted, deleted]);
    // Through two relations: `t` comes with `r`, which comes with `s`.
    let chain = format!("{}  c: {{table: r, ops: update, delete: 'user:{{id}}'}}\n", rules("[insert, delete]"));
    check(USER, &chain, &[with("t", "r"), with("r", "s"), s()], &[]);
    check(USER, &rules("update"), &[with("t", "t")], &[inserted, deleted]);
}

#[test]
fn that_there_is_nothing_is_in_no_set_that_a_value_names() {
    let read = |more: &str| format!("{USER}, tags: ['of:{{value.owner}}', 'all:{{id}}']{more}");
    let t = || [relation("t", &["a"])];
    let of = "  a: {table: t, tags: 'of:{owner}'}\n";
    check(&read(""), of, &t(), &[]);
    let negative = read(", negative_ttl: 1m");
    let nothing: &[&str] = &["read-uncovered false", "a row of t is inserted", "the `tags` of `a` do not reach it"];
    check(&negative, of, &t(), &[nothing]);
    check(&negative, "  a: {table: t, tags: 'all:{x}'}\n", &t(), &[]);
    check(&negative, "  a: {table: t, tags: 'of:{owner}', delete: 'user:{id}'}\n", &t(), &[]);
    let both = format!("{of}  b: {{table: t, ops: [update, delete], delete: 'user:{{id}}'}}\n");
    check(&negative, &both, &t(), &[&["`b` would, but its `ops` omit it", "add `insert` to `ops` of `b`"]]);
}

#[test]
fn a_rule_that_writes_the_key_is_told() {
    let set = "  a: {table: t, set: {key: 'user:{a}', columns: [a]}}\n";
    let words: &[&str] = &["read-set false: rule `a` itself writes `user:{a}`", "than read `x`", "`delete` the key"];
    check(USER, set, &[relation("t", &["a"])], &[words]);
    check(
        USER,
        &format!("{set}  b: {{table: t, set: {{key: 'u:{{a}}', columns: [a]}}}}\n"),
        &[relation("t", &["a"])],
        &[words],
    );
}
