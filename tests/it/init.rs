//! `init`, `schema`, `completions` and `man`: the commands that need no rules yet.

use std::collections::BTreeSet;

use tempfile::TempDir;

use crate::support::{SHIPPED, World, text, unstale};

/// The file without the SQL at its end, which `setup` makes unnecessary.
fn rules_of(file: &str) -> &str {
    file.split("\n# What `unstale setup` will run").next().unwrap()
}

/// Drafts rules for the world's database, then runs the commands that a user would run next.
fn draft_and_set_up(world: &World) -> String {
    let path = world.directory.path().join("invalidation.yaml");
    std::fs::remove_file(&path).unwrap();
    let output = world.run(&["init"]);
    let said = text(&output);
    assert!(output.status.success() && output.stdout.is_empty(), "{said}");
    for step in ["unstale test", "unstale setup", "unstale check", "unstale run"] {
        assert!(said.contains(step), "{step}: {said}");
    }
    let drafted = std::fs::read_to_string(&path).unwrap();
    world.run_ok(&["check", "--offline"]);
    world.run_ok(&["test"]);
    world.run_ok(&["setup"]);
    world.run_ok(&["check"]);
    let again = world.run_ok(&["init", "--output", "-"]);
    assert_eq!(rules_of(&again), rules_of(&drafted), "what setup made is not drafted as a key");
    assert!(!again.contains("REPLICA IDENTITY USING INDEX"), "nothing is left to widen: {again}");
    drafted
}

