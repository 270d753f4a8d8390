//! Tables that change under a running daemon, and while it is down.
//!
//! Owns the DDL and the altered publications and triggers. Each case runs with the slot and with
//! the outbox where both apply. Invariant: no case restarts the daemon unless it says so.

use redis::Commands as _;

use crate::support::{Daemon, EVENT_MAX, World, in_outbox_mode, wait_until};

const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "v1:"}
rules:
  user: {table: users, delete: "user:{id}"}
  event: {table: events, delete: "event:{id}"}
"#;

const TABLES: &str = "
  create table events (id int, day date not null, note text, primary key (id, day)) partition by range (day);
  create table events_1 partition of events for values from ('2026-01-01') to ('2026-02-01');
  insert into events values (1, '2026-01-05', 'a')";

/// How the daemon learns of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Slot,
    Outbox,
}

/// How the daemon learns of DDL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notice {
    /// By the event trigger that `setup` installed.
    Trigger,
    /// It compares the catalog every few seconds.
    Comparison,
}

struct Case {
    world: World,
    daemon: Daemon,
}

impl Case {
    fn start(source: Source, notice: Notice) -> Self {
        Self::with(source, notice, RULES, TABLES)
    }

    fn with(source: Source, notice: Notice, rules: &str, tables: &str) -> Self {
        let world = match source {
            Source::Slot => World::with_rules(rules),
            Source::Outbox => World::with(&in_outbox_mode(rules), &["wal_level=replica"], &[]),
        };
        world.sql(tables);
        world.run_ok(&["setup"]);
        if notice == Notice::Comparison {
            drop_event_triggers(&world);
        }
        let daemon = world.daemon();
        let case = Self { world, daemon };
        case.settle();
        case
    }

    /// Waits until what is committed is in force.
    fn settle(&self) {
        self.world.settle();
    }

    /// Runs SQL and waits until the key is gone.
    fn removes(&self, key: &str, sql: &str) {
        self.world.cache(key);
        self.world.sql(sql);
        wait_until(EVENT_MAX, &format!("{key} is gone after {sql}"), || !self.world.holds(key));
    }

    /// How many changes of the catalog were counted, of this kind.
    fn count(&self, kind: &str) -> u64 {
        let count: Option<u64> = self.world.redis().hget("v1:unstale:{unstale}:catalog-changes", kind).unwrap();
        count.unwrap_or(0)
    }

    fn wait_for_count(&self, kind: &str, at_least: u64) {
        wait_until(EVENT_MAX, &format!("a change of kind {kind} is counted"), || self.count(kind) >= at_least);
    }

    fn status(&self) -> String {
        self.world.run_ok(&["status"])
    }
}

fn drop_event_triggers(world: &World) {
    world.sql(
        "do $$ declare found record; begin
           for found in select evtname from pg_event_trigger where evtname like 'unstale%' loop
             execute format('drop event trigger %I', found.evtname);
           end loop;
         end $$",
    );
}

const EACH: [(Source, Notice); 4] = [
    (Source::Slot, Notice::Comparison),
    (Source::Slot, Notice::Trigger),
    (Source::Outbox, Notice::Comparison),
    (Source::Outbox, Notice::Trigger),
];

/// The cases mostly wait for a comparison, so they do that side by side.
fn in_each_case(test: impl Fn(Source, Notice) + Sync) {
    std::thread::scope(|scope| {
        for (source, notice) in EACH {
            let test = &test;
            scope.spawn(move || test(source, notice));
        }
    });
}

#[test]
fn a_renamed_table_keeps_its_rules() {
    in_each_case(|source, notice| {
        let case = Case::start(source, notice);
        case.removes("v1:user:u9", "alter table users rename to people; create view users as select * from people");
        case.removes("v1:user:u1", "update people set name = 'new' where id = 'u1'");
        case.wait_for_count("renamed", 1);
        case.removes("v1:user:u9", "create schema other; drop view users; alter table people set schema other");
        case.removes("v1:user:u2", "update other.people set name = 'new' where id = 'u2'");
        case.daemon.wait_for_log("other.people");
        assert_eq!(case.count("renamed"), 2, "{source:?} {notice:?}");
        assert_eq!(case.daemon.stop(), Some(0));
    });
}

