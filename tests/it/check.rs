//! `check` against real servers: what it finds, what it prints, and that its script fixes what it
//! found.

use redis::Commands as _;
use tempfile::TempDir;

use crate::support::{World, text, unstale};

const RULES: &str = r#"version: 1
source: {url: "${DATABASE_URL:-postgres://127.0.0.1:1/d}"}
target: {url: "${REDIS_URL:-redis://127.0.0.1:1}", namespace: "v1:"}
lookups:
  org_members: {sql: select user_id from memberships where organization_id = $1}
rules:
  user:
    table: users
    delete: ["user:{id}", "user-email:{email|lower}"]
  organization:
    table: organizations
    for_each: org_members({id}) as m
    delete: "user:{m.user_id}"
  product:
    event: product.updated
    delete: "product:{id}"
"#;

/// The statements of a script: split at each `;` outside of comments and quotes.
fn statements(script: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at < script.len() {
        let rest = &script[at..];
        let end_of =
            |open: usize, close: &str| open + rest[open..].find(close).map_or(rest.len(), |place| place + close.len());
        if rest.starts_with("--") {
            at += end_of(0, "\n");
        } else if rest.starts_with('\'') {
            at += end_of(1, "'");
        } else if rest.starts_with('"') {
            at += end_of(1, "\"");
        } else if rest.starts_with('$') && rest[1..].find('$').is_some_and(|end| rest[1..=end].bytes().all(is_word)) {
            let tag = &rest[..rest[1..].find('$').unwrap() + 2];
            at += end_of(tag.len(), tag);
        } else {
            at += rest.chars().next().unwrap().len_utf8();
            if rest.starts_with(';') {
                statements.push(script[start..at].to_owned());
                start = at;
            }
        }
    }
    let left: Vec<_> = script[start..].lines().filter(|line| !line.is_empty() && !line.starts_with("--")).collect();
    assert!(left.is_empty(), "{left:?} is no statement");
    statements
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[test]
fn a_script_is_split_into_statements() {
    let script = "-- a; b\nselect ';', \"x;\", $1;\ndo $$ begin; end $$;\nselect $t$;$$;$t$ ;\n-- end;\n";
    let found = statements(script);
    let expected = ["-- a; b\nselect ';', \"x;\", $1;", "\ndo $$ begin; end $$;", "\nselect $t$;$$;$t$ ;"];
    assert_eq!(found, expected);
}

/// Runs the script that `check` prints as superuser, and returns it.
fn apply(world: &World) -> String {
    let script = world.run_ok(&["check", "--sql"]);
    for statement in statements(&script) {
        world.sql(&statement);
    }
    script
}

/// Runs `check`, compares its exit code, and returns everything it printed.
fn check(world: &World, arguments: &[&str], code: i32, words: &[&str]) -> String {
    let output = world.run(&[&["check"][..], arguments].concat());
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    said
}

#[test]
fn the_script_fixes_everything_and_a_second_run_changes_nothing() {
    let world = World::with_rules(RULES);
    check(
        &world,
        &[],
        78,
        &[
            "the log does not carry the old value of public.users.email",
            "invalidation.yaml:9:",
            "has no publication `unstale`",
            "has no replication slot `unstale`",
            "there is no function unstale.emit(text, jsonb)",
            "CREATE UNIQUE INDEX CONCURRENTLY",
            "ok  wal_level logical",
            "ok  role: primary",
        ],
    );
    let script = apply(&world);
    let order =
        ["CREATE UNIQUE INDEX", "REPLICA IDENTITY USING", "CREATE PUBLICATION", "unstale.emit", "pg_create_logical"];
    let place = |part: &&str| script.find(part).unwrap_or_else(|| panic!("{part} is not in: {script}"));
    let places: Vec<_> = order.iter().map(place).collect();
    assert!(places.is_sorted(), "{script}");
    check(&world, &[], 0, &["no problems", "PostgreSQL and Redis are ready", "ok  slot unstale"]);
    assert!(apply(&world).contains("Nothing has to be changed in PostgreSQL"));
    let setup = world.run_ok(&["setup"]);
    assert!(setup.lines().all(|line| line.starts_with("unchanged")), "{setup}");
    world.sql("select unstale.emit('product.updated', '{\"id\": 7}')");
}

#[test]
fn missing_privileges_of_a_role_are_listed() {
    let mut world = World::with_rules(RULES);
    world.run_ok(&["setup"]);
    world.sql("create role plain login");
    world.database_url = world.database_url.replace("postgres@", "plain@");
    let said = check(
        &world,
        &[],
        1,
        &[
            "the role plain may not stream the log",
            "ALTER ROLE plain REPLICATION;",
            "the role plain may not run the lookup `org_members`",
            "GRANT SELECT ON public.memberships TO plain;",
            "invalidation.yaml:5:",
        ],
    );
    assert!(!said.contains("public.users TO"), "only what the lookup reads: {said}");
    apply(&world);
    check(&world, &[], 0, &["replication connection as role plain"]);
    world.sql("create schema closed; create table closed.members (user_id text, organization_id text)");
    world.write_rules(&RULES.replace("from memberships", "from closed.members"));
    check(&world, &[], 1, &["GRANT USAGE ON SCHEMA closed TO plain;", "GRANT SELECT ON closed.members TO plain;"]);
    apply(&world);
    check(&world, &[], 0, &["ok  lookup org_members"]);
}

#[test]
fn a_lookup_that_does_not_fit_is_shown_at_its_place() {
    let world = World::with_rules(&RULES.replace("from memberships", "from membership"));
    world.run(&["setup"]);
    check(&world, &[], 78, &["invalidation.yaml:5:", "membership"]);
    world.write_rules(&RULES.replace("{m.user_id}", "{m.user_ix}"));
    check(&world, &[], 78, &["no column `user_ix`", "did you mean `user_id`?"]);
}

#[test]
fn a_publication_that_hides_changes_is_fixed() {
    let world = World::with_rules(RULES);
    world.run_ok(&["setup"]);
    let broken = |sql: &str, words: &[&str]| {
        world.sql(sql);
        check(&world, &[], 1, words);
        apply(&world);
        check(&world, &[], 0, &["ok  publication unstale carries public.organizations, public.users"]);
    };
    broken(
        "alter publication unstale set table organizations, users where (id <> 'u1')",
        &["carries only a part of public.users", "SET TABLE public.organizations, public.users"],
    );
    broken("alter publication unstale set table organizations, users (id, email)", &["only a part of public.users"]);
    broken("alter publication unstale drop table users", &["does not carry public.users", "ADD TABLE public.users"]);
    broken("alter publication unstale set (publish = 'insert')", &["leaves out some kinds of changes"]);
    broken("alter publication unstale set (publish_via_partition_root = true)", &["under their root's name"]);
}

#[test]
fn every_partition_is_checked() {
    let rules = RULES.replace("table: users", "table: parts").replace("{email|lower}", "{id}-{note}");
    let world = World::with_rules(&rules);
    world.sql(
        "create table parts (id int not null, note varchar(40) not null, primary key (id)) partition by range (id); \
         create table parts_1 partition of parts for values from (0) to (10); \
         create table parts_2 partition of parts for values from (10) to (20)",
    );
    check(&world, &[], 78, &["old value of public.parts.note", "ON public.parts_1", "ON public.parts_2"]);
    apply(&world);
    check(&world, &[], 0, &["publication unstale carries public.organizations, public.parts"]);
    world.sql("create table parts_3 partition of parts for values from (20) to (30)");
    check(&world, &[], 78, &["ON public.parts_3"]);
    apply(&world);
    check(&world, &[], 0, &[]);
}

#[test]
fn a_server_without_free_slots_or_logical_wal_gets_the_settings() {
    let world = World::with(RULES, &["wal_level=replica", "max_replication_slots=1"], &[]);
    world.sql("select pg_create_physical_replication_slot('other')");
    check(
        &world,
        &[],
        78,
        &["wal_level = replica", "ALTER SYSTEM SET wal_level = 'logical';", "max_replication_slots = 1", "restart"],
    );
    let script = apply(&world);
    assert!(script.contains("-- Now restart PostgreSQL"), "{script}");
    let said = check(&world, &[], 1, &["no replication slot `unstale`"]);
    assert!(!said.contains("has no publication"), "{said}");
}

#[test]
fn a_table_without_a_key_and_a_slot_without_a_limit_are_warnings() {
    let world = World::with_rules(&RULES.replace("table: organizations", "table: keyless"));
    world.sql("create table keyless (id text not null)");
    if !world.takes_full_identities() {
        check(&world, &[], 78, &["from PostgreSQL 18 on REPLICA IDENTITY FULL makes updates and deletes fail"]);
        world.sql("create unique index on keyless (id)");
    }
    apply(&world);
    let words = ["warning: table public.keyless has no primary key", "max_slot_wal_keep_size = -1", "2 warnings"];
    let said = check(&world, &[], 0, &words);
    assert!(said.contains("'50GB'"), "{said}");
    world.sql("alter system set max_slot_wal_keep_size = '64MB'");
    world.sql("select pg_reload_conf()");
    crate::support::wait_until(crate::support::EVENT_MAX, "the setting is in force", || {
        world.value("show max_slot_wal_keep_size") == "64MB"
    });
    check(&world, &[], 0, &["keeps only 64 MB of log for slots"]);
}

#[test]
fn missing_permissions_of_a_redis_user_are_listed() {
    let mut world = World::with_rules(RULES);
    world.run_ok(&["setup"]);
    let admin_url = world.redis_url.clone();
    let acl = |rules: &str| {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("app").arg("reset").arg("on").arg(">hunter2");
        for rule in rules.split(' ') {
            command.arg(rule);
        }
        let () = command.query(&mut world_redis(&admin_url)).unwrap();
    };
    acl("~v1:* &v1:* +@all -xadd -type -hlen");
    world.redis_url = admin_url.replace("redis://", "redis://app:hunter2@");
    let said = check(
        &world,
        &[],
        1,
        &["the user `app` lacks +type, +xadd", "ACL SETUSER app +type +xadd", "the user `app` lacks +hlen", "warning"],
    );
    assert!(!said.contains("hunter2"), "{said}");
    let script = text(&world.run(&["check", "--sql"]));
    assert!(script.contains("-- ACL SETUSER app +type +xadd") && script.contains("lacks +type, +xadd"), "{script}");
    acl("~v1:user:* &other:* +@all");
    check(&world, &[], 1, &["lacks &v1:*, ~v1:*"]);
    // The user may not ask about permissions, so `check` tries commands, and leaves nothing behind.
    acl("~v1:* &v1:* +@all -acl -xadd");
    check(&world, &[], 1, &["lacks +xadd", "HINCRBY, HSET, RPUSH, PUBLISH", "could not be determined"]);
    acl("~v1:* &v1:* +@all -acl");
    check(&world, &[], 0, &["could not be determined"]);
    let left: Vec<String> = world_redis(&admin_url).keys("*").unwrap();
    assert_eq!(left, Vec::<String>::new());
    acl("~v1:* &v1:* +@all");
    check(&world, &[], 0, &["ok  permissions of the user `app`"]);
    world.redis_url = admin_url.replace("redis://", "redis://app:wrong@");
    let said = check(&world, &[], 78, &[&format!("127.0.0.1:{}", world.redis.port()), "target.url"]);
    assert!(!said.contains("wrong@") && !said.contains("app:"), "{said}");
}

fn world_redis(url: &str) -> redis::Connection {
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

#[test]
fn an_eviction_policy_that_refuses_values_is_reported() {
    let tags = RULES.replace("delete: \"product:{id}\"", "tags: \"product:{id}\"");
    let world = World::with(&tags, &[], &["--maxmemory", "100mb", "--maxmemory-policy", "noeviction"]);
    world.run_ok(&["setup"]);
    check(&world, &[], 0, &["evicts nothing when it is full", "volatile-lru"]);
    redis::cmd("CONFIG").arg("SET").arg("maxmemory-policy").arg("allkeys-lru").exec(&mut world.redis()).unwrap();
    check(&world, &[], 0, &["ok  memory: limited, maxmemory-policy allkeys-lru"]);
}

#[test]
fn an_unavailable_server_does_not_prevent_checking_the_other() {
    let mut world = World::with_rules(&RULES.replace("table: users", "table: usres"));
    world.redis.stop();
    let redis = format!("127.0.0.1:{}", world.redis.port());
    check(&world, &[], 78, &["no table `usres`", "has no publication", &redis, "cannot use Redis"]);
    world.write_rules(RULES);
    world.run_ok(&["setup"]);
    check(&world, &[], 69, &["ok  slot unstale", "cannot use Redis", "start Redis"]);
    world.redis.restart().unwrap();
    world.postgres.stop();
    check(&world, &[], 69, &["cannot reach PostgreSQL", "ok  role: primary", "start PostgreSQL"]);
    // A script cannot start a server.
    assert_eq!(world.run(&["check", "--sql"]).status.code(), Some(69));
}

#[test]
fn json_and_github_formats_show_the_same_findings() {
    let world = World::with_rules(&RULES.replace("{email|lower}", "{emial|lower}"));
    let output = world.run(&["check", "--json"]);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(78), 0), "{}", text(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["ok"], false);
    let findings = json["findings"].as_array().unwrap();
    let found = |id: &str| {
        let finding = findings.iter().find(|finding| finding["id"] == id);
        finding.unwrap_or_else(|| panic!("{id} is not in: {json}"))
    };
    let unknown = found("unknown-name");
    assert_eq!(unknown["where"], serde_json::json!({"file": "invalidation.yaml", "line": 9, "column": 40}));
    assert_eq!(unknown["severity"], "error");
    assert_eq!(unknown["fix"], "did you mean `email`?");
    let missing = found("slot-missing");
    assert!(missing["where"].is_null() && missing["sql"][0].as_str().unwrap().starts_with("SELECT pg_create_logical"));
    assert!(missing["cost"].as_str().unwrap().contains("waits"), "{missing}");

    let output = world.run(&["check", "--format", "github"]);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(78), 0), "{}", text(&output));
    let lines = String::from_utf8(output.stdout).unwrap();
    let place = "::error file=invalidation.yaml,line=9,col=40,title=unstale unknown-name::table public.users has no";
    assert!(lines.lines().any(|line| line.starts_with(place)), "{lines}");
    assert_eq!(lines.lines().count(), findings.len());
    assert!(lines.lines().all(|line| line.starts_with("::error ") || line.starts_with("::warning ")), "{lines}");

    // A file that cannot be parsed is shown in the same way.
    world.write_rules("version: 1\nrules: {r: {table: t, delte: 'k:{a}'}}\n");
    let output = world.run(&["check", "--json", "--offline"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(78), "{json}");
    assert_eq!(json["findings"][0]["where"]["column"], 23, "{json}");
}