#[test]
fn the_example_domain_is_drafted() {
    let world = World::with_rules(SHIPPED);
    let drafted = draft_and_set_up(&world);
    for key in [
        "user:{id}",
        "user-by-email:{email}",
        "organization-by-slug:{slug}",
        "membership-by-user-id-organization-id:{user_id}:{organization_id}",
        "organization-memberships:{organization_id}",
        "user-sessions:{user_id}",
        "session-by-token-hash:{token_hash}",
    ] {
        assert!(drafted.contains(&format!("- \"{key}\"")), "{key}: {drafted}");
    }
    for sql in ["CREATE UNIQUE INDEX CONCURRENTLY", "CREATE PUBLICATION unstale FOR TABLE", "    public.users;"] {
        assert!(drafted.contains(sql), "{sql}: {drafted}");
    }
    assert!(!drafted.to_uppercase().contains("ALL TABLES"), "{drafted}");

    // The draft keeps a cache coherent without any edit.
    let daemon = world.daemon();
    let keys = ["user:u1", "user-by-email:user1@example.com", "user-by-email:new@x.io", "user:u2"];
    keys.iter().for_each(|key| world.cache(&format!("v1:{key}")));
    world.sql("update users set email = 'new@x.io' where id = 'u1'");
    world.settle();
    let held: Vec<_> = keys.into_iter().filter(|key| world.holds(&format!("v1:{key}"))).collect();
    assert_eq!(held, ["user:u2"]);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn names_of_any_characters_are_drafted() {
    let world = World::with_rules(SHIPPED);
    world.sql(
        r#"drop table sessions, feature_flags, memberships, users, organizations cascade;
        create table "we""ird: {name} 'x'
# not a comment" (id int primary key, "a: b" text not null unique, "${HOME}" text unique, "{c}" text, "d|e" text unique,
          " f" text, "g.h" text, "null" text not null, "<<" int, "line
break" text unique, "größe 🦀" text, unique ("null", "<<"));
        create table "select" ("true" boolean, "1" int, primary key ("true", "1"));
        create table "yes" (id uuid primary key, "select" boolean, "1" int,
          foreign key ("select", "1") references "select");
        create table "$${x}" ("- k" text primary key, doc jsonb unique, at timestamptz, raw bytea unique, tags text[]);
        create table "a.b" (id int primary key);
        create table "tags" (id int primary key, name text not null unique);
        create table "unstale" (id int primary key);
        create table keyless (n int, parent int references "tags");
        create table computed (id int primary key, n int not null, twice int generated always as (n * 2) stored unique);
        create table events (id int, at date, primary key (id, at)) partition by range (at);
        create table events_2026 partition of events for values from ('2026-01-01') to ('2027-01-01');
        create table events_old partition of events default partition by range (at);
        create table events_2025 partition of events_old for values from ('2025-01-01') to ('2026-01-01');
        create unlogged table fast (id int primary key);
        create table schema_migrations (version text primary key);
        create schema other; create table other.tags (id int primary key);"#,
    );
    let drafted = draft_and_set_up(&world);
    for part in [
        r##"table: "we\"ird: {name} 'x'\n# not a comment""##,
        "\"we-ird-name-x-not-a-comment-by-a-b:{a: b}\"",
        "table: \"yes\"",
        "table: \"$$${x}\"",
        "\"tag-row-by-name:{name}\"",
        "\"unstale-row:{id}\"",
        "\"event:{id}:{at}\"",
        "# \"public.a.b\" has a `.` in its name",
        "# \"public.fast\" is unlogged",
        "# \"public.schema_migrations\" belongs to a migration tool",
        "# keyless has no primary key",
        "# no key by doc: JSON",
        "# no key by raw: bytea",
        "# no key by twice: it is a generated column",
        "# no key by \"d|e\": templates cannot contain this name",
        "#     public.events",
    ] {
        assert!(drafted.contains(part), "{part}: {drafted}");
    }
    for part in ["events_2026:", "events_2025", "events_old:", "other.tags", "table: schema_migrations"] {
        assert!(!drafted.contains(part), "{part}: {drafted}");
    }
    let qualified = world.run_ok(&["init", "--output", "-", "--tables", "tags,other.tags"]);
    assert!(qualified.contains("table: \"public.tags\"") && qualified.contains("table: \"other.tags\""), "{qualified}");
}

#[test]
fn an_existing_file_is_not_overwritten() {
    let world = World::with_rules(SHIPPED);
    let path = world.directory.path().join("invalidation.yaml");
    let output = world.run(&["init"]);
    let said = text(&output);
    assert!(output.status.code() == Some(2) && said.contains("--force"), "{said}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), SHIPPED);
    world.run_ok(&["init", "--output", "other.yaml"]);
    world.run_ok(&["check", "--offline", "--config", "other.yaml"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), SHIPPED);
    world.run_ok(&["init", "--force"]);
    let forced = std::fs::read_to_string(&path).unwrap();
    assert_eq!(forced, std::fs::read_to_string(world.directory.path().join("other.yaml")).unwrap());
}

#[test]
fn input_that_cannot_be_drafted_is_refused() {
    let world = World::with_rules(SHIPPED);
    let check = |arguments: &[&str], code: i32, word: &str| {
        let output = world.run(&[&["init", "--output", "-"][..], arguments].concat());
        let said = text(&output);
        assert!(output.status.code() == Some(code) && said.contains(word), "{arguments:?}: {said}");
    };
    check(&["--tables", "usres"], 2, "did you mean \"public.users\"?");
    check(&["--database-url", "mysql://u:hunter2@h/d"], 2, "postgres://user@host:5432/database");
    world.sql("create table keyless (n int)");
    check(&["--tables", "keyless"], 1, "keyless has no primary key");
    world.sql("drop schema public cascade; create schema public");
    check(&[], 1, "the search path (public) has no tables");
    let closed = format!("postgres://u:hunter2@127.0.0.1:{}/d", unstale::sandbox::free_port().unwrap());
    let output = world.run(&["init", "--output", "-", "--database-url", &closed]);
    let said = text(&output);
    assert!(output.status.code() == Some(69) && !said.contains("hunter2"), "{said}");
}

#[test]
fn a_draft_contains_no_credentials() {
    let world = World::with_rules(SHIPPED);
    let url = world.database_url.replace("postgres@", "postgres:hunter2@");
    assert_ne!(url, world.database_url);
    let mut command = world.command(&["init", "--output", "new.yaml", "--database-url", &url]);
    let output = command.env_remove("DATABASE_URL").output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.contains("set DATABASE_URL"), "{said}");
    let drafted = std::fs::read_to_string(world.directory.path().join("new.yaml")).unwrap();
    let port = world.postgres.port().to_string();
    for part in ["hunter2", port.as_str()] {
        assert!(!said.contains(part) && !drafted.contains(part), "{part}: {said}{drafted}");
    }
    assert!(drafted.contains("url: ${DATABASE_URL:-postgres://postgres@127.0.0.1:5432/postgres}"), "{drafted}");
}

/// The commands that `--help` lists.
fn commands() -> BTreeSet<String> {
    let output = unstale(&TempDir::new().unwrap(), &["--help"], b"");
    let help = String::from_utf8(output.stdout).unwrap();
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = listed.lines().filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let names: BTreeSet<_> = names.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
    assert!(names.contains("init") && names.contains("dry-run"), "{help}");
    names.into_iter().filter(|name| name != "help").collect()
}

#[test]
fn every_shell_completes_every_command() {
    let directory = TempDir::new().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = unstale(&directory, &["completions", shell], b"");
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{shell}");
        for command in commands() {
            assert!(script.contains(&command), "{shell} knows nothing of {command}");
        }
        if shell == "bash" {
            std::fs::write(directory.path().join("script"), &script).unwrap();
            let path = directory.path().join("script");
            assert!(std::process::Command::new("bash").arg("-n").arg(path).status().unwrap().success());
        }
    }
    let output = unstale(&directory, &["completions", "tcsh"], b"");
    assert!(output.status.code() == Some(2) && text(&output).contains("elvish"), "{}", text(&output));
}

#[test]
fn every_command_has_a_manual_page() {
    let directory = TempDir::new().unwrap();
    let output = unstale(&directory, &["man"], b"");
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && page.contains(".TH unstale 1"), "{page}");
    let output = unstale(&directory, &["man", "--dir", "pages/man1"], b"");
    assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output));
    let written: BTreeSet<_> = std::fs::read_dir(directory.path().join("pages/man1"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected: BTreeSet<_> = commands().iter().map(|command| format!("unstale-{command}.1")).collect();
    expected.insert("unstale.1".to_owned());
    assert_eq!(written, expected);
    std::fs::write(directory.path().join("file"), "").unwrap();
    let output = unstale(&directory, &["man", "--dir", "file"], b"");
    assert!(output.status.code() == Some(2) && text(&output).contains("--dir"), "{}", text(&output));
}

#[test]
fn the_schema_is_json() {
    let output = unstale(&TempDir::new().unwrap(), &["schema"], b"");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output));
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rule = &schema["$defs"]["rule"]["properties"];
    for field in ["table", "event", "when", "for_each", "delete", "again_after"] {
        assert!(rule[field]["description"].is_string(), "{field}: {rule}");
    }
}
