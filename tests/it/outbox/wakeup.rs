//! The notification that wakes a sleeping daemon. Nothing depends on it, and no writer waits for
//! it.

use unstale::sandbox::signal;

use super::{USERS, check, stop_between_claims};
use crate::support::{EVENT_MAX, World, wait_until};

/// 2: the daemon asks for a notification; 1: a writer has sent it.
const WAKEUP: &str = "select last_value::text from unstale.bell";

const USAGE: &str = "select pg_notification_queue_usage()::text";

#[test]
fn without_notifications_nothing_is_lost() {
    let world = World::outbox(&USERS.replace("URL}\"}\ntarget", "URL}\", outbox: {notify: false}}\ntarget"), "");
    let daemon = world.daemon();
    for round in 0..5 {
        check(&world, &format!("update users set name = 'round {round}' where id = 'u1'"), &["v1:user:u1"], &[]);
    }
    let source = world.value("select string_agg(prosrc, '') from pg_proc where proname like 'capture%'");
    assert!(!source.contains("bell"), "the functions that writers run do not name it: {source}");
    assert_eq!(daemon.stop(), Some(0));
}

/// A commit with a NOTIFY takes a lock that serializes such commits. So only one writer notifies
/// each time the daemon sleeps.
#[test]
fn only_one_writer_notifies_each_time_the_daemon_sleeps() {
    let world = World::outbox(USERS, "");
    let daemon = world.daemon();
    for round in 0..3 {
        wait_until(EVENT_MAX, "the daemon asks for a notification", || world.value(WAKEUP) == "2");
        daemon.signal("STOP");
        world.cache("v1:user:u1");
        world.sql(&format!("update users set name = 'round {round}' where id = 'u1'"));
        assert_eq!(world.value(WAKEUP), "1", "the first writer notifies");
        world.sql(&format!("update users set name = 'again {round}' where id = 'u1'"));
        assert_eq!(world.value(WAKEUP), "1");
        daemon.signal("CONT");
        world.settle();
        assert!(!world.holds("v1:user:u1"));
    }
    assert_eq!(daemon.stop(), Some(0));
}

/// A transaction with a NOTIFY cannot be prepared.
#[test]
fn no_writer_notifies_if_transactions_can_be_prepared() {
    let world = World::outbox_with(USERS, "", &["max_prepared_transactions=5"]);
    let daemon = world.daemon();
    world.settle();
    daemon.signal("STOP");
    let (state, usage) = (world.value(WAKEUP), world.value(USAGE));
    assert_ne!(state, "2", "no notification is asked for");
    world.sql("begin; update users set name = 'x' where id = 'u1'; prepare transaction 'p'");
    world.sql("commit prepared 'p'");
    assert_eq!((world.value(WAKEUP), world.value(USAGE)), (state, usage));
    daemon.signal("CONT");
    world.settle();
    assert_eq!(daemon.stop(), Some(0));
}

/// A full queue aborts every transaction with a NOTIFY. If every writer notified, each of these
/// commits would leave an entry that the stopped session never reads: some ten pages of the queue.
#[test]
fn the_notification_queue_does_not_grow_for_a_stopped_daemon() {
    let mut world = World::outbox(USERS, "");
    world.database_url.push_str("?application_name=daemon");
    let daemon = world.daemon();
    wait_until(EVENT_MAX, "the daemon asks for a notification", || world.value(WAKEUP) == "2");
    stop_between_claims(&world, &daemon);
    // Its sessions too: they would read the queue for as long as its sockets accept what they send.
    let sessions = "select string_agg(pid::text, ' ') from pg_stat_activity where application_name = 'daemon'";
    let sessions: Vec<u32> = world.value(sessions).split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(sessions.iter().all(|pid| signal(*pid, "STOP")));
    world.cache("v1:user:u1");
    // Each in a transaction of its own.
    world.sql(
        "do $$ begin for n in 1..3000 loop update users set name = n::text where id = 'u1'; commit; end loop; end $$",
    );
    assert_eq!(world.value(USAGE), "0");
    assert!(sessions.iter().all(|pid| signal(*pid, "CONT")));
    daemon.signal("CONT");
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    assert_eq!(daemon.stop(), Some(0));
}

/// The listening session is separate from the claiming ones. Without it, polling continues.
#[test]
fn a_daemon_reconnects_and_sleeps_again() {
    let mut world = World::outbox(USERS, "");
    world.database_url.push_str("?application_name=daemon");
    let daemon = world.daemon();
    for round in 0..3 {
        wait_until(EVENT_MAX, "the daemon asks for a notification", || world.value(WAKEUP) == "2");
        world.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'daemon'");
        check(&world, &format!("update users set name = 'round {round}' where id = 'u1'"), &["v1:user:u1"], &[]);
    }
    assert_eq!(daemon.stop(), Some(0));
}
