//! Every way in which a row can change is captured.

use redis::Commands as _;

use super::{USERS, check, wait_until_drained};
use crate::support::{EVENT_MAX, SHIPPED, World};

/// Without the trigger's old row a changed address leaves the old address's key.
#[test]
fn a_commit_deletes_exactly_the_stale_keys_with_any_replica_identity() {
    let world = World::outbox(SHIPPED, "");
    assert_eq!(world.value("select relreplident::text from pg_class where relname = 'users'"), "d");
    let daemon = world.daemon();
    check(
        &world,
        "update users set email = 'NEW@x.io' where id = 'u1'",
        &["v1:user:u1", "v1:user-email:user1@example.com", "v1:user-email:new@x.io"],
        &["v1:user:u2", "v1:user-email:user2@example.com"],
    );
    // The rules use columns that no replica identity carries; here their old values are known all
    // the same.
    check(
        &world,
        "update users set updated_at = now() where id = 'u1'",
        &[],
        &["v1:user:u1", "v1:user-email:new@x.io"],
    );
    check(
        &world,
        "insert into users (id, email, name) values ('u11', 'u11@x', 'n')",
        &["v1:user:u11", "v1:user-email:u11@x"],
        &["v1:user:u1"],
    );
    check(&world, "delete from users where id = 'u11'", &["v1:user:u11", "v1:user-email:u11@x"], &["v1:user:u1"]);
    check(&world, "begin; update users set name = 'x' where id = 'u4'; rollback", &[], &["v1:user:u4"]);
    check(
        &world,
        "begin; update users set name = 'x' where id = 'u4'; savepoint s; update users set name = 'y' where id = 'u5'; \
         rollback to s; commit",
        &["v1:user:u4"],
        &["v1:user:u5"],
    );
    check(
        &world,
        "insert into users (id, email, name) values ('u6', 'x', 'upserted') on conflict (id) do update set name = 'upserted'",
        &["v1:user:u6"],
        &["v1:user:u7"],
    );
    check(
        &world,
        "merge into users using (values ('u7')) as s (id) on users.id = s.id when matched then update set name = 'merged'",
        &["v1:user:u7"],
        &["v1:user:u6"],
    );
    wait_until_drained(&world);
    assert_eq!(daemon.stop(), Some(0));
}

/// Without `ENABLE ALWAYS` the triggers would not fire in such a session, which replication tools
/// and restores use.
#[test]
fn a_session_in_replica_role_is_captured() {
    let world = World::outbox(SHIPPED, "");
    let daemon = world.daemon();
    check(
        &world,
        "set session_replication_role = replica; update users set name = 'x' where id = 'u1'; \
         truncate sessions; reset session_replication_role",
        &["v1:user:u1", "v1:session:abc"],
        &["v1:user:u2"],
    );
    assert_eq!(daemon.stop(), Some(0));
}

