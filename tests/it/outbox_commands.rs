//! The commands that read an outbox: pending entries are previewed, replayed and recorded, and
//! stay.

use std::collections::BTreeSet;

use serde_json::Value;
use unstale::change::Lsn;

use crate::support::{Daemon, EVENT_MAX, World, in_outbox_mode, text, wait_until};

const RULES: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  user:
    table: users
    changed: [email, name]
    delete: [\"user:{id}\", \"user-email:{email|lower}\"]
    publish: {channel: users, data: {id: \"{id}\"}}
  newest: {table: users, ops: insert, delete: \"newest-user\"}
  flag:
    table: feature_flags
    delete: \"flags:{organization_id}\"
    bump: \"flags-version:{organization_id}\"
  session: {table: sessions, ops: delete, delete: \"session:{token_hash}\"}
  product: {event: product.updated, delete: \"product:{id}\"}
";

/// Everything that the rules of the tables can delete.
const ALL: [&str; 6] =
    ["v1:user:*", "v1:user-email:*", "v1:newest-user", "v1:flags:*", "v1:flags-version:*", "v1:session:*"];

/// Set up, with an empty outbox.
fn world() -> World {
    let world = World::outbox(RULES, "");
    world.sql("delete from unstale.outbox");
    world
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn recorded(world: &World) -> String {
    std::fs::read_to_string(world.directory.path().join("changes.ndjson")).unwrap_or_default()
}

/// Records this number of changes, pending ones first.
fn recorder(world: &World, count: &str, arguments: &[&str]) -> Daemon {
    let fixed = ["record", "--output", "changes.ndjson", "--count", count];
    Daemon::start(world.command(&[&fixed[..], arguments].concat()))
}

/// The values of a column in these lines.
fn values(lines: &[Value], image: &str, column: &str) -> Vec<String> {
    lines.iter().map(|line| line[image][column].as_str().unwrap().to_owned()).collect()
}

#[test]
fn pending_entries_are_previewed_and_stay() {
    let world = world();
    assert_eq!(world.run_ok(&["dry-run", "--slot", "--json"]), "");
    world.sql("update users set name = 'x' where id = 'u1'");
    world.sql("begin; update users set name = 'y' where id = 'u2'; delete from sessions where id = 's3'; commit");
    world.sql("select unstale.emit('product.updated', '{\"id\": 7}')");
    let first = world.run_ok(&["dry-run", "--slot", "--json"]);
    for key in ["v1:user:u1", "v1:user:u2", "v1:session:", "v1:product:7"] {
        assert!(first.contains(key), "{key} is not in {first}");
    }
    assert_eq!(world.run_ok(&["dry-run", "--slot", "--json"]), first);
    let limited = world.run_ok(&["dry-run", "--slot", "--json", "--limit", "1"]);
    assert!(first.starts_with(&limited) && limited.contains("user:u1") && !limited.contains("user:u2"), "{limited}");
    let keys = ["v1:user:u1", "v1:user:u2", "v1:product:7"];
    keys.iter().for_each(|key| world.cache(key));
    assert_eq!(world.run_ok(&["replay", "--slot", "--yes"]), "applied 8 ops of 4 changes\n");
    assert!(!keys.iter().any(|key| world.holds(key)));
    assert_eq!(world.entries(), 4, "nothing was consumed");

    let daemon = world.daemon();
    wait_until(EVENT_MAX, "the daemon met all of it, too", || world.entries() == 0);
    assert_eq!(world.run_ok(&["dry-run", "--slot", "--json"]), "", "a daemon at work is no hindrance");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn changes_are_recorded_in_commit_order() {
    let world = world();
    let late = world.another_client();
    world.sql_on(&late, "begin; update users set name = 'late' where id = 'u1'");
    let mut recorder = recorder(&world, "2", &[]);
    world.sql("update users set name = 'early' where id = 'u2'");
    wait_until(EVENT_MAX, "the first line is in the file", || recorded(&world).contains("early"));
    assert!(!world.run_ok(&["dry-run", "--slot", "--json"]).contains("v1:user:u1"), "it is not visible yet");
    world.sql_on(&late, "commit");
    assert_eq!(recorder.wait(), Some(0), "{:?}", recorder.log());
    assert_eq!(values(&lines(&recorded(&world)), "new", "name"), ["early", "late"]);
    let by_number = world.value("select string_agg(array_to_string(new, ' '), ',' order by id) from unstale.outbox");
    assert!(by_number.find("late") < by_number.find("early"), "the late one has the lower number: {by_number}");
    assert_eq!(world.entries(), 2);
}

#[test]
fn interleaved_transactions_are_recorded_whole() {
    let world = world();
    let [one, other] = [world.another_client(), world.another_client()];
    world.sql_on(&one, "begin; update users set name = 'a1' where id = 'u1'");
    world.sql_on(&other, "begin; update users set name = 'b' where id = 'u2'");
    world.sql_on(&one, "update users set name = 'a2' where id = 'u3'");
    world.sql_on(&one, "commit");
    world.sql_on(&other, "commit");
    let mut recorder = recorder(&world, "3", &[]);
    assert_eq!(recorder.wait(), Some(0), "{:?}", recorder.log());
    let lines = lines(&recorded(&world));
    assert_eq!(values(&lines, "new", "name"), ["b", "a1", "a2"]);
    assert!(lines[0]["xid"] != lines[1]["xid"] && lines[1]["xid"] == lines[2]["xid"], "{lines:?}");
    let end = world.token();
    assert!(lines.iter().all(|line| line["lsn"].as_str().unwrap().parse::<Lsn>().unwrap() <= end), "{lines:?}");
}

#[test]
fn many_entries_are_read_page_by_page() {
    let world = world();
    world.sql("insert into users (id, email, name) select 'n' || n, n || '@many', 'n' from generate_series(1, 2500) n");
    let planned = world.run_ok(&["dry-run", "--slot", "--json"]);
    let users = lines(&planned).iter().filter(|line| line["key"].as_str().unwrap().starts_with("v1:user:n")).count();
    assert_eq!(users, 2500);
    let mut recorder = recorder(&world, "2500", &[]);
    assert_eq!(recorder.wait(), Some(0), "{:?}", recorder.log());
    let recorded = recorded(&world);
    assert_eq!(recorded.lines().count(), 2500);
    assert_eq!(world.run_ok(&["dry-run", "--file", "changes.ndjson", "--json"]), planned);
    assert_eq!(world.entries(), 2500);
}

#[test]
fn a_recording_gives_the_ops_of_pending_entries_and_is_redacted() {
    let world = world();
    world.sql("update users set email = 'Secret@example.com' where id = 'u1'");
    world.sql("update feature_flags set enabled = not enabled where id = 'f1-1'");
    world.sql("select unstale.emit('product.updated', '{\"id\": 7}')");
    world.sql("truncate sessions");
    let planned = world.run_ok(&["dry-run", "--slot", "--json"]);
    let mut recorder = recorder(&world, "4", &[]);
    assert_eq!(recorder.wait(), Some(0), "{:?}", recorder.log());
    assert_eq!(world.run_ok(&["dry-run", "--file", "changes.ndjson", "--json"]), planned);

    let redacted = world.run_ok(&["record", "--tables", "users", "--redact", "users.email", "--count", "1"]);
    let line = &lines(&redacted)[0];
    assert!(!redacted.contains("@example.com") && line["table"] == "public.users", "{redacted}");
    let emails = ["old", "new"].map(|image| line[image]["email"].as_str().unwrap().to_owned());
    assert!(emails[0] != emails[1] && emails.iter().all(|email| email.starts_with("[redacted:")), "{emails:?}");
    assert_eq!(world.entries(), 4, "nothing was consumed");
}

/// Changes from before the trigger existed are unknown, so every rule of the table acts, whatever
/// its `ops`.
#[test]
fn an_unknown_change_deletes_everything_its_rules_match() {
    let world = World::outbox(RULES, "");
    world.sql(
        "do $$ declare t record; begin for t in select tgrelid::regclass, tgname from pg_trigger \
         where tgname like '%unstale_row_%' loop execute format('drop trigger %I on %s', t.tgname, t.tgrelid); \
         end loop; end $$",
    );
    world.run_ok(&["setup"]);
    let expected = BTreeSet::from(ALL);
    let planned = world.run_ok(&["dry-run", "--slot", "--json"]);
    let planned = lines(&planned);
    let keys: BTreeSet<_> = planned.iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert_eq!(keys, expected);
    assert!(planned.iter().all(|line| line["op"] == "pattern"), "{planned:?}");

    let mut recorder = recorder(&world, "12", &[]);
    recorder.wait_for_log("it is not known what changed");
    assert_eq!(recorder.wait(), Some(0), "{:?}", recorder.log());
    let from_file = world.run_ok(&["dry-run", "--file", "changes.ndjson", "--json"]);
    let from_file = lines(&from_file);
    let keys: BTreeSet<_> = from_file.iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert!(keys.is_superset(&expected), "{keys:?}");

    ["v1:user:u1", "v1:newest-user", "v1:other"].iter().for_each(|key| world.cache(key));
    world.run_ok(&["replay", "--slot", "--yes"]);
    assert!(!world.holds("v1:user:u1") && !world.holds("v1:newest-user") && world.holds("v1:other"));
}

#[test]
fn a_recording_beside_a_daemon_warns_of_missed_changes() {
    let world = world();
    let daemon = world.daemon();
    let recorder = Daemon::start(world.command(&["record", "--output", "changes.ndjson"]));
    recorder.wait_for_log("a daemon is at work");
    assert_eq!(recorder.stop(), Some(0));
    assert_eq!(daemon.stop(), Some(0));
    let without = "select count(*)::text from pg_locks where locktype = 'advisory'";
    wait_until(EVENT_MAX, "the daemon's session is over", || world.value(without) == "0");
    let output = world.run(&["record", "--for", "50ms"]);
    let said = text(&output);
    assert!(output.status.success() && !said.contains("daemon"), "{said}");
}

#[test]
fn commands_that_need_a_slot_are_refused_without_one() {
    let world = World::with(&in_outbox_mode(RULES), &["wal_level=replica"], &[]);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["record", "--slot", "mine"], 2, "omit it"),
        (&["record", "--publication", "mine"], 2, "--tables"),
        (&["record"], 78, "unstale setup"),
        (&["dry-run", "--slot"], 78, "unstale setup"),
        (&["replay", "--slot", "--yes"], 78, "unstale setup"),
    ];
    for (arguments, code, word) in cases {
        let output = world.run(arguments);
        let said = text(&output);
        assert!(output.status.code() == Some(*code) && said.contains(word), "{arguments:?}: {said}");
    }
}
