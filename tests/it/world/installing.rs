//! What `setup` installs and `teardown` removes, in databases as people have them.
//!
//! Owns: event triggers, the two modes side by side, plans, waiting, unlogged tables, identities.
//! Invariant: no case depends on a daemon unless it starts one.

use std::process::{Command, Stdio};

use crate::support::{Daemon, World, in_outbox_mode, text};

const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "v1:"}
rules:
  user: {table: users, delete: ["user:{id}", "user-email:{email|lower}"]}
  product: {event: product.updated, delete: "product:{id}"}
"#;

/// The notices that a slot has received since the last call, as `tag relations other`.
fn notices(world: &World) -> Vec<String> {
    const SENT: &str = "select coalesce(string_agg(substring(encode(data, 'escape') from '\\{\"tag.*\\}'), e'\n'), '') \
         from pg_logical_slot_get_binary_changes('reference', null, null, 'proto_version', '1', \
           'publication_names', 'unstale', 'messages', 'true') where get_byte(data, 0) = ascii('M')";
    world.value(SENT).lines().map(|line| shown(world, line)).collect()
}

/// The same of the outbox, which is emptied.
fn entries(world: &World) -> Vec<String> {
    let found =
        world.value("select coalesce(string_agg(new[1], e'\n' order by id), '') from unstale.outbox where op = 'c'");
    world.sql("delete from unstale.outbox");
    found.lines().map(|line| shown(world, line)).collect()
}

fn shown(world: &World, notice: &str) -> String {
    let notice: serde_json::Value = serde_json::from_str(notice).unwrap();
    let name = |oid: &serde_json::Value| world.value(&format!("select {oid}::regclass::text"));
    let relations: Vec<_> = notice["relations"].as_array().unwrap().iter().map(name).collect();
    format!("{} {} {}", notice["tag"].as_str().unwrap(), relations.join(","), notice["other"])
}

#[test]
fn ddl_is_noticed_in_the_transaction_of_the_statement() {
    let world = World::with_rules(RULES);
    let said = world.run_ok(&["setup"]);
    assert!(said.contains("done       event triggers for DDL"), "{said}");
    world.write_rules(&in_outbox_mode(RULES));
    world.run_ok(&["setup"]);
    world.value("select pg_create_logical_replication_slot('reference', 'pgoutput')::text");
    let check = |sql: &str, expected: &[&str]| {
        world.sql(sql);
        let (sent, written) = (notices(&world), entries(&world));
        assert_eq!(sent, expected, "{sql}");
        assert_eq!(written, expected, "{sql}");
    };
    entries(&world);
    check("create table t (id int primary key, n int)", &["CREATE TABLE t false"]);
    check("alter table t rename to u; alter table u rename to t", &["ALTER TABLE t false", "ALTER TABLE t false"]);
    check("alter table t rename column n to m", &["ALTER TABLE t false"]);
    check("alter table t add column a int default 7", &["ALTER TABLE t false"]);
    check("alter table t alter column m type text", &["ALTER TABLE t false", "ALTER TABLE t false"]);
    check("alter table t drop column m", &["ALTER TABLE t false", "ALTER TABLE t false"]);
    check("create materialized view v as select * from t", &["CREATE MATERIALIZED VIEW v false"]);
    check("refresh materialized view v", &["REFRESH MATERIALIZED VIEW v false"]);
    check("create table p (id int) partition by range (id)", &["CREATE TABLE p false"]);
    check("create table p1 partition of p for values from (0) to (1)", &["CREATE TABLE p,p1 false"]);
    check("alter table p detach partition p1", &["ALTER TABLE p false"]);
    check("alter table p attach partition p1 for values from (0) to (1)", &["ALTER TABLE p false"]);
    check("create table c () inherits (t)", &["CREATE TABLE t,c false"]);
    check("create type mood as enum ('a'); alter type mood add value 'b'", &["ALTER TYPE  true"]);
    check("alter publication unstale add table t", &["ALTER PUBLICATION  true"]);
    check("alter publication unstale drop table t", &["ALTER PUBLICATION  true"]);
    check("create schema s; alter schema s rename to s2", &["ALTER SCHEMA  true"]);
    check("alter table t set schema s2; alter table s2.t set schema public", &["ALTER TABLE t false"; 2]);
    // What matters to nothing that is cached, and temporary tables, write nothing.
    check(
        "create temporary table x (id int) on commit drop; alter table x add column n int default 1; drop table x;
         create index on t (id); comment on table t is 'x'; grant select on t to public; create view w as select 1;
         create function f() returns int language sql return 1; drop function f(); drop view w; drop schema s2;
         create temporary table y as select 1; alter table y alter column \"?column?\" type text; drop table y",
        &["DROP SCHEMA  true"],
    );
    let dropped = {
        world.sql("drop materialized view v; drop table c");
        (world.value("select count(*)::text from unstale.outbox where op = 'c'"), notices_raw(&world).len())
    };
    assert_eq!(dropped, ("2".to_owned(), 2));
    // A transaction that is rolled back is not noticed, and one of a replica is.
    world.sql("delete from unstale.outbox");
    world.sql("begin; alter table t add column b int; rollback");
    check(
        "set session_replication_role = replica; alter table t add column b int; reset session_replication_role",
        &["ALTER TABLE t false"],
    );
}

