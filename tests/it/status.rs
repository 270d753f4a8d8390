//! `unstale status`: both modes, with and without a daemon, and with a server away.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use serde_json::Value;
use unstale::change::Lsn;
use unstale::sandbox;

use crate::support::{EVENT_MAX, SHIPPED, World, in_outbox_mode, text, wait_until};

fn status(world: &World) -> Value {
    let printed = world.run_ok(&["status", "--json"]);
    assert_eq!(printed.lines().count(), 1, "{printed}");
    serde_json::from_str(&printed).unwrap()
}

fn lsn(value: &Value) -> Lsn {
    value.as_str().unwrap().parse().unwrap()
}

/// Fails unless the text has all of these parts.
fn check(world: &World, parts: &[&str]) {
    let said = world.run_ok(&["status"]);
    assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} are not all in {said}");
}

#[test]
fn a_slot_and_its_progress_are_shown() {
    let world = World::shipped();
    check(&world, &["replication slot `unstale`", "daemon     none reads it", "applied    none"]);
    let before = status(&world);
    assert!(before["mode"] == "slot" && before["slot"] == "unstale" && before["source"]["active"] == false, "{before}");
    assert_eq!(before["source"]["wal_status"], "reserved");
    assert!(before["source"]["retained_bytes"].as_i64() >= before["source"]["lag_bytes"].as_i64(), "{before}");
    assert!(before["target"]["applied"].is_null() && before["target"]["epoch"].is_null(), "{before}");

    let daemon = world.daemon();
    world.sql("update users set name = 'x' where id = 'u1'");
    world.settle();
    check(
        &world,
        &[
            "daemon     reads it",
            "every commit up to this position is in force",
            "(nothing-remembered 1)",
            "dead       0",
        ],
    );
    wait_until(EVENT_MAX, "the daemon tells the time", || status(&world)["target"]["asof_age_ms"].is_number());
    let applied = world.applied();
    let now = status(&world);
    assert!(lsn(&now["target"]["applied"]) >= applied, "{now}");
    assert!(now["target"]["epoch"] == 1 && now["target"]["epochs"]["nothing-remembered"] == 1, "{now}");
    assert!(now["source"]["active"] == true && now["source"]["lag_bytes"].is_u64(), "{now}");
    assert_eq!(daemon.stop(), Some(0));
    wait_until(EVENT_MAX, "no daemon reads the slot", || status(&world)["source"]["active"] == false);
}

#[test]
fn an_outbox_and_its_pending_entries_are_shown() {
    let world = World::outbox(SHIPPED, "");
    world.sql("delete from unstale.outbox");
    check(&world, &["outbox at ", "daemons    none at work", "entries    0\n", "applied    none"]);
    world.sql("update users set name = 'x' where id in ('u1', 'u2')");
    let before = status(&world);
    let source = &before["source"];
    assert!(before["mode"] == "outbox" && source["depth"] == 2 && source["deeper"] == false, "{before}");
    assert!(source["daemons"] == 0 && source["consumer"] == "unstale" && source["batches"] == 0, "{before}");
    assert!(source["oldest_seconds"].as_f64().unwrap() >= 0.0 && source["bytes"].as_u64().unwrap() > 0, "{before}");
    check(&world, &["entries    2, the oldest "]);

    let daemon = world.daemon();
    wait_until(EVENT_MAX, "the outbox is empty", || world.entries() == 0);
    world.settle();
    check(&world, &["daemons    1 at work", "every commit that was visible when the log was here is in force"]);
    let applied = world.applied();
    let now = status(&world);
    let (source, target) = (&now["source"], &now["target"]);
    assert!(source["depth"] == 0 && source["oldest_seconds"].is_null() && source["daemons"] == 1, "{now}");
    assert!(lsn(&target["applied"]) >= applied && target["epoch"] == 1, "{now}");
    assert!(target["batches"].as_u64() >= source["batches"].as_u64() && source["batches"].is_u64(), "{now}");
    assert_eq!(daemon.stop(), Some(0));
    wait_until(EVENT_MAX, "no daemon is at work", || status(&world)["source"]["daemons"] == 0);
}

#[test]
fn failures_and_streams_are_counted() {
    let world = World::shipped();
    let mut redis = world.redis();
    let mut write = |command: &str, arguments: &[&str]| {
        redis::cmd(command).arg(arguments).exec(&mut redis).unwrap();
    };
    write("HSET", &["v1:unstale:{unstale}:failures", "user", "7"]);
    write("XADD", &["v1:unstale:{unstale}:dead", "*", "rule", "user"]);
    write("HSET", &["v1:unstale:{unstale}:streams", "v1:changes", "h 0000000000000001-0"]);
    check(&world, &["dead       1 letter; failed (user 7)", "streams    1: v1:changes"]);
    let status = status(&world);
    let counted = &status["target"];
    assert!(counted["failures"]["user"] == 7 && counted["dead"] == 1, "{counted}");
    assert!(counted["streams"] == 1 && counted["stream_names"][0] == "v1:changes", "{counted}");
}

#[test]
fn one_server_is_shown_while_the_other_is_unavailable() {
    let mut world = World::shipped();
    world.redis.stop();
    let output = world.run(&["status"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("confirmed  ") && said.contains("cannot use Redis"), "{said}");
    let output = world.run(&["status", "--json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(shown["source"]["active"] == false && shown["target"]["error"].is_string(), "{shown}");
    assert_eq!(output.status.code(), Some(69));

    world.redis.restart().unwrap();
    let port = sandbox::free_port().unwrap();
    world.database_url = format!("postgres://u:hunter2@127.0.0.1:{port}/d");
    let output = world.run(&["status"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains(&port.to_string()) && said.contains("namespace `v1:`"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_missing_setup_is_reported_with_the_rest() {
    let check = |world: &World, word: &str| {
        let output = world.run(&["status"]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(word) && said.contains("unstale setup") && said.contains("namespace `v1:`"), "{said}");
    };
    let world = World::with_rules(SHIPPED);
    check(&world, "no replication slot `unstale`");
    world.write_rules(&in_outbox_mode(SHIPPED));
    check(&world, "no outbox");
    world.write_rules("version: 2\n");
    let output = world.run(&["status"]);
    assert!(output.status.code() == Some(78) && output.stdout.is_empty(), "{}", text(&output));
}

#[test]
fn watch_ends_by_a_signal_or_a_closed_pipe() {
    let world = World::shipped();
    let start = || {
        let mut command = world.command(&["status", "--watch", "--json"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..2 {
            let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            assert_eq!(line["mode"], "slot");
        }
        (child, lines)
    };
    let (mut child, lines) = start();
    assert!(sandbox::signal(child.id(), "TERM"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(lines);
    let (mut child, lines) = start();
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
