//! Tables that must be complete: fields, commands, flags, keys, reasons, findings, problems.
//!
//! Owns which table belongs to which part of the code. It must not know what a row says beside its
//! name. Invariant: both directions are compared, so neither the code nor the documentation can
//! have more.

use std::collections::BTreeSet;

use clap::CommandFactory as _;
use serde_json::Value;
use unstale::cmd::Cli;
use unstale::coherence::watermark::Names;

use super::markdown::{rows, section, spans};
use super::{read, root};

/// The table of each part of the file: its page, its heading, and its definition in the schema.
const FIELDS: [(&str, &str, &str); 17] = [
    ("docs/rules.md", "`source`", "source"),
    ("docs/rules.md", "`source.outbox`", "outbox"),
    ("docs/rules.md", "`target`", "target"),
    ("docs/rules.md", "`defaults`", "defaults"),
    ("docs/rules.md", "`rules`", "rule"),
    ("docs/rules.md", "`lookups`", "lookup"),
    ("docs/rules.md", "`set`", "set"),
    ("docs/rules.md", "`publish`", "publish"),
    ("docs/rules.md", "`stream`", "stream"),
    ("docs/rules.md", "`tests`", "test"),
    ("docs/rules.md", "`expect`", "expect"),
    ("docs/reads.md", "`reads`", "read"),
    ("docs/reads.md", "`reads.vary`", "vary"),
    ("docs/http-api.md", "`api`", "api"),
    ("docs/http-api.md", "`api.cors`", "cors"),
    ("docs/http-api.md", "`api.rate_limits`", "rate_limit"),
    ("docs/http-api.md", "`api.session`", "session"),
];

/// What is in one of two sets and not in the other.
fn differences(what: &str, documented: &BTreeSet<String>, known: &BTreeSet<String>) -> Vec<String> {
    let missing = known.difference(documented).map(|name| format!("{what}: `{name}` is not documented"));
    let surplus = documented.difference(known).map(|name| format!("{what}: `{name}` does not exist"));
    missing.chain(surplus).collect()
}

/// The names in the code spans of the n-th cell of every row.
fn names(text: &str, cell: usize) -> BTreeSet<String> {
    let cells = rows(text).into_iter().filter_map(|row| row.get(cell).cloned());
    cells.flat_map(|cell| spans(&cell).into_iter().map(|span| span.text)).collect()
}

/// The part of a page below a heading.
fn part(page: &str, heading: &str) -> String {
    section(&read(page), heading).unwrap_or_else(|| panic!("{page} has no heading {heading}"))
}

/// The rows that a definition's table lacks or has too many, and differing defaults or `required`.
fn field_problems(table: &str, definition: &Value) -> Vec<String> {
    let properties = definition["properties"].as_object().unwrap();
    let known = properties.keys().cloned().collect();
    let mut problems = differences("field", &names(table, 0), &known);
    let required: Vec<&str> =
        definition["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for row in rows(table) {
        let [name, default, ..] = row.as_slice() else { continue };
        let name = name.trim_matches('`');
        let expected = match (properties.get(name).map(|property| &property["default"]), required.contains(&name)) {
            (_, true) => "required".to_owned(),
            (Some(Value::String(text)), _) if !text.is_empty() => format!("`{text}`"),
            (Some(Value::Null) | None, _) => continue,
            (Some(value), _) => format!("`{value}`"),
        };
        if *default != expected {
            problems.push(format!("`{name}` has the default {expected}, not {default}"));
        }
    }
    problems
}