/// Without `SECURITY DEFINER` the statement would fail for lack of a privilege on the outbox.
#[test]
fn a_writer_needs_no_privilege_on_our_objects() {
    let world = World::outbox(USERS, "create role plain; grant select, update on users to plain");
    let daemon = world.daemon();
    check(&world, "set role plain; update users set name = 'x' where id = 'u1'; reset role", &["v1:user:u1"], &[]);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn rows_changed_by_a_cascade_are_captured() {
    const RULES: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  player: {table: players, delete: ['player:{id}', 'team:{team}']}
  member: {table: memberships, delete: ['permission:{user_id}:{organization_id}']}
";
    const TABLES: &str = "
create table teams (id int primary key);
create table players (id int primary key, team int references teams on delete set null on update cascade);
insert into teams select generate_series(1, 9);
insert into players select n, n from generate_series(1, 9) n";
    let world = World::outbox(RULES, TABLES);
    let daemon = world.daemon();
    check(&world, "delete from teams where id = 1", &["v1:player:1", "v1:team:1"], &["v1:player:2", "v1:team:2"]);
    check(
        &world,
        "update teams set id = 20 where id = 2",
        &["v1:player:2", "v1:team:2", "v1:team:20"],
        &["v1:player:3", "v1:team:3"],
    );
    check(&world, "delete from users where id = 'u3'", &["v1:permission:u3:o1"], &["v1:permission:u4:o1"]);
    assert_eq!(daemon.stop(), Some(0));
}

/// Entries name the table that the rules name; under the leaf's own name no rule would be found. A
/// truncate of a leaf fires only the leaf's triggers.
#[test]
fn changes_of_partitions_fire_rules_of_the_root() {
    const RULES: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
rules:
  event: {table: events, delete: ['event:{id}', 'day:{day}']}
";
    const TABLES: &str = "
create table events (id int, day int, primary key (id, day)) partition by range (day);
create table events_1 partition of events for values from (1) to (10);
create table events_2 partition of events for values from (10) to (20) partition by range (id);
create table events_2a partition of events_2 for values from (1) to (100);";
    let world = World::outbox(RULES, TABLES);
    let daemon = world.daemon();
    check(&world, "insert into events values (1, 5)", &["v1:event:1", "v1:day:5"], &["v1:event:2", "v1:day:6"]);
    // From one leaf to another: a delete and an insert.
    check(
        &world,
        "update events set day = 15 where id = 1",
        &["v1:event:1", "v1:day:5", "v1:day:15"],
        &["v1:event:2", "v1:day:6"],
    );
    check(&world, "insert into events_2a values (2, 12)", &["v1:event:2", "v1:day:12"], &["v1:event:1"]);
    check(&world, "update events_2 set id = 3 where id = 2", &["v1:event:2", "v1:event:3"], &["v1:event:1"]);
    check(&world, "truncate events_1", &["v1:event:9", "v1:day:7"], &[]);
    check(&world, "truncate events_2", &["v1:event:9", "v1:day:7"], &[]);
    check(&world, "truncate events", &["v1:event:77"], &[]);
    // A new partition gets the row triggers of its root at once, and the others by setup.
    check(
        &world,
        "create table events_3 partition of events for values from (20) to (30); insert into events_3 values (3, 25)",
        &["v1:event:3", "v1:day:25"],
        &[],
    );
    world.run_ok(&["setup"]);
    world.settle();
    for sql in [
        "truncate events_3",
        "set session_replication_role = replica; insert into events_3 values (3, 25); reset session_replication_role",
    ] {
        check(&world, sql, &["v1:event:3"], &[]);
    }
    world.sql("create table arrived (like events including all); insert into arrived values (8, 35)");
    world.sql("alter table events attach partition arrived for values from (30) to (40)");
    world.run_ok(&["setup"]);
    world.settle();
    check(&world, "update arrived set id = 9", &["v1:event:8", "v1:event:9"], &["v1:event:1"]);
    check(&world, "truncate arrived", &["v1:event:77"], &[]);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_truncate_deletes_everything_the_templates_can_name() {
    let world = World::outbox(SHIPPED, "");
    let daemon = world.daemon();
    check(&world, "truncate sessions", &["v1:session:abc", "v1:session:anything at all"], &["v1:user:u1"]);
    check(
        &world,
        "truncate users cascade",
        &["v1:user:u1", "v1:user:gone", "v1:user-email:x", "v1:permission:a:b"],
        &["v1:flags:o1"],
    );
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn copied_rows_are_captured() {
    let world = World::outbox(USERS, "");
    let daemon = world.daemon();
    check(
        &world,
        "copy users (id, email, name) from program 'echo c1,C1@x.io,n; echo c2,C2@x.io,n' with (format csv)",
        &["v1:user:c1", "v1:user-email:c1@x.io", "v1:user:c2", "v1:user-email:c2@x.io"],
        &["v1:user:u1"],
    );
    assert_eq!(daemon.stop(), Some(0));
}

/// If the row images can no longer be computed, more is deleted than requested; the write itself
/// succeeds.
#[test]
fn a_renamed_or_dropped_column_fails_no_writer_and_leaves_nothing_stale() {
    let world = World::outbox(USERS, "");
    let daemon = world.daemon();
    for sql in ["alter table users rename email to address", "alter table users drop column address"] {
        world.sql(sql);
        check(
            &world,
            "update users set name = name || '!' where id = 'u1'",
            &["v1:user:u1", "v1:user-email:user1@example.com"],
            &["v1:other:x"],
        );
    }
    assert_eq!(daemon.stop(), Some(0));
}

/// Setup cannot know what happened while a table had no triggers, so it makes one entry for the
/// whole table.
#[test]
fn setup_invalidates_what_was_missed_before_it() {
    let world = World::outbox(USERS, "");
    assert_eq!(world.daemon().stop(), Some(0));
    world.sql(
        "do $$ declare missing record; begin
           for missing in select t.tgname, t.tgrelid::regclass as on_table from pg_trigger t
             join pg_proc p on p.oid = t.tgfoid
             where p.pronamespace = 'unstale'::regnamespace and t.tgparentid = 0 and not t.tgisinternal
           loop execute format('drop trigger %I on %s', missing.tgname, missing.on_table); end loop;
         end $$",
    );
    world.cache("v1:user:u1");
    world.sql("update users set name = 'missed' where id = 'u1'");
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    world.settle();
    assert!(!world.holds("v1:user:u1"), "{:?}", daemon.log());
    check(&world, "update users set name = 'seen' where id = 'u2'", &["v1:user:u2"], &["v1:user:u1"]);
    assert_eq!(world.epoch(), 1, "no more was emptied than the rules of this table name");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn an_update_of_a_hundred_thousand_rows_is_applied_whole() {
    const ROWS: usize = 100_000;
    let rules = USERS.replace("    publish: {channel: users, data: {id: \"{id}\"}}\n", "");
    let world = World::outbox(
        &rules,
        "insert into users (id, email, name) select 'n' || n, 'n' || n, 'n' from generate_series(1, 100000) n",
    );
    let daemon = world.daemon();
    let keys: Vec<_> = (1..=ROWS).map(|number| (format!("v1:user:n{number}"), "cached")).collect();
    for chunk in keys.chunks(10_000) {
        let _: () = world.redis().mset(chunk).unwrap();
    }
    world.cache("v1:user:bystander");
    world.sql("update users set name = 'x'");
    world.settle_within(4 * EVENT_MAX);
    let left: Vec<String> = world.redis().keys("v1:user:*").unwrap();
    assert_eq!(left, ["v1:user:bystander"]);
    wait_until_drained(&world);
    assert_eq!(daemon.stop(), Some(0));
}

/// The function that pins the session's settings was created for the old type. Fails without the
/// check of the types.
#[test]
fn a_column_with_a_new_type_leaves_nothing_stale() {
    let rules = USERS
        .replace("table: users", "table: moments")
        .replace("\"user:{id}\", \"user-email:{email|lower}\"", "\"at:{at}\"");
    let world = World::outbox(
        &rules,
        "create table moments (id int primary key, at text); insert into moments values (1, 'a')",
    );
    let daemon = world.daemon();
    world.sql("alter table moments alter at type timestamptz using '2020-01-01 00:00:00+00'");
    check(&world, "set timezone = 'Asia/Tokyo'; delete from moments", &["v1:at:2020-01-01 00:00:00+00"], &[]);
    assert_eq!(daemon.stop(), Some(0));
}

/// Larger than PostgreSQL can store: the writer does not fail, and everything that may be affected
/// is deleted.
#[test]
fn a_huge_value_fails_no_writer() {
    let rules = USERS
        .replace("table: users", "table: pages")
        .replace("\"user:{id}\", \"user-email:{email|lower}\"", "\"page:{id}\"");
    let rules = rules.replace("    publish", "    when: new.body != ''\n    publish");
    let world = World::outbox(&rules, "create table pages (id int primary key, body text)");
    let daemon = world.daemon();
    world.sql("insert into pages values (1, repeat('x', 70000000))");
    check(&world, "update pages set body = body || '!' where id = 1", &["v1:page:1"], &[]);
    assert_eq!(daemon.stop(), Some(0));
}
