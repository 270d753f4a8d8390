//! The documentation, compared with the code: blocks, commands, links, paths, tables.
//!
//! Owns what the documentation promises to name completely. It must not know how anything is
//! worded. Every check is a function from a page to its errors, so each is also tested with a page
//! that fails.

mod markdown;
mod shell;
mod tables;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::CommandFactory as _;
use tempfile::TempDir;
use unstale::cmd::Cli;

use markdown::{anchors, blocks, links, spans};

/// The languages of fenced blocks. `yaml` is a whole file of ours, `yaml fragment` a part of one,
/// `yaml other` neither.
const LANGUAGES: [&str; 10] =
    ["sh", "sql", "json", "text", "mermaid", "ini", "yaml", "yaml fragment", "yaml other", "rust"];

/// The directories that a path in the documentation may begin with.
const DIRECTORIES: [&str; 9] = ["src/", "sql/", "tests/", "docs/", "benches/", "fuzz/", "deploy/", ".ci/", ".github/"];

/// The most lines of README.
const README_LINES_MAX: usize = 200;

/// A page of the documentation.
#[derive(Debug)]
pub(super) struct Page {
    /// Its path from the root of the repository.
    name: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn pages() -> Vec<Page> {
    let names = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"];
    let mut names: Vec<String> = names.map(ToOwned::to_owned).to_vec();
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        names.push(format!("docs/{}", entry.unwrap().file_name().into_string().unwrap()));
    }
    names.sort();
    assert!(names.len() > 15, "{names:?}");
    names.into_iter().map(|name| Page { text: read(&name), name }).collect()
}

/// Fails with everything that a check finds on any page.
fn check(check: impl Fn(&Page) -> Vec<String>) {
    let found: Vec<String> = pages().iter().flat_map(check).collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// What a check finds on a page with this text, as README.
fn on(text: &str, check: impl Fn(&Page) -> Vec<String>) -> Vec<String> {
    check(&Page { name: "README.md".to_owned(), text: text.to_owned() })
}

/// Blocks in an unknown language.
fn unknown_languages(page: &Page) -> Vec<String> {
    let unknown = blocks(&page.text).into_iter().filter(|block| !LANGUAGES.contains(&block.language.as_str()));
    unknown.map(|block| format!("{}:{}: a block of `{}`", page.name, block.line, block.language)).collect()
}

/// Files of ours and parts of them that `check --offline` or `test` refuses, and other YAML and
/// JSON that does not parse.
fn broken_files(page: &Page) -> Vec<String> {
    let judge = |language: &str, text: &str| match language {
        "yaml" => refused(text),
        "yaml fragment" => refused(&framed(text)),
        "yaml other" => serde_saphyr::from_str::<serde_json::Value>(text).err().map(|error| error.to_string()),
        "json" => serde_json::from_str::<serde_json::Value>(text).err().map(|error| error.to_string()),
        _ => None,
    };
    let broken = |block: markdown::Block| {
        let why = judge(&block.language, &block.text)?;
        Some(format!("{}:{}: {why}", page.name, block.line))
    };
    blocks(&page.text).into_iter().filter_map(broken).collect()
}

/// A part of a file with what every file must have.
fn framed(fragment: &str) -> String {
    let has = |section: &str| fragment.lines().any(|line| line.starts_with(section));
    let version = if has("version:") { "" } else { "version: 1\n" };
    let rules = if has("rules:") { "" } else { "rules:\n  frame: {table: frame, delete: \"frame:{id}\"}\n" };
    format!("{version}{fragment}{rules}")
}

/// Why the commands refuse a file, if they do.
fn refused(file: &str) -> Option<String> {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("invalidation.yaml"), file).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
        command.args(arguments).current_dir(directory.path()).stdin(Stdio::null());
        command.env("DATABASE_URL", "postgres://app@db.example/app").env("REDIS_URL", "redis://cache.example");
        let output = command.output().unwrap();
        let said = || String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (!output.status.success()).then(said)
    };
    let has_tests = file.lines().any(|line| line.starts_with("tests:"));
    run(&["check", "--offline"]).or_else(|| run(&["test"]).filter(|_| has_tests))
}

