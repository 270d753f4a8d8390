//! `unstale explain`: where a key comes from, what it holds, and what each rule does with a change.

use redis::Commands as _;
use serde_json::Value;
use tempfile::TempDir;
use unstale::change::Lsn;
use unstale::coherence::lease::{Envelope, Token};

use crate::support::{EVENT_MAX, SHIPPED, World, text, unstale, wait_until};

const RULES: &str = r#"version: 1
target: {namespace: "v1:"}
lookups:
  org_members: {sql: select user_id from memberships where organization_id = $1}
rules:
  user:
    table: users
    changed: [email, name]
    delete: ["user:{id}", "user-email:{email|lower}"]
  upgraded:
    table: users
    ops: update
    when: "old.plan != new.plan"
    delete: "plan:{id}"
  joined:
    table: users
    ops: insert
    bump: "users-version"
  renamed:
    table: organizations
    for_each: org_members({id}) as m
    delete: "user-orgs:{m.user_id}"
"#;

fn directory() -> TempDir {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("invalidation.yaml"), RULES).unwrap();
    directory
}

/// The exit code and everything that was printed.
fn explain(arguments: &[&str], input: &str) -> (Option<i32>, String) {
    let output = unstale(&directory(), &[&["explain"], arguments].concat(), input.as_bytes());
    (output.status.code(), text(&output))
}

#[test]
fn a_key_is_traced_to_its_templates_without_a_server() {
    let expected = "v1:user-email:ann@x.io

made by
  invalidation.yaml:9:28  rule `user`, `delete: user-email:{email|lower}`
    table users, lower(email) = ann@x.io
";
    for key in ["user-email:ann@x.io", "v1:user-email:ann@x.io"] {
        assert_eq!(explain(&["--offline", key], ""), (Some(0), expected.to_owned()));
    }
    let (code, said) = explain(&["--offline", "user-email:Ann@x.io"], "");
    assert!(code == Some(0) && said.contains("no template"), "{said}");
    let (code, said) = explain(&["--offline", "--json", "user-orgs:u1"], "");
    let object: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &object["key"], object.get("holds")), (Some(0), &"v1:user-orgs:u1".into(), None));
    assert_eq!(object["made_by"][0]["values"][0], serde_json::json!({"of": "m.user_id", "value": "u1"}));
}

#[test]
fn without_redis_a_key_is_explained_by_the_file() {
    let directory = directory();
    let port = unstale::sandbox::free_port().unwrap();
    let rules = RULES.replace("namespace:", &format!("url: 'redis://:hunter2@127.0.0.1:{port}', namespace:"));
    std::fs::write(directory.path().join("invalidation.yaml"), rules).unwrap();
    for arguments in [&["explain", "user:7"][..], &["explain", "--json", "user:7"]] {
        let output = unstale(&directory, arguments, b"");
        let said = text(&output);
        assert_eq!(output.status.code(), Some(69), "{said}");
        assert!(said.contains("delete") && said.contains(&port.to_string()) && !said.contains("hunter2"), "{said}");
    }
}

#[test]
fn the_content_of_a_key_is_explained() {
    let world = World::with_rules(SHIPPED);
    let check = |key: &str, value: &[u8], expected: &[&str], hidden: &str| {
        let _: () = world.redis().set(key, value).unwrap();
        let said = world.run_ok(&["explain", key]);
        assert!(expected.iter().all(|part| said.contains(part)), "{expected:?} are not all in: {said}");
        assert!(hidden.is_empty() || !said.contains(hidden), "{said}");
    };
    let (nonce, lo, etag) = (Token::of_new_value(), Lsn::new(255), String::new());
    let envelope =
        Envelope { nonce, lo, stored_at: 1, soft_ttl: 0, etag, tags: Vec::new(), body: b"secret\x1b[31m".to_vec() };
    check("v1:user:u1", &envelope.encode(), &["a value of 11 bytes", "every commit up to 0/FF"], "secret");
    check("v1:user:u1", Token::random().lease().as_bytes(), &["holds\n  a lease"], "");
    check("v1:user:u1", b"plain", &["a plain value of 5 bytes", "does not expire"], "plain\n");
    check("v1:flags-version:o1", b"255", &["the version 255", "0/FF"], "");
    assert!(world.run_ok(&["explain", "user:missing"]).contains("holds\n  nothing"));

    let _: () = world.redis().set("v1:user:u1", envelope.encode()).unwrap();
    let shown = world.run_ok(&["explain", "--show-value", "user:u1"]);
    assert!(shown.contains(r"secret\u{1b}[31m"), "{shown}");
    let object: Value = serde_json::from_str(&world.run_ok(&["explain", "--json", "user:u1"])).unwrap();
    assert_eq!((&object["holds"]["kind"], &object["holds"]["lo"]), (&"value".into(), &"0/FF".into()));
    let object: Value = serde_json::from_str(&world.run_ok(&["explain", "--json", "--show-value", "user:u1"])).unwrap();
    assert_eq!(object["holds"]["beginning"], r"secret\u{1b}[31m");
}

