//! The shape of the code: headers, rooms, circles, names, sizes, words.
//!
//! Owns the limits. Invariant: a check that cannot fail is a defect, so each is tried on a sample that breaks it.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use source::{SourceFile, Tree, files_with, rust_files};

/// The most code lines of a file, tests aside.
const FILE_LINES_MAX: usize = 360;

/// The most lines of a function.
const FUNCTION_LINES_MAX: usize = 75;

/// The widest comment, in columns.
const COMMENT_COLUMNS_MAX: usize = 100;

/// The rooms that do no I/O.
const VOCABULARY: &[&str] = &["catalog", "causes", "change", "key", "limits", "nearest", "plan"];

/// What does I/O, by crate.
const IO_CRATES: &[&str] = &["axum", "hyper", "hyper_util", "redis", "tokio", "tokio_postgres", "tokio_util"];

/// Files of other rooms that do no I/O.
const PURE_FILES: &[&str] = &[
    "coherence/epoch.rs",
    "coherence/gate.rs",
    "coherence/history.rs",
    "coherence/horizon.rs",
    "coherence/lease/envelope.rs",
    "coherence/progress.rs",
    "coherence/watermark.rs",
    "pipeline/batcher.rs",
    "pipeline/catalog_checks.rs",
    "pipeline/error.rs",
    "pipeline/held.rs",
    "pipeline/in_flight.rs",
    "pipeline/intake.rs",
    "pipeline/part.rs",
    "pipeline/repeats.rs",
    "pipeline/session.rs",
    "pipeline/slow_queue.rs",
    "pipeline/streams.rs",
    "pipeline/watching.rs",
    "query/lexer.rs",
    "query/parameter_use.rs",
    "query/scans.rs",
    "query/tree.rs",
    "sink/batch.rs",
    "sink/broadcast.rs",
    "sink/proof.rs",
    "sink/settings.rs",
    "source/images.rs",
    "source/replication/assemble.rs",
    "source/replication/pgoutput.rs",
    "watch/difference.rs",
    "watch/state.rs",
    "watch/watched.rs",
];

/// What a room may use, besides itself.
struct Room {
    name: &'static str,
    rooms: &'static [&'static str],
    /// It does no I/O and knows no socket.
    pure: bool,
}

