//! From a commit to a deleted key: every kind of change, through the running daemon.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use redis::Commands as _;
use unstale::plan::ActionKind;
use unstale::sink::Broadcast;

use crate::support::{EVENT_MAX, World, next_message, wait_until};

const USERS: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  user:
    table: users
    delete: [\"user:{id}\", \"user-email:{email|lower}\"]
    publish: {channel: users, data: {id: \"{id}\", email: \"{email}\"}}
";

#[test]
fn a_commit_deletes_exactly_the_stale_keys() {
    let world = World::shipped();
    let check = |sql: &str, gone: &[&str], stays: &[&str]| {
        let name = |key: &&str| format!("v1:{key}");
        gone.iter().chain(stays).for_each(|key| world.cache(&name(key)));
        world.sql(sql);
        world.settle();
        let held: Vec<_> = gone.iter().filter(|key| world.holds(&name(key))).collect();
        assert!(held.is_empty(), "{sql}: still there: {held:?}");
        let lost: Vec<_> = stays.iter().filter(|key| !world.holds(&name(key))).collect();
        assert!(lost.is_empty(), "{sql}: wrongly gone: {lost:?}");
    };
    // If the log carries every old value, `changed` narrows updates; a narrower identity
    // over-invalidates.
    world.sql("alter table users replica identity full; alter table organizations replica identity full");
    let daemon = world.daemon();
    check(
        "update users set email = 'NEW@x.io' where id = 'u1'",
        &["user:u1", "user-email:user1@example.com", "user-email:new@x.io"],
        &["user:u2", "user-email:user2@example.com"],
    );
    check("update users set updated_at = now() where id = 'u1'", &[], &["user:u1", "user-email:new@x.io"]);
    check("update users set avatar_url = null where id = 'u2'", &["user:u2"], &["user:u1"]);
    check("update users set id = 'u77' where id = 'u9' and false; update organizations set id = id", &[], &["org:o1"]);
    check(
        "insert into users (id, email, name) values ('u11', 'u11@x', 'n')",
        &["user:u11", "user-email:u11@x"],
        &["user:u1"],
    );
    check(
        "delete from users where id = 'u3'",
        &["user:u3", "user-email:user3@example.com", "org-members:o1", "permission:u3:o1"],
        &["user:u4"],
    );
    check("begin; update users set name = 'x' where id = 'u4'; rollback", &[], &["user:u4"]);
    check(
        "begin; update users set name = 'x' where id = 'u4'; savepoint s; update users set name = 'y' where id = 'u5'; \
         rollback to s; commit",
        &["user:u4"],
        &["user:u5"],
    );
    check("update feature_flags set enabled = not enabled", &["flags:o1"], &["flags:o2"]);
    check("truncate sessions", &["session:abc", "session:anything at all"], &["user:u1", "sessions"]);
    check("truncate users cascade", &["user:u1", "user:gone", "user-email:x", "permission:a:b"], &["flags:o1"]);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn keys_can_contain_any_value() {
    let world = World::with_rules(USERS);
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    let long = "x".repeat(2000);
    let values = ["a\nb", "*", "u?", "[a-z]", r"back\slash", "ünïcödé 🦀", "{id}", "  ", "\u{1}\u{7f}", "%s$1'", &long];
    for value in values {
        world.cache(&format!("v1:user:{value}"));
        world.cache("v1:user:bystander");
        world.sql(&format!("insert into users (id, email, name) values ($v${value}$v$, $v${value}$v$, '')"));
        world.settle();
        assert!(!world.holds(&format!("v1:user:{value}")), "{value:?}");
        assert!(world.holds("v1:user:bystander"), "{value:?}");
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn version_keys_rise_to_the_commit_position_and_never_fall() {
    let world = World::shipped();
    let daemon = world.daemon();
    let version = || -> u64 {
        let text: String = world.redis().get("v1:flags-version:o1").unwrap();
        text.parse().unwrap()
    };
    world.sql("update feature_flags set enabled = not enabled where id = 'f1-1'");
    world.settle();
    let first = version();
    world.sql("begin; update feature_flags set enabled = false; update feature_flags set enabled = true; commit");
    world.settle();
    let second = version();
    assert!(second > first);
    let _: () = world.redis().set("v1:flags-version:o1", u64::MAX.to_string()).unwrap();
    world.sql("update feature_flags set enabled = false");
    world.settle();
    assert_eq!(version(), u64::MAX, "a higher version stays");
    let _: () = world.redis().del("v1:flags-version:o1").unwrap();
    let _: () = world.redis().lpush("v1:flags-version:o1", "not a version").unwrap();
    world.sql("update feature_flags set enabled = true");
    world.settle();
    assert!(version() > second, "what is no version is replaced");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn subscribers_receive_messages_and_an_unbroken_chain_of_invalidations() {
    let world = World::with_rules(USERS);
    world.run_ok(&["setup"]);
    let mut connection = world.redis();
    connection.set_read_timeout(Some(EVENT_MAX)).unwrap();
    let mut subscriber = connection.as_pubsub();
    subscriber.subscribe("v1:invalidations").unwrap();
    subscriber.subscribe("v1:users").unwrap();
    let daemon = world.daemon();
    let before = SystemTime::now();
    world.sql("update users set email = 'A@x' where id = 'u1'");
    let message = next_message(&mut subscriber);
    assert_eq!(message.get_channel_name(), "v1:users");
    assert_eq!(message.get_payload::<String>().unwrap(), r#"{"id":"u1","email":"A@x"}"#);

    let mut next = || loop {
        let message = next_message(&mut subscriber);
        if message.get_channel_name() == "v1:invalidations" {
            return serde_json::from_slice::<Broadcast>(message.get_payload_bytes()).unwrap();
        }
    };
    let first = next();
    assert_eq!((first.v, first.prev.as_ref(), first.epoch), (1, None, 1));
    let ops: BTreeSet<_> = first.ops.iter().map(|op| (op.op, op.key.as_str())).collect();
    let deletes = ["v1:user-email:a@x", "v1:user-email:user1@example.com", "v1:user:u1"];
    assert_eq!(ops, deletes.map(|key| (ActionKind::Delete, key)).into());
    let at = humantime::parse_rfc3339(&first.at).unwrap();
    assert!(at + Duration::from_secs(60) > before && at < SystemTime::now() + Duration::from_secs(60), "{at:?}");

    world.sql("truncate users cascade");
    let second = next();
    assert_eq!(second.prev.as_ref(), Some(&first.id));
    assert!(second.ops.iter().any(|op| op.op == ActionKind::Pattern && op.key == "v1:user:*"), "{second:?}");
    assert_eq!(daemon.stop(), Some(0));

    let daemon = world.daemon();
    world.sql("insert into users (id, email, name) values ('u50', 'e', 'n')");
    assert_eq!(next().prev, Some(second.id), "another daemon goes on with the chain");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn the_default_identity_suffices_for_keys_of_the_primary_key() {
    let rules = USERS.replace(", \"user-email:{email|lower}\"", "");
    let world = World::with_rules(&rules);
    world.run_ok(&["setup"]);
    assert_eq!(world.value("select relreplident::text from pg_class where relname = 'users'"), "d");
    let daemon = world.daemon();
    for sql in [
        "delete from memberships; delete from sessions; update users set id = 'new' where id = 'u1'",
        "delete from users where id = 'new'",
    ] {
        world.cache("v1:user:u1");
        world.cache("v1:user:new");
        world.cache("v1:user:u2");
        world.sql(sql);
        world.settle();
        assert!(!world.holds("v1:user:new") && world.holds("v1:user:u2"), "{sql}");
    }
    assert!(world.holds("v1:user:u1"), "the second statement did not concern it");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn unchanged_toast_comes_from_a_full_old_row_or_becomes_a_glob() {
    const RULES: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  doc: {table: docs, ops: [insert, update], delete: ['doc:{new.body|sha256}']}
";
    let world = World::with_rules(RULES);
    // Random text does not compress, so it is stored out of line and sent as unchanged.
    world.sql(
        "create table docs (id int primary key, n int, body text); alter table docs replica identity full;
         insert into docs select 1, 0, string_agg(md5(random()::text), '') from generate_series(1, 1000)",
    );
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    let key = format!("v1:doc:{}", world.value("select encode(sha256(body::bytea), 'hex') from docs"));
    for (identity, other_stays) in [("full", true), ("default", false)] {
        world.sql(&format!("alter table docs replica identity {identity}"));
        world.settle();
        world.cache(&key);
        world.cache("v1:doc:other");
        world.sql("update docs set n = n + 1");
        world.settle();
        assert!(!world.holds(&key), "{identity}");
        assert_eq!(world.holds("v1:doc:other"), other_stays, "{identity}");
    }
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_table_can_be_altered_and_renamed_while_streaming() {
    let world = World::with_rules(USERS);
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    let check = |sql: &str, gone: bool| {
        world.cache("v1:user:u1");
        world.sql(sql);
        world.settle();
        assert_eq!(world.holds("v1:user:u1"), !gone, "{sql}");
    };
    check("update users set name = 'a' where id = 'u1'", true);
    check("alter table users add column bio text; update users set bio = 'b' where id = 'u1'", true);
    check("alter table users drop column avatar_url; update users set bio = 'c' where id = 'u1'", true);
    check("alter table users rename to people; update people set bio = 'd' where id = 'u1'", true);
    check("alter table people rename to users; update users set bio = 'e' where id = 'u1'", true);
    assert_eq!(daemon.stop(), Some(0));
}

/// A table of events with two partitions, set up.
pub(crate) fn partitioned() -> World {
    const RULES: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  event: {table: events, delete: ['event:{id}', 'day:{day}']}
";
    let world = World::with_rules(RULES);
    world.sql(
        "create table events (id int, day int, primary key (id, day)) partition by range (day);
         create table events_1 partition of events for values from (1) to (10);
         create table events_2 partition of events for values from (10) to (20);",
    );
    world.run_ok(&["setup"]);
    world
}

/// A commit is streamed before it is visible. Here that state lasts, because the commit waits for a
/// missing standby, so a query of the catalog does not find the partition.
#[test]
fn a_partition_created_by_an_invisible_commit_is_resolved() {
    let world = partitioned();
    let daemon = world.daemon();
    world.cache("v1:event:3");
    world.sql("alter system set synchronous_standby_names = 'missing'");
    world.sql("select pg_reload_conf()");
    wait_until(EVENT_MAX, "commits wait for a standby", || world.value("show synchronous_standby_names") == "missing");
    let writer = world.sql_in_background(
        "create table events_3 partition of events for values from (20) to (30); insert into events values (3, 25)",
    );
    let waits = "select count(*)::text from pg_stat_activity where wait_event = 'SyncRep'";
    wait_until(EVENT_MAX, "the commit waits", || world.value(waits) == "1");
    let asked = "select count(*)::text from pg_stat_activity where pid <> pg_backend_pid() and query like '%pg_inherits join above%'";
    wait_until(EVENT_MAX, "the daemon asks the catalog", || world.value(asked) == "1");
    assert!(!world.value("select coalesce(to_regclass('events_3')::text, '')").contains("events_3"));
    world.sql("alter system reset synchronous_standby_names");
    world.sql("select pg_reload_conf()");
    writer.join().unwrap();
    world.settle();
    assert!(!world.holds("v1:event:3"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn changes_of_partitions_fire_rules_of_the_root() {
    let world = partitioned();
    let daemon = world.daemon();
    let check = |sql: &str, gone: &[&str]| {
        gone.iter().for_each(|key| world.cache(key));
        world.sql(sql);
        world.settle();
        let held: Vec<_> = gone.iter().filter(|key| world.holds(key)).collect();
        assert!(held.is_empty(), "{sql}: still there: {held:?}");
    };
    check("insert into events values (1, 5)", &["v1:event:1", "v1:day:5"]);
    check("update events set day = 15 where id = 1", &["v1:event:1", "v1:day:5", "v1:day:15"]);
    check("truncate events_2", &["v1:event:1", "v1:event:9", "v1:day:7"]);
    check(
        "create table events_3 partition of events for values from (20) to (30); insert into events values (3, 25)",
        &["v1:event:3"],
    );
    check("truncate events", &["v1:event:77"]);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_thousand_rules_on_a_hundred_tables() {
    let mut rules = USERS.to_owned();
    let mut tables = String::new();
    for table in 0..100 {
        tables.push_str(&format!("create table t{table} (id int primary key);"));
        for rule in 0..10 {
            rules.push_str(&format!("  r{table}-{rule}: {{table: t{table}, delete: 'k{rule}:{table}:{{id}}'}}\n"));
        }
    }
    let world = World::with_rules(&rules);
    world.sql(&tables);
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    for key in ["v1:k0:99:7", "v1:k9:99:7", "v1:k0:98:7"] {
        world.cache(key);
    }
    world.sql("insert into t99 values (7)");
    world.settle();
    assert!(!world.holds("v1:k0:99:7") && !world.holds("v1:k9:99:7") && world.holds("v1:k0:98:7"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_transaction_of_any_size_is_applied_in_constant_memory() {
    let world = World::with_rules(USERS);
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    let insert = |first: u32, count: u32| {
        let last = first + count - 1;
        world.sql(&format!("insert into users (id, email, name) select 'x' || n, 'x' || n, repeat('n', 500) from generate_series({first}, {last}) n"));
        world.settle();
    };
    world.cache("v1:user:x300000");
    insert(1, 20_000);
    let small = daemon.memory();
    insert(100_001, 200_000);
    assert!(!world.holds("v1:user:x300000"));
    assert!(daemon.memory() < small + 20, "from {small} to {} MB", daemon.memory());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn unpublished_changes_are_confirmed() {
    let world = World::shipped();
    let daemon = world.daemon();
    world.sql("create table unpublished (n int); insert into unpublished select generate_series(1, 10000)");
    let end = world.value("select pg_current_wal_lsn()::text").parse().unwrap();
    wait_until(EVENT_MAX, "the slot moves past unpublished writes", || world.confirmed() >= end);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn postgresql_can_be_shut_down_while_streaming() {
    let mut world = World::shipped();
    let daemon = world.daemon();
    world.cache("v1:user:u1");
    world.sql("update users set name = 'last words' where id = 'u1'");
    // A fast shutdown waits until every walsender's client has confirmed everything.
    let pid = world.postgres.pid().unwrap();
    assert!(unstale::sandbox::signal(pid, "INT"));
    wait_until(EVENT_MAX, "PostgreSQL ends", || !unstale::sandbox::signal(pid, "0"));
    daemon.wait_for_log("no replication");
    world.postgres.stop();
    world.postgres.restart().unwrap();
    world.reconnect();
    daemon.wait_for_log("streaming");
    // Its visibility could not be determined any more, so it may have been delayed until now.
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    assert_eq!(world.epoch(), 1, "it stopped cleanly: nothing was lost");
    world.cache("v1:user:u2");
    world.sql("update users set name = 'back' where id = 'u2'");
    world.settle();
    assert!(!world.holds("v1:user:u2"));
    assert_eq!(daemon.stop(), Some(0));
}

/// A file with the servers and these rules.
fn rules(rules: &str) -> String {
    let head = "version: 1\nsource: {url: '${DATABASE_URL}'}\ntarget: {url: '${REDIS_URL}', namespace: 'v1:'}\n";
    format!("{head}rules:\n{rules}")
}

#[test]
fn changes_of_child_tables_fire_rules_of_the_parent() {
    let world = World::with_rules(&rules("  base: {table: base, delete: 'base:{id}'}\n"));
    world.sql("create table base (id int primary key, v text); create table child (extra text) inherits (base)");
    if !world.takes_full_identities() {
        world.sql("alter table child add primary key (id)");
    }
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    let statements = [
        "insert into child values (7, 'a')",
        "update base set v = 'b'",
        "delete from child",
        "insert into base values (7)",
    ];
    for sql in statements {
        world.cache("v1:base:7");
        world.sql(sql);
        world.settle();
        assert!(!world.holds("v1:base:7"), "{sql}");
    }
    assert_eq!(daemon.stop(), Some(0));
}

/// PostgreSQL refuses updates of a published table whose replica identity is not usable.
#[test]
fn setup_publishes_no_table_that_would_become_unwritable() {
    let both = "  late: {table: late, delete: 'late:{id}'}\n  bare: {table: bare, ops: insert, delete: 'bare'}\n";
    let world = World::with_rules(&rules(both));
    world.sql(
        "create table late (id int primary key deferrable initially deferred, v text); create table bare (v text)",
    );
    world.sql("insert into late values (1, 'a'); insert into bare values ('a')");
    let said = crate::support::text(&world.run(&["check"]));
    assert!(said.contains("no replica identity") && said.contains("REPLICA IDENTITY FULL"), "{said}");
    if !world.takes_full_identities() {
        let said = crate::support::text(&world.run(&["setup"]));
        assert!(said.contains("has no replica identity"), "{said}");
        world.sql("update late set v = 'b'; update bare set v = 'b'; delete from bare");
        return;
    }
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    world.cache("v1:late:1");
    world.sql("update late set v = 'b'; update bare set v = 'b'; delete from bare");
    world.settle();
    assert!(!world.holds("v1:late:1"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_database_without_an_encoding_is_read_as_bytes() {
    let mut world = World::with_rules(&rules("  t: {table: t, delete: 't:{id}'}\n"));
    world.sql("create database plain encoding 'SQL_ASCII' template template0");
    world.database_url = world.postgres.url("plain");
    let run = |sql: &str| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime
            .block_on(async { crate::support::connect(&world.database_url).await.batch_execute(sql).await.unwrap() });
    };
    run("create table t (id text primary key)");
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    let mut redis = world.redis();
    let _: () = redis.set(&b"v1:t:\xff"[..], "cached").unwrap();
    world.cache("v1:t:after");
    run(r"set client_encoding to 'SQL_ASCII'; insert into t values (E'\xff')");
    run("insert into t values ('after')");
    wait_until(EVENT_MAX, "the row after it", || !world.holds("v1:t:after"));
    assert!(!redis.exists::<_, bool>(&b"v1:t:\xff"[..]).unwrap());
    assert_eq!(daemon.stop(), Some(0));
}
