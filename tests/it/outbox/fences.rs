//! Protection against late claims, another outbox, role settings and our own commands.

use redis::Commands as _;
use tokio_postgres::SimpleQueryMessage;

use super::{ORDERED, USERS, card, check, streamed, wait_until_drained};
use crate::proxy::{Fault, Proxy};
use crate::support::{Daemon, EVENT_MAX, World, connect, in_outbox_mode, wait_until};

/// Starts a daemon that reaches Redis through a proxy. Later daemons reach it directly.
fn daemon_behind_a_proxy(world: &mut World) -> (Daemon, Proxy) {
    let to_redis = Proxy::start(world.redis.port());
    let direct = std::mem::replace(&mut world.redis_url, format!("redis://127.0.0.1:{}", to_redis.port()));
    let daemon = world.daemon();
    world.redis_url = direct;
    (daemon, to_redis)
}

/// From now on, commands and daemons log in as this role.
fn work_as(world: &mut World, role: &str) {
    world.database_url = world.database_url.replace("postgres@", &format!("{role}@"));
}

fn batches(world: &World) -> u64 {
    world.redis().get("v1:unstale:{unstale}:batches").unwrap()
}

/// Lets the claim of this user's entry reach Redis and holds back the answer. Redis has saved its
/// state from before the claim.
fn hold_the_answer(world: &World, to_redis: &Proxy, id: &str) {
    const TRIES: usize = 20;
    let key = format!("v1:user:{id}");
    for number in 0..TRIES {
        to_redis.set(Fault::None);
        world.settle();
        wait_until_drained(world);
        world.cache(&key);
        redis::cmd("SAVE").exec(&mut world.redis()).unwrap();
        to_redis.set(Fault::HoldAfter(1));
        world.sql(&format!("update users set name = 'try {number}' where id = '{id}'"));
        wait_until(EVENT_MAX, "something is held back", || to_redis.holds());
        if !world.holds(&key) {
            return;
        }
        // Other traffic of the daemon came through.
    }
    panic!("in {TRIES} tries no claim came through");
}

/// Fails if the outbox does not record which dataset it is emptied into: the count of batches alone
/// matches, because the other daemon has raised it meanwhile.
#[test]
fn a_daemon_that_resumes_late_does_not_confirm_what_redis_lost() {
    let mut world = World::outbox(USERS, "");
    let (late, to_redis) = daemon_behind_a_proxy(&mut world);
    hold_the_answer(&world, &to_redis, "u9");
    late.signal("STOP");
    let counted = batches(&world);
    world.redis.stop();
    world.redis.restart().unwrap();
    assert!(world.holds("v1:user:u9") && batches(&world) < counted, "it came back");

    let other = world.daemon();
    for round in 0..3 {
        world.cache("v1:user:u2");
        world.sql(&format!("update users set name = 'round {round}' where id = 'u2'"));
        wait_until(EVENT_MAX, "the other one works", || !world.holds("v1:user:u2"));
    }
    let is_further = || batches(&world) > counted && world.entries() == 1;
    wait_until(EVENT_MAX, "it has counted further and confirmed that", is_further);
    assert!(world.holds("v1:user:u9") && world.claimed() == 1, "{:?}", other.log());
    // The answer arrives, and nothing after it, so the daemon cannot empty the cache to make up for
    // what it confirms.
    to_redis.set(Fault::HoldAfter(1));
    late.signal("CONT");
    wait_until_drained(&world);
    assert!(!world.holds("v1:user:u9"), "{:?}", late.log());
    late.wait_for_log("the outbox is not read");
    to_redis.set(Fault::None);
    check(&world, "update users set name = 'both' where id = 'u3'", &["v1:user:u3"], &[]);
    assert_eq!(late.stop(), Some(0));
    assert_eq!(other.stop(), Some(0));
}

/// Fails if the table's file is not part of history: the OID stays the same.
#[test]
fn a_truncated_outbox_begins_a_new_epoch() {
    for how in ["", " restart identity"] {
        let world = World::outbox(USERS, "");
        let daemon = world.daemon();
        for round in 0..10 {
            world.sql(&format!("update users set name = 'round {round}' where id = 'u1'"));
            world.settle();
        }
        world.cache("v1:user:u9");
        // Only this transaction ever saw the entry.
        let lose = "update users set name = 'lost' where id = 'u9'";
        world.sql(&format!("begin; {lose}; truncate unstale.outbox{how}; commit"));
        wait_until(EVENT_MAX, "the cache is emptied", || !world.holds("v1:user:u9"));
        for id in ["u1", "u2", "u3"] {
            let key = format!("v1:user:{id}");
            check(&world, &format!("update users set name = 'after' where id = '{id}'"), &[&key], &[]);
        }
        assert_eq!((world.epochs_because("other-source"), world.epoch()), (1, 2), "truncate{how}: {:?}", daemon.log());
        assert_eq!(daemon.stop(), Some(0));
    }
}