/// As [`notices`], of tables that are gone.
fn notices_raw(world: &World) -> Vec<String> {
    let sent = world.value(
        "select coalesce(string_agg('M', e'\n'), '') from pg_logical_slot_get_binary_changes('reference', null, null, \
         'proto_version', '1', 'publication_names', 'unstale', 'messages', 'true') where get_byte(data, 0) = ascii('M')",
    );
    sent.lines().map(ToOwned::to_owned).collect()
}

#[test]
fn a_notice_that_cannot_be_written_fails_no_statement() {
    let world = World::with(&in_outbox_mode(RULES), &["wal_level=replica"], &[]);
    world.run_ok(&["setup"]);
    world.sql("alter table unstale.outbox add constraint never check (op <> 'c')");
    world.sql("create table t (id int); alter table t add column n int default 1; drop table t");
    assert_eq!(world.value("select count(*)::text from unstale.outbox"), "0");
    world.sql("alter table unstale.outbox drop constraint never; create table t (id int)");
    assert_eq!(world.value("select count(*)::text from unstale.outbox where op = 'c'"), "1");
    // The notice runs as a superuser, so it must not fire what another role put on the outbox.
    world.sql("create role plain; grant all on schema unstale to plain; alter table unstale.outbox owner to plain");
    world.sql("create table t2 (id int)");
    assert_eq!(world.value("select count(*)::text from unstale.outbox where op = 'c'"), "1");
    world.sql("drop table unstale.outbox; create table t3 (id int)");
    world.sql("drop schema unstale cascade; create table t4 (id int)");
}

#[test]
fn a_role_that_may_not_create_event_triggers_is_told_what_happens_instead() {
    let mut world = World::with_rules(RULES);
    world.sql(
        "create role plain login replication; grant create on database postgres to plain;
         alter table users owner to plain; grant all on schema public to plain",
    );
    world.database_url = world.database_url.replace("postgres@", "plain@");
    let said = world.run_ok(&["setup"]);
    assert!(said.contains("skipped    event triggers for DDL: only a superuser"), "{said}");
    let said = text(&world.run(&["check"]));
    assert!(said.contains("compares the catalog every 2 s") && said.contains("no problems"), "{said}");
    let said = world.run_ok(&["setup"]);
    assert!(!said.contains("done"), "{said}");
    world.run_ok(&["teardown"]);
    assert_eq!(world.value("select count(*)::text from pg_namespace where nspname = 'unstale'"), "0");
}