#[test]
fn the_lock_file_replaces_the_database() {
    let world = World::with_rules(RULES);
    world.run_ok(&["setup"]);
    let lock = world.directory.path().join("invalidation.yaml.lock");
    let typo = RULES.replace("{email|lower}", "{emial|lower}");
    world.write_rules(&typo);
    check(&world, &["--offline"], 0, &["no problems"]);
    check(&world, &["--lock"], 78, &["no column `emial`"]);
    assert!(!lock.exists());
    world.write_rules(RULES);
    check(&world, &["--lock"], 0, &["invalidation.yaml.lock: wrote 2 tables"]);
    let first = std::fs::read_to_string(&lock).unwrap();
    check(&world, &["--lock"], 0, &[]);
    assert_eq!(std::fs::read_to_string(&lock).unwrap(), first);
    assert!(first.starts_with("{\n  \"version\": 1,") && !first.contains("sessions"), "{first}");
    check(&world, &["--offline"], 0, &["ok  names: 2 tables", "no problems"]);
    check(&world, &[], 0, &["invalidation.yaml.lock is up to date"]);
    world.write_rules(&typo);
    check(&world, &["--offline"], 78, &["invalidation.yaml:9:40", "did you mean `email`?", "unstale check --lock"]);
    world.write_rules(RULES);
    world.sql("alter table users add column phone text");
    check(&world, &[], 0, &["differs from the database: public.users"]);
    check(&world, &["--lock"], 0, &[]);
    check(&world, &[], 0, &["invalidation.yaml.lock is up to date"]);
    std::fs::write(&lock, first.replace("\"version\": 1,", "\"version\": 2,")).unwrap();
    check(&world, &["--offline"], 78, &["version 2", "unstale check --lock"]);
    check(&world, &[], 0, &["warning", "version 2"]);
    std::fs::write(&lock, "{").unwrap();
    check(&world, &["--offline"], 78, &["invalidation.yaml.lock", "unstale check --lock"]);
}

