//! The shape of a test: a change, and the operations that the rules must make of it.
//!
//! Owns raw tests. It must not know rules, tables or how a test runs. Invariant: a raw test has
//! exactly one change, with the rows that this change needs.

use serde_json::Value;

use super::fields::{Fields, as_text};
use super::node::Node;
use super::problem::Problems;
use super::span::Spanned;
use crate::change::Operation;
use crate::plan::ActionKind;

/// Columns and their values, in the order of the file.
pub type RawRow = Vec<(Spanned<String>, Value)>;

/// One test of the file.
#[derive(Clone, Debug)]
pub struct RawTest {
    /// `it:`, what the test shows.
    pub it: Spanned<String>,
    /// The operation of the change.
    pub operation: Operation,
    /// The table, or the name of the event.
    pub subject: Spanned<String>,
    /// `row:`, the old row; of an insert the new row, of an event its fields, of a truncate empty.
    pub row: RawRow,
    /// `set:`, what an update changes.
    pub set: RawRow,
    /// `lookups:`, the result of each.
    pub lookups: Vec<RawAnswer>,
    /// `expect:`; an op that is not listed fails the test.
    pub expect: Vec<RawExpected>,
}

/// The result of a lookup in a test, for all arguments.
#[derive(Clone, Debug)]
pub struct RawAnswer {
    /// The lookup.
    pub lookup: Spanned<String>,
    /// The rows.
    pub rows: Vec<RawRow>,
}

/// One expected operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawExpected {
    /// The kind of the op.
    pub kind: ActionKind,
    /// The name that it acts on, without the namespace.
    pub name: Spanned<String>,
}

/// The field of each operation.
const CHANGES: [(&str, Operation); 5] = [
    ("insert", Operation::Insert),
    ("update", Operation::Update),
    ("delete", Operation::Delete),
    ("truncate", Operation::Truncate),
    ("event", Operation::Event),
];

/// Reads the section `tests`.
pub(super) fn read_tests(section: Option<Spanned<Node>>, problems: &mut Problems) -> Vec<RawTest> {
    match section {
        None | Some(Spanned { value: Node::Null, .. }) => Vec::new(),
        Some(Spanned { value: Node::List(tests), .. }) => {
            tests.into_iter().filter_map(|test| read_test(test, problems)).collect()
        }
        Some(node) => {
            problems.push(node.span, "`tests` must be a list", "expected `- it: …` lines here");
            Vec::new()
        }
    }
}

fn read_test(node: Spanned<Node>, problems: &mut Problems) -> Option<RawTest> {
    let before = problems.len();
    let mut fields = Fields::of(node, "a test", problems)?;
    let start = fields.span.clone();
    let has_it = fields.has_any(&["it"]);
    let it = fields.text("it");
    if !has_it {
        fields.problems().push(start.clone(), "a test has no `it`", "add `it: …`, what the test shows");
    }
    let change = read_change(&mut fields);
    let row = fields.take("row");
    let set = fields.take("set");
    if let Some((operation, _)) = &change {
        check_rows(*operation, row.as_ref(), set.as_ref(), &mut fields);
    }
    let row = row.and_then(|row| read_row(row, "`row`", fields.problems())).unwrap_or_default();
    let set = set.and_then(|set| read_row(set, "`set`", fields.problems())).unwrap_or_default();
    let lookups = fields.take("lookups").map(|node| read_answers(node, fields.problems())).unwrap_or_default();
    let expect = fields.take("expect").map(|node| read_expected(node, fields.problems())).unwrap_or_default();
    fields.finish();
    let (operation, subject) = change?;
    let test = RawTest { it: it?, operation, subject, row, set, lookups, expect };
    (problems.len() == before).then_some(test)
}