/// Fails without a check whether the highest number went back: entries below the floor are not
/// looked for.
#[test]
fn entries_are_found_after_their_sequence_restarts() {
    let world = World::outbox(USERS, "");
    let daemon = world.daemon();
    for round in 0..30 {
        world.sql(&format!("update users set name = 'round {round}' where id = 'u1'"));
        world.settle();
    }
    wait_until_drained(&world);
    world.sql("alter sequence unstale.outbox_id_seq restart");
    for id in ["u1", "u2", "u3"] {
        let key = format!("v1:user:{id}");
        check(&world, &format!("update users set name = 'after' where id = '{id}'"), &[&key], &[]);
    }
    let given = world.value("select last_value::text from unstale.outbox_id_seq");
    assert!(given.parse::<u64>().unwrap() < 10, "{given} is not low");
    assert_eq!(daemon.stop(), Some(0));
}

/// Fails if marks consist of the entries' numbers alone.
#[test]
fn marks_of_a_dropped_outbox_hide_no_entry_of_the_next() {
    let world = World::outbox(ORDERED, "");
    let daemon = world.daemon();
    let update = |name: &str| world.sql(&format!("update users set name = '{name}' where id = 'u1'"));
    update("one");
    world.settle();
    // Nothing can be confirmed, so no mark is removed.
    let holder = world.another_client();
    world.sql_on(&holder, "begin; lock table unstale.consumer in access exclusive mode");
    update("two");
    wait_until(EVENT_MAX, "it is in the stream", || streamed(&world) == ["one", "two"]);
    daemon.signal("KILL");
    drop(daemon);
    world.sql_on(&holder, "rollback");
    let marks: u64 = world.redis().hlen("v1:unstale:{unstale}:added").unwrap();
    assert!(marks > 0, "there is nothing that could be taken for another");

    world.run_ok(&["teardown"]);
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    let mut expected = vec!["one".to_owned(), "two".to_owned()];
    for number in 0..5 {
        let name = format!("again {number}");
        update(&name);
        expected.push(name);
    }
    world.settle();
    assert_eq!(streamed(&world), expected, "{:?}", daemon.log());
    assert_eq!(daemon.stop(), Some(0));
}

/// Fails without the lock of the connections that claim: the right to work belongs to another
/// connection, and ends with that one alone.
#[test]
fn a_standby_waits_for_every_connection_that_claims() {
    const RIGHT: &str = "from pg_locks join pg_stat_activity using (pid) where application_name = 'first' \
         and locktype = 'advisory' and classid = 1970172788 and objid = 1 and granted";
    for thaws in [true, false] {
        let mut world = World::outbox(ORDERED, "");
        let url = world.database_url.clone();
        world.database_url.push_str("?application_name=first");
        let (first, to_redis) = daemon_behind_a_proxy(&mut world);
        world.database_url = url;
        world.sql("update users set name = 'in force' where id = 'u1'");
        world.settle();
        to_redis.set(Fault::HalfOpen);
        world.sql("update users set name = 'old' where id = 'u1'");
        wait_until(EVENT_MAX, "it is in the middle of a claim", || world.claimed() == 1);
        // It cannot notice now what happens to it.
        first.signal("STOP");
        let second = world.daemon_unready();
        second.wait_for_log("another daemon works on the outbox");
        assert_eq!(world.value(&format!("select count(pg_terminate_backend(pid))::text {RIGHT}")), "1");
        wait_until(EVENT_MAX, "the right is free", || world.value(&format!("select count(*)::text {RIGHT}")) == "0");
        world.sql("update users set name = 'new' where id = 'u1'");
        // Each attempt is a session. A daemon that gets the lock needs three and then no more, and
        // may have opened one before.
        let sessions = || -> u64 {
            let sessions = "select sessions::text from pg_stat_database where datname = current_database()";
            world.value(sessions).parse().unwrap()
        };
        let before = sessions();
        wait_until(EVENT_MAX, "the second one tries again and again", || sessions() >= before + 5);
        assert!(!second.log().iter().any(|line| line.contains("streaming")), "{:?}", second.log());
        assert_eq!((streamed(&world), card(&world, "u1").as_deref()), (vec!["in force".to_owned()], Some("in force")));

        if thaws {
            to_redis.set(Fault::None);
            first.signal("CONT");
        } else {
            first.signal("KILL");
        }
        world.settle();
        let held = card(&world, "u1");
        assert!(held.is_none() || held.as_deref() == Some("new"), "thaws {thaws}: {held:?}");
        assert_eq!(streamed(&world), ["in force", "old", "new"], "thaws {thaws}");
        assert_eq!(second.stop(), Some(0));
        if thaws {
            assert_eq!(first.stop(), Some(0));
        }
    }
}

