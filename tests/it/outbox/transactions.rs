//! Entries of one transaction, and of concurrent ones.

use super::{ORDERED, USERS, card, check, wait_until_drained};
use crate::support::{EVENT_MAX, World, next_message, wait_until};

/// A reader that remembers the last id it saw would skip this entry forever: ids are assigned when
/// a row is written, but rows become visible when their transaction commits.
#[test]
fn a_transaction_that_writes_early_and_commits_late_is_not_skipped() {
    let world = World::outbox(USERS, "");
    let daemon = world.daemon();
    let late = world.another_client();
    for round in 0..3 {
        world.cache("v1:user:u1");
        world.sql_on(&late, "begin; update users set name = name || '!' where id = 'u1'");
        for _ in 0..3 {
            check(&world, "update users set name = name || '!' where id = 'u2'", &["v1:user:u2"], &[]);
        }
        wait_until_drained(&world);
        assert!(world.holds("v1:user:u1"), "round {round}: not committed yet");
        world.sql_on(&late, "commit");
        world.settle();
        assert!(!world.holds("v1:user:u1"), "round {round}");
    }
    assert_eq!(daemon.stop(), Some(0));
}

/// A watermark that follows the end of the log, or the last claim, passes the entry that is still
/// there because another daemon holds it.
#[test]
fn the_watermark_does_not_pass_a_visible_transaction_that_is_not_in_force() {
    let world = World::outbox(USERS, "");
    let daemon = world.daemon();
    world.sql("update users set name = 'before' where id = 'u9'");
    world.settle();
    assert_eq!(daemon.stop(), Some(0));

    world.cache("v1:user:u1");
    world.sql("update users set name = 'held' where id = 'u1'");
    let token = world.token();
    let holder = world.another_client();
    world.sql_on(&holder, "begin; select from unstale.outbox for update");
    let daemon = world.daemon();
    for round in 0..5 {
        world.cache("v1:user:u2");
        world.sql(&format!("update users set name = 'round {round}' where id = 'u2'"));
        wait_until(EVENT_MAX, "what is free is put into force", || !world.holds("v1:user:u2"));
        wait_until(EVENT_MAX, "it is confirmed", || world.entries() == 1);
        assert!(world.applied() < token && world.holds("v1:user:u1"), "round {round}: {:?}", daemon.log());
    }
    world.sql_on(&holder, "rollback");
    world.settle();
    assert!(!world.holds("v1:user:u1") && world.applied() >= token);
    assert_eq!(daemon.stop(), Some(0));
}

/// A reader with a token waits for the watermark, also when there are no more writes.
#[test]
fn the_watermark_reaches_the_end_of_the_log_on_an_idle_server() {
    let world = World::outbox(USERS, "create table unnamed (n int)");
    let daemon = world.daemon();
    for sql in ["insert into unnamed select generate_series(1, 10000)", "update users set name = 'x' where id = 'u1'"] {
        world.sql(sql);
        let token = world.token();
        wait_until(EVENT_MAX, "the watermark passes the token", || world.applied() >= token);
    }
    // An open transaction delays nothing: its writes are not visible.
    let open = world.another_client();
    world.sql_on(&open, "begin; update users set name = 'open' where id = 'u3'");
    check(&world, "update users set name = 'y' where id = 'u2'", &["v1:user:u2"], &[]);
    world.sql_on(&open, "rollback");
    assert_eq!(daemon.stop(), Some(0));
}

/// A transaction with a NOTIFY cannot be prepared, so an application that uses two-phase commit
/// would fail.
#[test]
fn a_prepared_transaction_is_applied_when_it_is_committed() {
    let world = World::outbox_with(USERS, "", &["max_prepared_transactions=5"]);
    let daemon = world.daemon();
    let prepare = |name: &str, user: &str| {
        world.cache(&format!("v1:user:{user}"));
        world.sql(&format!("begin; update users set name = 'p' where id = '{user}'; prepare transaction '{name}'"));
    };
    prepare("committed", "u1");
    prepare("rolled back", "u2");
    check(&world, "update users set name = 'x' where id = 'u3'", &["v1:user:u3"], &["v1:user:u1", "v1:user:u2"]);
    world.sql("commit prepared 'committed'");
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    world.sql("rollback prepared 'rolled back'");
    check(&world, "update users set name = 'y' where id = 'u3'", &["v1:user:u3"], &["v1:user:u2"]);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn an_event_belongs_to_its_transaction() {
    const RULES: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  product: {event: product.updated, delete: 'product:{id}'}
  user: {table: users, delete: 'user:{id}'}
";
    let world = World::outbox(RULES, "create role plain");
    let daemon = world.daemon();
    let emit = r#"select unstale.emit('product.updated', '{"id": 7}')"#;
    let keys = ["v1:product:7"];
    check(&world, emit, &keys, &["v1:product:8", "v1:user:u1"]);
    check(&world, &format!("begin; {emit}; rollback"), &[], &keys);
    check(&world, &format!("begin; savepoint s; {emit}; rollback to s; commit"), &[], &keys);
    check(
        &world,
        &format!("begin; {emit}; update users set name = 'x' where id = 'u1'; commit"),
        &["v1:product:7", "v1:user:u1"],
        &["v1:product:8"],
    );
    check(&world, &format!("set role plain; {emit}; reset role"), &keys, &[]);
    check(&world, "select unstale.emit('un.heard', '{}')", &[], &keys);
    wait_until_drained(&world);
    assert_eq!(daemon.stop(), Some(0));
}

/// More entries than one claim takes. If two daemons take them, or one that ignores the order of
/// ids, they are mixed.
#[test]
fn two_daemons_keep_the_message_order_of_a_transaction() {
    const ROWS: usize = 25_000;
    let world = World::outbox(USERS, "");
    let mut connection = world.redis();
    // All of these messages may wait for the subscriber, which is this thread.
    redis::cmd("CONFIG").arg(&["SET", "client-output-buffer-limit", "pubsub 0 0 0"]).exec(&mut connection).unwrap();
    connection.set_read_timeout(Some(EVENT_MAX)).unwrap();
    let mut subscriber = connection.as_pubsub();
    subscriber.subscribe("v1:users").unwrap();
    for daemons in [1, 2] {
        let working: Vec<_> = (0..daemons).map(|_| world.daemon()).collect();
        world.sql(&format!(
            "insert into users (id, email, name) select '{daemons}-' || n, '{daemons}-' || n, 'n' \
             from generate_series(1, {ROWS}) n"
        ));
        for row in 1..=ROWS {
            let message: String = next_message(&mut subscriber).get_payload().unwrap();
            assert_eq!(message, format!("{{\"id\":\"{daemons}-{row}\"}}"));
        }
        wait_until_drained(&world);
        for daemon in working {
            assert_eq!(daemon.stop(), Some(0));
        }
    }
}

/// Fails without the first character of our triggers' names: other triggers would run first, and so
/// would their changes.
#[test]
fn changes_made_by_a_trigger_come_after_the_change_that_fired_it() {
    let world = World::outbox(
        ORDERED,
        "create function touch() returns trigger language plpgsql as $$ begin
           if new.name not like '%!' then update users set name = new.name || '!' where id = new.id; end if;
           return null;
         end $$;
         create trigger \"A_touch\" after update on users for each row execute function touch()",
    );
    let daemon = world.daemon();
    for round in 0..3 {
        world.sql(&format!("update users set name = 'round {round}' where id = 'u1'"));
        world.settle();
        assert_eq!(card(&world, "u1"), Some(format!("round {round}!")));
    }
    assert_eq!(daemon.stop(), Some(0));
}
