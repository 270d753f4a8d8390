//! `unstale test`: runs the tests in the file.

use std::process::Output;

use tempfile::TempDir;

use crate::support::{World, text, unstale};

const RULES: &str = r#"version: 1
target: {namespace: "v1:"}
defaults: {unknown: match}
lookups:
  org_members: {sql: select user_id from memberships where organization_id = $1}
rules:
  user:
    table: users
    changed: [email, name]
    delete: ["user:{id}", "user-email:{email|lower}"]
    bump: "users-version"
    publish: {channel: users, data: {id: "{id}"}}
  renamed:
    table: organizations
    ops: update
    when: "old.name != new.name"
    for_each: org_members({id}) as m
    delete: "user-orgs:{m.user_id}"
    tags: "org:{id}"
    pattern: "search:{id}:*"
  product:
    event: product.updated
    set: {key: "product:{id}", columns: [id, price], ttl: 10m}
    stream: {name: products, data: {id: "{id}"}}
"#;

/// The complete result of the rules above.
const TESTS: &str = r#"tests:
  - it: drops the old and the new address
    update: users
    row: {id: 7, email: Ann@x.io, name: Ann}
    set: {email: ann@y.io}
    expect:
      delete: ["user:7", "user-email:ann@x.io", "user-email:ann@y.io"]
      bump: users-version
      publish: users
  - it: leaves other columns alone
    update: public.users
    row: {id: 7, email: a, name: Ann, seen: 1}
    set: {seen: 2}
  - it: forgets every user
    truncate: users
    expect: {pattern: ["user:*", "user-email:*", users-version], publish: users}
  - it: reaches the members of a renamed organization
    update: organizations
    row: {id: o1, name: old}
    set: {name: new}
    lookups: {org_members: [{user_id: u1}, {user_id: 2}]}
    expect: {delete: ["user-orgs:u1", "user-orgs:2"], tags: "org:o1", pattern: "search:o1:*"}
  - it: does nothing for an organization that keeps its name
    update: organizations
    row: {id: o1, name: same, plan: free}
    set: {plan: pro}
  - it: keeps products
    event: product.updated
    row: {id: p1, price: 9.5}
    expect: {set: "product:p1", stream: products}
"#;

fn directory(file: &str) -> TempDir {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("invalidation.yaml"), file).unwrap();
    directory
}

fn run(tests: &str, arguments: &[&str]) -> Output {
    let arguments = [&["test"], arguments].concat();
    unstale(&directory(&format!("{RULES}{tests}")), &arguments, b"")
}

/// The exit code and everything that was printed.
fn outcome(tests: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(tests, arguments);
    (output.status.code(), text(&output))
}

#[test]
fn each_passing_test_prints_one_line() {
    let (code, said) = outcome(TESTS, &[]);
    let expected = "ok   drops the old and the new address
ok   leaves other columns alone
ok   forgets every user
ok   reaches the members of a renamed organization
ok   does nothing for an organization that keeps its name
ok   keeps products
6 passed, 0 failed
";
    assert_eq!((code, said.as_str()), (Some(0), expected));
    let (code, said) = outcome(TESTS, &["--filter", "organization"]);
    assert!(code == Some(0) && said.lines().count() == 3, "{said}");
}

#[test]
fn a_failure_shows_the_difference() {
    let tests = TESTS.replace("\"user-email:ann@x.io\", ", "\"user-mail:ann@x.io\", ");
    let (code, said) = outcome(&tests, &["--filter", "drops"]);
    let expected = "FAIL drops the old and the new address
     invalidation.yaml:26:9
       bump users-version
     + delete user-email:ann@x.io
       delete user-email:ann@y.io
     - delete user-mail:ann@x.io
       delete user:7
       publish users
0 passed, 1 failed (- expected and not planned, + planned and not expected)
";
    assert_eq!((code, said.as_str()), (Some(1), expected));
}