/// Fails without EXECUTE on the capture function for the table's owner: PostgreSQL creates a
/// trigger for each partition, as the role that creates the partition.
#[test]
fn the_owner_of_a_table_can_create_partitions_after_setup() {
    const RULES: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  event: {table: events, delete: ['event:{id}', 'day:{day}']}
";
    const TABLES: &str = "
create role keeper;
grant create on schema public to keeper;
create table events (id int, day int, primary key (id, day)) partition by range (day);
alter table events owner to keeper;";
    let world = World::outbox(RULES, TABLES);
    let daemon = world.daemon();
    check(
        &world,
        "set role keeper; create table events_1 partition of events for values from (1) to (10); \
         insert into events values (1, 5); reset role",
        &["v1:event:1", "v1:day:5"],
        &[],
    );
    check(
        &world,
        "set role keeper; create table arrived (like events including all); insert into arrived values (8, 15); \
         alter table events attach partition arrived for values from (10) to (20); update arrived set id = 9; reset role",
        &["v1:event:8", "v1:event:9", "v1:day:15"],
        &[],
    );
    check(&world, "update events set id = 2 where id = 1", &["v1:event:1", "v1:event:2"], &["v1:event:3"]);
    assert_eq!(daemon.stop(), Some(0));
}

/// Fails if one of them waits longer than `deadlock_timeout` for a lock. PostgreSQL checks for a
/// deadlock once, after that time; a session that starts to wait later finds the deadlock and
/// fails.
#[test]
fn setup_and_teardown_cause_no_deadlock_errors_in_applications() {
    const RULES: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  user: {table: users, delete: 'user:{id}'}
  organization: {table: organizations, delete: 'organization:{id}'}
";
    const WAITING: &str = "from pg_locks l join pg_stat_activity a using (pid) \
         where a.application_name = 'command' and not l.granted";
    let mut world = World::with(&in_outbox_mode(RULES), &["wal_level=replica"], &[]);
    world.database_url.push_str("?application_name=command");
    let since = || world.value(&format!("select coalesce(max(l.waitstart)::text, '') {WAITING}"));
    let long = format!("select count(*)::text {WAITING} and l.waitstart < clock_timestamp() - interval '1500 ms'");
    let application = world.another_client();
    for (command, undo) in [("setup", "teardown"), ("teardown", "setup")] {
        // One of these conflicts with either order of the tables.
        for [first, last] in [["users", "organizations"], ["organizations", "users"]] {
            world.run_ok(&[undo]);
            world.sql_on(&application, &format!("begin; update {first} set name = 'first'"));
            let mut running = Daemon::start(world.command(&[command]));
            wait_until(EVENT_MAX, "it waits for a lock", || !since().is_empty());
            let began = since();
            wait_until(EVENT_MAX, "it has looked for a deadlock, or given up and tried again", || {
                let now = since();
                running.has_ended() || world.value(&long) != "0" || !now.is_empty() && now != began
            });
            world.sql_on(&application, &format!("update {last} set name = 'last'; commit"));
            let code = running.wait();
            let said = running.log();
            let gave_up = code == Some(69) && said.iter().any(|line| line.contains("could not be locked"));
            assert!(code == Some(0) || gave_up, "{command}: {code:?} {said:?}");
        }
    }
}