#[test]
fn two_modes_work_side_by_side_and_each_removes_only_its_own() {
    let world = World::with_rules(RULES);
    world.run_ok(&["setup"]);
    world.value("select pg_create_logical_replication_slot('reference', 'pgoutput')::text");
    world.sql("select pg_drop_replication_slot('reference')");
    let outbox = in_outbox_mode(RULES).replace("{mode: outbox,", "{mode: outbox, slot: other,");
    world.write_rules(&outbox);
    world.run_ok(&["setup"]);
    world.sql("delete from unstale.outbox");
    let logged = || {
        world.value(
            "select count(*)::text from pg_logical_slot_peek_binary_changes('unstale', null, null, 'proto_version', '1', \
             'publication_names', 'unstale', 'messages', 'true') where encode(data, 'escape') like '%unstale.event%'",
        )
    };
    let before: u32 = logged().parse().unwrap();
    // A role without any privilege of ours emits into both.
    world.sql("create role app; set role app; select unstale.emit('product.updated', '{\"id\": 7}'); reset role");
    assert_eq!(logged(), (before + 1).to_string());
    assert_eq!(world.value("select count(*)::text from unstale.outbox where op = 'e'"), "1");
    for rules in [RULES, outbox.as_str()] {
        world.write_rules(rules);
        let said = text(&world.run(&["check"]));
        assert!(said.contains("ok  function unstale.emit"), "{said}");
        let again = world.run_ok(&["setup"]);
        assert!(again.lines().all(|line| line.starts_with("unchanged")), "{again}");
    }
    let said = world.run_ok(&["teardown"]);
    assert!(said.contains("removed the outbox") && said.contains("kept function unstale.emit"), "{said}");
    assert!(said.contains("a daemon may read the replication slot unstale"), "{said}");
    world.write_rules(RULES);
    let said = text(&world.run(&["check"]));
    assert!(said.contains("no problems, "), "{said}");
    assert_eq!(world.value("select count(*)::text from pg_publication where pubname = 'unstale'"), "1");

    world.write_rules(&outbox);
    world.run_ok(&["setup"]);
    world.write_rules(RULES);
    let said = world.run_ok(&["teardown"]);
    assert!(said.contains("removed replication slot unstale") && said.contains("there is an outbox"), "{said}");
    world.write_rules(&outbox);
    let said = text(&world.run(&["check"]));
    assert!(said.contains("ok  function unstale.emit") && said.contains("no problems"), "{said}");
    world.sql("select unstale.emit('product.updated', '{\"id\": 8}')");
    world.run_ok(&["teardown"]);
    let left = "select count(*)::text from pg_namespace where nspname = 'unstale'";
    assert_eq!(world.value(left), "0");
    assert_eq!(world.value("select count(*)::text from pg_event_trigger"), "0");
}

#[test]
fn a_function_of_another_program_is_not_replaced() {
    let world = World::with_rules(RULES);
    world.sql(
        "create schema unstale; create function unstale.emit(name text, payload jsonb) returns void language sql as 'select'",
    );
    for rules in [RULES.to_owned(), in_outbox_mode(RULES)] {
        world.write_rules(&rules);
        for arguments in [&["setup"][..], &["setup", "--plan"]] {
            let output = world.run(arguments);
            let said = text(&output);
            assert!(output.status.code() == Some(78) && said.contains("not installed by unstale"), "{said}");
        }
        assert!(text(&world.run(&["check"])).contains("was not installed by unstale"));
    }
    assert_eq!(world.value("select count(*)::text from pg_publication"), "0", "nothing was changed");
}