#[test]
fn a_table_that_takes_the_name_takes_the_rules() {
    in_each_case(|source, notice| {
        let case = Case::start(source, notice);
        case.removes(
            "v1:user:u1",
            "create table users_new (like users including all); insert into users_new select * from users;
             alter table users rename to users_old; alter table users_new rename to users",
        );
        case.wait_for_count("recreated", 1);
        // Its changes do not arrive before `setup`, so its keys are deleted again and again.
        case.removes("v1:user:u2", "update users set name = 'new' where id = 'u2'");
        assert!(case.status().contains("public.users"), "{}", case.status());
        case.world.run_ok(&["setup"]);
        case.daemon.wait_for_log("arrive again");
        case.removes("v1:user:u3", "update users set name = 'new' where id = 'u3'");
        assert_eq!(case.daemon.stop(), Some(0));
    });
}

#[test]
fn a_dropped_table_takes_its_values_with_it() {
    in_each_case(|source, notice| {
        let case = Case::start(source, notice);
        case.removes("v1:event:1", "drop table events");
        case.wait_for_count("dropped", 1);
        assert_eq!(case.daemon.stop(), Some(0));
    });
}

#[test]
fn partitions_and_children_that_come_and_go_are_noticed() {
    in_each_case(|source, notice| {
        let case = Case::start(source, notice);
        case.removes(
            "v1:event:7",
            "create table other (like events including all); insert into other values (7, '2026-03-01', 'x');
             alter table events attach partition other for values from ('2026-03-01') to ('2026-04-01')",
        );
        case.removes("v1:event:7", "update events set note = 'y' where id = 7");
        case.removes("v1:event:7", "alter table events detach partition other");
        case.removes("v1:event:1", "drop table events_1");
        case.wait_for_count("partitions", 3);
        case.removes("v1:user:child", "create table guests () inherits (users)");
        case.removes("v1:user:g1", "insert into guests (id, email, name) values ('g1', 'g@x.io', 'G')");
        case.removes("v1:user:g1", "update guests set name = 'H' where id = 'g1'");
        assert!(case.status().contains("public.guests"), "{}", case.status());
        assert_eq!(case.daemon.stop(), Some(0));
    });
}

#[test]
fn what_is_changed_and_changed_back_between_two_comparisons_is_noticed() {
    let detour = "alter table users rename to people; alter table people rename to users";
    let partition = "alter table events detach partition events_1;
        alter table events attach partition events_1 for values from ('2026-01-01') to ('2026-02-01')";
    let publication = "alter publication unstale set (publish = 'insert'); update users set name = 'new';
        alter publication unstale set (publish = 'insert, update, delete, truncate')";
    let member = "alter publication unstale drop table users; update users set name = 'new';
        alter publication unstale add table users";
    let switch = |word: &str| {
        format!(
            "do $$ declare name text; begin
               for name in select tgname from pg_trigger where tgrelid = 'users'::regclass and tgname like '%unstale%' loop
                 execute format('alter table users {word} trigger %I', name);
               end loop;
             end $$"
        )
    };
    let (off, on) = (switch("disable"), switch("enable always"));
    let triggers = format!("{off}; commit; begin; update users set name = 'new'; commit; begin; {on}");
    let carriers = |source| match source {
        Source::Slot => vec![publication, member],
        Source::Outbox => vec![triggers.as_str()],
    };
    in_each_case(|source, notice| {
        let case = Case::start(source, notice);
        let (mut both, mut count) = (vec![(detour, "v1:user:u1"), (partition, "v1:event:1")], 0);
        both.extend(carriers(source).into_iter().map(|sql| (sql, "v1:user:u1")));
        for (sql, key) in both {
            case.removes(key, &format!("begin; {sql}; commit"));
            let counted = || case.count("altered") + case.count("partitions") + case.count("source");
            wait_until(EVENT_MAX, &format!("{sql} is counted"), || counted() > count);
            count = counted();
        }
        assert_eq!(case.daemon.stop(), Some(0));
    });
}