#[test]
fn a_failure_is_shown_as_json() {
    let tests = "tests:\n  - {it: fails, insert: users, row: {id: 1, email: e}, expect: {delete: ['user:1']}}\n";
    let output = run(tests, &["--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((object["it"].as_str(), object["line"].as_u64()), (Some("fails"), Some(26)));
    assert_eq!((object["passed"].as_bool(), object["full"]["missing"].as_array().unwrap().len()), (Some(false), 0));
    let unexpected: Vec<_> = object["full"]["unexpected"].as_array().unwrap().iter().collect();
    assert_eq!(unexpected[1], &serde_json::json!({"op": "delete", "name": "user-email:e"}));
    assert!(String::from_utf8_lossy(&output.stderr).contains("0 passed, 1 failed"), "{}", text(&output));
}

/// A column that the test leaves out is not known without a catalog, so the rule deletes by
/// pattern.
#[test]
fn a_test_must_name_every_column_its_rule_needs() {
    let tests = "tests:\n  - {it: fails, insert: users, row: {id: 1}, expect: {delete: ['user:1'], bump: users-version, publish: users}}\n";
    let (code, said) = outcome(tests, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("+ pattern user-email:*") && said.contains("does not name `email`"), "{said}");
}

#[test]
fn a_test_sees_only_the_old_values_that_the_log_carries() {
    let test = "tests:\n  - {it: moves, update: users, row: {id: 7, email: a, name: Ann}, set: {name: Bob}, \
                expect: {delete: ['user:7', 'user-email:a'], bump: users-version, publish: users}}\n";
    assert_eq!(outcome(test, &[]).0, Some(0));
    // The keys do not use the name, so no identity needs to carry it; an unknown value counts as
    // unchanged.
    let skipping = RULES.replace("unknown: match", "unknown: skip");
    let output = unstale(&directory(&format!("{skipping}{test}")), &["test"], b"");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["with what the log carries of the old row (`id`, `email`)", "- delete user:7", "old value of `name`"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn a_condition_error_fails_the_test() {
    let rules = "version: 1\nrules:\n  r: {table: t, when: 'int(new.a) > 1', delete: 'k:{a}'}\n";
    let tests = "tests:\n  - {it: fails, insert: t, row: {a: x}, expect: {delete: 'k:x'}}\n";
    let output = unstale(&directory(&format!("{rules}{tests}")), &["test"], b"");
    let said = text(&output);
    assert!(output.status.code() == Some(1) && said.contains("rule `r` could not be applied to"), "{said}");
}

#[test]
fn coverage_names_what_no_test_covers() {
    let (code, said) = outcome(TESTS, &["--coverage", "--fail-uncovered"]);
    assert!(code == Some(0) && said.contains("coverage: 3 of 3 rules, 9 of 9 actions\n"), "{said}");
    let few = "tests:\n  - {it: inserts, insert: users, row: {id: 7, email: null, name: n}, \
               expect: {delete: 'user:7', bump: users-version, publish: users}}\n";
    let (code, said) = outcome(few, &["--coverage"]);
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "coverage: 1 of 3 rules, 3 of 9 actions",
        "invalidation.yaml:10:28  rule `user`: no test makes an op with `delete: user-email:{email|lower}`",
        "rule `user`: `changed` is never true in a test",
        "rule `user`: `changed` is never false in a test",
        "invalidation.yaml:13:3  rule `renamed`: no test makes it act",
        "rule `product`: no test makes it act",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert_eq!(outcome(few, &["--coverage", "--fail-uncovered"]).0, Some(1));
    let lines = String::from_utf8(run(few, &["--coverage", "--json"]).stdout).unwrap();
    let gaps: Vec<serde_json::Value> = lines.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(gaps[0]["uncovered"]["template"], "user-email:{email|lower}");
    assert_eq!(gaps.len(), 5);
}

#[test]
fn a_wrong_name_in_a_test_is_shown_at_its_place() {
    let check = |test: &str, words: &[&str]| {
        let (code, said) = outcome(&format!("tests:\n  - {{it: x, {test}}}\n"), &[]);
        assert_eq!(code, Some(78), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} are not all in: {said}");
    };
    check("truncate: usres", &["invalidation.yaml:26:23", "did you mean `users`?"]);
    check("event: product.update, row: {}", &["did you mean `product.updated`?"]);
    check("truncate: users, lookups: {org_membrs: []}", &["did you mean `org_members`?"]);
    check("truncate: users, expect: {delte: x}", &["did you mean `delete`?"]);
    check("insert: users", &["`insert` without `row`"]);
}

#[test]
fn a_file_without_tests_is_reported() {
    let output = run("", &[]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    assert!(text(&output).contains("there are no tests"), "{}", text(&output));
    let (code, said) = outcome(TESTS, &["--filter", "nowhere"]);
    assert!(code == Some(2) && said.contains("`nowhere`"), "{said}");
}

#[test]
fn text_of_a_test_cannot_control_a_terminal() {
    let tests = "tests:\n  - {it: \"a\\e[31mb\", insert: users, row: {id: \"\\e[2J\", email: e, name: n}}\n";
    let (code, said) = outcome(tests, &["--verbose"]);
    assert!(code == Some(1) && !said.contains('\u{1b}') && said.contains(r"user:\u{1b}[2J"), "{said:?}");
}

/// Without the catalog the column would not be known, and the rule would delete by pattern.
#[test]
fn the_lock_file_supplies_columns_that_a_test_omits() {
    let file = "version: 1
source: {url: '${DATABASE_URL}'}
target: {url: '${REDIS_URL}'}
rules:
  user: {table: users, delete: ['user:{id}', 'user-avatar:{avatar_url}']}
tests:
  - {it: knows the columns, insert: users, row: {id: u1, email: e}, expect: {delete: 'user:u1'}}
";
    let world = World::with_rules(file);
    assert_eq!(world.run(&["test"]).status.code(), Some(1));
    // The replica identity is still too narrow, which `setup` fixes; the catalog is written all the
    // same.
    let said = text(&world.run(&["check", "--lock"]));
    assert!(world.directory.path().join("invalidation.yaml.lock").exists(), "{said}");
    world.run_ok(&["test"]);
    world.write_rules(&file.replace("email: e", "emial: e"));
    let output = world.run(&["test"]);
    let said = text(&output);
    assert!(output.status.code() == Some(78) && said.contains("did you mean `email`?"), "{said}");
}
