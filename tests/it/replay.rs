//! Changes outside the daemon: recorded, previewed and replayed, from every source.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::Stdio;

use redis::Commands as _;
use serde_json::Value;
use tempfile::TempDir;
use unstale::change::Lsn;
use unstale::sink::Broadcast;

use crate::invalidation::partitioned;
use crate::support::{Daemon, EVENT_MAX, World, next_message, text, unstale, wait_until};

const HEAD: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
";

const RULES: &str = "
rules:
  user:
    table: users
    changed: [email, name]
    delete: [\"user:{id}\", \"user-email:{email|lower}\"]
    publish: {channel: users, data: {id: \"{id}\"}}
  flag:
    table: feature_flags
    delete: \"flags:{organization_id}\"
    bump: \"flags-version:{organization_id}\"
  session: {table: sessions, delete: \"session:{token_hash}\"}
  product: {event: product.updated, delete: \"product:{id}\"}
";

const CHANGES: &str = r#"{"table":"users","op":"update","old":{"id":"u1","email":"Old@x","name":"n"},"new":{"id":"u1","email":"new@x","name":"n"}}
{"table":"feature_flags","op":"insert","new":{"id":"f","organization_id":"o1"}}
{"table":"product.updated","op":"event","new":{"id":7}}
"#;

fn world() -> World {
    let world = World::with_rules(&format!("{HEAD}{RULES}"));
    world.run_ok(&["setup"]);
    world
}

fn write(world: &World, name: &str, text: &str) {
    std::fs::write(world.directory.path().join(name), text).unwrap();
}

fn read(world: &World, name: &str) -> String {
    std::fs::read_to_string(world.directory.path().join(name)).unwrap_or_default()
}

/// The lines of a recording or of `--json`.
fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// Those of these keys that exist.
fn held(world: &World, keys: &[&str]) -> Vec<String> {
    keys.iter().filter(|key| world.holds(&format!("v1:{key}"))).map(ToString::to_string).collect()
}

fn cache(world: &World, keys: &[&str]) {
    keys.iter().for_each(|key| world.cache(&format!("v1:{key}")));
}

/// Starts to record through a temporary slot, and waits until no further change can be missed.
fn record(world: &World, arguments: &[&str]) -> Daemon {
    let recorder = Daemon::start(world.command(&[&["record"][..], arguments].concat()));
    let ready = "select count(*)::text from pg_replication_slots \
                 where slot_name like 'unstale\\_record\\_%' and temporary and confirmed_flush_lsn is not null";
    wait_until(EVENT_MAX, "the recorder's slot is there", || world.value(ready) == "1");
    recorder
}

#[test]
fn a_recording_gives_the_ops_that_the_daemon_announced() {
    let world = world();
    let mut connection = world.redis();
    connection.set_read_timeout(Some(EVENT_MAX)).unwrap();
    let mut subscriber = connection.as_pubsub();
    subscriber.subscribe("v1:invalidations").unwrap();
    let daemon = world.daemon();
    let mut recorder = record(&world, &["--output", "changes.ndjson", "--count", "6"]);
    world.sql("update users set email = 'NEW@x.io' where id = 'u1'");
    world.sql(
        "begin; insert into users (id, email, name) values ('u11', 'u11@x', 'n'); \
         update feature_flags set enabled = not enabled where id = 'f1-1'; commit",
    );
    world.sql("delete from sessions where id = 's3'");
    world.sql("select unstale.emit('product.updated', '{\"id\": 7}')");
    world.sql("truncate sessions");
    assert_eq!(recorder.wait(), Some(0), "{:?}", recorder.log());

    let recorded = lines(&read(&world, "changes.ndjson"));
    let words: Vec<_> = recorded.iter().map(|line| line["op"].as_str().unwrap()).collect();
    assert_eq!(words, ["update", "insert", "update", "delete", "event", "truncate"]);
    assert_eq!(recorded[1]["xid"], recorded[2]["xid"]);
    assert!(recorded[2]["new"]["enabled"].is_boolean(), "{}", recorded[2]);
    let ends: Vec<Lsn> = recorded.iter().map(|line| line["lsn"].as_str().unwrap().parse().unwrap()).collect();
    assert!(ends.is_sorted() && ends[0] < ends[5], "{ends:?}");

    let planned = world.run_ok(&["dry-run", "--file", "changes.ndjson", "--json"]);
    let op = |line: &Value| (line["op"].as_str().unwrap().to_owned(), line["key"].as_str().unwrap().to_owned());
    let expected: BTreeSet<_> = lines(&planned).iter().map(op).filter(|(op, _)| op != "publish").collect();
    assert!(expected.contains(&("bump".to_owned(), "v1:flags-version:o1".to_owned())), "{expected:?}");
    world.settle();
    let mut told = BTreeSet::new();
    while told.len() < expected.len() {
        let message = next_message(&mut subscriber);
        let broadcast: Broadcast = serde_json::from_slice(message.get_payload_bytes()).unwrap();
        told.extend(broadcast.ops.into_iter().map(|op| (op.op.to_string(), op.key)));
    }
    assert_eq!(told, expected);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_replay_requires_consent() {
    const GONE: [&str; 5] = ["user:u1", "user-email:old@x", "user-email:new@x", "flags:o1", "product:7"];
    let world = world();
    write(&world, "changes.ndjson", CHANGES);
    cache(&world, &GONE);
    cache(&world, &["user:u2"]);
    for arguments in [&["replay", "--file", "changes.ndjson"][..], &["replay", "--file", "-"]] {
        let output = world.run(arguments);
        let said = text(&output);
        assert!(output.status.code() == Some(2) && said.contains("--yes") && said.contains("dry-run"), "{said}");
    }
    assert_eq!(held(&world, &GONE), GONE);

    let before: Lsn = world.value("select pg_current_wal_lsn()::text").parse().unwrap();
    let output = world.run(&["replay", "--file", "changes.ndjson", "--yes"]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "applied 7 ops of 3 changes\n");
    assert!(said.contains("3 changes, 7 ops"), "the plan is shown: {said}");
    assert_eq!(held(&world, &GONE), [""; 0]);
    assert!(world.holds("v1:user:u2"));
    let version: String = world.redis().get("v1:flags-version:o1").unwrap();
    assert!(version.parse::<u64>().unwrap() > before.offset(), "{version} is a position never used before {before}");

    cache(&world, &GONE);
    let mut command = world.command(&["replay", "--file", "-", "--yes", "--limit", "1"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(CHANGES.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(held(&world, &GONE), ["flags:o1", "product:7"]);
}

#[test]
fn a_rate_limits_a_replay() {
    let world = world();
    let line = |n: u32| format!("{{\"table\":\"sessions\",\"op\":\"insert\",\"new\":{{\"token_hash\":\"t{n}\"}}}}\n");
    write(&world, "changes.ndjson", &(0..4).map(line).collect::<String>());
    let mut connection = world.redis();
    connection.set_read_timeout(Some(EVENT_MAX)).unwrap();
    let mut subscriber = connection.as_pubsub();
    subscriber.subscribe("v1:invalidations").unwrap();
    let mut told = |count: usize| -> Vec<Vec<String>> {
        let mut next = || serde_json::from_slice::<Broadcast>(next_message(&mut subscriber).get_payload_bytes());
        (0..count).map(|_| next().unwrap().ops.into_iter().map(|op| op.key).collect()).collect()
    };
    let keys: Vec<_> = (0..4).map(|n| format!("v1:session:t{n}")).collect();
    world.run_ok(&["replay", "--file", "changes.ndjson", "--yes"]);
    assert_eq!(told(1), std::slice::from_ref(&keys));
    world.run_ok(&["replay", "--file", "changes.ndjson", "--yes", "--rate", "15"]);
    assert_eq!(told(4), keys.into_iter().map(|key| vec![key]).collect::<Vec<_>>());
}

#[test]
fn the_current_rows_of_a_table_are_replayed() {
    let world = world();
    let keys = ["user:u1", "user-email:user1@example.com", "user:u2", "user-email:user2@example.com"];
    cache(&world, &keys);
    let said = world.run_ok(&["replay", "--table", "users", "--where", "id = 'u1' -- the first", "--yes"]);
    assert_eq!(said, "applied 3 ops of 1 changes\n");
    assert_eq!(held(&world, &keys), ["user:u2", "user-email:user2@example.com"]);

    let planned = world.run_ok(&["dry-run", "--table", "feature_flags", "--json"]);
    let expected = "{\"rule\":\"flag\",\"op\":\"delete\",\"key\":\"v1:flags:o1\"}\n\
                    {\"rule\":\"flag\",\"op\":\"bump\",\"key\":\"v1:flags-version:o1\"}\n";
    assert_eq!(planned, expected, "what rows have in common is named once");
    let some = world.run_ok(&["dry-run", "--table", "public.users", "--limit", "2", "--json"]);
    assert_eq!(some.lines().count(), 6, "{some}");
    let none = text(&world.run(&["dry-run", "--table", "organizations"]));
    assert!(none.contains("note: 1 change of tables without a rule: public.organizations (1)"), "{none}");
}

#[test]
fn flags_without_a_valid_source_are_refused() {
    let world = world();
    let cases: &[(&[&str], &str)] = &[
        (&[], "--file"),
        (&["--file", "-", "--slot"], "cannot be used with"),
        (&["--slot", "--where", "true"], "--table"),
        (&["--table", "usres"], "did you mean `users`?"),
        (&["--table", "users", "--where", "idd = 'u1'"], "idd"),
        (&["--table", "users", "--where", "true); drop table users; --"], "PostgreSQL"),
        (&["--table", "users", "--where", "true); select (1"], "PostgreSQL"),
        (&["--table", "users", "--limit", "0"], "--limit"),
        (&["--file", "nowhere.ndjson"], "nowhere.ndjson"),
        (&["--file", "-", "--exit-code"], "--diff"),
    ];
    for (arguments, word) in cases {
        let output = world.run(&[&["dry-run"][..], arguments].concat());
        let said = text(&output);
        assert!(output.status.code() == Some(2) && said.contains(word), "{arguments:?}: {said}");
    }
    // The functions that a condition calls must not write either.
    world.sql("create function empty() returns boolean language sql as 'delete from users; select true'");
    let output = world.run(&["dry-run", "--table", "users", "--where", "empty()"]);
    assert!(text(&output).contains("read-only transaction"), "{}", text(&output));
    assert_eq!(world.value("select count(*)::text from users"), "10");
}

/// A key that an application made from a row is found from every source of that row.
#[test]
fn a_value_has_the_same_text_from_a_table_and_from_the_log() {
    let columns = ["id", "ok", "n", "f", "at", "d", "j", "b", "a"];
    let template = columns.map(|column| format!("{{{column}}}")).join(":");
    let world = World::with_rules(&format!("{HEAD}rules:\n  typed: {{table: typed, delete: 'typed:{template}'}}\n"));
    world.sql(
        "create table typed (id char(5) primary key, ok boolean not null, n numeric(6, 2), f float8, at timestamptz, \
         d interval, j jsonb, b bytea, a int[]);
         alter database postgres set datestyle = 'German';
         alter database postgres set intervalstyle = 'iso_8601';
         alter database postgres set extra_float_digits = -3",
    );
    world.run_ok(&["setup"]);
    world.sql(
        r#"insert into typed values ('ab', true, 1.50, 0.1::float8 + 0.2, '2026-11-20 12:00:03.5+01', '1 day 02:00', '{"a": 1}', '\x01ff', '{1,2}'),
                                    ('c', false, 'NaN', 'Infinity', '-infinity', '0', 'null', '', '{}')"#,
    );
    let from_log = world.run_ok(&["dry-run", "--slot", "--json"]);
    assert_eq!(world.run_ok(&["dry-run", "--table", "typed", "--json"]), from_log);
    let keys: Vec<_> = lines(&from_log).iter().map(|line| line["key"].as_str().unwrap().to_owned()).collect();
    assert!(keys[0].starts_with("v1:typed:ab   :true:1.50:0.30000000000000004:2026-11-20 "), "{keys:?}");
    assert!(keys[1].starts_with("v1:typed:c    :false:NaN:Infinity:-infinity:00:00:00:null:"), "{keys:?}");
    assert_eq!(keys.len(), 2);
}

#[test]
fn pending_changes_of_the_slot_are_previewed_and_stay() {
    let world = world();
    world.sql("update users set name = 'x' where id = 'u1'");
    world.sql("begin; update users set name = 'y' where id = 'u2'; delete from sessions where id = 's3'; commit");
    world.sql("select unstale.emit('product.updated', '{\"id\": 7}')");
    let before = world.confirmed();
    let first = world.run_ok(&["dry-run", "--slot", "--json"]);
    for key in ["v1:user:u1", "v1:user:u2", "v1:session:", "v1:product:7"] {
        assert!(first.contains(key), "{key} is not in {first}");
    }
    assert_eq!(world.run_ok(&["dry-run", "--slot", "--json"]), first);
    let limited = world.run_ok(&["dry-run", "--slot", "--json", "--limit", "1"]);
    assert!(first.starts_with(&limited) && limited.contains("user:u1") && !limited.contains("user:u2"), "{limited}");
    cache(&world, &["user:u1", "user:u2", "product:7"]);
    assert_eq!(world.run_ok(&["replay", "--slot", "--yes"]), "applied 8 ops of 4 changes\n");
    assert_eq!(held(&world, &["user:u1", "user:u2", "product:7"]), [""; 0]);
    assert_eq!(world.confirmed(), before, "nothing was consumed");

    cache(&world, &["user:u1"]);
    let daemon = world.daemon();
    world.settle();
    assert!(!world.holds("v1:user:u1"), "the daemon met all of it, too");
    let output = world.run(&["dry-run", "--slot"]);
    let said = text(&output);
    assert!(output.status.code() == Some(69) && said.contains("being read") && said.contains("daemon"), "{said}");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn every_source_maps_a_partition_to_its_root() {
    let world = partitioned();
    let mut recorder = record(&world, &["--tables", "events", "--count", "2", "--output", "changes.ndjson"]);
    world.sql("insert into events values (1, 5), (2, 15)");
    assert_eq!(recorder.wait(), Some(0), "{:?}", recorder.log());
    let expected = world.run_ok(&["dry-run", "--slot", "--json"]);
    assert_eq!(lines(&expected).len(), 4, "{expected}");
    assert_eq!(world.run_ok(&["dry-run", "--file", "changes.ndjson", "--json"]), expected);
    assert_eq!(lines(&read(&world, "changes.ndjson"))[1]["table"], "public.events");
    assert_eq!(world.run_ok(&["dry-run", "--table", "events", "--json"]), expected);
    let one = world.run_ok(&["dry-run", "--table", "events_1", "--json"]);
    assert!(one.contains("v1:event:1") && !one.contains("v1:event:2"), "{one}");
}

#[test]
fn two_rule_sets_are_compared() {
    let directory = TempDir::new().unwrap();
    let file = |name: &str, rules: &str| {
        let text = format!("version: 1\ntarget: {{namespace: 'v1:'}}\nrules:\n{rules}");
        std::fs::write(directory.path().join(name), text).unwrap();
    };
    file("invalidation.yaml", "  user: {table: users, delete: ['user:{id}', 'mail:{email}']}\n");
    file("other.yaml", "  person: {table: users, delete: ['user:{id}', 'mail:{email|lower}']}\n");
    file("same.yaml", "  person: {table: users, delete: ['mail:{email}', 'user:{id}']}\n");
    let insert = |lsn: u32, email: &str| {
        let new = format!("{{\"id\":\"u{lsn}\",\"email\":\"{email}\"}}");
        format!("{{\"lsn\":\"0/{lsn}\",\"xid\":{lsn},\"table\":\"users\",\"op\":\"insert\",\"new\":{new}}}\n")
    };
    let changes = [insert(1, "A@x"), insert(2, "b@x"), insert(3, "C@x")].concat();
    let run = |arguments: &[&str]| {
        let output = unstale(&directory, &[&["dry-run", "--file", "-"][..], arguments].concat(), changes.as_bytes());
        (output.status.code(), text(&output))
    };
    let expected = "transaction at 0/1\n  - delete v1:mail:A@x  (rule user)\n  + delete v1:mail:a@x  (rule person)\n\
                    transaction at 0/3\n  - delete v1:mail:C@x  (rule user)\n  + delete v1:mail:c@x  (rule person)\n\
                    2 gained, 2 lost, in 2 transactions of 3 changes\n";
    assert_eq!(run(&["--diff", "other.yaml"]), (Some(0), expected.to_owned()));
    assert_eq!(run(&["--diff", "other.yaml", "--exit-code"]).0, Some(1));
    let json = "{\"diff\":\"lost\",\"rule\":\"user\",\"op\":\"delete\",\"key\":\"v1:mail:A@x\"}\n\
                {\"diff\":\"gained\",\"rule\":\"person\",\"op\":\"delete\",\"key\":\"v1:mail:a@x\"}\n";
    assert_eq!(run(&["--diff", "other.yaml", "--json", "--limit", "1"]), (Some(0), json.to_owned()));
    let same = (Some(0), "no difference in 3 changes\n".to_owned());
    assert_eq!(run(&["--diff", "same.yaml", "--exit-code"]), same);
    let (code, said) = run(&["--diff", "nowhere.yaml"]);
    assert!(code == Some(78) && said.contains("nowhere.yaml"), "{said}");
}

#[test]
fn redacted_columns_show_only_whether_they_changed() {
    let world = world();
    let arguments = ["--redact", "users.email,sessions.token_hash", "--count", "3", "--output", "changes.ndjson"];
    let mut recorder = record(&world, &arguments);
    world.sql("update users set email = 'secret@example.com' where id = 'u1'");
    world.sql("update users set name = 'plain' where id = 'u2'");
    world.sql("delete from sessions where id = 's1'");
    assert_eq!(recorder.wait(), Some(0), "{:?}", recorder.log());
    let recorded = read(&world, "changes.ndjson");
    let token = world.value("select encode(sha256('token-1'::bytea), 'hex')");
    assert!(!recorded.contains("@example.com") && !recorded.contains(&token), "{recorded}");
    assert!(recorded.contains("plain"), "{recorded}");
    let emails: Vec<_> =
        lines(&recorded).iter().map(|line| ["old", "new"].map(|image| line[image]["email"].clone())).collect();
    assert!(emails[0][0] != emails[0][1] && emails[1][0] == emails[1][1], "{emails:?}");
    assert!(
        emails.iter().take(2).flatten().all(|email| email.as_str().unwrap().starts_with("[redacted:")),
        "{emails:?}"
    );

    let cases: &[(&[&str], i32, &str)] = &[
        (&["--redact", "users.emial"], 2, "did you mean `email`?"),
        (&["--redact", "usres.email"], 2, "did you mean `users`?"),
        (&["--redact", "users"], 2, "table.column"),
        (&["--tables", "usres"], 2, "did you mean `users`?"),
        (&["--slot", "unstale"], 2, "daemon"),
        (&["--slot", "No\"Name"], 2, "lower-case"),
        (&["--slot", "missing"], 78, "missing"),
        (&["--publication", "missing"], 78, "missing"),
        (&["--rotate-size", "1MB"], 2, "--output"),
        (&["--output", "f", "--rotate-size", "big"], 2, "64KiB"),
        (&["--output", "nowhere/f"], 2, "nowhere/f"),
    ];
    for (arguments, code, word) in cases {
        let output = world.run(&[&["record"][..], arguments].concat());
        let said = text(&output);
        assert!(output.status.code() == Some(*code) && said.contains(word), "{arguments:?}: {said}");
    }
}

#[test]
fn files_rotate_and_the_oldest_are_removed() {
    let world = world();
    let arguments = ["--output", "changes.ndjson", "--rotate-size", "1kB", "--keep", "2", "--count", "20"];
    let mut recorder = record(&world, &arguments);
    for n in 1..=20 {
        world.sql(&format!("update users set name = 'name {n}' where id = 'u1'"));
    }
    assert_eq!(recorder.wait(), Some(0), "{:?}", recorder.log());
    let entries = std::fs::read_dir(world.directory.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with("changes"));
    names.sort();
    assert!(names.len() == 2 && !names.contains(&"changes.000001.ndjson".to_owned()), "{names:?}");
    let last = lines(&read(&world, &names[1]));
    assert_eq!(last.last().unwrap()["new"]["name"], "name 20");
    let whole = names.iter().map(|name| read(&world, name)).collect::<String>();
    let numbers: Vec<_> = lines(&whole).iter().map(|line| line["new"]["name"].as_str().unwrap().to_owned()).collect();
    let expected: Vec<_> = (21 - numbers.len()..=20).map(|n| format!("name {n}")).collect();
    assert_eq!(numbers, expected, "nothing is missing between the files");
    world.run_ok(&["dry-run", "--file", &names[0]]);
}

#[test]
fn a_recording_consumes_its_own_slot() {
    let world = world();
    world.value("select slot_name::text from pg_create_logical_replication_slot('mine', 'pgoutput')");
    let record = || {
        let text = world.run_ok(&["record", "--slot", "mine", "--count", "1"]);
        let free = "select count(*)::text from pg_replication_slots where slot_name = 'mine' and not active";
        wait_until(EVENT_MAX, "the slot is free again", || world.value(free) == "1");
        lines(&text).iter().map(|line| line["new"]["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    world.sql("update users set name = 'x' where id in ('u1', 'u2')");
    world.sql("update users set name = 'x' where id = 'u3'");
    assert_eq!(record(), ["u1", "u2"], "a transaction is whole");
    world.sql("update users set name = 'x' where id = 'u4'");
    assert_eq!(record(), ["u3"]);
    assert_eq!(record(), ["u4"]);
    assert_eq!(world.value("select count(*)::text from pg_replication_slots where temporary"), "0");
}

#[test]
fn a_recording_ends_by_a_signal_or_after_its_duration() {
    let world = world();
    let recorder = record(&world, &["--output", "changes.ndjson", "--tables", "users"]);
    world.sql("update feature_flags set enabled = true");
    world.sql("select unstale.emit('product.updated', '{\"id\": 7}')");
    world.sql("update users set name = 'x' where id = 'u1'");
    wait_until(EVENT_MAX, "the line is in the file", || !read(&world, "changes.ndjson").is_empty());
    assert_eq!(recorder.stop(), Some(0));
    let recorded = lines(&read(&world, "changes.ndjson"));
    assert_eq!(recorded.iter().map(|line| line["table"].as_str().unwrap()).collect::<Vec<_>>(), ["public.users"]);
    let left = "select count(*)::text from pg_replication_slots where temporary";
    wait_until(EVENT_MAX, "the temporary slot is gone", || world.value(left) == "0");
    assert_eq!(world.run_ok(&["record", "--for", "50ms"]), "");
}

#[test]
fn dead_letters_are_replayed_and_removed() {
    let world = world();
    let stream = "v1:unstale:{unstale}:dead";
    let add_dead_letter = |rule: &str, change: &str| {
        let mut add = redis::cmd("XADD");
        add.arg(stream).arg("*").arg("rule").arg(rule).arg("reason").arg("it failed");
        add.arg("at").arg("2026-11-20T12:00:03Z").arg("change").arg(change);
        add.query::<String>(&mut world.redis()).unwrap();
    };
    let mut changes = CHANGES.lines();
    add_dead_letter("user", changes.next().unwrap());
    add_dead_letter("gone", changes.next().unwrap());
    add_dead_letter("product", changes.next().unwrap());
    add_dead_letter("user", "not a change");
    let output = world.run(&["dry-run", "--dead", "--json"]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(lines(&String::from_utf8(output.stdout).unwrap()).len(), 5, "{said}");
    assert!(said.contains("note: 1 dead letter of rules that no longer exist; not replayed: gone (1)"), "{said}");
    assert!(said.contains("is not a valid change and is skipped"), "{said}");

    let keys = ["user:u1", "user-email:old@x", "product:7", "flags:o1"];
    cache(&world, &keys);
    assert_eq!(world.run_ok(&["replay", "--dead", "--yes"]), "applied 5 ops of 3 changes\n");
    assert_eq!(held(&world, &keys), ["flags:o1"]);
    let left: u64 = world.redis().xlen(stream).unwrap();
    assert_eq!(left, 2, "what was not applied stays");
    assert_eq!(world.run_ok(&["replay", "--dead", "--yes"]), "applied 0 ops of 1 changes\n");
}

#[test]
fn lookups_are_run_if_the_database_is_available() {
    const LOOKUPS: &str = "
lookups:
  members: {sql: \"select user_id from memberships where organization_id = $1 order by 1\"}
rules:
  organization: {table: organizations, for_each: \"members({id}) as m\", delete: \"user:{m.user_id}\"}
";
    const CHANGE: &str = r#"{"table":"organizations","op":"delete","old":{"id":"o1"}}"#;
    const EVERYTHING: &str = "{\"rule\":\"organization\",\"op\":\"pattern\",\"key\":\"v1:user:*\"}\n";
    let mut world = World::with_rules(&format!("{HEAD}{LOOKUPS}"));
    write(&world, "changes.ndjson", CHANGE);
    let dry_run = |world: &World, arguments: &[&str]| {
        let arguments = [&["dry-run", "--file", "changes.ndjson", "--json"][..], arguments].concat();
        let output = world.run(&arguments);
        assert!(output.status.success(), "{}", text(&output));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (asked, said) = dry_run(&world, &[]);
    assert!(asked.lines().count() == 10 && asked.contains("\"v1:user:u10\"") && said.is_empty(), "{asked}{said}");
    let (asked, said) = dry_run(&world, &["--no-lookups"]);
    assert!(asked == EVERYTHING && said.lines().count() == 1 && said.contains("lookups are not run"), "{asked}{said}");
    let port = unstale::sandbox::free_port().unwrap();
    world.database_url = format!("postgres://u:hunter2@127.0.0.1:{port}/d");
    let (asked, said) = dry_run(&world, &[]);
    assert!(asked == EVERYTHING && said.contains(&port.to_string()) && !said.contains("hunter2"), "{asked}{said}");
    let output = world.run(&["replay", "--file", "changes.ndjson", "--yes"]);
    assert_eq!(output.status.code(), Some(69), "{}", text(&output));
}
