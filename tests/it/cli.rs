//! The commands as a user types them: output, exit codes, and every kind of invalid input.

use tempfile::TempDir;

use crate::support::{SHIPPED, text, unstale};

fn directory(rules: &str) -> TempDir {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("invalidation.yaml"), rules).unwrap();
    directory
}

fn dry_run(rules: &str, changes: &str) -> String {
    let output = unstale(&directory(rules), &["dry-run", "--file", "-", "--json"], changes.as_bytes());
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_shipped_file_has_no_problems() {
    let output = unstale(&directory(SHIPPED), &["check", "--offline"], b"");
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn dry_run_prints_one_op_a_line() {
    let changes = r#"{"lsn":"0/16B3748","xid":771,"at":"2026-11-20T12:00:03Z","table":"users","op":"update","old":{"id":"u1","email":"Ann@x.io","name":"A","avatar_url":null},"new":{"id":"u1","email":"ann@y.io","name":"A","avatar_url":null}}
{"table":"public.feature_flags","op":"insert","new":{"id":"f","organization_id":"o1","key":"k"}}
{"table":"users","op":"update","old":{"id":"u1","email":"a","name":"A","avatar_url":null},"new":{"id":"u1","email":"a","name":"A","avatar_url":null}}
{"table":"users","op":"truncate"}
{"table":"unheard_of","op":"truncate"}
"#;
    let expected = r#"{"rule":"user","op":"delete","key":"v1:user:u1"}
{"rule":"user","op":"delete","key":"v1:user-email:ann@y.io"}
{"rule":"user","op":"delete","key":"v1:user-email:ann@x.io"}
{"rule":"user-sessions","op":"tag","key":"v1:tag:user-sessions:u1"}
{"rule":"user","op":"publish","key":"v1:users","data":{"id":"u1"}}
{"rule":"feature-flag","op":"delete","key":"v1:flags:o1"}
{"rule":"feature-flag","op":"delete","key":"v1:flag:o1:k"}
{"rule":"feature-flag","op":"bump","key":"v1:flags-version:o1"}
{"rule":"feature-flag","op":"publish","key":"v1:flags","data":{"organization":"o1","flag":"k"}}
{"rule":"user","op":"pattern","key":"v1:user:*"}
{"rule":"user","op":"pattern","key":"v1:user-email:*"}
{"rule":"user-sessions","op":"tag","key":"v1:tag:user-sessions:*"}
{"rule":"user","op":"publish","key":"v1:users","data":{"id":null}}
"#;
    assert_eq!(dry_run(SHIPPED, changes), expected);
}

/// Plans one change with one rule on table `t`; the ops as `op key`.
#[test]
fn each_rule_plans_the_documented_ops() {
    let check = |rule: &str, change: &str, expected: &[&str]| {
        let rules = format!("version: 1\nrules:\n  r: {{table: t, {rule}}}\n");
        let printed = dry_run(&rules, change);
        let ops: Vec<_> = printed
            .lines()
            .map(|line| {
                let op: serde_json::Value = serde_json::from_str(line).unwrap();
                let data = op.get("data").map(|data| format!(" {data}")).unwrap_or_default();
                format!("{} {}{data}", op["op"].as_str().unwrap(), op["key"].as_str().unwrap())
            })
            .collect();
        assert_eq!(ops, expected, "{rule} {change}");
    };
    let update = r#"{"table":"t","op":"update","old":{"a":1,"b":"x","n":null},"new":{"a":1,"b":"y","n":null}}"#;
    check("delete: 'k:{b}'", update, &["delete k:y", "delete k:x"]);
    check("delete: 'k:{a}'", update, &["delete k:1"]);
    check("delete: ['k:{a}', 'k:{a}']", update, &["delete k:1"]);
    check("delete: 'k:{n}'", update, &[]);
    check("delete: 'k:{old.b}'", update, &["delete k:x"]);
    check("delete: 'k:{new.b}:{old.b}'", update, &["delete k:y:x"]);
    check("delete: 'k:{new.b}:{b}'", update, &["delete k:y:y", "delete k:y:x"]);
    check("delete: 'k:{missing}'", update, &["pattern k:*"]);
    check("delete: 'k:{b}:{missing}'", update, &["pattern k:y:*", "pattern k:x:*"]);
    check("delete: '{{k}}:{a}'", update, &["delete {k}:1"]);
    check("ops: insert, delete: 'k:{a}'", update, &[]);
    check("ops: [insert, update], delete: 'k:{a}'", update, &["delete k:1"]);
    check("changed: a, delete: 'k:{a}'", update, &[]);
    check("changed: [a, b], delete: 'k:{a}'", update, &["delete k:1"]);
    check("changed: missing, delete: 'k:{a}'", update, &["delete k:1"]);
    check("bump: 'v:{b}'", update, &["bump v:y", "bump v:x"]);
    check("publish: {channel: c}", update, &["publish c {}"]);
    check(
        "publish: {channel: c, data: {b: '{b}', was: '{old.b}', n: '{n}', text: 'b={b} n={n}', fixed: [1, true, null]}}",
        update,
        &[r#"publish c {"b":"y","was":"x","n":null,"text":"b=y n=","fixed":[1,true,null]}"#],
    );
    check("publish: {channel: 'c:{b}', data: '{b}'}", update, &[r#"publish c:y "y""#, r#"publish c:x "x""#]);
    check("publish: [{channel: a}, {channel: b}]", update, &["publish a {}", "publish b {}"]);

    let delete = r#"{"table":"t","op":"delete","old":{"a":"*?[x]\\","b":"line\nbreak"}}"#;
    check("delete: 'k:{a}'", delete, &[r"delete k:*?[x]\"]);
    check("delete: 'k:{a}:{missing}'", delete, &[r"pattern k:\*\?\[x]\\:*"]);
    check("delete: 'k:{b}'", delete, &["delete k:line\nbreak"]);
    check("delete: 'k:{new.a}'", delete, &[]);
    check("changed: a, delete: 'k:x'", delete, &["delete k:x"]);
    check("ops: delete, delete: 'k:{a}'", r#"{"table":"t","op":"truncate"}"#, &["pattern k:*"]);
    check("ops: [insert, update], delete: 'k:{a}'", r#"{"table":"t","op":"truncate"}"#, &[]);
    check("bump: 'v:{a}'", r#"{"table":"t","op":"truncate"}"#, &["pattern v:*"]);
    check("delete: 'k:{a}'", r#"{"table":"t","op":"update","new":{"a":1}}"#, &["delete k:1", "pattern k:*"]);
    check("delete: 'k:{a}'", r#"{"table":"t","op":"insert","new":{"a":{"x": 1}}}"#, &[r#"delete k:{"x": 1}"#]);
}

#[test]
fn defaults_decide_about_unknown_values_and_truncates() {
    let run = |defaults: &str, change: &str| {
        let rules =
            format!("version: 1\ndefaults: {{{defaults}}}\nrules:\n  r: {{table: t, changed: b, delete: 'k:{{a}}'}}\n");
        let output = unstale(&directory(&rules), &["dry-run", "--file", "-", "--json"], change.as_bytes());
        (output.status.code(), text(&output))
    };
    let unknown = r#"{"table":"t","op":"update","old":{"a":1},"new":{"a":1,"b":2}}"#;
    let truncate = r#"{"table":"t","op":"truncate"}"#;
    assert_eq!(
        run("unknown: match", unknown),
        (Some(0), "{\"rule\":\"r\",\"op\":\"delete\",\"key\":\"k:1\"}\n".to_owned())
    );
    assert_eq!(run("unknown: skip", unknown), (Some(0), String::new()));
    let (code, said) = run("unknown: fail", unknown);
    assert!(code == Some(1) && said.contains("rule `r` needs the old value of t.b"), "{said}");
    assert_eq!(run("truncate: ignore", truncate), (Some(0), String::new()));
    let (code, said) = run("truncate: fail", truncate);
    assert!(code == Some(1) && said.contains("table t was truncated"), "{said}");
}

#[test]
fn changes_of_one_transaction_make_one_plan() {
    let rules = "version: 1\nrules:\n  r: {table: t, delete: 'k:{a}', publish: {channel: c}}\n";
    let line =
        |xid: u32| format!("{{\"xid\":{xid},\"lsn\":\"0/1\",\"table\":\"t\",\"op\":\"insert\",\"new\":{{\"a\":1}}}}\n");
    assert_eq!(dry_run(rules, &(line(1) + &line(1))).lines().count(), 2);
    assert_eq!(dry_run(rules, &(line(1) + &line(2))).lines().count(), 4);
}

#[test]
fn dry_run_prints_a_table_of_rules() {
    let long = "x".repeat(2000);
    let changes = format!(
        "{{\"table\":\"users\",\"op\":\"insert\",\"new\":{{\"id\":\"{long}\\u001b[31m\",\"email\":\"e\"}}}}\n{{\"table\":\"sessions\",\"op\":\"truncate\"}}\n"
    );
    let output = unstale(&directory(SHIPPED), &["dry-run", "--file", "-"], changes.as_bytes());
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for part in ["user ", "2013 bytes", "2 changes, 4 ops", "warning: 1 patterns"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert!(!said.contains('\u{1b}'), "{said:?}");
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let directory = directory(SHIPPED);
    let line = "{\"table\":\"users\",\"op\":\"insert\",\"new\":{\"id\":\"u1\",\"email\":\"e\"}}\n";
    std::fs::write(directory.path().join("changes"), line.repeat(20_000)).unwrap();
    let script = format!("{} dry-run --file changes --json | head -1", env!("CARGO_BIN_EXE_unstale"));
    let output = std::process::Command::new("bash")
        .args(["-c", &format!("set -o pipefail; {script}")])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn invalid_input_is_shown_with_its_place_and_reason() {
    let rule = "rules:\n  r: {table: t, delete: 'k:{a}'}\n";
    let check = |rules: &str, words: &[&str]| {
        let output = unstale(&directory(rules), &["check", "--offline"], b"");
        let said = text(&output);
        assert_eq!(output.status.code(), Some(78), "{rules}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} are not all in: {said}");
    };
    check("", &["invalidation.yaml:1:1"]);
    check("version: 1\nrules: {", &["invalidation.yaml:2"]);
    check("version: 1\nversion: 1\n", &["invalidation.yaml:2"]);
    check(rule, &["no `version`"]);
    check("version: 1\n", &["no `rules`"]);
    check(
        &format!("version: 1\nsource: {{url: 'mysql://u:hunter2@h'}}\n{rule}"),
        &["invalidation.yaml:2:16", "not a postgres:// URL"],
    );
    check(&format!("version: 1\ntarget: {{url: 'redis//h'}}\n{rule}"), &["not a Redis URL", "redis://host:6379/0"]);
    check(
        &format!("version: 1\nsource: {{url: '${{NOT_SET_ANYWHERE}}'}}\n{rule}"),
        &["invalidation.yaml:2:16", "`NOT_SET_ANYWHERE` is not set"],
    );
    let switch = "source: {mode: outbox, outbox: {notify: perhaps}}";
    check(&format!("version: 1\n{switch}\n{rule}"), &["`notify` is neither true nor false"]);
    check(
        "version: 1\nrules:\n  r: {table: t, delte: 'k:{a}'}\n",
        &["invalidation.yaml:3:17", "did you mean `delete`?"],
    );
    check("version: 1\nrules:\n  r: {table: t, delete: 'k:{a'}\n", &["invalidation.yaml:3:28", "never closed"]);
    check("version: 1\nrules:\n  r: {table: t, delete: '{a}'}\n", &["does not begin with a literal"]);
    check("version: 1\nrules:\n  r: {table: t, delete: 'unstale:{a}'}\n", &["reserved for the state of this tool"]);
    check(
        "version: 1\nrules:\n  r: {table: t, publish: {channel: invalidations}}\n",
        &["is reserved for the announcements"],
    );
    check(
        "version: 1\nrules:\n  r: {table: t, delete: \"k:{a|lowr}\"}\n",
        &["invalidation.yaml:3:29", "did you mean `lower`?"],
    );
    check("version: 1\nrules:\n  r: {table: t, ops: updat, delete: 'k:{a}'}\n", &["did you mean `update`?"]);
    check("version: 1\nrules:\n  r: {table: t, publish: {chanel: c}}\n", &["did you mean `channel`?"]);
    check(
        "version: 1\nrules:\n  r: {table: t, when: 'old.a = 1', delete: 'k:{a}'}\n",
        &["invalidation.yaml:3:30", "=="],
    );
    check("version: 1\nrules:\n  r: {table: t, when: 'nwe.a == 1', delete: 'k:{a}'}\n", &["did you mean `new`?"]);
    check("version: 1\nrules:\n  r: {table: t, event: e, delete: 'k:{a}'}\n", &["both `table` and `event`"]);
    check("version: 1\nrules:\n  r: {event: e, ops: insert, delete: 'k:{a}'}\n", &["apply to tables"]);
    check("version: 1\nrules:\n  r: {table: t, for_each: 'm({a}) as m', delete: 'k:{m.b}'}\n", &["no lookup `m`"]);
    check("version: 1\nrules:\n  r: {table: t, delete: 'k:{m.b}'}\n", &["neither an image of the row"]);
    check("version: 1\nlookups: {m: {max: 5}}\nrules:\n  r: {table: t, delete: 'k'}\n", &["lookup `m` has no `sql`"]);
    check("version: 1\nrules:\n  r: {table: t, set: {key: 'k:{a}'}}\n", &["`set` needs `key` and `columns`"]);
    check("version: 1\nrules:\n  r: {table: t, delete: k, again_after: 5}\n", &["no unit", "5s"]);
    check("version: 1\nrules:\n  r: {table: t, stream: {name: s, maxlen: 0}}\n", &["whole number from 1 on"]);
    check("version: 1\ndefaults: {ttl: 1s}\nrules:\n  r: {table: t, delete: k}\n", &["too short", "1m"]);
    check("version: 1\nrules:\n  r: {table: a.b.c, delete: 'k:{a}'}\n", &["schema.table"]);

    let cases: &[(&[&str], i32, &str)] = &[
        (&["frobnicate"], 2, "frobnicate"),
        (&["dry-run", "--file", "nowhere.ndjson"], 2, "nowhere.ndjson"),
        (&["demo", "--for", "10x"], 2, "10s"),
        (&["run", "--drain-max", "soon"], 2, "10s"),
        (&["check", "--config", "nowhere.yaml"], 78, "nowhere.yaml"),
    ];
    for (arguments, code, word) in cases {
        let output = unstale(&directory(SHIPPED), arguments, b"");
        assert!(
            output.status.code() == Some(*code) && text(&output).contains(word),
            "{arguments:?}: {}",
            text(&output)
        );
    }
    let output =
        unstale(&directory(SHIPPED), &["dry-run", "--file", "-"], b"\n{\"table\":\"users\",\"op\":\"upsert\"}\n");
    let said = text(&output);
    assert!(output.status.code() == Some(2) && said.contains("-:2:30") && said.contains("`insert`"), "{said}");
}

#[test]
fn an_unavailable_postgresql_is_named_without_its_password() {
    let port = unstale::sandbox::free_port().unwrap();
    let rules = SHIPPED.replace(
        "${DATABASE_URL:-postgres://postgres@127.0.0.1:5432/postgres}",
        &format!("postgres://u:hunter2@127.0.0.1:{port}/d"),
    );
    for command in ["run", "setup", "teardown", "check"] {
        let output = unstale(&directory(&rules), &[command], b"");
        let said = text(&output);
        assert_eq!(output.status.code(), Some(69), "{said}");
        assert!(said.contains(&format!("127.0.0.1:{port}")) && !said.contains("hunter2"), "{said}");
    }
}

#[test]
fn an_unavailable_redis_is_named_without_its_password() {
    let mut world = crate::support::World::shipped();
    world.redis.stop();
    world.redis_url = world.redis_url.replace("redis://", "redis://:hunter2@");
    let output = world.run(&["run"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains(&format!("127.0.0.1:{}", world.redis.port())) && !said.contains("hunter2"), "{said}");
}

#[test]
fn the_demo_finishes_with_cache_and_database_in_agreement() {
    let output = unstale(&TempDir::new().unwrap(), &["demo", "--for", "2s"], b"");
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("0 stale") && said.contains(" ms"), "{said}");
}
