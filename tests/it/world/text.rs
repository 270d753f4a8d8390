//! The text of values: one form, wherever a value comes from.
//!
//! Owns the types and settings with which two parts made two keys of one value.

use crate::api::Api;
use crate::support::{EVENT_MAX, World, in_outbox_mode, text, wait_until};

fn worlds(rules: &str, tables: &str) -> [World; 2] {
    let slot = World::with_rules(rules);
    let outbox = World::with(&in_outbox_mode(rules), &["wal_level=replica"], &[]);
    for world in [&slot, &outbox] {
        world.sql(tables);
        world.run_ok(&["setup"]);
    }
    [slot, outbox]
}

#[test]
fn a_domain_has_the_text_of_the_type_beneath_it() {
    const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "v1:"}
rules:
  item: {table: items, when: "new.on == true || op == 'delete'", delete: ["x:{on}", "n:{amount}"]}
reads:
  items: {path: "/items/{on}", key: "x:{on}", sql: "select to_json(count(*)) from items where items.on = $1"}
"#;
    const TABLES: &str =
        "create domain flag as boolean; create domain inner_flag as flag; create domain amounts as int;
         create table items (id int primary key, \"on\" inner_flag not null, amount amounts);
         alter table items replica identity full";
    for world in worlds(RULES, TABLES) {
        let api = Api::run(world, &[]);
        let client = api.client();
        assert_eq!(client.get("/items/true").text(), "0");
        assert!(api.world.holds("v1:x:true"));
        api.world.cache("v1:n:5");
        api.world.sql("insert into items values (1, true, 5)");
        wait_until(EVENT_MAX, "both are gone", || !api.world.holds("v1:x:true") && !api.world.holds("v1:n:5"));
        assert_eq!(client.get("/items/true").text(), "1");
    }
}

#[test]
fn a_lookup_has_the_text_of_the_log() {
    const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "v1:"}
lookups:
  codes: {sql: "select code, day, span, at, flag from codes where owner = $1"}
rules:
  code: {table: codes, delete: ["code:{code}", "day:{day}", "span:{span}", "at:{at}", "flag:{flag}"]}
  owner: {table: owners, for_each: "codes({id}) as c", delete: ["code:{c.code}", "day:{c.day}", "span:{c.span}", "at:{c.at}", "flag:{c.flag}"]}
"#;
    const TABLES: &str = "create table owners (id int primary key, name text); insert into owners values (1, 'a');
         create table codes (id int primary key, owner int, code char(6), day date, span interval, at timestamptz, flag boolean);
         insert into codes values (1, 1, 'ab', '2026-02-03', '1 year 2 days', '2026-02-03 04:05:06+00', true);
         alter table codes replica identity full;
         alter role postgres set datestyle = 'German'; alter role postgres set intervalstyle = 'iso_8601';
         alter role postgres set timezone = 'America/New_York'";
    let keys = [
        "v1:code:ab    ",
        "v1:day:2026-02-03",
        "v1:span:1 year 2 days",
        "v1:at:2026-02-03 04:05:06+00",
        "v1:flag:true",
    ];
    for world in worlds(RULES, TABLES) {
        let daemon = world.daemon();
        for sql in ["update codes set owner = owner", "update owners set name = name || 'b'"] {
            keys.iter().for_each(|key| world.cache(key));
            world.sql(sql);
            for key in keys {
                wait_until(EVENT_MAX, &format!("{key} is gone after {sql}"), || !world.holds(key));
            }
        }
        assert_eq!(daemon.stop(), Some(0));
    }
}

/// Row level security hid the rows from the daemon's role, so nothing was deleted. Now the query
/// is an error, and everything that the rule can name is deleted.
#[test]
fn hidden_rows_are_not_taken_for_none() {
    const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "v1:"}
lookups:
  members: {sql: "select user_id from memberships where organization_id = $1"}
rules:
  organization: {table: organizations, for_each: "members({id}) as m", delete: "user:{m.user_id}"}
"#;
    for mut world in worlds(RULES, "") {
        world.sql(
            "create schema if not exists unstale;
             create role reader login replication; grant usage on schema unstale to reader;
             grant select on all tables in schema public to reader;
             grant all on all tables in schema unstale to reader; grant all on all sequences in schema unstale to reader;
             grant execute on all functions in schema unstale to reader",
        );
        world.database_url = world.database_url.replace("postgres@", "reader@");
        let daemon = world.daemon();
        world.sql("alter table memberships enable row level security");
        world.cache("v1:user:u1");
        world.sql("update organizations set name = name || '.' where id = 'o1'");
        wait_until(EVENT_MAX, "the member's key is gone", || !world.holds("v1:user:u1"));
        assert_eq!(daemon.stop(), Some(0));
        for verb in ["check", "run"] {
            let refused = text(&world.run(&[verb]));
            assert!(refused.contains("row-level security") && refused.contains("BYPASSRLS"), "{verb}: {refused}");
        }
    }
}
