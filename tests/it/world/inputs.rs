//! Values, events and names as applications and databases have them: too long, unknown, or without
//! an equivalent in UTF-8.
//!
//! Owns the inputs. Each case runs with the slot and with the outbox. Invariant: after each input
//! ordinary changes are applied, by the same daemon.

use redis::Commands as _;
use tokio_postgres::Client;

use crate::support::{Daemon, EVENT_MAX, World, connect, in_outbox_mode, wait_until};

const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "v1:"}
rules:
  document: {table: documents, delete: ["document:{id}", "body:{body}"], publish: {channel: documents, data: {body: "{body}"}}}
  product: {event: product.updated, delete: "product:{id}"}
"#;

const TABLES: &str = "create table documents (id int primary key, body text, other text);
    alter table documents replica identity full; insert into documents values (1, 'short'), (2, 'short')";

/// A message of `unstale.emit`, without its limits.
const EMIT: &str = "select pg_logical_emit_message(true, 'unstale.event', convert_to(json_build_object('name', NAME,
    'payload', PAYLOAD)::text, 'UTF8'))";

const WRITE: &str = "insert into unstale.outbox (op, new) select 'e', array[NAME, (PAYLOAD)::text]";

struct Case {
    world: World,
    client: Client,
    daemon: Daemon,
    is_slot: bool,
}

impl Case {
    /// The two sources, in the database that this SQL creates as `other`.
    fn each(database: Option<&str>) -> [Self; 2] {
        [true, false].map(|is_slot| {
            let rules = if is_slot { RULES.to_owned() } else { in_outbox_mode(RULES) };
            let mut world = World::with_rules(&rules);
            if let Some(options) = database {
                world.sql(&format!("create database other template template0 {options} lc_collate 'C' lc_ctype 'C'"));
                world.database_url = world.postgres.url("other");
            }
            let client = world.block_on(connect(&world.database_url));
            world.sql_on(&client, TABLES);
            world.run_ok(&["setup"]);
            let daemon = world.daemon();
            Self { world, client, daemon, is_slot }
        })
    }

    fn emit(&self, name: &str, payload: &str) {
        let sql = if self.is_slot { EMIT } else { WRITE };
        self.world.sql_on(&self.client, &sql.replace("NAME", name).replace("PAYLOAD", payload));
    }

    /// Runs SQL with these keys in the cache. The first are gone afterwards, and the others stay.
    fn check(&self, run: impl Fn(&Self), gone: &[&str], stays: &[&str]) {
        gone.iter().chain(stays).for_each(|key| self.world.cache(key));
        run(self);
        self.settle();
        for key in gone {
            assert!(!self.world.holds(key), "{key} is still there: {:?}", self.daemon.log());
        }
        for key in stays {
            assert!(self.world.holds(key), "{key} is gone: {:?}", self.daemon.log());
        }
    }

    /// An ordinary change is in force, and so is what came before it.
    fn settle(&self) {
        self.world.cache("v1:document:2");
        self.world.sql_on(&self.client, "update documents set other = coalesce(other, '') || 'x' where id = 2");
        self.world.settle();
        assert!(!self.world.holds("v1:document:2"), "an ordinary change is in force");
    }

    fn sql(&self, sql: &str) {
        self.world.sql_on(&self.client, sql);
    }

    fn widened(&self, rule: &str) -> u64 {
        let count: Option<u64> = self.world.redis().hget("v1:unstale:{unstale}:widened", rule).unwrap();
        count.unwrap_or(0)
    }

    fn end(self) {
        assert_eq!(self.daemon.stop(), Some(0));
    }
}