#[test]
fn rows_that_are_written_anew_are_noticed() {
    in_each_case(|source, notice| {
        let case = Case::start(source, notice);
        case.removes("v1:user:u1", "alter table users add column level int default 3");
        case.wait_for_count("columns", 1);
        case.removes("v1:user:u1", "alter table users alter level type int using level + 1");
        case.wait_for_count("rewritten", 1);
        case.removes("v1:user:u1", "alter table users drop column level");
        case.removes("v1:event:1", "alter table events alter note type varchar using upper(note)");
        case.wait_for_count("columns", 3);
        assert_eq!(case.daemon.stop(), Some(0));
    });
}

#[test]
fn changed_labels_of_an_enum_are_noticed() {
    const ENUM: &str = "create type mood as enum ('sad', 'ok'); create domain moods as mood[];
        create table notes (id int primary key, mood moods); insert into notes values (1, array['ok']::mood[])";
    let rules = RULES
        .replace("  event: {table: events, delete: \"event:{id}\"}", "  note: {table: notes, delete: \"note:{id}\"}");
    in_each_case(|source, notice| {
        let case = Case::with(source, notice, &rules, ENUM);
        case.removes("v1:note:1", "alter type mood rename value 'ok' to 'fine'");
        case.wait_for_count("types", 1);
        assert_eq!(case.daemon.stop(), Some(0));
    });
}

#[test]
fn a_materialized_view_that_is_refreshed_removes_what_was_read_from_it() {
    let rules = format!(
        "{RULES}reads:\n  total:\n    path: /total/{{id}}\n    key: \"total:{{id}}\"\n    \
         sql: select to_json(n) from totals where id = $1\n"
    );
    let tables = format!(
        "{TABLES}; create materialized view totals as select 1 as id, count(*) as n from users; \
         create unique index on totals (id)"
    );
    in_each_case(|source, notice| {
        let case = Case::with(source, notice, &rules, &tables);
        case.removes("v1:total:1", "refresh materialized view totals");
        case.removes("v1:total:1", "refresh materialized view concurrently totals");
        case.wait_for_count("refreshed", 2);
        assert_eq!(case.daemon.stop(), Some(0));
    });
}

#[test]
fn an_altered_publication_is_noticed() {
    for alteration in [
        "alter publication unstale drop table users",
        "alter publication unstale set table users where (email = 'x'), events",
        "alter publication unstale set table users (id), events",
        "alter publication unstale set (publish = 'insert')",
    ] {
        let case = Case::start(Source::Slot, Notice::Comparison);
        case.removes("v1:user:u1", alteration);
        case.daemon.wait_for_log("do not arrive");
        case.removes("v1:user:u2", "insert into users (id, email, name) values ('u' || random(), random()::text, 'x')");
        let status = case.status();
        assert!(status.contains("public.users"), "{alteration}: {status}");
        // What cannot arrive does not count as in force.
        drop(case);
    }
}

#[test]
fn what_setup_publishes_again_is_flushed() {
    let case = Case::start(Source::Slot, Notice::Comparison);
    case.removes("v1:user:u1", "alter publication unstale drop table users");
    case.world.run_ok(&["setup"]);
    case.daemon.wait_for_log("arrive again");
    case.removes("v1:user:u1", "update users set name = 'new' where id = 'u1'");
    assert!(!case.status().contains("do not arrive"), "{}", case.status());
    assert_eq!(case.daemon.stop(), Some(0));
}

#[test]
fn disabled_triggers_of_the_outbox_are_noticed() {
    let case = Case::start(Source::Outbox, Notice::Comparison);
    case.removes("v1:user:u1", "alter table users disable trigger all");
    case.daemon.wait_for_log("do not arrive");
    case.removes("v1:user:u2", "update users set name = 'new' where id = 'u2'");
    case.world.run_ok(&["setup"]);
    case.daemon.wait_for_log("arrive again");
    case.removes("v1:user:u3", "update users set name = 'new' where id = 'u3'");
    assert_eq!(case.daemon.stop(), Some(0));
}