#[test]
fn the_last_ops_on_a_key_are_listed() {
    let world = World::shipped();
    let _daemon = world.daemon();
    assert!(world.run_ok(&["explain", "user:u1"]).contains("last touched"));
    world.sql("update users set name = 'Other' where id = 'u1'");
    world.settle();
    wait_until(EVENT_MAX, "the op is remembered", || world.run_ok(&["explain", "user:u1"]).contains("by rule `user`"));
    let said = world.run_ok(&["explain", "user:u1"]);
    let touched: Vec<_> = said.lines().filter(|line| line.contains("by rule `user`")).collect();
    assert!(touched.len() == 1 && touched[0].contains("delete v1:user:u1"), "{said}");
    let said = world.run_ok(&["explain", "user:u2"]);
    assert!(said.contains("by none of the last"), "{said}");

    world.sql("truncate users cascade");
    world.settle();
    wait_until(EVENT_MAX, "the glob is remembered", || {
        world.run_ok(&["explain", "user:u2"]).contains("pattern v1:user:*")
    });
    let object: Value = serde_json::from_str(&world.run_ok(&["explain", "--json", "user:u1"])).unwrap();
    let ops: Vec<_> = object["touched"].as_array().unwrap().iter().map(|touch| touch["op"].clone()).collect();
    assert!(ops.first().is_some_and(|op| op == "pattern") && ops.last().is_some_and(|op| op == "delete"), "{ops:?}");
}

const UPDATE: &str = r#"{"table":"users","op":"update","old":{"id":7,"email":"A@x","name":null},"new":{"id":7,"email":"b@x","name":null,"plan":"pro"}}"#;

#[test]
fn a_change_is_explained_rule_by_rule() {
    let (code, said) = explain(&["--change", UPDATE], "");
    let expected = "update of users

rule `user` (invalidation.yaml:6:3) acts
  changed: email was A@x, is b@x
  changed: name is NULL as before
  delete: user:{id}
    v1:user:7
  delete: user-email:{email|lower}
    v1:user-email:b@x
    v1:user-email:a@x  (the old row)

rule `upgraded` (invalidation.yaml:10:3) acts, because a value that decides is not known
  when: old.plan != new.plan  is not known, which counts as true
    old.plan is not carried by the log
    new.plan is pro
  delete: plan:{id}
    v1:plan:7

rule `joined` (invalidation.yaml:15:3) does not act: `update` is not among its `ops` (insert)

";
    assert_eq!((code, said.as_str()), (Some(0), expected));
    assert_eq!(explain(&["--change", "-"], &format!("{UPDATE}\n")), (Some(0), expected.to_owned()));
}

#[test]
fn rules_without_ops_are_explained() {
    let check = |change: &str, expected: &[&str]| {
        let (code, said) = explain(&["--change", change], "");
        assert_eq!(code, Some(0), "{said}");
        assert!(expected.iter().all(|part| said.contains(part)), "{expected:?} are not all in: {said}");
    };
    let same = r#"{"id":7,"email":"e","name":"n","plan":"pro"}"#;
    check(
        &format!(r#"{{"table":"users","op":"update","old":{same},"new":{same}}}"#),
        &[
            "no column of its `changed` differs",
            "changed: email is e as before",
            "its `when` is false",
            "old.plan is pro",
        ],
    );
    check(
        r#"{"table":"users","op":"insert","new":{"id":null}}"#,
        &["nothing: `id` is NULL", "all of v1:user-email:*: the log does not carry `email`", "v1:users-version"],
    );
    check(r#"{"table":"users","op":"truncate"}"#, &["all of v1:user:*", "all of v1:user-email:*"]);
    check(
        r#"{"table":"organizations","op":"insert","new":{"id":"o\u001b"}}"#,
        &[r"lookup: org_members(o\u{1b}), not run: add --lookups", "delete: user-orgs:{m.user_id}, for each row"],
    );
    check(
        r#"{"table":"organizations","op":"insert","new":{"id":null}}"#,
        &["org_members is not run, because an argument is NULL"],
    );
    check(r#"{"table":"usres","op":"truncate"}"#, &["no rule names it; did you mean `users`?"]);
    check(r#"{"table":"public.usres","op":"truncate"}"#, &["did you mean `users`?"]);
}

#[test]
fn a_change_is_explained_as_json() {
    let (code, said) = explain(&["--json", "--change", UPDATE], "");
    let objects: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, objects.len()), (Some(0), 3));
    let acts: Vec<_> = objects.iter().map(|object| object["acts"].as_bool().unwrap()).collect();
    assert_eq!(acts, [true, true, false]);
    assert_eq!(objects[0]["changed"][0], serde_json::json!({"column": "email", "old": "A@x", "new": "b@x"}));
    assert_eq!(objects[0]["actions"][1]["made"][1]["name"], "v1:user-email:a@x");
    assert_eq!(objects[1]["when"]["columns"], serde_json::json!({"new.plan": "pro"}));
    assert_eq!(objects[0]["ops"].as_array().unwrap().len(), 3);
}

#[test]
fn a_lookup_is_run_only_if_requested() {
    let rules = RULES.replace("target:", "source: {url: '${DATABASE_URL}'}\ntarget:");
    let world = World::with_rules(&rules);
    world.sql("insert into organizations (id, name, slug) values ('new', 'New', 'new')");
    world.sql("insert into memberships (id, user_id, organization_id) values ('m-new', 'u1', 'new')");
    let change = r#"{"table":"organizations","op":"update","old":{"id":"new"},"new":{"id":"new"}}"#;
    let said = world.run_ok(&["explain", "--lookups", "--change", change]);
    assert!(said.contains("lookup: org_members(new)\n") && said.contains("delete v1:user-orgs:u1"), "{said}");
}

#[test]
fn input_that_cannot_be_explained_is_refused() {
    let check = |arguments: &[&str], word: &str| {
        let (code, said) = explain(arguments, "");
        assert!(code == Some(2) && said.contains(word), "{arguments:?}: {said}");
    };
    check(&[], "KEY");
    check(&["--change", "{}"], "missing field `table`");
    check(&["--change", "-"], "contains no change");
    check(&["--change", UPDATE, "user:7"], "cannot be used with");
    check(&["--lookups", "user:7"], "cannot be used with");
}