#[test]
fn an_event_of_any_size_deletes_all_that_its_rules_can_name() {
    for case in Case::each(None) {
        let keys = ["v1:product:5", "v1:product:6"];
        case.check(|case| case.emit("'product.updated'", r#"json_build_object('id', 5)"#), &keys[..1], &keys[1..]);
        let before = case.daemon.memory();
        case.check(
            |case| case.emit("'product.updated'", "json_build_object('id', repeat('a', 60000000))"),
            &keys,
            &["v1:body:bystander"],
        );
        assert!(case.daemon.memory() < before + 4 * 60, "{} MB, before {before} MB", case.daemon.memory());
        case.daemon.wait_for_log("above the limit");
        assert!(case.widened("product") > 0 && case.world.run_ok(&["status"]).contains("product"));
        // The function itself writes no more than a daemon reads.
        case.check(
            |case| case.sql("select unstale.emit('product.updated', jsonb_build_object('id', repeat('a', 60000000)))"),
            &keys,
            &["v1:body:bystander"],
        );
        case.check(|case| case.sql("select unstale.emit('product.updated', '{\"id\": 5}')"), &keys[..1], &keys[1..]);
        case.end();
    }
}

#[test]
fn events_that_no_rule_has_cost_no_memory() {
    const MANY: &str = "(select json_object_agg(md5(FRESH || n::text), n) from generate_series(1, 10000) n)";
    for case in Case::each(None) {
        case.settle();
        let before = case.daemon.memory();
        for round in 0..30 {
            case.emit("'other'", &MANY.replace("FRESH", &format!("'{round}'")));
            // Nor do fields that no rule reads.
            let payload = MANY.replace("FRESH", &format!("'{round}'"));
            case.emit("'product.updated'", &format!("({payload}::jsonb || '{{\"id\": 7}}')::json"));
        }
        case.settle();
        case.check(|case| case.emit("'other'", "'{\"id\": 7}'::json"), &[], &["v1:product:7", "v1:product:8"]);
        assert!(case.daemon.memory() < before + 60, "{} MB, before {before} MB", case.daemon.memory());
        case.end();
    }
}

#[test]
fn a_value_that_is_too_long_for_a_name_is_not_known() {
    for case in Case::each(None) {
        let before = case.daemon.memory();
        case.check(
            |case| case.sql("update documents set body = repeat('a', 40000000) where id = 1"),
            &["v1:document:1", "v1:body:short", "v1:body:other"],
            &["v1:document:3"],
        );
        assert!(case.daemon.memory() < before + 6 * 40, "{} MB, before {before} MB", case.daemon.memory());
        assert!(case.widened(if case.is_slot { "document" } else { "(values)" }) > 0);
        let log = case.daemon.wait_for_log("above a limit");
        assert!(!log.contains("aaa"), "{log}");
        case.check(
            |case| case.sql("update documents set body = 'next' where id = 1"),
            &["v1:document:1", "v1:body:next"],
            &["v1:document:3"],
        );
        case.end();
    }
}

#[test]
fn a_value_without_an_equivalent_in_utf_8_is_not_known() {
    for case in Case::each(Some("encoding 'WIN1252'")) {
        // What has one is converted: two bytes in the key, one in the database.
        case.check(
            |case| case.sql("update documents set body = 'caf\u{e9}' where id = 1"),
            &["v1:body:caf\u{e9}"],
            &["v1:body:other"],
        );
        case.check(
            |case| case.sql("update documents set body = 'a' || chr(129) where id = 1"),
            &["v1:document:1", "v1:body:caf\u{e9}", "v1:body:other"],
            &["v1:document:3"],
        );
        case.daemon.wait_for_log("not ASCII");
        assert!(case.widened("(values)") > 0);
        // Values are converted again once that is passed.
        case.sql("update documents set body = 'b' where id = 1");
        wait_until(EVENT_MAX, "values are converted again", || {
            let keys = ["v1:body:na\u{ef}ve", "v1:body:kept"];
            keys.iter().for_each(|key| case.world.cache(key));
            case.sql(
                "update documents set body = 'na\u{ef}ve' where id = 1; update documents set body = 'b' where id = 1",
            );
            case.settle();
            !case.world.holds(keys[0]) && case.world.holds(keys[1])
        });
        case.end();
    }
}

#[test]
fn a_name_that_is_not_utf_8_and_that_no_rule_uses_stops_nothing() {
    const LATIN1: &str = "do $$ begin
        execute 'create table \"caf' || chr(233) || '\" (id int primary key, \"n' || chr(233) || '\" int)';
        execute 'create index \"i' || chr(233) || '\" on \"caf' || chr(233) || '\" (id)';
      end $$";
    for case in Case::each(Some("encoding 'SQL_ASCII'")) {
        case.sql(LATIN1);
        case.check(|case| case.sql("update documents set body = 'x' where id = 1"), &["v1:body:x"], &["v1:body:other"]);
        case.check(
            |case| case.sql("update documents set body = 'y' || chr(233) where id = 1"),
            &["v1:document:1"],
            &["v1:document:3"],
        );
        assert_eq!(case.daemon.stop(), Some(0));
        case.world.run_ok(&["setup"]);
        case.world.run_ok(&["check"]);
        case.world.run_ok(&["init", "--output", "drafted.yaml"]);
        let daemon = case.world.daemon();
        assert_eq!(daemon.stop(), Some(0));
    }
}