/// Fails without the connections' own settings.
#[test]
fn settings_of_its_role_do_not_stop_the_daemon() {
    const ROLE: &str = "
create role worker login superuser;
alter role worker set default_transaction_isolation = 'serializable';
alter role worker set default_transaction_read_only = on;
alter role worker set statement_timeout = '10ms';
alter role worker set lock_timeout = '1ms';
alter role worker set idle_session_timeout = '300ms';
alter role worker set idle_in_transaction_session_timeout = '300ms';";
    const QUIET: &str = "select count(*)::text from pg_stat_activity where usename = 'worker' and state = 'idle' \
         and state_change < clock_timestamp() - interval '1 second'";
    let mut world = World::outbox(USERS, ROLE);
    work_as(&mut world, "worker");
    let daemon = world.daemon();
    for round in 0..3 {
        check(&world, &format!("update users set name = 'round {round}' where id = 'u1'"), &["v1:user:u1"], &[]);
        wait_until(EVENT_MAX, "one of its connections has been quiet for a second", || world.value(QUIET) != "0");
    }
    let said = daemon.log();
    assert!(!said.iter().any(|line| line.contains("the outbox is not read")), "{said:?}");
    assert_eq!(daemon.stop(), Some(0));
}

/// A claim that is delayed for longer than its role's limit continues. Fails without the
/// connections' own settings.
#[test]
fn a_claim_outlasts_the_idle_transaction_timeout_of_its_role() {
    const ROLE: &str = "
create role worker login superuser;
alter role worker set idle_in_transaction_session_timeout = '300ms';";
    const OPEN: &str = "select count(*)::text from pg_stat_activity where usename = 'worker' \
         and state = 'idle in transaction' and state_change < clock_timestamp() - interval '1 second'";
    let mut world = World::outbox(USERS, ROLE);
    work_as(&mut world, "worker");
    let (daemon, to_redis) = daemon_behind_a_proxy(&mut world);
    world.cache("v1:user:u1");
    to_redis.set(Fault::HalfOpen);
    world.sql("update users set name = 'held' where id = 'u1'");
    wait_until(EVENT_MAX, "its transaction has been idle for a second", || world.value(OPEN) != "0");
    assert_eq!(world.claimed(), 1);
    to_redis.set(Fault::None);
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    let said = daemon.log();
    assert!(!said.iter().any(|line| line.contains("the outbox is not read")), "{said:?}");
    assert_eq!(daemon.stop(), Some(0));
}

/// Fails if the daemon reads in a serializable transaction: it would form a dangerous structure
/// with the writer and the other transaction.
#[test]
fn polling_causes_no_serialization_failures() {
    const TABLES: &str = "
create role worker login superuser;
alter role worker set default_transaction_isolation = 'serializable';
create table elsewhere (n int);";
    let mut world = World::outbox(USERS, TABLES);
    work_as(&mut world, "worker");
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    let writer = world.another_client();
    for round in 0..5 {
        world.cache("v1:user:u1");
        world.sql_on(&writer, "begin isolation level serializable; select n from elsewhere");
        world.sql("begin isolation level serializable; insert into elsewhere values (1); commit");
        // This shows that the daemon has read the outbox since.
        world.settle();
        world.sql_on(&writer, &format!("update users set name = 'round {round}' where id = 'u1'; commit"));
        world.settle();
        assert!(!world.holds("v1:user:u1"));
    }
    assert_eq!(daemon.stop(), Some(0));
}

/// Runs SQL in the daemon's database without converting bytes. Returns the first value of the last
/// row.
fn ask(world: &World, sql: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let messages = runtime.block_on(async {
        let client = connect(&world.database_url).await;
        client.batch_execute("set client_encoding to 'SQL_ASCII'").await.unwrap();
        client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    });
    let value = messages.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    value.unwrap_or_default().to_owned()
}