#[test]
fn what_changed_while_the_daemon_was_down_is_noticed() {
    for source in [Source::Slot, Source::Outbox] {
        let case = Case::start(source, Notice::Comparison);
        let Case { world, daemon } = case;
        assert_eq!(daemon.stop(), Some(0));
        let epochs = world.epoch();
        world.cache("v1:user:u1");
        world.cache("v1:event:1");
        world.sql("alter table users add column level int default 3");
        world.sql("create table events_2 partition of events for values from ('2026-02-01') to ('2026-03-01')");
        let daemon = world.daemon();
        wait_until(EVENT_MAX, "both are gone", || !world.holds("v1:user:u1") && !world.holds("v1:event:1"));
        assert_eq!(world.epoch(), epochs, "only the tables' own values are removed");
        assert_eq!(daemon.stop(), Some(0));
    }
}

/// While changes of a table do not arrive, a position counts as in force only once everything that
/// its rules can name was removed after it.
#[test]
fn nothing_counts_as_in_force_that_did_not_arrive() {
    let case = Case::start(Source::Slot, Notice::Comparison);
    case.removes("v1:user:u1", "alter publication unstale drop table users");
    case.daemon.wait_for_log("do not arrive");
    case.world.cache("v1:user:u2");
    case.world.sql("update users set name = 'new' where id = 'u2'");
    case.world.sql("update events set note = 'b'");
    case.settle();
    assert!(!case.world.holds("v1:user:u2"));
    assert_eq!(case.daemon.stop(), Some(0));
}

/// What came after `setup` does not keep the daemon from starting.
#[test]
fn a_restart_is_not_refused_because_of_a_new_partition_or_child() {
    let rules = RULES.replace("\"event:{id}\"", "[\"event:{id}\", \"note:{note}\"]");
    let case = Case::with(Source::Slot, Notice::Comparison, &rules, TABLES);
    let Case { world, daemon } = case;
    assert_eq!(daemon.stop(), Some(0));
    world.sql(
        "create table events_3 partition of events for values from ('2026-03-01') to ('2026-04-01');
         create table guests () inherits (users);
         insert into events values (3, '2026-03-05', 'old')",
    );
    let daemon = world.daemon();
    world.settle();
    world.cache("v1:note:old");
    world.sql("update events set note = 'new' where id = 3");
    wait_until(EVENT_MAX, "the old note is gone", || !world.holds("v1:note:old"));
    assert!(daemon.log().iter().any(|line| line.contains("public.events") && line.contains("by pattern")));
    world.cache("v1:user:g1");
    world.sql("insert into guests (id, email, name) values ('g1', 'g@x.io', 'G')");
    wait_until(EVENT_MAX, "the child's key is gone", || !world.holds("v1:user:g1"));
    assert_eq!(daemon.stop(), Some(0));
}

/// `run` refuses what `check` reports.
#[test]
fn run_refuses_a_publication_that_leaves_something_out() {
    let world = World::with_rules(RULES);
    world.sql(TABLES);
    world.run_ok(&["setup"]);
    for (alteration, reason) in [
        ("alter publication unstale drop table users", "does not carry"),
        ("alter publication unstale set table users where (email = 'x'), events", "only some rows or columns"),
        ("alter publication unstale set table users (id), events", "only some rows or columns"),
        ("alter publication unstale set (publish = 'insert')", "leaves out some kinds of changes"),
    ] {
        world.sql(alteration);
        for verb in ["check", "run"] {
            let output = world.run(&[verb]);
            let said = crate::support::text(&output);
            assert!(!output.status.success(), "{verb} after {alteration}: {said}");
            let part = if verb == "run" { reason } else { "publication" };
            assert!(said.contains(part), "{verb} after {alteration}: {said}");
        }
        world.run_ok(&["setup"]);
    }
}