/// The first table of a text and what follows it up to the next heading.
fn own(text: &str) -> String {
    text.lines().take_while(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
}

#[test]
fn every_field_of_the_file_has_its_row() {
    let schema: Value = serde_json::from_str(&read("src/config/schema.json")).unwrap();
    let mut documented: BTreeSet<&str> = BTreeSet::new();
    let mut problems = Vec::new();
    let sliding = ("docs/http-api.md", "`api.session.sliding`", "sliding");
    for (page, heading, definition) in FIELDS.into_iter().chain([sliding]) {
        documented.insert(definition);
        let found = field_problems(&own(&part(page, heading)), &schema["$defs"][definition]);
        problems.extend(found.into_iter().map(|problem| format!("{page}, {heading}: {problem}")));
    }
    let with_fields = schema["$defs"].as_object().unwrap().iter();
    let with_fields = with_fields.filter(|(_, definition)| definition.get("properties").is_some());
    problems.extend(
        with_fields
            .filter(|(name, _)| !documented.contains(name.as_str()))
            .map(|(name, _)| format!("`{name}` has no table")),
    );
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));

    let definition = serde_json::json!({"required": ["a"], "properties": {"a": {}, "b": {"default": "1s"}, "c": {}}});
    let table = |rows: &str| format!("| field | default | |\n|---|---|---|\n{rows}");
    let right = "| `a` | required | |\n| `b` | `1s` | |\n| `c` | none | |\n";
    assert_eq!(field_problems(&table(right), &definition), Vec::<String>::new());
    for (from, to) in [("`c` | none", "`d` | none"), ("required", "none"), ("`1s`", "`2s`"), ("| `c` | none | |\n", "")]
    {
        let wrong = field_problems(&table(&right.replace(from, to)), &definition);
        assert!(!wrong.is_empty(), "{from} -> {to}");
    }
}

/// The differences between the page of commands and the program, for one command.
fn command_problems(page: &str, command: &clap::Command) -> Vec<String> {
    let name = command.get_name();
    let Some(text) = section(page, name) else { return vec![format!("`{name}` has no section")] };
    let longs = command.get_arguments().filter_map(clap::Arg::get_long);
    let known: BTreeSet<String> =
        longs.filter(|long| !["help", "version", "config"].contains(long)).map(|long| format!("--{long}")).collect();
    let cells = rows(&text).into_iter().filter_map(|row| row.into_iter().next());
    let words = cells.flat_map(|cell| spans(&cell)).flat_map(|span| {
        span.text.split(' ').filter(|word| word.starts_with("--")).map(ToOwned::to_owned).collect::<Vec<_>>()
    });
    differences(name, &words.collect(), &known)
}

#[test]
fn every_command_and_flag_is_described() {
    let page = read("docs/cli.md");
    let mut program = Cli::command();
    program.build();
    let commands = || program.get_subcommands().filter(|command| command.get_name() != "help");
    let problems: Vec<String> = commands().flat_map(|command| command_problems(&page, command)).collect();
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
    let listed = names(&page.split("\n## ").next().unwrap().replace(['[', ']'], ""), 0);
    let known = commands().map(|command| command.get_name().to_owned()).collect();
    assert_eq!(differences("command", &listed, &known), Vec::<String>::new());

    let check = program.find_subcommand("check").unwrap();
    assert_eq!(command_problems("# Nothing", check).len(), 1);
    let less = page.replace("| `--sql` |", "| `--sequel` |");
    assert_eq!(command_problems(&less, check).len(), 2);
}

#[test]
fn every_key_in_redis_is_described() {
    let page = read("docs/redis-layout.md");
    let state = |text: &str| {
        let words = text.split("unstale:{slot}:").skip(1);
        words
            .map(|word| word.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect())
            .collect::<BTreeSet<String>>()
    };
    let mut known = words_in(&["src/coherence/watermark.rs"], &["state("]);
    let names = Names::new("", "slot");
    let more = [names.limit("name", "who"), names.touched("session"), names.generation(b"name")];
    let more = more.map(|key| key.to_string().replace(['{', '}'], ""));
    known.extend(more.iter().filter_map(|key| Some(key.strip_prefix("unstale:slot:")?.split(':').next()?.to_owned())));
    assert!(known.contains("applied") && known.contains("limit"), "{known:?}");
    assert_eq!(differences("key", &state(&section(&page, "Keys").unwrap()), &known), Vec::<String>::new());
    assert_eq!(differences("key", &state("`unstale:{slot}:applid`"), &known).len(), known.len() + 1);
}

/// The words between quotes that follow a beginning, in the code of these directories, tests aside.
fn words_in(directories: &[&str], beginnings: &[&str]) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    let mut open: Vec<_> = directories.iter().map(|directory| root().join(directory)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code: String = text.split("#[cfg(test)]").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        for beginning in beginnings {
            for rest in code.split(beginning).skip(1) {
                let Some(word) = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()) else {
                    continue;
                };
                if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') {
                    words.insert(word.to_owned());
                }
            }
        }
    }
    assert!(!words.is_empty(), "nothing follows {beginnings:?} in {directories:?}");
    words
}