#[test]
fn whatever_waits_says_for_what() {
    let world = World::with_rules(RULES);
    world.sql("create role busy login; grant all on users to busy");
    let busy = world.another_client();
    let begin = "begin; set local role busy; update users set name = 'x' where id = 'u9'";
    world.sql_on(&busy, begin);
    let pid = world.value_on(&busy, "select pg_backend_pid()::text");
    let mut setup = Daemon::start(world.command(&["setup"]));
    let line = setup.wait_for_log("waiting for");
    assert!(line.contains(&format!("process {pid} (role postgres")) && line.contains("idle in transaction"), "{line}");
    world.sql_on(&busy, "commit");
    assert_eq!(setup.wait(), Some(0));
    // A slot that the daemon makes anew.
    assert_eq!(world.daemon().stop(), Some(0));
    world.sql("select pg_drop_replication_slot('unstale')");
    world.sql_on(&busy, begin);
    let daemon = world.daemon_unready();
    let line = daemon.wait_for_log("waiting for the transaction of process");
    assert!(line.contains(&pid), "{line}");
    world.sql_on(&busy, "commit");
    daemon.wait_for_log("streaming");
    assert_eq!(daemon.stop(), Some(0));
    // Locks of tables, in both directions.
    let outbox = World::with(&in_outbox_mode(RULES), &["wal_level=replica"], &[]);
    let busy = outbox.another_client();
    for verb in ["setup", "teardown"] {
        outbox.sql_on(&busy, "begin; lock table users in access exclusive mode");
        let mut waiting = Daemon::start(outbox.command(&[verb]));
        let line = waiting.wait_for_log("waiting for");
        assert!(line.contains("lock on users") && line.contains("role postgres"), "{line}");
        outbox.sql_on(&busy, "commit");
        assert_eq!(waiting.wait(), Some(0), "{verb}: {:?}", waiting.log());
    }
}

/// Tables of which no key can be an identity, with generated columns and with long values.
#[test]
fn no_remedy_makes_a_write_fail_also_when_columns_are_added_later() {
    const TABLES: &str = "
      create table plain (k int unique, v text);
      create table generated (k int unique, v text, g int generated always as (length(v)) stored);
      create table keyed (id int primary key, v text, g int generated always as (length(v)) stored);
      create table long (id int primary key, v text not null)";
    let rules = |names: &[&str]| {
        let rule = |name: &&str| format!("  {name}: {{table: {name}, delete: ['{name}:{{v}}']}}\n");
        let head = RULES.split("rules:").next().unwrap();
        format!("{head}rules:\n{}", names.iter().map(rule).collect::<String>())
    };
    let names = ["plain", "generated", "keyed", "long"];
    let world = World::with_rules(&rules(&names));
    world.sql(TABLES);
    let writes = |when: &str| {
        for name in names {
            let column = if ["keyed", "long"].contains(&name) { "id" } else { "k" };
            for sql in [
                // No index takes such a value.
                format!(
                    "insert into {name} ({column}, v) values (1, 'a'), (2, (select string_agg(md5(n::text), '')
                       from generate_series(1, 1000) n))"
                ),
                format!("update {name} set v = 'c' where {column} = 1"),
                format!("delete from {name}"),
            ] {
                let done = world.block_on(world.client.batch_execute(&sql));
                assert!(done.is_ok(), "{when}: {sql}: {done:?}");
            }
        }
    };
    let output = world.run(&["setup"]);
    assert!([Some(0), Some(78)].contains(&output.status.code()), "{}", text(&output));
    writes("after setup");
    for name in names {
        world.sql(&format!("alter table {name} add column later int generated always as (length(v)) stored"));
    }
    writes("with a generated column that came later");
    // What the script does is no other.
    let script = world.run(&["check", "--sql"]);
    psql(&world, &String::from_utf8_lossy(&script.stdout));
    writes("after the script");
    // What an upgrade would make fail is said.
    let said = text(&world.run(&["check"]));
    let is_full = world.value("select count(*)::text from pg_class where relreplident = 'f'") != "0";
    assert_eq!(said.contains("REPLICA IDENTITY FULL and a generated column"), is_full, "{said}");
    assert_eq!(is_full, world.takes_full_identities());
}

/// Runs a script as it is printed. Ends at the first error.
fn psql(world: &World, script: &str) {
    let path = world.directory.path().join("script.sql");
    std::fs::write(&path, script).unwrap();
    let mut psql = Command::new("psql");
    psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-d", &world.database_url, "-f"]).arg(&path);
    match psql.stdin(Stdio::null()).output() {
        Ok(output) => assert!(output.status.success(), "{script}\n{}", text(&output)),
        // Without psql, statement by statement: none of them contains a semicolon at the end of a
        // line but the last of a body.
        Err(_) => world.sql(script),
    }
}

