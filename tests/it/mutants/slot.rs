//! Mutants of the daemon that reads a slot: the gate, the keepalive, the acknowledgement.
//!
//! All three use a commit that is stuck: `synchronous_standby_names = 'missing'` keeps a commit
//! that is in the log, and on the slot, invisible to every snapshot for as long as the script
//! wants.

use unstale::mutant::Mutant;

use super::{Finding, NAME, check, epochs, fill, findings, pass_another, world};
use crate::support::{EVENT_MAX, World, wait_until};

/// 1. A writer commits a change of u1. The commit is stuck: the slot sends it, invisible.
/// 2. A later change of u2 passes. So the daemon has received the change of u1.
/// 3. A reader misses u1, gets the lease, reads the primary, which has the old name, and stores
///    that.
/// 4. The commit becomes visible, and everything is put into force.
///
/// Without the gate the daemon deleted u1 in step 2, when there was nothing to delete. The old name
/// stays.
#[test]
fn no_gate() {
    check(Mutant::NoGate, &Finding::Stale("v1:user:u1"), |mutant| {
        let world = world(mutant);
        let daemon = world.daemon();
        let before = epochs(&world);
        world.hold_commits();
        let committing = world.stuck("update users set name = 'new' where id = 'u1'");
        pass_another(&world);
        fill(&world, "v1:user:u1", NAME);
        world.release_commits();
        committing.join().unwrap();
        world.settle();
        assert_eq!(daemon.stop(), Some(0));
        findings(&world, &before, "v1:user:u1", NAME)
    });
}

/// 1. u1 is cached. A writer commits a change of it, and the commit is stuck.
/// 2. A later change of u2 passes. So the daemon has received the change of u1, which is not in
///    force.
/// 3. The daemon sends a status to the slot, and is killed.
/// 4. Another daemon starts. The commit becomes visible.
///
/// The mutant confirmed what it had received, so the slot does not send the change of u1 again. The
/// next daemon finds that Redis knows less than was confirmed, and begins an epoch.
#[test]
fn ack_before_redis() {
    check(Mutant::AckBeforeRedis, &Finding::Epoch("gap".to_owned()), |mutant| {
        let world = world(mutant);
        let daemon = world.daemon();
        world.settle();
        let before = epochs(&world);
        fill(&world, "v1:user:u1", NAME);
        world.hold_commits();
        let committing = world.stuck("update users set name = 'new' where id = 'u1'");
        pass_another(&world);
        wait_for_status(&world);
        daemon.signal("KILL");
        drop(daemon);
        let daemon = world.daemon();
        world.release_commits();
        committing.join().unwrap();
        world.settle();
        assert_eq!(daemon.stop(), Some(0));
        findings(&world, &before, "v1:user:u1", NAME)
    });
}

/// 1. u1 is cached. A writer commits a change of it, and the commit is stuck.
/// 2. A writer fills the log with rows that no rule matches. The walsender has nothing to send but
///    a keepalive, with a position past the change of u1.
/// 3. A later change of u2 passes, and the watermark is recorded with it. So the daemon has
///    received the keepalive.
/// 4. The daemon sends a status to the slot, and is killed.
/// 5. Another daemon starts. The commit becomes visible.
///
/// In the mutant the keepalive moved the watermark past the change of u1. Both Redis and the slot
/// have that position, so nothing looks wrong, and the change is never sent again.
#[test]
fn eager_keepalive() {
    check(Mutant::EagerKeepalive, &Finding::Stale("v1:user:u1"), |mutant| {
        let world = world(mutant);
        world.sql("create table unmatched (n int)");
        let daemon = world.daemon();
        world.settle();
        let before = epochs(&world);
        fill(&world, "v1:user:u1", NAME);
        world.hold_commits();
        let committing = world.stuck("update users set name = 'new' where id = 'u1'");
        world.sql("insert into unmatched select generate_series(1, 1000)");
        world.wait_until_sent();
        pass_another(&world);
        wait_for_status(&world);
        daemon.signal("KILL");
        drop(daemon);
        let daemon = world.daemon();
        world.release_commits();
        committing.join().unwrap();
        world.settle();
        assert_eq!(daemon.stop(), Some(0));
        findings(&world, &before, "v1:user:u1", NAME)
    });
}

/// 1. u1 is cached. A migration writes all names anew, without a row change in the log.
/// 2. A later change of u2 is in force. So the daemon has received everything before it.
/// 3. The database is compared with what is remembered, which takes two seconds at most.
///
/// The mutant compares once, at the beginning. The old name stays.
#[test]
fn no_watch() {
    check(Mutant::NoWatch, &Finding::Stale("v1:user:u1"), |mutant| {
        let world = world(mutant);
        let daemon = world.daemon();
        world.settle();
        let before = epochs(&world);
        fill(&world, "v1:user:u1", NAME);
        world.sql("alter table users alter name type text using upper(name)");
        pass_another(&world);
        if mutant.is_none() {
            wait_until(EVENT_MAX, "the name is gone", || !world.holds("v1:user:u1"));
        }
        world.settle();
        assert_eq!(daemon.stop(), Some(0));
        findings(&world, &before, "v1:user:u1", NAME)
    });
}

/// Waits for a status that the daemon sent later than now.
fn wait_for_status(world: &World) {
    let now = world.value("select clock_timestamp()::text");
    let later = format!("select coalesce(max(reply_time) > '{now}', false)::text from pg_stat_replication");
    wait_until(EVENT_MAX, "the daemon sends a status", || world.value(&later) == "true");
}