/// Whether some file below a directory has a word in quotes.
fn is_in(directory: &str, word: &str) -> bool {
    let mut open = vec![root().join(directory)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if std::fs::read_to_string(&path).is_ok_and(|text| text.contains(&format!("\"{word}\""))) {
            return true;
        }
    }
    false
}

#[test]
fn every_finding_of_check_is_described() {
    let page = part("docs/cli.md", "Findings of check");
    let documented = names(&page, 0);
    let constructors = [
        "Finding::error(",
        "Finding::warning(",
        "Finding::unavailable(",
        "Finding::configuration(",
        "Finding::problem(",
        "Lint::new(",
        "self.lint(",
        "warn(",
        "const ID: &str =",
        "Lint { id:",
    ];
    let places = ["src/cmd/check", "src/cmd/preflight", "src/rules", "src/reads"];
    let known = words_in(&places, &constructors);
    let missing: Vec<_> = known.difference(&documented).collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
    let is_known = |id: &&String| places.iter().any(|place| is_in(place, id));
    let gone: Vec<_> = documented.iter().filter(|id| !is_known(id)).collect();
    assert!(gone.is_empty(), "documented and not in the code: {gone:?}");
    assert!(!is_in("src/cmd/check", "no-such-finding"));
}

#[test]
fn every_reason_of_an_epoch_is_described() {
    let documented = names(&part("docs/operations.md", "Epochs"), 0);
    let known = words_in(&["src/coherence/history.rs"], &["=>"]);
    assert_eq!(differences("reason", &documented, &known), Vec::<String>::new());
}

#[test]
fn every_kind_of_change_of_the_database_is_described() {
    let documented = names(&part("docs/operations.md", "Changes of the database"), 0);
    let known = words_in(&["src/watch/difference.rs"], &["=>"]);
    assert_eq!(differences("kind", &documented, &known), Vec::<String>::new());
}

#[test]
fn every_problem_of_the_api_is_described() {
    let is_word = |word: &String| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let documented: BTreeSet<String> =
        names(&part("docs/http-api.md", "Errors"), 1).into_iter().filter(is_word).collect();
    let known = words_in(&["src/api/problem.rs"], &["=> (", "=> { ("]);
    assert_eq!(differences("problem", &documented, &known), Vec::<String>::new());
}

#[test]
fn every_word_of_the_cache_status_is_in_the_code() {
    let answers = part("docs/http-api.md", "Answers");
    let (_, details) = answers.split_once("| detail of").expect("the details have a table");
    let details = names(&format!("| detail of{details}"), 0);
    assert!(details.len() > 10, "{details:?}");
    let gone: Vec<_> = details.iter().filter(|word| !is_in("src/api", word)).collect();
    assert!(gone.is_empty(), "documented and not in the code: {gone:?}");
    let bypasses =
        words_in(&["src/api"], &["Refused(", "NextStep::Bypass(", "bypass(read, &question,", "bypass(read, question,"]);
    let missing: Vec<_> = bypasses.difference(&details).filter(|word| *word != "failed").collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
}

#[test]
fn every_counter_of_the_api_is_described() {
    let text = part("docs/http-api.md", "Paths of the API itself");
    let documented: BTreeSet<String> = spans(&text).into_iter().map(|span| span.text).collect();
    let known = words_of_snake("src/api/stats.rs");
    let missing: Vec<_> = known.iter().filter(|word| !documented.contains(*word)).collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
}

/// The names of counters in a file: the second elements of pairs.
fn words_of_snake(file: &str) -> BTreeSet<String> {
    let text = read(file);
    let pairs = text.split("(Self::").skip(1).filter_map(|rest| rest.split_once(", \""));
    let words: BTreeSet<String> = pairs.filter_map(|(_, rest)| rest.split('"').next()).map(ToOwned::to_owned).collect();
    assert!(words.len() > 5, "{words:?}");
    words
}

#[test]
fn every_target_of_the_makefile_is_described() {
    let makefile = read("Makefile");
    let is_target =
        |name: &&str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let known = makefile
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0))
        .filter(is_target)
        .map(ToOwned::to_owned)
        .collect();
    let table = names(&part("CONTRIBUTING.md", "Targets and harnesses"), 0);
    let documented =
        table.iter().filter_map(|span| span.strip_prefix("make ")?.split(' ').next().map(ToOwned::to_owned));
    assert_eq!(differences("target", &documented.collect(), &known), Vec::<String>::new());
}