#[test]
fn lints_run_without_a_server() {
    let lint = |rules: &str, code: i32, words: &[&str]| {
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("invalidation.yaml"), format!("version: 1\n{rules}")).unwrap();
        let output = unstale(&directory, &["check", "--offline"], b"");
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    };
    lint(
        "rules:\n  a: {table: t, delete: 'k:{x}'}\n  b: {table: t, delete: 'k:{x}'}\n",
        1,
        &["error: rule `b` is the same as rule `a`", "invalidation.yaml:4:3", "^ remove it", "why:", "1 problem"],
    );
    lint(
        "rules:\n  a: {table: t, when: 'true', delete: 'k:{x}'}\n",
        0,
        &["warning: the `when` of rule `a` is always true", "invalidation.yaml:3:", "no problems, 1 warning"],
    );
    lint(
        "rules:\n  a: {table: t, delete: 'k:{x}'}\n  b: {table: u, delete: 'k:{y|lower}'}\n",
        1,
        &["`k:{y|lower}` filters its value otherwise than `k:{x}` does in rule `a`"],
    );
    lint("rules:\n  a: {table: t, when: 'false', delete: 'k:{x}'}\n", 1, &["is always false", "never does anything"]);
    lint("rules:\n  a: {table: t, delete: 'k:{x}'}\n", 0, &["1 rules on 1 tables, no problems"]);
}

#[test]
fn contradictory_arguments_are_refused() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("invalidation.yaml"), RULES).unwrap();
    for arguments in [["--offline", "--sql"], ["--offline", "--lock"], ["--lock", "--json"], ["--sql", "--json"]] {
        let output = unstale(&directory, &[&["check"][..], &arguments].concat(), b"");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
    }
}
