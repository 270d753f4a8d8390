//! What `setup` installs in outbox mode: on which tables, what the triggers write, and that
//! `teardown` removes it.

use crate::support::{World, in_outbox_mode, text};

const RULES: &str = r#"version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "v1:"}
rules:
  user: {table: users, delete: ["user:{id}", "user-email:{email|lower}"]}
  organization: {table: organizations, ops: [update, delete], delete: "organization:{id}"}
"#;

/// Everything of ours in the catalog, and the triggers of all tables.
const CATALOG: &str = "select coalesce(string_agg(what, e'\\n' order by what), '') from ( \
     select 'schema ' || nspname from pg_namespace where nspname !~ '^pg_' \
     union all select 'relation ' || oid::regclass from pg_class where relnamespace::regnamespace::text !~ '^pg_|^information' \
     union all select 'function ' || oid::regprocedure from pg_proc where pronamespace::regnamespace::text !~ '^pg_|^information' \
     union all select 'trigger ' || tgname || ' on ' || tgrelid::regclass || ' ' || tgenabled::text from pg_trigger where not tgisinternal \
     union all select 'type ' || oid::regtype from pg_type where typnamespace::regnamespace::text !~ '^pg_|^information') found (what)";

/// The same with the definition of each object, to show that a second setup did not touch it.
const VERSIONS: &str = "select string_agg(what, ',' order by what) from ( \
     select 'f' || oid || ' ' || xmin::text from pg_proc where pronamespace = to_regnamespace('unstale') \
     union all select 't' || oid || ' ' || xmin::text from pg_trigger where not tgisinternal \
     union all select 'c' || oid || ' ' || xmin::text from pg_class where relnamespace = to_regnamespace('unstale')) found (what)";

/// The entries as `op table old new`, one a line, in order. Not the notices of DDL.
const ENTRIES: &str = "select coalesce(string_agg(concat_ws(' ', op::text, table_name, old::text, new::text), e'\\n' order by o.id), '') \
     from unstale.outbox o left join unstale.shape s on s.id = o.shape where o.op <> 'c'";

/// A world with these rules and tables, set up, with an empty outbox.
fn installed(rules: &str, tables: &str) -> World {
    let world = World::outbox(rules, tables);
    world.sql("delete from unstale.outbox");
    world
}

/// The entries that these statements write. The outbox is emptied.
fn written(world: &World, sql: &str) -> String {
    world.sql(sql);
    let entries = world.value(ENTRIES);
    world.sql("delete from unstale.outbox");
    entries
}