fn read_change(fields: &mut Fields<'_>) -> Option<(Operation, Spanned<String>)> {
    let there = CHANGES.map(|(field, _)| fields.has_any(&[field]));
    let subjects = CHANGES.map(|(field, operation)| (operation, fields.text(field)));
    let start = fields.span.clone();
    match there.iter().filter(|there| **there).count() {
        0 => {
            let advice =
                "add one of `insert: TABLE`, `update: TABLE`, `delete: TABLE`, `truncate: TABLE`, `event: NAME`";
            fields.problems().push(start, "a test has no change", advice);
            None
        }
        1 => {
            let (operation, subject) =
                subjects.into_iter().find_map(|(operation, subject)| Some((operation, subject?)))?;
            if subject.value.is_empty() {
                let message = format!("`{}` is empty", operation.word());
                fields.problems().push(subject.span, message, "expected the name of a table or an event");
                return None;
            }
            Some((operation, subject))
        }
        _ => {
            let second = subjects.into_iter().filter_map(|(_, subject)| subject).nth(1);
            let span = second.map_or(start, |subject| subject.span);
            fields.problems().push(span, "a test has exactly one change", "split it into two tests");
            None
        }
    }
}

/// Checks that the rows are those that the change needs.
fn check_rows(operation: Operation, row: Option<&Spanned<Node>>, set: Option<&Spanned<Node>>, fields: &mut Fields<'_>) {
    let start = fields.span.clone();
    match (operation, row) {
        (Operation::Truncate, Some(row)) => {
            fields.problems().push(row.span.clone(), "a truncate has no `row`", "remove it");
        }
        (Operation::Truncate, None) | (_, Some(_)) => {}
        (Operation::Update | Operation::Delete, None) => {
            let message = format!("`{}` without `row`", operation.word());
            fields.problems().push(start, message, "add `row: {…}`, the old row");
        }
        (Operation::Insert, None) => {
            fields.problems().push(start, "`insert` without `row`", "add `row: {…}`, the new row");
        }
        (Operation::Event, None) => {
            fields.problems().push(start, "`event` without `row`", "add `row: {…}`, the fields of the event");
        }
    }
    if let (Some(set), true) = (set, operation != Operation::Update) {
        let message = format!("`set` is for updates; this is `{}`", operation.word());
        fields.problems().push(set.span.clone(), message, "remove it, or write `update`");
    }
}

fn read_row(node: Spanned<Node>, what: &str, problems: &mut Problems) -> Option<RawRow> {
    let fields = Fields::of(node, what, problems)?;
    Some(fields.rest().into_iter().map(|(column, node)| (column, value(node.value))).collect())
}

fn read_answers(node: Spanned<Node>, problems: &mut Problems) -> Vec<RawAnswer> {
    let Some(fields) = Fields::of(node, "`lookups`", problems) else { return Vec::new() };
    fields.rest().into_iter().filter_map(|(lookup, node)| read_answer(lookup, node, problems)).collect()
}

fn read_answer(lookup: Spanned<String>, node: Spanned<Node>, problems: &mut Problems) -> Option<RawAnswer> {
    let rows = match node.value {
        Node::Null => Vec::new(),
        Node::List(rows) => {
            let what = format!("a row of `{}`", lookup.value);
            rows.into_iter().filter_map(|row| read_row(row, &what, problems)).collect()
        }
        _ => {
            let message = format!("the result of `{}` must be a list of rows", lookup.value);
            problems.push(node.span, message, "expected `[{column: value}, …]`");
            return None;
        }
    };
    Some(RawAnswer { lookup, rows })
}

fn read_expected(node: Spanned<Node>, problems: &mut Problems) -> Vec<RawExpected> {
    let Some(mut fields) = Fields::of(node, "`expect`", problems) else { return Vec::new() };
    let mut expected = Vec::new();
    for kind in ActionKind::ALL {
        let field = kind.field();
        match fields.take(field) {
            None | Some(Spanned { value: Node::Null, .. }) => {}
            Some(Spanned { value: Node::List(names), .. }) => {
                let names = names.into_iter().filter_map(|name| as_text(name, field, fields.problems()));
                expected.extend(names.map(|name| RawExpected { kind, name }));
            }
            Some(name) => {
                expected.extend(as_text(name, field, fields.problems()).map(|name| RawExpected { kind, name }));
            }
        }
    }
    fields.finish();
    expected
}

