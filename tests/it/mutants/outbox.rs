//! Mutants of the daemon that reads an outbox: the claim, the numbers of entries, the watermark.

use unstale::coherence::lease::Found;
use unstale::mutant::Mutant;

use super::{Finding, LOCK, NAME, RULES, UNLOCK, WAITS, check, epochs, fill, findings, pass_another, read};
use crate::outbox::stop_between_claims;
use crate::support::{EVENT_MAX, World, wait_until};

/// The value of the key `organization:o1`.
const ORGANIZATION: &str = "select name from organizations where id = 'o1'";

/// The example domain and everything set up for the outbox; nothing runs.
fn world(mutant: Option<Mutant>) -> World {
    let mut world = World::outbox(&RULES.replace(", REPLICA", ""), "");
    world.mutant = mutant;
    world
}

/// 1. o1 is cached. A writer commits a change of it.
/// 2. The daemon takes the entry, and asks the lookup of its rule, which waits for a lock.
/// 3. The daemon is killed.
/// 4. The lock is free. Another daemon starts.
///
/// The mutant committed the claim before it asked: the entry is gone, and o1 was not deleted.
#[test]
fn commit_before_redis() {
    check(Mutant::CommitBeforeRedis, &Finding::Stale("v1:organization:o1"), |mutant| {
        let world = world(mutant);
        let daemon = world.daemon();
        world.settle();
        let before = epochs(&world);
        fill(&world, "v1:organization:o1", ORGANIZATION);
        let locked = world.another_client();
        world.sql_on(&locked, LOCK);
        world.sql("update organizations set name = 'new' where id = 'o1'");
        wait_until(EVENT_MAX, "the lookup waits", || world.value(WAITS) == "true");
        daemon.signal("KILL");
        drop(daemon);
        world.sql_on(&locked, UNLOCK);
        let daemon = world.daemon();
        world.settle();
        assert_eq!(daemon.stop(), Some(0));
        findings(&world, &before, "v1:organization:o1", ORGANIZATION)
    });
}

/// 1. u1 is cached. A writer changes u1, which makes an entry, and does not commit.
/// 2. A later change of u2, whose entry has a higher number, passes, and its entry is deleted.
/// 3. The daemon is stopped outside of every claim. The writer commits, and u2 changes once more.
///    The daemon goes on.
///
/// The mutant takes every entry up to the highest number that it has seen for done. It deletes the
/// entry of u1 unread, and commits that with the claim of the new entry.
#[test]
fn cursor_over_ids() {
    check(Mutant::CursorOverIds, &Finding::Stale("v1:user:u1"), |mutant| {
        let mut world = world(mutant);
        world.database_url.push_str("?application_name=daemon");
        let daemon = world.daemon();
        world.settle();
        let before = epochs(&world);
        fill(&world, "v1:user:u1", NAME);
        let writer = world.another_client();
        world.sql_on(&writer, "begin; update users set name = 'new' where id = 'u1'");
        pass_another(&world);
        wait_until(EVENT_MAX, "the other entries are gone", || world.entries() == 0);
        stop_between_claims(&world, &daemon);
        world.sql_on(&writer, "commit");
        world.sql("update users set name = 'later' where id = 'u2'");
        daemon.signal("CONT");
        world.settle();
        assert_eq!(daemon.stop(), Some(0));
        findings(&world, &before, "v1:user:u1", NAME)
    });
}

/// 1. o1 is cached. A writer commits a change of it, and keeps the position after it.
/// 2. The daemon takes the entry, and asks the lookup of its rule, which waits for a lock. So the
///    change is not in force.
/// 3. The daemon looks how far the outbox reaches, and takes that in: it looks once more.
/// 4. A later change of u2 passes, and the watermark is recorded with it.
/// 5. A reader asks for o1 with the position from step 1.
///
/// In the mutant the watermark is past that position, and the reader is served the old name.
#[test]
fn eager_watermark() {
    check(Mutant::EagerWatermark, &Finding::ServedTooOld("v1:organization:o1"), |mutant| {
        let mut world = world(mutant);
        world.database_url.push_str("?application_name=daemon");
        let daemon = world.daemon();
        world.settle();
        let before = epochs(&world);
        fill(&world, "v1:organization:o1", ORGANIZATION);
        let locked = world.another_client();
        world.sql_on(&locked, LOCK);
        world.sql("update organizations set name = 'new' where id = 'o1'");
        let token = world.token();
        wait_until(EVENT_MAX, "the lookup waits", || world.value(WAITS) == "true");
        for _ in 0..2 {
            wait_for_survey(&world);
        }
        pass_another(&world);
        let served = matches!(read(&world, "v1:organization:o1", token), Found::Value(_));
        world.sql_on(&locked, UNLOCK);
        world.settle();
        assert_eq!(daemon.stop(), Some(0));
        let mut found = findings(&world, &before, "v1:organization:o1", ORGANIZATION);
        found.extend(served.then_some(Finding::ServedTooOld("v1:organization:o1")));
        found
    });
}

/// Waits until the daemon looks how far the outbox reaches, and began to do so later than now. It
/// does not begin before it has taken in what it saw the last time.
fn wait_for_survey(world: &World) {
    let now = world.value("select clock_timestamp()::text");
    let survey = format!(
        "select coalesce(max(query_start) > '{now}', false)::text from pg_stat_activity \
         where application_name = 'daemon' and query like 'select (select min(id) from unstale.outbox%'"
    );
    wait_until(EVENT_MAX, "the daemon looks at the outbox", || world.value(&survey) == "true");
}