/// Runs `check`, compares its exit code, and returns everything it printed.
fn check(world: &World, code: i32, words: &[&str]) -> String {
    let output = world.run(&["check"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    said
}

fn rules_for(table: &str, delete: &str) -> String {
    format!(
        "version: 1\nsource: {{url: \"${{DATABASE_URL}}\"}}\ntarget: {{url: \"${{REDIS_URL}}\"}}\nrules:\n  r: {{table: {table}, delete: {delete}}}\n"
    )
}

#[test]
fn a_second_setup_changes_nothing_and_teardown_leaves_nothing() {
    let rules = format!("{RULES}  product: {{event: product.updated, delete: \"product:{{id}}\"}}\n");
    let world = World::with(&in_outbox_mode(&rules), &["wal_level=replica"], &[]);
    let before = world.value(CATALOG);
    let first = world.run_ok(&["setup"]);
    assert!(first.lines().all(|line| line.starts_with("done")), "{first}");
    assert_eq!(world.value(ENTRIES), "", "with a new outbox begins a new epoch");
    let (catalog, versions) = (world.value(CATALOG), world.value(VERSIONS));
    assert_ne!(catalog, before);
    // A transaction that writes stays open: a second setup must not wait for it.
    let writer = world.another_client();
    world.sql_on(
        &writer,
        "begin; update users set name = 'x' where id = 'u1'; lock table users in share row exclusive mode",
    );
    let second = world.run_ok(&["setup"]);
    assert!(second.lines().all(|line| line.starts_with("unchanged")), "{second}");
    world.sql_on(&writer, "commit");
    assert_eq!((world.value(CATALOG), world.value(VERSIONS)), (catalog, versions));
    check(
        &world,
        0,
        &["no problems", "ok  triggers of public.users", "ok  function unstale.emit", "ok  outbox: 1 entr"],
    );
    world.sql("select unstale.emit('product.updated', '{\"id\": 7}')");
    let said = world.run_ok(&["teardown"]);
    assert!(said.contains("2 entries that were not read"), "{said}");
    assert_eq!(world.value(CATALOG), before);
    world.run_ok(&["teardown"]);
}

#[test]
fn setup_follows_the_rules_when_they_change() {
    let world = installed(RULES, "");
    let organizations = "update organizations set name = 'x' where id = (select min(id) from organizations)";
    assert!(written(&world, organizations).starts_with("u organizations"));
    let only_users = in_outbox_mode(RULES).split("  organization:").next().unwrap().to_owned();
    world.write_rules(&only_users.replace("user:{id}", "user:{id}-{name}"));
    let said =
        check(&world, 1, &["is not what the rules need now", "no rule needs the triggers of public.organizations"]);
    assert!(said.contains("run `unstale setup`"), "{said}");
    let output = world.run(&["run"]);
    let said = text(&output);
    assert!(
        output.status.code() == Some(78) && said.contains("capture_users_") && said.contains("unstale setup"),
        "{said}"
    );
    assert!(!said.contains("organizations"), "a table that no rule needs is no reason: {said}");
    let said = world.run_ok(&["setup"]);
    assert!(said.contains("done       triggers of public.users"), "{said}");
    assert!(said.contains("done       triggers that no rule needs"), "{said}");
    assert_eq!(world.value(ENTRIES), "", "the triggers are those of before");
    assert_eq!(written(&world, organizations), "");
    assert!(written(&world, "update users set name = 'Neu' where id = 'u1'").contains(",Neu}"));
    world.write_rules(&in_outbox_mode(RULES));
    world.run_ok(&["setup"]);
    assert_eq!(world.value(ENTRIES), "r organizations");
    check(&world, 0, &["no problems"]);
    // Another operation needs another trigger, and the changes it missed are unknown.
    world.sql("delete from unstale.outbox");
    world.write_rules(&in_outbox_mode(RULES).replace("ops: [update, delete]", "ops: [insert]"));
    world.run_ok(&["setup"]);
    assert_eq!(world.value(ENTRIES), "r organizations");
    check(&world, 0, &["no problems"]);
    assert_eq!(written(&world, "truncate unstale.outbox"), "");
}

#[test]
fn every_kind_of_write_is_captured() {
    let world = installed(RULES, "");
    let id = "(select min(id) from users)";
    let insert = "insert into users select * from users where false";
    assert_eq!(written(&world, insert), "");
    let update = written(&world, &format!("update users set email = 'New@x.io' where id = {id}"));
    assert!(update.starts_with("u users {") && update.ends_with(",New@x.io}"), "{update}");
    let replica = format!(
        "set session_replication_role = replica; update users set email = 'r@x.io' where id = {id}; \
         reset session_replication_role"
    );
    assert!(written(&world, &replica).ends_with(",r@x.io}"));
    assert_eq!(written(&world, "truncate users cascade"), "t users");
    // One transaction, in the order of its writes.
    let several = "begin; update organizations set name = 'a'; update organizations set name = 'b'; \
                   delete from organizations; commit";
    let several = written(&world, several);
    let ops: Vec<_> = several.lines().map(|line| &line[..1]).collect();
    assert_eq!(ops, ["u", "u", "d"], "{several}");
}

#[test]
fn a_writer_needs_no_privileges_and_gets_none() {
    let world = installed(RULES, "");
    world.sql("create role writer login; grant all on users to writer; revoke all on schema unstale from public");
    let writer = "set role writer; update users set email = 'w@x.io' where id = 'u1'; reset role";
    assert!(written(&world, writer).ends_with(",w@x.io}"));
    let refused = |sql: &str| {
        let sql = format!(
            "do $do$ begin set local role writer; execute $sql${sql}$sql$; raise exception 'it may'; \
                           exception when insufficient_privilege then reset role; end $do$"
        );
        world.sql(&sql);
    };
    refused("select count(*) from unstale.outbox");
    world.sql("grant usage on schema unstale to writer; grant create on schema public to writer");
    refused("insert into unstale.outbox (op) values ('t')");
    refused("select unstale.ring()");
    // Nor may the writer call our functions by a trigger on a table of its own.
    world.sql("create table own (id text, email text); alter table own owner to writer");
    let function = world.value("select proname::text from pg_proc where proname like 'capture_users_%'");
    refused(&format!("create trigger t after insert on own for each row execute function unstale.{function}()"));
}

#[test]
fn the_search_path_of_a_writer_does_not_matter() {
    let world = installed(
        &rules_for("things", "'thing:{id}-{at}-{code}'"),
        "create table things (id int primary key, at timestamptz, code char(4))",
    );
    world.sql(
        "create schema evil; create role evil login; grant all on schema evil to evil; grant all on things to evil; \
         set role evil; \
         create table evil.stolen (who text); \
         create function evil.format(text, anyelement) returns text language plpgsql as \
           $$ begin insert into evil.stolen values (current_user); return 'evil'; end $$; \
         create function evil.pg_sequence_last_value(regclass) returns bigint language plpgsql as \
           $$ begin insert into evil.stolen values (current_user); return 2; end $$; \
         create function evil.differs(text, text) returns boolean language plpgsql as \
           $$ begin insert into evil.stolen values (current_user); return true; end $$; \
         create operator evil.<> (leftarg = text, rightarg = text, function = evil.differs); \
         create operator evil.= (leftarg = text, rightarg = text, function = evil.differs); \
         create domain evil.text as pg_catalog.int4; create domain evil.regclass as pg_catalog.int4; \
         create temp table outbox (op text); \
         set search_path = evil, pg_temp, pg_catalog, public",
    );
    let entries = "insert into public.things values (1, '2026-01-02 03:04:05+00', 'ab'); \
                   update public.things set code = 'cd'; reset role; reset search_path";
    world.sql(entries);
    assert_eq!(world.value("select count(*)::text from evil.stolen"), "0");
    let found = world.value(ENTRIES);
    assert!(found.starts_with("i things {1,") && found.contains("\"ab  \"") && found.contains("\nu things"), "{found}");
}

#[test]
fn names_of_any_characters_are_quoted() {
    let long = "x".repeat(63);
    let tables = format!(
        "create schema \"S\"\"p\"; \
         create table \"S\"\"p\".\"T'$$ \\y\" (\"a\"\"b\" int, \"$unstale$\" text, \"Select\" text, \"end\" text, \"{long}\" text); \
         create table \"{long}\" (id int primary key)"
    );
    let rules = format!(
        "version: 1\nsource: {{url: \"${{DATABASE_URL}}\"}}\ntarget: {{url: \"${{REDIS_URL}}\"}}\nrules:\n  \
         a: {{table: 'S\"p.T''$$ \\y', set: {{key: 'a:{{Select}}', columns: ['a\"b', '$unstale$', Select, end, {long}]}}}}\n  \
         b: {{table: {long}, delete: 'b:{{id}}'}}\n"
    );
    let world = installed(&rules, &tables);
    let sql = format!(
        "insert into \"S\"\"p\".\"T'$$ \\y\" values (1, 'two', 'three', 'four', 'five'); insert into \"{long}\" values (7)"
    );
    let entries = written(&world, &sql);
    assert_eq!(entries, format!("i T'$$ \\y {{1,two,three,four,five}}\ni {long} {{7}}"));
    check(&world, 0, &["no problems"]);
    let second = world.run_ok(&["setup"]);
    assert!(second.lines().all(|line| line.starts_with("unchanged")), "{second}");
    world.run_ok(&["teardown"]);
    let left = "select count(*)::text from pg_trigger where not tgisinternal";
    assert_eq!(world.value(left), "0");
}

#[test]
fn partitions_and_child_tables_are_captured() {
    let tables = "create table parts (id int not null, note text) partition by range (id); \
         create table parts_1 partition of parts for values from (0) to (10); \
         create table parts_2 partition of parts for values from (10) to (20) partition by range (id); \
         create table parts_2a (note text, id int not null); \
         alter table parts_2 attach partition parts_2a for values from (10) to (15); \
         create table base (id int, note text); create table heir (more text) inherits (base)";
    let rules =
        format!("{}  heirs: {{table: base, delete: 'base:{{id}}'}}\n", rules_for("parts", "'part:{id}-{note}'"));
    let world = installed(&rules, tables);
    assert_eq!(written(&world, "insert into parts values (1, 'a'), (11, 'b')"), "i parts {1,a}\ni parts {11,b}");
    assert_eq!(written(&world, "insert into parts_2a values ('c', 12)"), "i parts {12,c}");
    // A row that moves to another partition.
    assert_eq!(written(&world, "update parts set id = 13 where id = 1"), "d parts {1,a}\ni parts {13,a}");
    assert_eq!(written(&world, "truncate parts_1"), "t parts");
    assert!(written(&world, "truncate parts").lines().all(|line| line == "t parts"));
    assert_eq!(written(&world, "insert into heir values (1, 'x', 'y'); truncate heir"), "i base {1}\nt base");

    world.sql("create table parts_3 partition of parts for values from (20) to (30)");
    let replica =
        "set session_replication_role = replica; insert into parts values (21, 'z'); reset session_replication_role";
    assert_eq!(written(&world, replica), "i parts {21,z}");
    check(&world, 1, &["the truncate trigger of public.parts_3 is missing"]);
    world.run_ok(&["setup"]);
    assert_eq!(written(&world, "truncate parts_3"), "r parts\nt parts");
    check(&world, 0, &["no problems"]);
    // A detached partition is no longer covered by the rules.
    world.sql("alter table parts detach partition parts_3");
    check(&world, 0, &["no rule needs the triggers of public.parts_3"]);
    let said = world.run_ok(&["setup"]);
    assert!(said.contains("done       triggers that no rule needs"), "{said}");
    assert_eq!(written(&world, "insert into parts_3 values (22, 'z'); truncate parts_3"), "");
}

#[test]
fn a_dropped_column_fails_no_writer() {
    let world = installed(
        &rules_for("things", "'thing:{id}-{note}'"),
        "create table things (id int primary key, note text, more int)",
    );
    assert_eq!(written(&world, "insert into things values (1, 'a', 0)"), "i things {1,a}");
    assert_eq!(
        written(&world, "alter table things drop column more; insert into things values (2, 'b')"),
        "i things {2,b}"
    );
    let renamed = "alter table things rename column note to remark; update things set remark = 'c' where id = 1; \
                   insert into things values (3, 'd'); delete from things where id = 2; truncate things";
    assert_eq!(written(&world, renamed), "r things\nr things\nr things\nt things");
    // The type changes of a column that this session already knows.
    let other_type = "alter table things rename column remark to note; alter table things alter column id type bigint; \
                      insert into things values (4, 'e')";
    assert_eq!(written(&world, other_type).len(), "r things".len());
    check(&world, 1, &["is not what the rules need now"]);
    world.run_ok(&["setup"]);
    assert_eq!(written(&world, "update things set note = 'f'"), "u things {4,e} {4,f}");
    let dropped = "alter table things drop column note; insert into things values (5)";
    assert_eq!(written(&world, dropped), "r things");
}

/// The reference is what a slot of the same server sends, with the settings of the replication
/// connection.
#[test]
fn captured_values_equal_those_of_the_log() {
    let tables = "create type mood as enum ('glad', 'So so'); create type pair as (a int, b timestamptz); \
         create domain small as numeric(6, 2); create domain word as char(4); \
         create table vals (id int primary key, code char(6), addr inet, net cidr, at timestamptz, day date, raw bytea, \
           big float8, single float4, span interval, state mood, list timestamptz[], two pair, none pair, flag bool, \
           amount numeric(10, 3), doc jsonb, js json, letter \"char\", ident name, u uuid, d small, w word, r tstzrange, \
           bits bit(4), price money, t timetz, ts timestamp, nothing text, empty text)";
    let columns = [
        "id", "code", "addr", "net", "at", "day", "raw", "big", "single", "span", "state", "list", "two", "none",
        "flag", "amount", "doc", "js", "letter", "ident", "u", "d", "w", "r", "bits", "price", "t", "ts", "nothing",
        "empty",
    ];
    let rule = rules_for("vals", "'v:{id}'")
        .replace("delete: 'v:{id}'", &format!("set: {{key: 'v:{{id}}', columns: [{}]}}", columns.join(", ")));
    let world = World::with(&in_outbox_mode(&rule), &["timezone=Asia/Kolkata"], &[]);
    world.sql(tables);
    world.run_ok(&["setup"]);
    world.sql(
        "delete from unstale.outbox; create publication reference for table vals; \
         alter table vals replica identity full",
    );
    world.value("select pg_create_logical_replication_slot('reference', 'pgoutput')::text");
    world.sql(
        "set datestyle = 'German, DMY'; set timezone = 'America/New_York'; set intervalstyle = 'iso_8601'; \
         set extra_float_digits = -3; set bytea_output = 'escape'; set array_nulls = off; \
         set standard_conforming_strings = off; \
         insert into vals values (1, 'ab', '10.0.0.1', '10.0.0.0/8', '2026-03-04 05:06:07.5+00', '2026-03-04', 'a\\\\000b', \
           0.1::float8 + 0.2::float8, 0.1, '1 year 2 days 03:04:05', 'So so', array['2026-03-04 05:06:07+00'::timestamptz, null], \
           row(1, '2026-03-04 05:06:07+00')::pair, row(null, null)::pair, true, 1.5, '{\"a\": [1, null]}', '{ \"a\":1 }', 'x', \
           'n', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 1.5, 'w', '[2026-03-04 05:06:07+00,)', B'1010', 12.5, \
           '05:06:07+02', '2026-03-04 05:06:07', null, ''); \
         reset all",
    );
    // Like the session of a replication connection.
    world.sql("set datestyle = ISO; set intervalstyle = postgres; set extra_float_digits = 3; set timezone = 'UTC'");
    let lines = "select encode(data, 'hex') from pg_logical_slot_get_binary_changes('reference', null, null, \
                 'proto_version', '1', 'publication_names', 'reference') where get_byte(data, 0) = ascii('I')";
    let logged = tuple(&hex(&world.value(lines)));
    let outbox: Vec<Option<String>> = {
        let sql = "select value from unstale.outbox o cross join unnest(o.new) with ordinality u (value, place) \
                   where op = 'i' order by place";
        rows(&world, sql)
    };
    assert_eq!((logged.len(), outbox.len()), (columns.len(), columns.len()));
    for (column, (logged, written)) in columns.iter().zip(logged.into_iter().zip(outbox)) {
        // The log's decoder does the same.
        let logged = if *column == "flag" { logged.map(|flag| flag.replace('t', "true")) } else { logged };
        assert_eq!(written, logged, "{column}");
    }
    world.sql("reset all");
    world.value("select pg_drop_replication_slot('reference')::text");
}

/// The first column of each row.
fn rows(world: &World, sql: &str) -> Vec<Option<String>> {
    let count: usize = world.value(&format!("select count(*)::text from ({sql}) found")).parse().unwrap();
    let nth = |n: usize| {
        let value = world.value(&format!("select coalesce('=' || value, '') from ({sql} offset {n} limit 1) found"));
        value.strip_prefix('=').map(ToOwned::to_owned)
    };
    (0..count).map(nth).collect()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The values of an Insert message of pgoutput: 'I', the relation, 'N', their number, then each
/// with its kind.
fn tuple(message: &[u8]) -> Vec<Option<String>> {
    let number = |at: usize, bytes: usize| {
        message[at..at + bytes].iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let mut at = 8;
    let mut values = Vec::new();
    for _ in 0..number(6, 2) {
        let kind = message[at];
        at += 1;
        if kind == b'n' {
            values.push(None);
            continue;
        }
        assert_eq!(kind, b't');
        let length = number(at, 4);
        at += 4;
        values.push(Some(String::from_utf8(message[at..at + length].to_vec()).unwrap()));
        at += length;
    }
    values
}

#[test]
fn the_script_installs_the_same_as_setup() {
    let rules = format!("{RULES}  product: {{event: product.updated, delete: \"product:{{id}}\"}}\n");
    let world = World::with(&in_outbox_mode(&rules), &["wal_level=replica"], &[]);
    check(&world, 1, &["there is no outbox", "the row trigger of public.users is missing", "SHARE ROW EXCLUSIVE"]);
    world.sql(&world.run_ok(&["check", "--sql"]));
    check(&world, 0, &["no problems"]);
    assert_eq!(world.value(ENTRIES), "");
    let setup = world.run_ok(&["setup"]);
    assert!(setup.lines().all(|line| line.starts_with("unchanged")), "{setup}");
    assert!(world.run_ok(&["check", "--sql"]).contains("Nothing has to be changed in PostgreSQL"));

    let function = world.value("select proname::text from pg_proc where proname like 'capture_users_%'");
    let trigger = world.value(
        "select tgname::text from pg_trigger where tgname like '%unstale_row_%' and tgrelid = 'users'::regclass",
    );
    let broken = |sql: &str, words: &[&str]| {
        world.sql(sql);
        check(&world, 1, words);
        assert_eq!(world.run(&["run"]).status.code(), Some(78), "{sql}");
        world.sql(&world.run_ok(&["check", "--sql"]));
        check(&world, 0, &["no problems"]);
    };
    broken(&format!("alter table users disable trigger \"{trigger}\""), &["is not ENABLE ALWAYS"]);
    broken(&format!("alter table users enable trigger \"{trigger}\""), &["is not ENABLE ALWAYS"]);
    broken(&format!("drop trigger \"{trigger}\" on users"), &["the row trigger of public.users is missing"]);
    broken(&format!("alter function unstale.{function}() security invoker"), &["SECURITY DEFINER"]);
    broken(&format!("alter function unstale.{function}() reset search_path"), &["does not have the settings"]);
    broken(&format!("grant execute on function unstale.{function}() to public"), &["can be executed by PUBLIC"]);
    broken("delete from unstale.shape where table_name = 'users'", &["unstale.shape does not say"]);
    broken("delete from unstale.consumer", &["the outbox has no consumer"]);
    broken("drop function unstale.emit", &["no function unstale.emit"]);
    broken("alter table users alter column email type varchar", &["is not what the rules need now"]);
}

#[test]
fn a_database_has_only_one_outbox() {
    let world = installed(RULES, "");
    world.write_rules(&in_outbox_mode(RULES).replace("{mode: outbox,", "{mode: outbox, slot: other,"));
    for command in ["setup", "run"] {
        let output = world.run(&[command]);
        let said = text(&output);
        assert!(output.status.code() == Some(78) && said.contains("belongs to `unstale`"), "{command}: {said}");
    }
    check(&world, 78, &["belongs to `unstale`", "each of two consumers would miss what the other removes"]);
    let said = world.run_ok(&["teardown"]);
    assert!(said.contains("kept the outbox"), "{said}");
    world.write_rules(&in_outbox_mode(RULES));
    check(&world, 0, &["no problems"]);
}

#[test]
fn setup_and_teardown_do_not_wait_for_locks() {
    let world = World::with(&in_outbox_mode(RULES), &["wal_level=replica"], &[]);
    let before = world.value(CATALOG);
    let writer = world.another_client();
    world.sql_on(&writer, "begin; update users set name = 'x' where id = 'u1'");
    let output = world.run(&["setup"]);
    let said = text(&output);
    assert!(output.status.code() == Some(69) && said.contains("nothing was changed"), "{said}");
    assert_eq!(world.value(CATALOG), before);
    world.sql_on(&writer, "commit");
    world.run_ok(&["setup"]);
    world.sql_on(&writer, "begin; update users set name = 'y' where id = 'u1'");
    let output = world.run(&["teardown"]);
    assert!(output.status.code() == Some(69), "{}", text(&output));
    world.sql_on(&writer, "commit");
    check(&world, 0, &["no problems"]);
}

#[test]
fn remains_of_the_other_mode_are_reported() {
    let rules = format!("{RULES}  product: {{event: product.updated, delete: \"product:{{id}}\"}}\n");
    let world = World::with_rules(&rules);
    let before = world.value(CATALOG);
    world.run_ok(&["setup"]);
    world.write_rules(&in_outbox_mode(&rules));
    check(&world, 1, &["there is no outbox", "still has the replication slot `unstale`", "still has the publication"]);
    world.run_ok(&["setup"]);
    assert_eq!(
        written(&world, "delete from unstale.outbox; select unstale.emit('product.updated', '{\"id\": 7}')"),
        "e {product.updated,\"{\\\"id\\\": 7}\"}"
    );
    check(&world, 0, &["pg_drop_replication_slot('unstale')", "DROP PUBLICATION unstale"]);
    world.write_rules(&rules);
    check(&world, 0, &["ok  function unstale.emit", "still has an outbox"]);
    world.sql(include_str!("../../sql/outbox_teardown.sql"));
    let said = check(&world, 0, &["ok  function unstale.emit"]);
    assert!(!said.contains("outbox"), "{said}");
    world.run_ok(&["teardown"]);
    assert_eq!(world.value(CATALOG), before);
    assert_eq!(world.value("select count(*)::text from pg_replication_slots"), "0");
}

#[test]
fn missing_privileges_of_a_role_are_listed() {
    let mut world = installed(RULES, "");
    world.sql("create role plain login; grant select on all tables in schema public to plain");
    world.database_url = world.database_url.replace("postgres@", "plain@");
    let words =
        ["the role plain may not empty the outbox", "GRANT SELECT, INSERT, UPDATE, DELETE ON unstale.outbox TO plain;"];
    check(&world, 1, &words);
    world.sql(&world.run_ok(&["check", "--sql"]));
    check(&world, 0, &["ok  outbox: the role plain may empty it"]);
    // The owner of the trigger functions must be able to write.
    world.sql("create role maker");
    let function = world.value("select proname::text from pg_proc where proname like 'capture_users_%'");
    world.sql(&format!("alter function unstale.{function}() owner to maker"));
    check(&world, 1, &["the role maker owns triggers", "GRANT INSERT ON unstale.outbox TO maker;"]);
}

#[test]
fn one_writer_notifies_a_sleeping_daemon() {
    let world = installed(RULES, "");
    check(&world, 0, &["ok  wakeups"]);
    let bell = "select last_value::text from unstale.bell";
    world.sql("select setval('unstale.bell', 2)");
    world.sql("update users set name = 'x' where id = 'u1'");
    assert_eq!(world.value(bell), "1");
    world.write_rules(&in_outbox_mode(RULES).replace("{mode: outbox,", "{mode: outbox, outbox: {notify: false},"));
    world.run_ok(&["setup"]);
    world.sql("select setval('unstale.bell', 2)");
    world.sql("update users set name = 'y' where id = 'u1'");
    assert_eq!(world.value(bell), "2");
    check(&world, 0, &["ok  wakeups: off"]);
}

#[test]
fn prepared_transactions_and_a_missing_vacuum_are_reported() {
    let world = World::outbox_with(RULES, "", &["max_prepared_transactions=5", "autovacuum=off"]);
    check(&world, 0, &["max_prepared_transactions = 5", "waits for up to 100 ms", "runs without autovacuum"]);
    world.sql("select setval('unstale.bell', 2)");
    world.sql("begin; update users set name = 'x' where id = 'u1'; prepare transaction 'p'");
    world.sql("commit prepared 'p'");
    assert_eq!(world.value("select last_value::text from unstale.bell"), "2");
}

#[test]
fn unlogged_tables_can_be_captured() {
    let world = installed(&rules_for("fast", "'fast:{id}'"), "create unlogged table fast (id int primary key)");
    assert_eq!(written(&world, "insert into fast values (1)"), "i fast {1}");
    check(&world, 0, &["no problems"]);
}