#[test]
fn the_script_runs_whatever_is_wrong() {
    const WRONG: [&str; 6] = [
        "alter table users set unlogged",
        "create publication unstale for table users (id), organizations where (plan <> 'free')",
        "create publication unstale with (publish = 'insert')",
        "alter table users replica identity nothing",
        "alter table users drop constraint users_pkey cascade",
        "create schema unstale",
    ];
    for wrong in WRONG {
        for is_slot in [true, false] {
            let rules = if is_slot { RULES.to_owned() } else { in_outbox_mode(RULES) };
            let world = World::with_rules(&rules);
            world.sql("drop table sessions; alter table memberships drop constraint memberships_user_id_fkey");
            world.sql(wrong);
            let script = world.run(&["check", "--sql"]);
            psql(&world, &String::from_utf8_lossy(&script.stdout));
            // What a publication did not accept before is possible now.
            let again = world.run(&["check", "--sql"]);
            psql(&world, &String::from_utf8_lossy(&again.stdout));
            let output = world.run(&["check"]);
            let said = text(&output);
            assert!(output.status.code() == Some(0) || wrong.contains("drop constraint"), "{wrong}, {is_slot}: {said}");
        }
    }
}

#[test]
fn a_plan_says_everything_and_does_nothing() {
    for rules in [RULES.to_owned(), in_outbox_mode(RULES)] {
        let world = World::with_rules(&rules);
        let state = || {
            world.value(
                "select (select count(*) from pg_publication) || ' ' || (select count(*) from pg_namespace) || ' ' || \
                 (select count(*) from pg_index) || ' ' || (select count(*) from pg_replication_slots)",
            )
        };
        let before = state();
        let plan = world.run_ok(&["setup", "--plan"]);
        assert_eq!(state(), before, "{plan}");
        assert!(plan.contains("event trigger") && plan.contains("lock"), "{plan}");
        // Each statement runs as it is printed, and nothing is left to do.
        psql(&world, &plan);
        let said = world.run_ok(&["setup"]);
        assert!(said.lines().all(|line| line.starts_with("unchanged")), "{said}");
        assert!(!world.run_ok(&["setup", "--plan"]).contains(';'), "nothing is left to do");
    }
}

#[test]
fn an_index_is_recognized_by_what_it_is() {
    let world = World::with_rules(RULES);
    world.sql(
        "create unique index some_name on users (email, id); alter table users replica identity using index some_name",
    );
    let said = world.run_ok(&["setup"]);
    assert!(!said.contains("identity"), "what suffices is left alone: {said}");
    let identity =
        "select i.indexrelid::regclass::text from pg_index i where i.indrelid = 'users'::regclass and i.indisreplident";
    assert_eq!(world.value(identity), "some_name");
    // One that exists is used, whatever its name, and one that is not complete is not.
    let world = World::with_rules(RULES);
    world.sql(
        "create unique index users_unstale_identity on users (email) where email <> ''; \
         create unique index whatever on users (id, email)",
    );
    world.run_ok(&["setup"]);
    assert_eq!(world.value(identity), "whatever");
}

#[test]
fn an_interrupted_setup_can_be_repeated() {
    let world = World::with_rules(RULES);
    let plan = world.run_ok(&["setup", "--plan"]);
    let create = plan.lines().find(|line| line.starts_with("CREATE UNIQUE INDEX")).unwrap();
    // A duplicate makes the build fail half way, as a lost connection would.
    world.sql("create table duplicates (like users); insert into duplicates select * from users; insert into duplicates select * from users");
    let failed = create.replace("public.users", "duplicates");
    assert!(world.block_on(world.client.batch_execute(&failed)).is_err());
    world.sql("drop table users cascade; alter table duplicates rename to users; truncate users; alter table users add primary key (id), add unique (email)");
    assert_eq!(world.value("select count(*)::text from pg_index where not indisvalid"), "1");
    assert!(world.run_ok(&["setup", "--plan"]).contains("DROP INDEX CONCURRENTLY"));
    world.run_ok(&["setup"]);
    assert_eq!(world.value("select count(*)::text from pg_index where not indisvalid"), "0");
    assert!(world.run_ok(&["setup"]).lines().all(|line| line.starts_with("unchanged")));
}
