//! The rule language, through the running daemon: conditions, lookups, tags, patterns, values,
//! streams, events, second deletes, and what happens if one fails or exceeds a limit.

use std::collections::BTreeMap;

use redis::Commands as _;
use redis::streams::StreamRangeReply;
use unstale::coherence::lease::Envelope;
use unstale::sink::Broadcast;

use crate::support::{EVENT_MAX, World, next_message, wait_until};

/// A world with these rules below the head that all tests share.
fn world(rules: &str) -> World {
    world_on(rules, &[], &[])
}

fn world_on(rules: &str, postgres: &[&str], redis: &[&str]) -> World {
    let head = "version: 1\nsource: {url: '${DATABASE_URL}'}\ntarget: {url: '${REDIS_URL}', namespace: 'v1:'}\n";
    let world = World::with(&format!("{head}{rules}"), postgres, redis);
    world.run_ok(&["setup"]);
    world
}

impl World {
    /// Runs SQL with these keys in the cache. Returns the ones that are gone once it is in force.
    fn gone_after(&self, sql: &str, keys: &[&str]) -> Vec<String> {
        keys.iter().for_each(|key| self.cache(&format!("v1:{key}")));
        self.sql(sql);
        self.settle();
        keys.iter().filter(|key| !self.holds(&format!("v1:{key}"))).map(ToString::to_string).collect()
    }

    pub(crate) fn dead_letters(&self) -> Vec<BTreeMap<String, String>> {
        let letters: StreamRangeReply = self.redis().xrange_all("v1:unstale:{unstale}:dead").unwrap();
        letters.ids.iter().map(|id| fields(&id.map)).collect()
    }

    fn stream(&self, name: &str) -> Vec<(String, BTreeMap<String, String>)> {
        let entries: StreamRangeReply = self.redis().xrange_all(name).unwrap();
        entries.ids.iter().map(|id| (id.id.clone(), fields(&id.map))).collect()
    }

    fn value_of(&self, key: &str) -> Option<Envelope> {
        let held: Option<Vec<u8>> = self.redis().get(key).unwrap();
        held.map(|held| Envelope::decode(&held).unwrap())
    }
}

fn fields(map: &std::collections::HashMap<String, redis::Value>) -> BTreeMap<String, String> {
    map.iter().map(|(name, value)| (name.clone(), redis::from_redis_value_ref(value).unwrap())).collect()
}