/// Command lines that the program or the Makefile does not accept.
fn unknown_commands(page: &Page) -> Vec<String> {
    let scripts = blocks(&page.text).into_iter().filter(|block| block.language == "sh");
    let in_blocks = scripts.flat_map(|block| {
        shell::commands(&block.text).into_iter().filter_map(move |words| Some((block.line, refused_line(&words)?)))
    });
    let in_spans = spans(&page.text).into_iter().filter_map(|span| Some((span.line, refused_span(&span.text)?)));
    in_blocks.chain(in_spans).map(|(line, why)| format!("{}:{line}: {why}", page.name)).collect()
}

/// Why a whole command line is refused, if it is.
fn refused_line(words: &[String]) -> Option<String> {
    match words.first()?.as_str() {
        "unstale" => {
            let error = Cli::command().try_get_matches_from(words).err()?;
            use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
            (!matches!(error.kind(), DisplayHelp | DisplayVersion)).then(|| format!("{}: {error}", words.join(" ")))
        }
        "make" => words.iter().skip(1).find_map(|word| refused_target(word)),
        "cargo" => {
            let bench = words.iter().skip_while(|word| *word != "--bench").nth(1)?;
            let file = root().join("benches").join(format!("{bench}.rs"));
            (!file.is_file()).then(|| format!("there is no bench {bench}"))
        }
        _ => None,
    }
}

/// Why a word after `make` is refused, if it is.
fn refused_target(word: &str) -> Option<String> {
    let known = read("Makefile").lines().any(|line| line.split(':').next() == Some(word) && line.contains(':'));
    (!word.contains('=') && !known).then(|| format!("the Makefile has no target {word}"))
}

/// Why a code span that looks like a command is refused, if it is. A span may name a part of a
/// command line, such as `check --sql`, so only the verb and the flags count.
fn refused_span(span: &str) -> Option<String> {
    let mut words = span.split(' ');
    let first = words.next()?;
    if first == "make" {
        return words.next().and_then(refused_target);
    }
    let mut program = Cli::command();
    program.build();
    let verb = if first == "unstale" { words.next()? } else { first };
    let Some(command) = program.find_subcommand(verb) else {
        return (first == "unstale" && verb.bytes().all(|byte| byte.is_ascii_lowercase()) && !PLANNED.contains(&verb))
            .then(|| format!("there is no command `{span}`"));
    };
    if first != "unstale" && !span.contains(" --") {
        return None;
    }
    let mut flags = words.filter_map(|word| word.strip_prefix("--")).map(|flag| flag.split('=').next().unwrap_or(flag));
    let unknown = flags.find(|flag| !command.get_arguments().any(|known| known.get_long() == Some(flag)));
    unknown.map(|flag| format!("`{span}`: {verb} has no flag --{flag}"))
}

/// Commands that the documentation says do not exist yet.
const PLANNED: [&str; 1] = ["verify"];

/// Links to a file or an anchor that does not exist.
fn broken_links(page: &Page) -> Vec<String> {
    let broken = |link: &markdown::Piece| {
        let target = link.text.as_str();
        if target.contains("://") || target.starts_with("mailto:") {
            return None;
        }
        let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
        let (path, text) = match file {
            "" => (PathBuf::from(&page.name), page.text.clone()),
            file => {
                let path = Path::new(&page.name).parent().unwrap_or(Path::new("")).join(file);
                let text = std::fs::read_to_string(root().join(&path)).unwrap_or_default();
                (path, text)
            }
        };
        if !root().join(&path).exists() {
            return Some(format!("there is no {target}"));
        }
        let anchor = anchor.filter(|anchor| !anchors(&text).iter().any(|known| known == anchor))?;
        Some(format!("{} has no heading for #{anchor}", path.display()))
    };
    let links = links(&page.text);
    links.iter().filter_map(|link| Some(format!("{}:{}: {}", page.name, link.line, broken(link)?))).collect()
}

