//! What planning one change costs: `cargo bench --bench planning`.
//!
//! A change of one table with ten rules, without conditions, with one, and with ten; and the
//! planning of a row for a table that no rule names. To reach: below 3 microseconds without
//! conditions, below 6 with one.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::SystemTime;

use criterion::{Criterion, criterion_group, criterion_main};
use unstale::change::{Cell, Change, Column, ColumnKind, Commit, Lsn, Operation, Relation, RelationId, Row, TableName};
use unstale::config::Document;
use unstale::plan::Plan;
use unstale::rules::{Planner, RuleSet};

/// Ten rules on `users`, the first of them with a condition.
fn planner(conditions: usize) -> Planner {
    let rules: String = (0..10)
        .map(|n| {
            let when = if n < conditions { ", when: \"new.plan == 'team' && old.name != new.name\"" } else { "" };
            format!("  r{n}: {{table: users, delete: ['k{n}:{{id}}', 'e{n}:{{email|lower}}']{when}}}\n")
        })
        .collect();
    let document = Document::parse(&format!("version: 1\nrules:\n{rules}"), &|_| None).unwrap();
    Planner::new(Arc::new(RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap()))
}

fn change(table: &str) -> Change {
    let columns = ["id", "email", "name", "plan", "avatar_url", "created_at"];
    let column = |name: &str| Column { name: name.to_owned(), kind: ColumnKind::Text, in_identity: true };
    let relation = Relation {
        id: RelationId::new(16_400),
        name: TableName::new("public", table),
        also: Vec::new(),
        columns: columns.iter().map(|name| column(name)).collect(),
    };
    let row = |name| {
        let cells =
            ["u12345", "Person@Example.com", name, "team", "https://example.com/a.png", "2026-01-01 00:00:00+00"];
        Row::new(cells.map(Cell::of).to_vec())
    };
    let (old, new) = (Some(row("Old Name")), Some(row("New Name")));
    Change { relation: Arc::new(relation), operation: Operation::Update, old, new }
}

fn planning(criterion: &mut Criterion) {
    let commit = Commit { lsn: Lsn::new(1 << 40), at: Some(SystemTime::now()) };
    let cases = [
        ("ten_rules", 0, "users"),
        ("ten_rules_one_when", 1, "users"),
        ("ten_rules_ten_whens", 10, "users"),
        ("no_rule", 0, "other"),
    ];
    for (name, conditions, table) in cases {
        let mut planner = planner(conditions);
        let change = change(table);
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut plan = Plan::default();
                planner.plan(black_box(&change), &commit, &mut plan).unwrap();
                plan
            });
        });
    }
}

criterion_group!(benches, planning);
criterion_main!(benches);
