//! Slow and late work: lookups that lag, second deletes, lookups that see later commits, cascades,
//! and names that fold as PostgreSQL folds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::Commands as _;

use crate::api::Api;
use crate::support::{EVENT_MAX, World, connect, in_outbox_mode, text, wait_until};

const HEAD: &str = "
version: 1
source: {url: \"${DATABASE_URL}\"}
target: {url: \"${REDIS_URL}\", namespace: \"v1:\"}
";

/// A world with these tables, set up with these rules, for a slot and for an outbox.
fn in_both_modes(rules: &str, tables: &str) -> impl Iterator<Item = World> {
    let file = format!("{HEAD}{rules}");
    let tables = tables.to_owned();
    [false, true].into_iter().map(move |outbox| {
        if outbox {
            return World::outbox(&file, &tables);
        }
        let world = World::with_rules(&file);
        world.sql(&tables);
        world.run_ok(&["setup"]);
        world
    })
}

impl World {
    /// Everything committed before this time is in force: milliseconds by the clock of Redis.
    fn asof(&self) -> u64 {
        self.redis().get::<_, Option<u64>>("v1:unstale:{unstale}:asof").unwrap().unwrap_or(0)
    }

    fn has_outbox(&self) -> bool {
        self.value("select (to_regclass('unstale.outbox') is not null)::text") == "true"
    }

    /// The second deletes that wait in Redis, each without the id of its rule.
    fn second_deletes(&self) -> Vec<String> {
        let members: Vec<String> = self.redis().zrange(AGAIN, 0, -1).unwrap();
        members.iter().map(|member| member.split_once(' ').unwrap().1.to_owned()).collect()
    }
}

/// Where second deletes wait.
const AGAIN: &str = "v1:unstale:{unstale}:again";

/// Commits without a pause until it is dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(world: &World, sql: &'static str) -> Self {
        let (url, stop) = (world.postgres.url("postgres"), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = connect(&url).await;
                while !stopped.load(Ordering::Relaxed) {
                    client.batch_execute(sql).await.unwrap();
                }
            });
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
fn with_a_steady_lag_it_is_known_up_to_when_everything_is_in_force() {
    const RULES: &str = "
lookups:
  slow: {sql: 'select $1::text as id from pg_sleep(1.2)'}
rules:
  organization: {table: organizations, for_each: 'slow({id}) as s', delete: ['org:{s.id}']}
api: {listen: 127.0.0.1:0}
reads:
  organization:
    path: /organizations/{id}
    key: 'org:{id}'
    sql: select to_json(o.name) from organizations o where o.id = $1
";
    let other = "insert into organizations (id, name, slug) values ('x1', 'X', 'x1')";
    for world in in_both_modes(RULES, other) {
        let api = Api::run(world, &[]);
        let world = &api.world;
        let writer =
            Writer::start(world, "update organizations set name = name || 'x' where id = 'o1'; select pg_sleep(0.05)");
        // Each lookup takes longer than the time between two heartbeats.
        let mut last = world.asof();
        for _ in 0..3 {
            wait_until(EVENT_MAX, "the heart beats under load", || world.asof() > last);
            last = world.asof();
        }
        // The lag is below `max_staleness`.
        api.warm("/organizations/x1");
        drop(writer);
    }
}

#[test]
fn a_second_delete_waits_in_redis_and_holds_no_transaction_open() {
    const RULES: &str = "rules: {r: {table: users, delete: 'user:{id}', again_after: 1m}}";
    for world in in_both_modes(RULES, "") {
        let daemon = world.daemon();
        world.cache("v1:user:u1");
        world.sql("update users set name = 'x' where id = 'u1'");
        wait_until(EVENT_MAX, "the first delete", || !world.holds("v1:user:u1"));
        assert_eq!(world.second_deletes(), ["k v1:user:u1"], "stored with the first delete");
        world.settle();
        if world.has_outbox() {
            wait_until(EVENT_MAX, "the claim is committed", || world.entries() == 0);
        } else {
            wait_until(EVENT_MAX, "the slot goes on", || world.confirmed() >= world.applied());
        }
        assert_eq!(world.second_deletes(), ["k v1:user:u1"]);
        // A slow reader stores the old value, and the daemon is killed.
        drop(daemon);
        world.cache("v1:user:u1");
        let daemon = world.daemon();
        world.settle();
        assert!(world.holds("v1:user:u1"), "it is not due");
        let waiting: Vec<String> = world.redis().zrange(AGAIN, 0, -1).unwrap();
        let () = world.redis().zadd(AGAIN, &waiting[0], 1).unwrap();
        wait_until(EVENT_MAX, "the second delete", || !world.holds("v1:user:u1"));
        wait_until(EVENT_MAX, "Redis forgets it", || world.second_deletes().is_empty());
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn too_many_second_deletes_become_one_by_pattern() {
    const FILL: &str = "for i = 1, 100000 do redis.call('ZADD', KEYS[1], 1e15, 'x' .. i) end";
    let world =
        World::with_rules(&format!("{HEAD}rules: {{r: {{table: users, delete: 'user:{{id}}', again_after: 1m}}}}"));
    world.run_ok(&["setup"]);
    let daemon = world.daemon();
    redis::cmd("EVAL").arg(FILL).arg(1).arg(AGAIN).exec(&mut world.redis()).unwrap();
    world.cache("v1:user:u1");
    world.sql("update users set name = 'x' where id in ('u1', 'u2')");
    wait_until(EVENT_MAX, "the first delete", || !world.holds("v1:user:u1"));
    let first: Vec<String> = world.redis().zrange(AGAIN, 0, 0).unwrap();
    assert!(first[0].ends_with(" p v1:user:*"), "{first:?}");
    assert_eq!(world.redis().zcard::<_, usize>(AGAIN).unwrap(), 100_001);
    world.cache("v1:user:u1");
    let () = world.redis().zadd(AGAIN, &first[0], 1).unwrap();
    wait_until(EVENT_MAX, "the second delete", || !world.holds("v1:user:u1"));
    assert_eq!(daemon.stop(), Some(0));
}

/// A lookup that sees what is committed when the lock is free.
const LATE_LOOKUPS: &str = "
create function late(lock int, organization text) returns table (user_id text) language plpgsql as $$
begin
  perform pg_advisory_xact_lock_shared(lock);
  return query select m.user_id from memberships m where m.organization_id = organization;
end $$;
insert into users (id, email, name) values ('m1', 'm1', ''), ('m2', 'm2', '');
insert into organizations (id, name, slug) values ('x1', 'X', 'x1');
insert into memberships (id, user_id, organization_id) values ('x1', 'm1', 'x1'), ('x2', 'm2', 'x1');
";

#[test]
fn a_lookup_that_saw_a_later_commit_is_in_force_only_with_that_commit() {
    const RULES: &str = "
lookups:
  members: {sql: 'select user_id from late(8, $1)', timeout: 60s}
  itself: {sql: 'select $1 as user_id from (select count(*) from late(9, $1)) waited', timeout: 60s}
rules:
  organization: {table: organizations, for_each: 'members({id}) as m', delete: ['user:{m.user_id}']}
  membership: {table: memberships, for_each: 'itself({user_id}) as m', delete: ['user:{m.user_id}']}
  user: {table: users, delete: ['user:{id}']}
";
    for world in in_both_modes(RULES, LATE_LOOKUPS) {
        let holder = world.another_client();
        world.sql_on(&holder, "select pg_advisory_lock(8), pg_advisory_lock(9)");
        let daemon = world.daemon();
        world.settle();
        if world.has_outbox() {
            wait_until(EVENT_MAX, "what setup wrote is in force", || world.entries() == 0);
        }
        ["v1:user:m1", "v1:user:m2", "v1:user:u1"].iter().for_each(|key| world.cache(key));
        // Its own commit record is between these two.
        let renamed = "with renamed as (update organizations set name = 'Y' where id = 'x1' returning 1) \
                       select pg_current_wal_insert_lsn()::text from renamed";
        let (before, after) = (world.value(renamed).parse().unwrap(), world.token());
        let waits = "select count(*)::text from pg_locks where locktype = 'advisory' and not granted";
        wait_until(EVENT_MAX, "the lookup waits", || world.value(waits) == "1");
        world.sql("delete from memberships where user_id = 'm2'");
        world.sql_on(&holder, "select pg_advisory_unlock(8)");
        wait_until(EVENT_MAX, "the lookup has its answer", || !world.holds("v1:user:m1"));
        if world.has_outbox() {
            // Rarely, both are claimed in one transaction, which is committed as a whole.
            let is_gone = "select (count(*) filter (where op = 'u') = 0 or count(distinct xmax::text) = 1)::text \
                           from unstale.outbox where op in ('u', 'd')";
            wait_until(EVENT_MAX, "the renamed organization is in force", || world.value(is_gone) == "true");
        }
        // What is in force now was recorded before this.
        world.sql("update users set name = 'z' where id = 'u1'");
        wait_until(EVENT_MAX, "later changes are in force", || !world.holds("v1:user:u1"));
        assert!(world.holds("v1:user:m2"), "the lookup did not find it any more");
        // What an outbox proves is the position of a survey.
        let is_recorded = if world.has_outbox() { world.applied() >= after } else { world.applied() > before };
        assert!(!is_recorded, "{} is recorded, and the user m2 is still cached", world.applied());
        world.sql_on(&holder, "select pg_advisory_unlock(9)");
        world.settle();
        assert!(!world.holds("v1:user:m2"));
        if world.has_outbox() {
            wait_until(EVENT_MAX, "nothing is held any more", || world.entries() == 0);
        }
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn a_delete_that_cascades_to_what_a_lookup_reads_deletes_by_pattern() {
    const TABLES: &str = "
create view member_users as select m.organization_id, u.id from memberships m join users u on u.id = m.user_id;
create table badges (id text primary key, membership_id text references memberships on delete set null);
create function badges_of(organization text) returns setof text language sql as
  $$ select b.id from badges b, memberships m where m.id = b.membership_id and m.organization_id = organization $$;
insert into badges select 'b' || id, id from memberships;
create table free (id text primary key, organization_id text);
insert into free values ('f1', 'o1'), ('f2', 'o2');
";
    const RULES: &str = "
lookups:
  members: {sql: 'select id from member_users where organization_id = $1'}
  badges: {sql: 'select b as id from badges_of($1) b'}
  free: {sql: 'select id from free where organization_id = $1'}
rules:
  direct: {table: organizations, for_each: 'members({id}) as m', delete: ['direct:{m.id}']}
  indirect: {table: organizations, for_each: 'badges({id}) as m', delete: ['indirect:{m.id}']}
  unrelated: {table: organizations, for_each: 'free({id}) as m', delete: ['unrelated:{m.id}']}
  renamed: {table: organizations, ops: update, for_each: 'members({id}) as m', delete: ['renamed:{m.id}']}
";
    for world in in_both_modes(RULES, TABLES) {
        let report = text(&world.run(&["check"]));
        let named = |rule: &str| report.lines().any(|line| line.contains("after a delete") && line.contains(rule));
        assert!(named("`direct` has no complete answer: it reads public.memberships"), "{report}");
        assert!(named("`indirect`") && !named("`unrelated`") && !named("`renamed`"), "{report}");
        let member = world.value("select min(user_id) from memberships where organization_id = 'o1'");
        let (badge, key) =
            (world.value("select min(id) from badges"), |rule: &str, id: &str| format!("v1:{rule}:{id}"));
        let daemon = world.daemon();
        world.settle();
        if world.has_outbox() {
            wait_until(EVENT_MAX, "what setup wrote is in force", || world.entries() == 0);
        }
        let keys = [key("direct", &member), key("indirect", &badge), key("unrelated", "f1"), key("unrelated", "f2")];
        keys.iter().for_each(|key| world.cache(key));
        world.sql("delete from organizations where id = 'o1'");
        world.settle();
        let left: Vec<_> = keys.iter().filter(|key| world.holds(key)).collect();
        assert_eq!(left, ["v1:unrelated:f2"], "the lookup is asked where its rows stay");
        assert_eq!(daemon.stop(), Some(0));
        let line = r#"{"table": "organizations", "op": "delete", "old": {"id": "o1"}}"#;
        std::fs::write(world.directory.path().join("changes.json"), line).unwrap();
        keys.iter().for_each(|key| world.cache(key));
        world.run_ok(&["replay", "--file", "changes.json", "--yes"]);
        let left: Vec<_> = keys.iter().filter(|key| world.holds(key)).collect();
        assert_eq!(left, ["v1:unrelated:f2"], "a replay does the same");
    }
}

/// A database whose default collation is Turkish.
const TURKISH: &str = "create database turkish template template0 encoding 'UTF8' locale 'C' \
     locale_provider icu icu_locale 'tr'";

/// A world in such a database, with this table, set up with these rules.
fn turkish(rules: &str, table: &str, outbox: bool) -> World {
    let file = format!("{HEAD}{rules}");
    let mut world = World::with_rules(&if outbox { in_outbox_mode(&file) } else { file });
    world.sql(TURKISH);
    world.database_url = world.postgres.url("turkish");
    world.client = world.block_on(connect(&world.database_url));
    world.sql(table);
    world.run_ok(&["setup"]);
    world
}

const PEOPLE: &str = "create table people (id text primary key, name text not null); \
     insert into people values ('1', 'ilker'), ('2', 'ILKER');";

#[test]
fn names_fold_as_the_database_folds_them() {
    const RULES: &str = "rules: {person: {table: people, ops: insert, delete: 'person:{name|lower}'}}";
    const OWN: &str = "create table people (id text primary key, name text collate \"tr-x-icu\" not null)";
    let worlds = [false, true].into_iter().map(|outbox| turkish(RULES, PEOPLE, outbox));
    for world in worlds.chain(in_both_modes(RULES, OWN)) {
        let daemon = world.daemon();
        world.settle();
        if world.has_outbox() {
            wait_until(EVENT_MAX, "what setup wrote is in force", || world.entries() == 0);
        }
        let keys = ["v1:person:ann", "v1:person:ilker", "v1:person:\u{131}lker"];
        let left_after = |name: &str| {
            keys.iter().for_each(|key| world.cache(key));
            world.sql(&format!("insert into people values ('{name}', '{name}')"));
            world.settle();
            keys.iter().filter(|key| world.holds(key)).copied().collect::<Vec<_>>()
        };
        assert_eq!(left_after("Ann"), keys[1..], "one name");
        assert_eq!(left_after("ILKER2"), [""; 0], "it is not known which name");
        let report = text(&world.run(&["check"]));
        assert!(report.contains("folds `Ii`"), "{report}");
        assert_eq!(daemon.stop(), Some(0));
        let line = r#"{"table": "people", "op": "insert", "new": {"id": "4", "name": "ILKER"}}"#;
        std::fs::write(world.directory.path().join("changes.json"), line).unwrap();
        keys.iter().for_each(|key| world.cache(key));
        world.run_ok(&["replay", "--file", "changes.json", "--yes"]);
        assert!(!keys.iter().any(|key| world.holds(key)), "a replay folds alike");
    }
}

#[test]
fn a_read_is_cached_only_under_a_name_that_the_database_folds_alike() {
    const RULES: &str = "
rules: {person: {table: people, delete: 'person:{name|lower}'}}
reads:
  person:
    path: /people/{name}
    key: 'person:{name|lower}'
    sql: select to_json(p.id) from people p where lower(p.name) = lower($1)
api: {listen: 127.0.0.1:0}
";
    let table = format!("{PEOPLE} insert into people values ('3', 'Ann'); alter table people replica identity full;");
    let api = Api::run(turkish(RULES, &table, false), &[]);
    assert_eq!(api.warm("/people/ANN").json(), serde_json::json!("3"));
    assert_eq!(api.warm("/people/ilker").json(), serde_json::json!("1"));
    // In Turkish this is the name of another person.
    assert_eq!(api.get("/people/ILKER").json(), serde_json::json!("2"));
    assert!(!api.get("/people/ILKER").is_hit());
}