/// Code spans that name a file or a directory that does not exist.
fn broken_paths(page: &Page) -> Vec<String> {
    let is_path = |span: &str| DIRECTORIES.iter().any(|directory| span.starts_with(directory)) && !span.contains(' ');
    let broken = spans(&page.text).into_iter().filter(|span| is_path(&span.text));
    let broken = broken.filter(|span| !root().join(&span.text).exists());
    broken.map(|span| format!("{}:{}: there is no {}", page.name, span.line, span.text)).collect()
}

#[test]
fn blocks_are_of_a_known_language() {
    check(unknown_languages);
    assert_eq!(on("```yml\na: 1\n```\n", unknown_languages).len(), 1);
}

#[test]
fn files_compile_and_their_tests_pass() {
    check(broken_files);
    let wrong = [
        "```yaml\nversion: 1\n```",
        "```yaml\nversion: 1\nrules:\n  u: {table: users, delet: 'u:{id}'}\n```",
        "```yaml fragment\nreads:\n  r: {path: /r/{id}, key: 'r:{name}', sql: select 1}\n```",
        "```yaml fragment\nrules:\n  u: {table: users, delete: 'u:{id}'}\ntests:\n  - {it: x, insert: users, row: {id: 1}}\n```",
        "```yaml other\na: [\n```",
        "```json\n{\"a\":}\n```",
    ];
    for text in wrong {
        assert_eq!(on(text, broken_files).len(), 1, "{text}");
    }
    assert_eq!(on("```yaml fragment\nlookups: {}\n```", broken_files), Vec::<String>::new());
}

#[test]
fn commands_and_targets_exist() {
    check(unknown_commands);
    let wrong = [
        "```sh\nunstale chek\n```",
        "```sh\nunstale check --ofline\n```",
        "```sh\nunstale dry-run\n```",
        "```sh\necho x | unstale replay --file - --yes --speed 3\n```",
        "```sh\nmake demmo ARGS=\"--for 10s\"\n```",
        "```sh\ncargo bench --bench plan\n```",
        "`unstale chek` is a command",
        "`check --ofline` is a flag",
        "`make demmo` is a target",
    ];
    for text in wrong {
        assert_eq!(on(text, unknown_commands).len(), 1, "{text}");
    }
    assert_eq!(on("`unstale explain KEY`, `run --flush`, `make demo`", unknown_commands), Vec::<String>::new());
}

#[test]
fn links_and_paths_exist() {
    check(broken_links);
    check(broken_paths);
    assert_eq!(on("[a](docs/nothing.md)", broken_links).len(), 1);
    assert_eq!(on("[a](docs/rules.md#nothing)", broken_links).len(), 1);
    assert_eq!(on("# A\n[a](#b)", broken_links).len(), 1);
    assert_eq!(on("# A\n[a](#a) [b](https://example.com/b)", broken_links), Vec::<String>::new());
    assert_eq!(on("`src/nothing.rs`", broken_paths).len(), 1);
    assert_eq!(on("`src/lib.rs` and `tests/it/`", broken_paths), Vec::<String>::new());
}

#[test]
fn readme_is_short_and_links_every_page() {
    let readme = read("README.md");
    assert!(readme.lines().count() < README_LINES_MAX, "README.md has {} lines", readme.lines().count());
    let linked: BTreeSet<String> = links(&readme).into_iter().map(|link| link.text).collect();
    let missing: Vec<_> = pages().into_iter().map(|page| page.name).filter(|name| !linked.contains(name)).collect();
    assert_eq!(missing, ["README.md"]);
}