#[test]
fn a_condition_filters_changes_and_an_error_deletes_more() {
    let world = world(
        "rules:
  renamed: {table: organizations, ops: [update, delete], when: 'old.name != new.name', delete: 'renamed:{id}'}
  promoted: {table: organizations, when: \"op == 'update' && new.plan == 'team'\", delete: 'promoted:{id}'}
  broken: {table: organizations, when: 'int(new.slug) > 0', delete: 'broken:{id}'}
",
    );
    world.sql(
        "alter table organizations replica identity full; insert into organizations values ('x1', 'X', '7', 'free')",
    );
    let daemon = world.daemon();
    let keys = ["renamed:x1", "promoted:x1", "broken:x1"];
    let check = |sql: &str, gone: &[&str]| assert_eq!(world.gone_after(sql, &keys), gone, "{sql}");
    check("update organizations set name = 'Y' where id = 'x1'", &["renamed:x1", "broken:x1"]);
    check("update organizations set plan = 'team' where id = 'x1'", &["promoted:x1", "broken:x1"]);
    check("update organizations set slug = '-7', plan = 'free' where id = 'x1'", &[]);
    assert!(world.dead_letters().is_empty());
    check("update organizations set slug = 'seven' where id = 'x1'", &["broken:x1"]);
    let letters = world.dead_letters();
    assert_eq!((letters.len(), letters[0]["rule"].as_str()), (1, "broken"));
    assert!(letters[0]["change"].contains(r#""slug":"seven""#), "{letters:?}");
    assert!(!letters[0]["change"].contains("plan"), "only what the rule reads: {letters:?}");
    check("delete from organizations where id = 'x1'", &["renamed:x1", "broken:x1"]);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_condition_on_unknown_values_deletes_more_by_default() {
    let rules = "rules:\n  r: {table: organizations, when: 'old.name != new.name', delete: 'org:{id}'}\n";
    for (unknown, gone) in [("match", true), ("skip", false)] {
        let world = world(&format!("defaults: {{unknown: {unknown}}}\n{rules}"));
        let daemon = world.daemon();
        let found = world.gone_after("update organizations set plan = 'team' where id = 'o1'", &["org:o1"]);
        assert_eq!(!found.is_empty(), gone, "{unknown}");
        assert!(world.dead_letters().is_empty(), "not a failure");
        assert_eq!(daemon.stop(), Some(0));
    }
}

const FAN_OUT: &str = "lookups:
  members: {sql: 'select user_id, role from memberships where organization_id = $1', max: MAX}
rules:
  organization:
    table: organizations
    changed: [name]
    for_each: members({id}) as m
    delete: ['user:{m.user_id}', 'role:{m.role}:{id}']
    publish: {channel: renamed, data: {user: '{m.user_id}', organization: '{name}'}}
";

#[test]
fn a_lookup_returns_the_current_rows() {
    let world = world(&FAN_OUT.replace("MAX", "1000"));
    world.sql(
        "alter table organizations replica identity full; delete from memberships; insert into memberships values
               ('m1', 'u1', 'o1', 'owner'), ('m2', 'u2', 'o1', 'member')",
    );
    let daemon = world.daemon();
    let mut connection = world.redis();
    connection.set_read_timeout(Some(EVENT_MAX)).unwrap();
    let mut subscriber = connection.as_pubsub();
    subscriber.subscribe("v1:renamed").unwrap();
    let keys = ["user:u1", "user:u2", "user:u3", "role:owner:o1", "role:viewer:o1"];
    let sql =
        "begin; insert into memberships values ('m3', 'u3', 'o1', 'viewer'); delete from memberships where id = 'm1';
               update organizations set name = 'New' where id = 'o1'; commit";
    assert_eq!(world.gone_after(sql, &keys), ["user:u2", "user:u3", "role:viewer:o1"]);
    let mut messages: Vec<String> = (0..2).map(|_| next_message(&mut subscriber).get_payload().unwrap()).collect();
    messages.sort();
    assert_eq!(messages, [r#"{"user":"u2","organization":"New"}"#, r#"{"user":"u3","organization":"New"}"#]);
    assert!(world.gone_after("update organizations set plan = 'team' where id = 'o1'", &keys).is_empty());
    // Many organizations at once, in one query.
    let all = world.gone_after(
        "insert into memberships select 'n' || n, 'u' || n, 'o1', 'member' from generate_series(4, 9) n;
                                update organizations set name = name || '!'",
        &["user:u4", "user:u9", "user:u1"],
    );
    assert_eq!(all, ["user:u4", "user:u9"]);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_lookup_that_overflows_or_fails_deletes_by_pattern() {
    let world = world(&FAN_OUT.replace("MAX", "2"));
    world.sql("insert into memberships select 'n' || n, 'u' || n, 'o1', 'member' from generate_series(1, 10) n on conflict do nothing");
    let daemon = world.daemon();
    let keys = ["user:u1", "user:other", "role:x:y", "other:1"];
    let everything = ["user:u1", "user:other", "role:x:y"];
    assert_eq!(world.gone_after("update organizations set name = 'Big' where id = 'o1'", &keys), everything);
    let letters = world.dead_letters();
    assert!(letters.len() == 1 && letters[0]["reason"].contains("more than 2 rows"), "{letters:?}");
    assert!(letters[0]["change"].contains(r#""id":"o1""#), "{letters:?}");

    world.sql("alter table memberships rename to affiliations");
    assert_eq!(world.gone_after("update organizations set name = 'Gone' where id = 'o1'", &keys), everything);
    assert!(world.dead_letters()[1]["reason"].contains("memberships"), "{:?}", world.dead_letters());
    world.sql("alter table affiliations rename to memberships; delete from memberships");
    world.settle();
    assert!(world.gone_after("update organizations set name = 'Back' where id = 'o1'", &keys).is_empty());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_slow_lookup_delays_nothing_else() {
    let world = world(
        "lookups: {slow: {sql: 'select pg_sleep(3)::text as nothing, $1::text as id', timeout: 30s}}
rules:
  slow: {table: organizations, for_each: 'slow({id}) as s', delete: 'slow:{s.id}', publish: {channel: slow}}
  user: {table: users, delete: 'user:{id}'}
",
    );
    let daemon = world.daemon();
    world.cache("v1:slow:o1");
    world.sql("update organizations set name = 'x' where id = 'o1'");
    let mut during = 0;
    while world.holds("v1:slow:o1") {
        world.cache("v1:user:u1");
        world.sql("update users set name = name || '.' where id = 'u1'");
        wait_until(EVENT_MAX, "another invalidation", || !world.holds("v1:user:u1"));
        during += usize::from(world.holds("v1:slow:o1"));
    }
    assert!(during > 0, "not one other invalidation went through while the lookup was asked");
    world.settle();
    assert!(!world.holds("v1:slow:o1"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_transaction_can_make_more_lookups_than_run_at_once() {
    let world = world(&FAN_OUT.replace("MAX", "1000").replace("delete: [", "tags: 'org:{id}'\n    delete: ["));
    world.sql("alter table organizations replica identity full;
               insert into organizations (id, name, slug) select 'x' || n, 'x' || n, 'x' || n from generate_series(1, 10000) n;
               insert into memberships select 'y' || n, 'u' || 1 + n % 10, 'x' || n, 'member' from generate_series(1, 10000) n");
    let daemon = world.daemon();
    world.sql("begin; update organizations set name = name || '!'; commit");
    for round in 0..3 {
        world.cache("v1:user:u1");
        world.sql(&format!("update organizations set name = '{round}' where id = 'x10'"));
    }
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    assert!(world.dead_letters().is_empty(), "{:?}", world.dead_letters());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_tag_deletes_its_keys_and_leases_and_nothing_else() {
    let world = world("rules:\n  org: {table: organizations, tags: 'org:{id}', publish: {channel: done}}\n");
    let daemon = world.daemon();
    let mut redis = world.redis();
    let tag = |redis: &mut redis::Connection, name: &str, keys: &[String]| {
        for key in keys {
            let _: () = redis.set(key, "L:0123456789abcdef0123456789abcdef").unwrap();
        }
        for chunk in keys.chunks(1000) {
            let _: () = redis.sadd(format!("v1:tag:org:{name}"), chunk).unwrap();
        }
    };
    let many: Vec<String> = (0..5000).map(|n| format!("page:{n}")).collect();
    tag(&mut redis, "o1", &many);
    tag(&mut redis, "o2", &["page:other".to_owned()]);
    let _: () = redis.sadd("v1:tag:org:o1", "v1:unstale:{unstale}:epoch").unwrap();
    let mut connection = world.redis();
    connection.set_read_timeout(Some(EVENT_MAX)).unwrap();
    let mut subscriber = connection.as_pubsub();
    subscriber.subscribe("v1:done").unwrap();
    subscriber.subscribe("v1:invalidations").unwrap();
    world.sql("update organizations set name = 'x' where id = 'o1'");
    let mut told = std::collections::BTreeSet::new();
    let mut is_done = false;
    // The broadcast of the batch with the rule's message comes right after the message.
    while !is_done || told.len() < many.len() + 1 {
        let message = next_message(&mut subscriber);
        if message.get_channel_name() == "v1:done" {
            assert!(
                many.iter().all(|key| !world.holds(key)),
                "the rule's message comes after all of its keys are gone"
            );
            is_done = true;
            continue;
        }
        let broadcast: Broadcast = serde_json::from_slice(message.get_payload_bytes()).unwrap();
        told.extend(broadcast.ops.into_iter().map(|op| format!("{} {}", op.op, op.key)));
    }
    world.settle();
    assert!(world.holds("page:other") && world.holds("v1:unstale:{unstale}:epoch"));
    assert_eq!(redis.scard::<_, usize>("v1:tag:org:o1").unwrap(), 0);
    assert!(told.remove("tag v1:tag:org:o1") && told.iter().all(|op| op.starts_with("delete page:")), "{told:?}");
    // After a truncate: every tag of the template.
    tag(&mut redis, "o3", &["page:3".to_owned()]);
    world.sql("truncate organizations cascade");
    world.settle();
    assert!(!world.holds("page:3") && !world.holds("page:other"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn values_in_a_pattern_are_not_wildcards() {
    let world = world("rules:\n  r: {table: users, pattern: 'search:{name}:*'}\n");
    world.sql("alter table users replica identity full; update users set name = 'y' where id = 'u1'");
    let daemon = world.daemon();
    let keys = ["search:*:a", "search:x:a", "search:*:", "search:*", "searches:*:a"];
    let sql = "update users set name = '*' where id = 'u1'";
    assert_eq!(world.gone_after(sql, &keys), ["search:*:a", "search:*:"]);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_pattern_over_many_keys_delays_nothing_else() {
    let world = world(
        "rules:\n  slow: {table: organizations, pattern: 'x:*:{id}'}\n  user: {table: users, delete: 'user:{id}'}\n",
    );
    let daemon = world.daemon();
    let _: () = redis::cmd("EVAL")
        .arg("for i = 1, 400000 do redis.call('SET', 'y:' .. i, 1) end")
        .arg(0)
        .query(&mut world.redis())
        .unwrap();
    world.cache("v1:x:1:o1");
    world.sql("update organizations set name = 'x' where id = 'o1'");
    let mut during = 0;
    while world.holds("v1:x:1:o1") {
        world.cache("v1:user:u1");
        world.sql("update users set name = name || '.' where id = 'u1'");
        wait_until(EVENT_MAX, "another invalidation", || !world.holds("v1:user:u1"));
        during += usize::from(world.holds("v1:x:1:o1"));
    }
    assert!(during > 0, "not one other invalidation went through while the pattern was searched for");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_value_is_set_and_never_replaces_a_newer_one() {
    let world = world(
        "rules:\n  r: {table: users, set: {key: 'user-json:{email|lower}', columns: [id, name, avatar_url], ttl: 10m}}\n",
    );
    let daemon = world.daemon();
    world.sql("update users set name = 'One', avatar_url = null where id = 'u1'");
    world.settle();
    let key = "v1:user-json:user1@example.com";
    let value = world.value_of(key).unwrap();
    assert_eq!(String::from_utf8_lossy(&value.body), r#"{"id":"u1","name":"One","avatar_url":null}"#);
    let ttl: i64 = world.redis().pttl(key).unwrap();
    assert!((1..=600_000).contains(&ttl), "{ttl}");
    // Within one transaction the last value wins and replaces the earlier one.
    world.sql(
        "begin; update users set name = 'Two' where id = 'u1'; update users set name = 'Three' where id = 'u1'; commit",
    );
    world.settle();
    let three = world.value_of(key).unwrap();
    assert!(String::from_utf8_lossy(&three.body).contains("Three") && three.lo > value.lo);
    // A value with a later position stays.
    let newer = Envelope { lo: unstale::change::Lsn::new(u64::MAX / 2), ..three.clone() };
    let _: () = world.redis().set(key, newer.encode()).unwrap();
    world.sql("update users set name = 'Four' where id = 'u1'");
    world.settle();
    assert_eq!(world.value_of(key), Some(newer));
    // A reader's lease does not stay: the value that the reader read is refused.
    let _: () = world.redis().set(key, "L:0123456789abcdef0123456789abcdef").unwrap();
    world.sql("update users set name = 'Five' where id = 'u1'");
    world.settle();
    assert!(String::from_utf8_lossy(&world.value_of(key).unwrap().body).contains("Five"));
    world.sql("update users set email = 'moved@x' where id = 'u1'");
    world.settle();
    assert!(!world.holds(key) && world.holds("v1:user-json:moved@x"));
    world.sql("delete from users where id = 'u1'");
    world.settle();
    assert!(!world.holds("v1:user-json:moved@x"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_set_that_may_have_been_applied_before_becomes_a_delete() {
    let world =
        world("rules:\n  r: {table: users, set: {key: 'user-json:{id}', columns: [id, name]}, bump: 'v:{id}'}\n");
    let daemon = world.daemon();
    world.sql("update users set name = 'old' where id = 'u1'");
    world.settle();
    drop(daemon);
    world.sql("update users set name = 'newer' where id = 'u1'");
    // As if the killed daemon had begun to apply it, and a later change had deleted the key.
    let end: unstale::change::Lsn = world.value("select pg_current_wal_insert_lsn()::text").parse().unwrap();
    let _: () = world.redis().set("v1:unstale:{unstale}:started", end.to_fixed_hex()).unwrap();
    let daemon = world.daemon();
    world.settle();
    assert!(!world.holds("v1:user-json:u1"));
    world.sql("update users set name = 'newest' where id = 'u1'");
    world.settle();
    assert!(String::from_utf8_lossy(&world.value_of("v1:user-json:u1").unwrap().body).contains("newest"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_full_redis_gets_deletes_instead_of_values() {
    let world =
        world("rules:\n  r: {table: users, set: {key: 'user-json:{id}', columns: [id, name]}, bump: 'v:{id}'}\n");
    let daemon = world.daemon();
    world.sql("update users set name = 'old' where id = 'u1'");
    world.settle();
    assert!(world.holds("v1:user-json:u1"));
    let _: () = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("1").query(&mut world.redis()).unwrap();
    world.sql("update users set name = 'new' where id = 'u1'");
    world.settle();
    assert!(!world.holds("v1:user-json:u1") && world.holds("v1:v:u1"));
    assert_eq!(daemon.stop(), Some(0));
}

const STREAM: &str = "rules:
  user: {table: users, stream: {name: changes, data: {id: '{id}', name: '{name}'}, maxlen: 1000}}
  slow: {table: users, pattern: 'nothing:{id}:*'}
";

#[test]
fn stream_entries_keep_the_order_of_commits_and_come_once() {
    let world = world(STREAM);
    let daemon = world.daemon();
    world.sql(
        "begin; update users set name = 'a'  where id = 'u1'; update users set name = 'b' where id = 'u1'; commit",
    );
    world.sql("update users set name = 'c' where id = 'u2'");
    world.settle();
    let entries = world.stream("v1:changes");
    let data: Vec<_> = entries.iter().map(|(_, fields)| fields["data"].as_str()).collect();
    assert_eq!(data, [r#"{"id":"u1","name":"a"}"#, r#"{"id":"u1","name":"b"}"#, r#"{"id":"u2","name":"c"}"#]);
    let id = |at: usize| -> (u64, u64) {
        let (lsn, number) = entries[at].0.split_once('-').unwrap();
        (lsn.parse().unwrap(), number.parse().unwrap())
    };
    assert!(id(0).0 == id(1).0 && (id(0).1, id(1).1) == (0, 1) && id(2).0 > id(1).0 && id(2).1 == 0, "{entries:?}");
    let ttl: i64 = world.redis().pttl("v1:changes").unwrap();
    assert!(ttl > 0);
    // Sent again after a kill: no duplicate, no loss.
    let stopped_at = world.confirmed();
    drop(daemon);
    world.sql("update users set name = name || '!'");
    let daemon = world.daemon();
    world.settle();
    drop(daemon);
    let once = world.stream("v1:changes");
    assert_eq!(once.len(), 13);
    // Redis loses what was recorded; the slot continues where it was confirmed.
    let _ = stopped_at;
    let daemon = world.daemon();
    world.sql("update users set name = 'last' where id = 'u1'");
    world.settle();
    let twice = world.stream("v1:changes");
    assert_eq!((&twice[..13], twice.len()), (&once[..], 14));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_key_of_the_wrong_type_does_not_block_other_ops() {
    let world = world(
        "rules:
  r: {table: users, set: {key: 'user-json:{id}', columns: [id, name]}, delete: 'user:{id}', bump: 'v:{id}', tags: 'u:{id}', stream: {name: changes, data: {name: '{name}'}}}
",
    );
    let mut redis = world.redis();
    let daemon = world.daemon();
    world.sql("update users set name = 'a' where id in ('u1', 'u2')");
    world.settle();
    // A consumer has processed and removed them.
    for (id, _) in world.stream("v1:changes") {
        let _: usize = redis.xdel("v1:changes", &[id]).unwrap();
    }
    drop(daemon);
    let _: usize = redis.del(&["v1:user-json:u1", "v1:v:u1"]).unwrap();
    let _: () = redis.hset("v1:user-json:u1", "field", "of another application").unwrap();
    let _: usize = redis.lpush("v1:v:u1", "not a version").unwrap();
    let _: () = redis.set("v1:tag:u:u1", "not a set").unwrap();
    world.cache("v1:user:u1");
    let daemon = world.daemon();
    world.sql("update users set name = 'b' where id = 'u1'");
    world.settle();
    assert!(!world.holds("v1:user:u1") && world.value_of("v1:user-json:u1").is_some());
    let entries = world.stream("v1:changes");
    assert_eq!(entries.iter().map(|(_, fields)| fields["data"].as_str()).collect::<Vec<_>>(), [r#"{"name":"b"}"#]);
    let _: usize = redis.del("v1:changes").unwrap();
    let _: usize = redis.lpush("v1:changes", "not a stream").unwrap();
    world.cache("v1:user:u1");
    world.sql("update users set name = 'c' where id = 'u1'");
    world.settle();
    assert!(!world.holds("v1:user:u1"));
    daemon.wait_for_log("stream entries were dropped");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn stream_ids_continue_after_those_of_another_history() {
    let world = world(STREAM);
    // Another database with a higher position wrote here before.
    let _: String = redis::cmd("XADD")
        .arg("v1:changes")
        .arg("9000000000000000-3")
        .arg("data")
        .arg("x")
        .query(&mut world.redis())
        .unwrap();
    let daemon = world.daemon();
    for name in ["a", "b"] {
        world.sql(&format!("update users set name = '{name}' where id in ('u1', 'u2')"));
    }
    world.settle();
    let ids: Vec<_> = world.stream("v1:changes").into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, (3..8).map(|number| format!("9000000000000000-{number}")).collect::<Vec<_>>());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn events_are_planned_like_rows() {
    let world = world(
        "rules:
  product:
    event: product.updated
    when: \"new.kind != 'draft'\"
    delete: 'product:{id}'
    publish: {channel: products, data: {id: '{id}', by: '{by}'}}
  other: {event: other, delete: 'other:{id}'}
",
    );
    world.sql("create role writer login; grant create on schema public to writer");
    let daemon = world.daemon();
    let keys = ["product:7", "product:8", "other:7"];
    let check = |sql: &str, gone: &[&str]| assert_eq!(world.gone_after(sql, &keys), gone, "{sql}");
    check(r#"select unstale.emit('product.updated', '{"id": 7, "kind": "book"}')"#, &["product:7"]);
    check(r#"select unstale.emit('product.updated', '{"id": 7, "kind": "draft"}')"#, &[]);
    check(r#"begin; select unstale.emit('product.updated', '{"id": 7, "kind": "x"}'); rollback"#, &[]);
    check(r#"set role writer; select unstale.emit('other', '{"id": 7}'); reset role"#, &["other:7"]);
    check("select unstale.emit('other')", &["other:7"]);
    check("select unstale.emit('unheard', '{}')", &[]);
    check("select pg_logical_emit_message(true, 'unstale.event', 'garbage')", &[]);
    check(r#"select pg_logical_emit_message(true, 'unstale.event', '{"name": "other", "payload": 7}')"#, &["other:7"]);
    check("select pg_logical_emit_message(true, 'another prefix', 'x')", &[]);
    let refused = world.try_value("select unstale.emit('other', '[]')::text");
    assert_eq!(refused, None);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_second_delete_is_delayed_and_survives_a_kill() {
    let world = world("rules:\n  r: {table: users, delete: 'user:{id}', again_after: 5s}\n");
    let daemon = world.daemon();
    assert_eq!(world.gone_after("update users set name = 'x' where id = 'u1'", &["user:u1"]), ["user:u1"]);
    // A reader that is slower than the first delete stores the old value.
    world.cache("v1:user:u1");
    wait_until(EVENT_MAX, "the second delete", || !world.holds("v1:user:u1"));
    // Killed in between, the daemon carries it out after its start.
    world.cache("v1:user:u1");
    world.sql("update users set name = 'y' where id = 'u1'");
    wait_until(EVENT_MAX, "the first delete", || !world.holds("v1:user:u1"));
    drop(daemon);
    world.cache("v1:user:u1");
    let daemon = world.daemon();
    wait_until(EVENT_MAX, "the delete after the kill", || !world.holds("v1:user:u1"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_transaction_above_max_keys_deletes_by_pattern() {
    let world = world(
        "defaults: {max_keys: 100}
rules:
  r: {table: users, delete: 'user:{id}', publish: {channel: users, data: {id: '{id}'}}}
  other: {table: organizations, delete: 'org:{id}'}
",
    );
    let daemon = world.daemon();
    world.cache("v1:user:unknown");
    world.cache("v1:org:unknown");
    world.sql("insert into users (id, email, name) select 'x' || n, 'x' || n, '' from generate_series(1, 50) n");
    world.settle();
    assert!(world.holds("v1:user:unknown"));
    let many = "insert into users (id, email, name) select 'y' || n, 'y' || n, '' from generate_series(1, 5000) n";
    assert_eq!(
        world.gone_after(many, &["user:y1", "user:y5000", "user:unknown"]),
        ["user:y1", "user:y5000", "user:unknown"]
    );
    assert!(world.holds("v1:org:unknown"), "only the tables it wrote");
    daemon.wait_for_log("max_keys");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_large_fan_out_takes_bounded_memory_and_delays_nothing() {
    let world = world(
        "lookups: {all: {sql: 'select n from generate_series(1, $1::int) n', max: 200000, timeout: 30s}}
rules:
  fan: {event: fan, for_each: 'all({count}) as a', delete: 'fan:{a.n}'}
  user: {table: users, delete: 'user:{id}'}
",
    );
    let daemon = world.daemon();
    for key in ["v1:fan:1", "v1:fan:50000", "v1:fan:100000"] {
        world.cache(key);
    }
    world.cache("v1:user:u1");
    let before = daemon.memory();
    world.sql("select unstale.emit('fan', '{\"count\": 100000}'); update users set name = 'x' where id = 'u1'");
    wait_until(EVENT_MAX, "the other key", || !world.holds("v1:user:u1"));
    world.settle();
    assert!(["v1:fan:1", "v1:fan:50000", "v1:fan:100000"].iter().all(|key| !world.holds(key)));
    assert!(daemon.memory() < before + 24, "{} MB after {before} MB", daemon.memory());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_daemon_killed_during_a_scan_repeats_it() {
    let world = world("rules:\n  r: {table: organizations, tags: 'org:{id}', pattern: 'p:{id}:*'}\n");
    let fill = "for i = 1, 100000 do redis.call('SET', 'v1:p:o1:' .. i, 1) redis.call('SET', 't:' .. i, 1)
                redis.call('SADD', 'v1:tag:org:o1', 't:' .. i) end";
    let daemon = world.daemon();
    let _: () = redis::cmd("EVAL").arg(fill).arg(0).query(&mut world.redis()).unwrap();
    let size = || redis::cmd("DBSIZE").query::<usize>(&mut world.redis()).unwrap();
    let full = size();
    world.sql("update organizations set name = 'x' where id = 'o1'");
    wait_until(EVENT_MAX, "it has begun", || size() < full);
    drop(daemon);
    let daemon = world.daemon();
    world.settle();
    let left: Vec<String> = world.redis().keys("*").unwrap();
    let left: Vec<_> = left.iter().filter(|key| !key.starts_with("v1:unstale:")).collect();
    assert!(left.is_empty(), "{} keys are left, such as {:?}", left.len(), left.first());
    assert_eq!(daemon.stop(), Some(0));
}