/// A room that does no I/O.
const fn pure(name: &'static str, rooms: &'static [&'static str]) -> Room {
    Room { name, rooms, pure: true }
}

/// A room that reaches servers.
const fn room(name: &'static str, rooms: &'static [&'static str]) -> Room {
    Room { name, rooms, pure: false }
}

/// The rooms in reading order. All may use the vocabulary; data flows one way, and only `pipeline` and `cmd` join.
const ROOMS: &[Room] = &[
    pure("backoff", &[]),
    room("mutant", &[]),
    room("redis", &[]),
    room("postgres", &["backoff"]),
    room("config", &["postgres", "redis"]),
    pure("draft", &["config"]),
    room("coherence", &["postgres", "backoff", "mutant"]),
    pure("rules", &["config"]),
    room("lookups", &["rules", "config", "postgres"]),
    pure("reads", &["rules", "config"]),
    room("query", &["postgres"]),
    room("install", &["postgres", "config", "rules"]),
    room("sink", &["redis", "coherence", "backoff"]),
    room("source", &["postgres", "install", "coherence", "config", "backoff", "mutant"]),
    room("watch", &["postgres", "install", "config", "rules"]),
    room(
        "pipeline",
        &[
            "watch",
            "source",
            "rules",
            "lookups",
            "coherence",
            "sink",
            "config",
            "postgres",
            "install",
            "backoff",
            "mutant",
        ],
    ),
    room("api", &["reads", "coherence", "config", "postgres", "query", "redis", "backoff", "mutant"]),
    room("sandbox", &[]),
];

/// Metaphors and persons where the field has a term. Each is searched for as a word, also inside a name.
const WORDS: &[&str] = &[
    "somebody",
    "nobody",
    "whoever",
    "everybody",
    "himself",
    "errand",
    "outing",
    "passenger",
    "pilot",
    "landing",
    "setback",
    "patience",
    "trouble",
    "glance",
    "doorbell",
    "bury",
    "buried",
    "whim",
    "whims",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn room_of(file: &SourceFile) -> &str {
    file.module.first().map_or("", String::as_str)
}

#[test]
fn every_file_says_what_it_owns() {
    for directory in ["src", "tests", "benches"] {
        for path in rust_files(&root().join(directory)) {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//! "), "{} has no header", path.display());
        }
    }
}

/// The names of rooms that a file uses and may not.
fn strangers(tree: &Tree) -> Vec<String> {
    let edges = tree.edges();
    let mut found = BTreeSet::new();
    for (file, targets) in tree.files.iter().zip(&edges) {
        let room = room_of(file);
        let allowed: &[&str] = match ROOMS.iter().find(|known| known.name == room) {
            Some(known) => known.rooms,
            None if VOCABULARY.contains(&room) => &[],
            None => continue,
        };
        for target in targets {
            let used = room_of(&tree.files[*target]);
            if used != room && !VOCABULARY.contains(&used) && !allowed.contains(&used) {
                found.insert(format!("{} uses {}", file.name, tree.files[*target].name));
            }
        }
        let is_pure = VOCABULARY.contains(&room)
            || PURE_FILES.contains(&file.name.as_str())
            || ROOMS.iter().any(|known| known.name == room && known.pure);
        if is_pure {
            let io = file.crates.iter().filter(|name| IO_CRATES.contains(&name.as_str()));
            found.extend(io.map(|name| format!("{} uses the crate {name}", file.name)));
        }
    }
    found.into_iter().collect()
}

#[test]
fn rooms_use_only_what_is_below_them() {
    let tree = Tree::read();
    let known: BTreeSet<_> = ROOMS.iter().map(|room| room.name).chain(VOCABULARY.iter().copied()).collect();
    let rooms: BTreeSet<_> = tree.files.iter().map(room_of).filter(|room| !matches!(*room, "" | "cmd")).collect();
    assert_eq!(rooms, known, "a room without a line in ROOMS, or the other way round");
    for name in PURE_FILES {
        assert!(tree.files.iter().any(|file| file.name == *name), "{name} is gone; correct PURE_FILES");
    }
    let found = strangers(&tree);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_circle_of_files() {
    let tree = Tree::read();
    let circles = tree.circles();
    assert!(circles.is_empty(), "{circles:#?}");
}

/// Names that stand for more than one type.
fn overloaded(tree: &Tree) -> Vec<String> {
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for file in &tree.files {
        for (name, line) in &file.types {
            places.entry(name).or_default().push(format!("{}:{line}", file.name));
        }
    }
    let several = places.into_iter().filter(|(_, places)| places.len() > 1);
    several.map(|(name, places)| format!("{name}: {}", places.join(", "))).collect()
}

#[test]
fn a_name_means_one_type() {
    let found = overloaded(&Tree::read());
    assert!(found.is_empty(), "{} names\n{}", found.len(), found.join("\n"));
}

/// Files and functions above the limits.
fn oversized(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in &tree.files {
        if file.code_lines > FILE_LINES_MAX {
            found.push(format!("{} has {} code lines", file.name, file.code_lines));
        }
        for (name, first, last) in &file.functions {
            let lines = last - first + 1;
            if lines > FUNCTION_LINES_MAX {
                found.push(format!("{}:{first}: {name} has {lines} lines", file.name));
            }
        }
    }
    found
}

#[test]
fn files_and_functions_fit_a_reader() {
    let found = oversized(&Tree::read());
    assert!(found.is_empty(), "which noun is missing?\n{}", found.join("\n"));
}

/// The words of a line in lower case; a name of several words counts as each of them.
fn words_of(line: &str) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    let mut word = String::new();
    for character in line.chars().chain([' ']) {
        if !character.is_alphabetic() || character.is_uppercase() {
            words.insert(std::mem::take(&mut word));
        }
        if character.is_alphabetic() {
            word.extend(character.to_lowercase());
        }
    }
    words
}

/// Comments that are too wide, and words that the field does not use.
fn badly_said(name: &str, text: &str) -> Vec<String> {
    let marker = if name.ends_with(".sql") || name.ends_with(".lua") { "--" } else { "//" };
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let columns = line.chars().count();
        if line.trim_start().starts_with(marker) && columns > COMMENT_COLUMNS_MAX && !line.contains("://") {
            found.push(format!("{name}:{number}: a comment of {columns} columns"));
        }
        // The user of that name.
        let words = words_of(&line.replace("\"nobody\"", ""));
        for word in WORDS.iter().filter(|word| words.contains(**word)) {
            found.push(format!("{name}:{number}: {word}"));
        }
    }
    found
}

#[test]
fn comments_are_narrow_and_words_are_plain() {
    let mut found = Vec::new();
    for directory in ["src", "tests", "benches", "sql"] {
        for path in files_with(&root().join(directory), &["rs", "sql", "lua", "mjs"]) {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            // This file holds the words themselves.
            if name != "tests/it/tidy/mod.rs" {
                found.extend(badly_said(&name, &std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.is_empty(), "{} places\n{}", found.len(), found.join("\n"));
}

fn sample(files: &[(&str, &str)]) -> Tree {
    Tree::parse(files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))
}

#[test]
fn a_circle_is_found_through_a_re_export_and_by_a_path_in_code() {
    let parts = [
        ("lib.rs", "mod a; mod b;"),
        ("a/mod.rs", "mod one; pub use one::One;"),
        ("a/one.rs", "pub struct One; fn f() { crate::b::two(); }"),
        ("b.rs", "use crate::a::One; pub fn two() -> One { One }"),
    ];
    assert_eq!(sample(&parts).circles(), [["a/one.rs", "b.rs"]]);
    let without = [parts[0], parts[1], ("a/one.rs", "pub struct One;"), parts[3]];
    assert!(sample(&without).circles().is_empty());
}

#[test]
fn a_child_that_names_what_its_parent_defines_makes_a_circle() {
    let parent = "mod child; pub struct Shared; fn f() { child::g(); }";
    let tree =
        sample(&[("lib.rs", "mod a;"), ("a/mod.rs", parent), ("a/child.rs", "use super::Shared; pub fn g() {}")]);
    assert_eq!(tree.circles(), [["a/child.rs", "a/mod.rs"]]);
}

#[test]
fn what_tests_name_does_not_count() {
    let tree = sample(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "pub struct A; #[cfg(test)] mod tests { use crate::b::B; struct Twice; struct A; }"),
        ("b.rs", "use crate::a::A; pub struct B(A);"),
    ]);
    assert!(tree.circles().is_empty());
    assert!(overloaded(&tree).is_empty());
}

#[test]
fn a_stranger_is_found() {
    let tree = sample(&[
        ("lib.rs", "mod rules; mod sink; mod plan;"),
        ("rules/mod.rs", "use crate::sink::Sink; use crate::plan::Plan; use tokio::sync::mpsc;"),
        ("sink/mod.rs", "pub struct Sink; use redis::Client;"),
        ("plan/mod.rs", "pub struct Plan; fn f() { redis::cmd(\"GET\"); }"),
    ]);
    let expected =
        ["plan/mod.rs uses the crate redis", "rules/mod.rs uses sink/mod.rs", "rules/mod.rs uses the crate tokio"];
    assert_eq!(strangers(&tree), expected);
}

#[test]
fn a_name_of_two_types_and_a_long_function_are_found() {
    let long = format!("struct A; fn long() {{\n{}}}", "    let _ = 1;\n".repeat(FUNCTION_LINES_MAX));
    let tree = sample(&[("lib.rs", "mod b; enum A {}"), ("b.rs", &long)]);
    assert_eq!(overloaded(&tree), ["A: b.rs:1, lib.rs:1"]);
    assert_eq!(oversized(&tree).len(), 1);
}

#[test]
fn wide_comments_and_metaphors_are_found() {
    let wide = format!("    // {}", "x".repeat(COMMENT_COLUMNS_MAX));
    assert_eq!(badly_said("a.rs", &wide).len(), 1);
    assert_eq!(badly_said("a.sql", "-- Somebody else"), ["a.sql:1: somebody"]);
    assert_eq!(badly_said("a.rs", "struct ErrandQueue;"), ["a.rs:1: errand"]);
    assert!(badly_said("a.rs", "use axum::routing;").is_empty());
    assert!(badly_said("a.rs", "// A link: https://example.com/ and nothing else").is_empty());
}
