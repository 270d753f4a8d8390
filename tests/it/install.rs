//! `setup`, `teardown`, and what `run` requires before it starts.

use crate::support::{SHIPPED, World, text};

#[test]
fn a_second_setup_changes_nothing_and_teardown_leaves_nothing() {
    let world = World::with_rules(SHIPPED);
    let state = "select coalesce((select string_agg(pubname || ' ' || tablename, ',' order by tablename) from pg_publication_tables), '')
                 || ' slots ' || (select count(*) from pg_replication_slots)
                 || ' identities ' || (select string_agg(relname || relreplident::text, ',' order by relname) from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace)
                 || ' indexes ' || (select count(*) from pg_class where relname ~ '_unstale_')";
    let before = world.value(state);
    let first = world.run_ok(&["setup"]);
    assert!(first.lines().all(|line| line.starts_with("done")), "{first}");
    let installed = world.value(state);
    assert_ne!(before, installed);
    let second = world.run_ok(&["setup"]);
    assert!(second.lines().all(|line| line.starts_with("unchanged")), "{second}");
    assert_eq!(world.value(state), installed);
    world.run_ok(&["check"]);
    world.run_ok(&["teardown"]);
    // An identity that uses an index of the application's own stays.
    let own = ["feature_flags", "memberships", "sessions"].map(|table| (format!("{table}d"), format!("{table}i")));
    let expected = own.iter().fold(before, |state, (from, to)| state.replace(from, to));
    assert_eq!(world.value(state), expected);
    world.run_ok(&["teardown"]);
}

#[test]
fn setup_follows_the_rules_when_they_change() {
    let world = World::shipped();
    let without_sessions = SHIPPED.split("\n  session:").next().unwrap();
    world.write_rules(without_sessions);
    let output = world.run_ok(&["setup"]);
    assert!(output.contains("done       publication unstale"), "{output}");
    let tables = "select string_agg(tablename, ',' order by tablename) from pg_publication_tables";
    assert_eq!(world.value(tables), "feature_flags,memberships,organizations,users");
    world.sql("alter publication unstale set table users where (id <> 'u1')");
    world.run_ok(&["setup"]);
    assert_eq!(world.value(tables), "feature_flags,memberships,organizations,users");
    assert_eq!(world.value("select count(*)::text from pg_publication_rel where prqual is not null"), "0");
}

/// Each with the exit code and the words of the advice.
#[test]
fn run_refuses_to_start_if_keys_would_go_stale() {
    let world = World::with_rules(SHIPPED);
    let check = |code: i32, words: &[&str]| {
        let output = world.run(&["run"]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    };
    check(
        78,
        &[
            "does not carry the old value of public.users.email",
            "invalidation.yaml:20:22",
            "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS users_unstale_",
            "REPLICA IDENTITY USING INDEX",
        ],
    );
    world.run_ok(&["setup"]);
    world.sql("alter publication unstale drop table sessions");
    check(78, &["does not carry table public.sessions", "unstale setup"]);
    world.sql("drop publication unstale");
    check(78, &["no publication `unstale`", "unstale setup"]);
    world.sql("select pg_drop_replication_slot('unstale')");
    check(78, &["no replication slot `unstale`"]);
}

#[test]
fn unknown_names_are_shown_with_the_nearest_ones() {
    let world = World::with_rules(SHIPPED);
    let check = |from: &str, to: &str, words: &[&str]| {
        world.write_rules(&SHIPPED.replace(from, to));
        for command in ["check", "setup", "run"] {
            let output = world.run(&[command]);
            let said = text(&output);
            assert_eq!(output.status.code(), Some(78), "{said}");
            assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
        }
    };
    check(
        "table: users",
        "table: usres",
        &["no table `usres`", "did you mean `users`?", "invalidation.yaml:16:12", "^^^^^"],
    );
    check("table: users", "table: other.users", &["no table `other.users`", "did you mean `public.users`?"]);
    check("[email, name", "[emial, name", &["no column `emial`", "did you mean `email`?", "invalidation.yaml:17:15"]);
    check("- \"user:{id}\"", "- \"user:{idd}\"", &["no column `idd`", "did you mean `id`?", "invalidation.yaml:19:16"]);
    check("flag: \"{key}\"", "flag: \"{kye}\"", &["no column `kye`", "did you mean `key`?"]);
}

#[test]
fn unlogged_tables_and_tables_without_a_key_are_handled() {
    let world = World::with_rules(SHIPPED);
    world.sql("create unlogged table fast (id int primary key)");
    world.write_rules(&SHIPPED.replace("\nrules:\n", "\nrules:\n  fast: {table: fast, delete: 'fast:{id}'}\n"));
    let said = text(&world.run(&["setup"]));
    assert!(said.contains("unlogged") && said.contains("SET LOGGED"), "{said}");
    // A nullable column cannot be part of an identity index, and a table without a key has no
    // columns to add to.
    world.write_rules("version: 1\nsource: {url: '${DATABASE_URL}'}\nrules:\n  a: {table: users, delete: 'a:{avatar_url}'}\n  b: {table: keyless, delete: 'b:{n}'}\n");
    world.sql("create table keyless (n int not null)");
    if !world.takes_full_identities() {
        let said = text(&world.run(&["setup"]));
        assert!(said.contains("public.keyless has no replica identity"), "{said}");
        assert_eq!(world.value("select count(*)::text from pg_publication_tables"), "0", "nothing was changed");
        world.sql("create unique index own on keyless (n)");
        let said = world.run_ok(&["setup"]);
        assert!(said.contains("skipped    replica identity of public.users"), "{said}");
        let identities = "select string_agg(relname || relreplident::text, ',' order by relname) from pg_class
                           where relname in ('keyless', 'users')";
        assert_eq!(world.value(identities), "keylessi,usersd");
        return;
    }
    world.run_ok(&["setup"]);
    let full = "select string_agg(relname, ',' order by relname) from pg_class where relreplident = 'f'";
    assert_eq!(world.value(full), "keyless,users");
}

#[test]
fn without_logical_wal_setup_names_the_setting() {
    let world = World::with(SHIPPED, &["wal_level=replica"], &[]);
    for command in ["setup", "check"] {
        let output = world.run(&[command]);
        assert_eq!(output.status.code(), Some(78), "{command}: {}", text(&output));
    }
    assert!(text(&world.run(&["setup"])).contains("ALTER SYSTEM SET wal_level = logical"));
}

#[test]
fn a_missing_privilege_is_named() {
    let mut world = World::shipped();
    world.sql("create role plain login; grant select on all tables in schema public to plain");
    world.database_url = world.database_url.replace("postgres@", "plain@");
    let output = world.run(&["run"]);
    let said = text(&output);
    assert!(output.status.code() == Some(78) && said.contains("ALTER ROLE name REPLICATION"), "{said}");
}