/// Converts a value to JSON.
fn value(node: Node) -> Value {
    match node {
        Node::Null => Value::Null,
        Node::Bool(value) => Value::Bool(value),
        Node::Number(number) => Value::Number(number),
        Node::Text(text) => Value::String(text),
        Node::List(items) => Value::Array(items.into_iter().map(|item| value(item.value)).collect()),
        Node::Map(entries) => {
            Value::Object(entries.into_iter().map(|(key, item)| (key.value, value(item.value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    const RULE: &str = "version: 1\nrules: {r: {table: t, delete: 'k:{a}'}}\n";

    fn read(tests: &str) -> Vec<RawTest> {
        Document::parse(&format!("{RULE}tests:\n{tests}"), &|_| None).unwrap().tests
    }

    /// Every problem as `text at fault: message; advice`.
    fn problems(tests: &str) -> Vec<String> {
        let text = format!("{RULE}tests:\n{tests}");
        let found = Document::parse(&text, &|_| None).expect_err("the tests have problems");
        found.iter().map(|p| format!("{}: {}; {}", &text[p.span.clone()], p.message, p.advice)).collect()
    }

    #[test]
    fn a_test_is_read() {
        let tests = read(
            "  - it: moves\n    update: public.t\n    row: {a: 1, b: null, c: {d: [true]}}\n    set: {a: x}\n    \
             lookups: {members: [{id: 7}, {id: u8}], none: []}\n    \
             expect: {delete: ['k:x', 'k:1'], tags: 'org:1', publish: []}\n",
        );
        let [test] = &*tests else { panic!("{tests:?}") };
        let row =
            |row: &RawRow| row.iter().map(|(column, value)| format!("{}={value}", column.value)).collect::<Vec<_>>();
        assert_eq!(
            (test.operation, test.subject.value.as_str(), test.it.value.as_str()),
            (Operation::Update, "public.t", "moves")
        );
        assert_eq!(row(&test.row), ["a=1", "b=null", r#"c={"d":[true]}"#]);
        assert_eq!(row(&test.set), [r#"a="x""#]);
        assert_eq!(test.lookups.iter().map(|answer| answer.rows.len()).collect::<Vec<_>>(), [2, 0]);
        let expected: Vec<_> =
            test.expect.iter().map(|expected| (expected.kind.as_str(), expected.name.value.as_str())).collect();
        assert_eq!(expected, [("delete", "k:x"), ("delete", "k:1"), ("tag", "org:1")]);
    }

    #[test]
    fn what_a_test_may_leave_out() {
        let tests = read("  - {it: one, truncate: t}\n  - {it: two, event: e, row: {}}\n");
        assert!(tests.iter().all(|test| test.expect.is_empty() && test.row.is_empty()), "{tests:?}");
        assert!(Document::parse(RULE, &|_| None).unwrap().tests.is_empty());
    }

    #[test]
    fn what_is_not_a_test_says_where_and_what() {
        let check = |tests: &str, expected: &str| {
            let found = problems(tests);
            assert!(found.len() == 1 && found[0].contains(expected), "{tests}: {found:?}");
        };
        check("  a: b\n", "`tests` must be a list");
        check("  - 7\n", "7: a test must be a mapping, found a number");
        check("  - {truncate: t}\n", "a test has no `it`");
        check("  - {it: x}\n", "a test has no change; add one of `insert: TABLE`");
        check("  - {it: x, insert: t, delete: u, row: {a: 1}}\n", "u: a test has exactly one change");
        check("  - {it: x, insert: t}\n", "`insert` without `row`; add `row: {…}`, the new row");
        check("  - {it: x, update: t, set: {a: 1}}\n", "the old row");
        check("  - {it: x, truncate: t, row: {a: 1}}\n", "a truncate has no `row`");
        check("  - {it: x, delete: t, row: {a: 1}, set: {a: 2}}\n", "this is `delete`");
        check("  - {it: x, insert: t, row: 7}\n", "7: `row` must be a mapping, found a number");
        check(
            "  - {it: x, insert: t, row: {a: 1}, expct: {}}\n",
            "expct: unknown field `expct` in a test; did you mean `expect`?",
        );
        check(
            "  - {it: x, truncate: t, expect: {tag: 'x'}}\n",
            "tag: unknown field `tag` in `expect`; did you mean `tags`?",
        );
        check(
            "  - {it: x, truncate: t, expect: {delete: [7]}}\n",
            "7: `delete` must be a string, found a number; write it in quotes",
        );
        check("  - {it: x, truncate: t, lookups: {m: {a: 1}}}\n", "the result of `m` must be a list of rows");
        check("  - {it: x, truncate: ''}\n", "`truncate` is empty");
    }
}