/// Fails if the claiming connections let the server convert values, or require that events are
/// UTF-8.
#[test]
fn keys_can_contain_bytes_of_a_database_without_an_encoding() {
    const RULES: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  t: {table: t, delete: 't:{id}'}
  product: {event: product.updated, delete: 'product:{id}'}
";
    let mut world = World::with(&in_outbox_mode(RULES), &["wal_level=replica"], &[]);
    world.sql("create role stranger");
    world.sql("create database plain encoding 'SQL_ASCII' template template0");
    world.database_url = world.postgres.url("plain");
    ask(&world, "create table t (id text primary key)");
    world.run_ok(&["setup"]);
    let daemon = world.daemon();

    let mut redis = world.redis();
    let keys: [&[u8]; 4] = [b"v1:t:caf\xe9", b"v1:t:\xff", "v1:t:caf\u{e9}".as_bytes(), "v1:t:\u{fffd}".as_bytes()];
    let mut is_cached = |key: &[u8]| -> bool { redis.exists(key).unwrap() };
    for key in keys {
        let () = world.redis().set(key, "cached").unwrap();
    }
    ask(&world, r"insert into t values (E'caf\xe9')");
    wait_until(EVENT_MAX, "the key with these bytes is gone", || !is_cached(keys[0]));
    let () = world.redis().set(keys[0], "cached").unwrap();
    ask(&world, r"update t set id = E'\xff'");
    wait_until(EVENT_MAX, "so are both", || !is_cached(keys[0]) && !is_cached(keys[1]));
    assert!(is_cached(keys[2]) && is_cached(keys[3]), "{:?}", daemon.log());

    ask(&world, r"set role stranger; select unstale.emit(E'caf\xe9')");
    ask(&world, r#"set role stranger; select unstale.emit('product.updated', E'{"id": "caf\xe9"}')"#);
    world.cache("v1:t:after");
    ask(&world, "insert into t values ('after')");
    wait_until(EVENT_MAX, "what comes after it is done", || !world.holds("v1:t:after"));
    let entries = "select count(*) from unstale.outbox";
    wait_until(EVENT_MAX, "nothing is left", || ask(&world, entries) == "0");
    assert_eq!(daemon.stop(), Some(0));
}

/// Fails if a connection to PostgreSQL outlives the session: the ops on their way to Redis hold
/// one.
#[test]
fn a_daemon_without_redis_lets_another_work() {
    let rules = ORDERED.replace("namespace:", "redis_down_max: 1s, namespace:");
    let mut world = World::outbox(&rules, "");
    let (cut_off, to_redis) = daemon_behind_a_proxy(&mut world);
    world.sql("update users set name = 'before' where id = 'u1'");
    world.settle();
    let other = world.daemon_unready();
    other.wait_for_log("another daemon works on the outbox");
    to_redis.set(Fault::HalfOpen);
    world.cache("v1:user:u1");
    world.sql("update users set name = 'waits' where id = 'u1'");
    other.wait_for_log("streaming");
    world.settle();
    let held = card(&world, "u1");
    assert!(!world.holds("v1:user:u1") && (held.is_none() || held.as_deref() == Some("waits")), "{held:?}");

    // What it sent arrives now, and it stands by.
    to_redis.set(Fault::None);
    world.sql("update users set name = 'later' where id = 'u1'");
    world.settle();
    assert_eq!(other.stop(), Some(0));
    cut_off.wait_for_log("streaming");
    check(&world, "update users set name = 'last' where id = 'u1'", &["v1:user:u1"], &[]);
    let held = card(&world, "u1");
    assert!(held.is_none() || held.as_deref() == Some("last"), "{held:?}");
    assert_eq!(streamed(&world), ["before", "waits", "later", "last"]);
    assert_eq!(world.epoch(), 1, "{:?}", cut_off.log());
    assert_eq!(cut_off.stop(), Some(0));
}

/// Fails without any of the grants that `check` requires.
#[test]
fn the_grants_of_check_are_all_the_daemon_needs() {
    let mut world = World::outbox(ORDERED, "create role worker login");
    work_as(&mut world, "worker");
    let script = world.run_ok(&["check", "--sql"]);
    assert!(script.contains("TO worker;"), "{script}");
    world.sql(&script);
    world.run_ok(&["check"]);
    let daemon = world.daemon();
    check(&world, "insert into users (id, email, name) values ('u11', 'u11@x', 'new')", &["v1:user:u11"], &[]);
    check(&world, "update users set name = 'newer' where id = 'u11'", &["v1:user:u11"], &["v1:user:u1"]);
    assert_eq!(streamed(&world), ["new", "newer"]);
    assert_eq!(card(&world, "u11").as_deref(), Some("newer"));
    check(&world, "delete from users where id = 'u11'", &["v1:user:u11"], &["v1:user:u1"]);
    assert_eq!(card(&world, "u11"), None);
    let status = world.run_ok(&["status"]);
    assert!(status.contains("1 at work") && status.contains("entries    0"), "{status}");
    let said = daemon.log();
    assert!(!said.iter().any(|line| line.contains("the outbox is not read")), "{said:?}");
    assert_eq!(daemon.stop(), Some(0));
}
