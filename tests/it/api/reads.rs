//! What a read answers: the bytes of its SQL for every type of parameter, and how long they are
//! cached.
//!
//! A key is made from the request, and deleted from the row. Where PostgreSQL considers two texts
//! equal, a stale value could remain.

use redis::Commands as _;
use serde_json::Value;

use super::{Answer, Api, File};
use crate::support::{SHIPPED, World};

/// Values for the example's parameters: an organization, a user, and so on.
const VALUES: &[&str] = &["u3", "o1", "user3@example.com", "feature-2", "org-1", "m3-0", "nothing"];

/// The SQL with its parameters filled in, its first column as text. NULL and no row are the same.
fn answer_of(world: &World, sql: &str, parameters: &[String]) -> Option<Vec<u8>> {
    let mut sql = sql.trim().trim_end_matches(';').to_owned();
    for (position, value) in parameters.iter().enumerate().rev() {
        sql = sql.replace(&format!("${}", position + 1), value);
    }
    let value = world.value(&format!("select (select q.x::text from ({sql}) q(x))"));
    (!value.is_empty()).then(|| value.into_bytes())
}

/// Every combination of values for this number of parameters.
fn choices(parameters: usize) -> Vec<Vec<&'static str>> {
    (0..parameters).fold(vec![vec![]], |shorter, _| {
        let longer =
            |one: &Vec<&'static str>| VALUES.iter().map(|value| [one.as_slice(), &[*value]].concat()).collect();
        shorter.iter().flat_map::<Vec<Vec<_>>, _>(longer).collect()
    })
}

#[test]
fn every_shipped_read_answers_the_result_of_its_sql() {
    let api = Api::start(SHIPPED);
    let file: Value = serde_saphyr::from_str(SHIPPED).unwrap();
    let session = &file["api"]["session"];
    let session = session["read"].as_str().or_else(|| session.as_str());
    let reads = file["reads"].as_object().unwrap();
    assert!(reads.len() >= 8, "{:?}", reads.keys());
    for (name, read) in reads {
        let (path, sql) = (read["path"].as_str().unwrap(), read["sql"].as_str().unwrap());
        let names: Vec<&str> = path.split('/').filter(|part| part.starts_with('{')).collect();
        let varying = ["query", "header"].iter().filter_map(|kind| read["vary"][*kind].as_array());
        let vary: usize = varying.map(Vec::len).sum();
        let (mut found, mut missing) = (0, 0);
        for choice in choices(names.len()) {
            let path = names.iter().zip(&choice).fold(path.to_owned(), |path, (name, value)| path.replace(name, value));
            let mut parameters: Vec<String> = choice.iter().map(|value| format!("'{value}'")).collect();
            parameters.resize(parameters.len() + vary, "null".to_owned());
            if session == Some(name.as_str()) {
                parameters = vec!["encode(sha256('token-3'), 'hex')".to_owned()];
            }
            let expected = answer_of(&api.world, sql, &parameters);
            let count = if expected.is_some() { &mut found } else { &mut missing };
            *count += 1;
            // Some of each kind is enough.
            if *count <= 3 {
                assert_both_ways(&api, &path, expected.as_deref());
            }
        }
        assert!(found > 0, "no value that the example has makes {name} answer");
    }
}

/// From the database, and then from the cache.
fn assert_both_ways(api: &Api, path: &str, expected: Option<&[u8]>) {
    for _ in 0..2 {
        let answer = api.get_with(path, &[("Authorization", "Bearer token-3")]);
        match expected {
            Some(body) => {
                assert_eq!((answer.status, answer.text()), (200, String::from_utf8(body.to_vec()).unwrap()), "{path}");
                assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
            }
            None => assert_eq!((answer.status, answer.problem().as_str()), (404, "not-found"), "{path}"),
        }
    }
}

/// A table with a column of every type that a parameter may be compared with, and a read by each.
const KINDS: File<'static> = File {
    tables: "
create type colour as enum ('red', 'green');
create table kinds (id int primary key, big bigint not null, uid uuid not null, flag boolean not null,
  at timestamptz not null, day date not null, colour colour not null, price numeric not null, ratio float8 not null,
  code char(4) not null, name text not null);
insert into kinds values (7, 7000000000, '0a0b0c0d-0000-4000-8000-00000000abcd', true, '2026-01-02 03:04:05+00',
  '2026-01-02', 'red', 1.50, 0.5, 'ab', 'first');
",
    rules: r#"
  kind:
    table: kinds
    delete:
      - "kind-id:{id}"
      - "kind-big:{big}"
      - "kind-uid:{uid}"
      - "kind-flag:{flag}"
      - "kind-at:{at}"
      - "kind-day:{day}"
      - "kind-colour:{colour}"
      - "kind-price:{price}"
      - "kind-ratio:{ratio}"
      - "kind-code:{code}"
      - "kind-name:{name}"
"#,
    reads: r#"
  kind-id: {path: "/id/{x}", key: "kind-id:{x}", sql: "select to_json(k) from kinds k where k.id = $1"}
  kind-big: {path: "/big/{x}", key: "kind-big:{x}", sql: "select to_json(k) from kinds k where k.big = $1"}
  kind-uid: {path: "/uid/{x}", key: "kind-uid:{x}", sql: "select to_json(k) from kinds k where k.uid = $1"}
  kind-flag: {path: "/flag/{x}", key: "kind-flag:{x}", sql: "select to_json(k) from kinds k where k.flag = $1"}
  kind-at: {path: "/at/{x}", key: "kind-at:{x}", sql: "select to_json(k) from kinds k where k.at = $1"}
  kind-day: {path: "/day/{x}", key: "kind-day:{x}", sql: "select to_json(k) from kinds k where k.day = $1"}
  kind-colour: {path: "/colour/{x}", key: "kind-colour:{x}", sql: "select to_json(k) from kinds k where k.colour = $1"}
  kind-price: {path: "/price/{x}", key: "kind-price:{x}", sql: "select to_json(k) from kinds k where k.price = $1"}
  kind-ratio: {path: "/ratio/{x}", key: "kind-ratio:{x}", sql: "select to_json(k) from kinds k where k.ratio = $1"}
  kind-code: {path: "/code/{x}", key: "kind-code:{x}", sql: "select to_json(k) from kinds k where k.code = $1"}
  kind-name: {path: "/name/{x}", key: "kind-name:{x}", sql: "select to_json(k) from kinds k where k.name = $1"}
"#,
    api: "",
};

/// A value as PostgreSQL prints it, and other notations of the same value.
const NOTATIONS: &[(&str, &[&str])] = &[
    ("/id/7", &["/id/07", "/id/+7", "/id/%207%20"]),
    ("/big/7000000000", &["/big/07000000000", "/big/%2B7000000000"]),
    (
        "/uid/0a0b0c0d-0000-4000-8000-00000000abcd",
        &[
            "/uid/0A0B0C0D-0000-4000-8000-00000000ABCD",
            "/uid/0a0b0c0d00004000800000000000abcd",
            "/uid/%7B0a0b0c0d-0000-4000-8000-00000000abcd%7D",
        ],
    ),
    ("/flag/true", &["/flag/t", "/flag/1", "/flag/yes", "/flag/TRUE", "/flag/on"]),
    ("/at/2026-01-02%2003:04:05%2B00", &["/at/2026-01-02T03:04:05Z", "/at/2026-01-02T04:04:05%2B01:00"]),
    ("/day/2026-01-02", &["/day/20260102", "/day/January%202,%202026"]),
    ("/colour/red", &[]),
    ("/price/1.50", &["/price/1.5", "/price/1.500", "/price/15e-1"]),
    ("/ratio/0.5", &["/ratio/0.50", "/ratio/5e-1", "/ratio/.5"]),
    ("/code/ab%20%20", &["/code/ab", "/code/ab%20"]),
];

#[test]
fn a_parameter_is_bound_as_the_type_it_is_compared_with() {
    let api = KINDS.start();
    let expected = api.world.value("select to_json(k)::text from kinds k");
    for (path, _) in NOTATIONS {
        for _ in 0..2 {
            let answer = api.get(path);
            assert_eq!((answer.status, answer.text()), (200, expected.clone()), "{path}");
        }
    }
    for path in ["/id/8", "/uid/00000000-0000-4000-8000-00000000abcd", "/flag/false", "/colour/green", "/name/7"] {
        assert_eq!(api.get(path).status, 404, "{path}");
    }
}

#[test]
fn a_value_requested_in_another_notation_never_stays_stale() {
    let api = KINDS.start();
    let paths: Vec<_> = NOTATIONS.iter().flat_map(|(plain, others)| [&[*plain], *others].concat()).collect();
    for round in 0..3 {
        // Twice: if this notation is cached, the second request is a hit.
        paths.iter().chain(&paths).for_each(|path| drop(api.get(path)));
        let name = format!("round {round}");
        api.world.sql(&format!("update kinds set name = '{name}'"));
        api.world.settle();
        for path in &paths {
            let answer = api.get(path);
            let fresh = answer.status == 200 && answer.json()["name"] == name.as_str();
            assert!(fresh || answer.status == 400, "round {round}: {path}: {answer:?}");
        }
    }
}

#[test]
fn varying_headers_separate_values_and_are_null_if_absent() {
    let file = File {
        tables: "create table varied (id text primary key, n int); insert into varied values ('a', 1), ('a?page=1', 2)",
        rules: "  varied: {table: varied, pattern: \"varied:{id}*\"}\n",
        reads: r#"
  varied:
    path: /varied/{id}
    key: "varied:{id}"
    vary: {query: [page, size], header: [x-tenant]}
    sql: select json_build_array(v.id, $2::text, $3::text, $4::text) from varied v where v.id = $1
"#,
        ..File::default()
    };
    let api = file.start();
    /// A path, a tenant, and the values that the SQL gets.
    type Case = (&'static str, Option<&'static str>, [Option<&'static str>; 3]);
    let table: &[Case] = &[
        ("/varied/a", None, [None, None, None]),
        ("/varied/a?page=1", None, [Some("1"), None, None]),
        ("/varied/a?size=1", None, [None, Some("1"), None]),
        ("/varied/a?page=1&size=1", None, [Some("1"), Some("1"), None]),
        ("/varied/a?page=1%26size%3D1", None, [Some("1&size=1"), None, None]),
        ("/varied/a?page=1", Some("t"), [Some("1"), None, Some("t")]),
        ("/varied/a?page=1%26x-tenant%3Dt", None, [Some("1&x-tenant=t"), None, None]),
        ("/varied/a", Some("t"), [None, None, Some("t")]),
        ("/varied/a", Some("T"), [None, None, Some("T")]),
        ("/varied/a?page=", None, [None, None, None]),
        ("/varied/a?other=1", None, [None, None, None]),
        ("/varied/a?page=%C3%A9+%2B", None, [Some("é +"), None, None]),
        ("/varied/a%3Fpage=1", None, [None, None, None]),
    ];
    for round in 0..2 {
        for (path, tenant, [page, size, seen]) in table {
            let headers: Vec<_> = tenant.iter().map(|tenant| ("X-Tenant", *tenant)).collect();
            let answer = api.get_with(path, &headers);
            let id = if path.contains("%3Fpage") { "a?page=1" } else { "a" };
            assert_eq!(answer.json(), serde_json::json!([id, page, size, seen]), "round {round}: {path} {tenant:?}");
            let varies = answer.all_of("vary").to_ascii_lowercase();
            assert!(varies.contains("x-tenant"), "caches on the way must keep them apart too: {answer:?}");
        }
    }
}

/// Templates join values with a literal, so two requests can produce one name.
#[test]
fn two_requests_with_one_key_never_get_each_others_value() {
    let file = File {
        tables: "
create table pairs (a text, b text, primary key (a, b));
insert into pairs values ('a:b', 'c'), ('a', 'b:c'), ('a', 'b'), (':', ''), ('a@1', 'b')",
        rules: "  pair: {table: pairs, delete: \"pair:{a}:{b}\"}\n",
        reads: r#"
  pair:
    path: /pairs/{a}/{b}
    key: "pair:{a}:{b}"
    sql: select json_build_array(p.a, p.b) from pairs p where p.a = $1 and p.b = $2
"#,
        ..File::default()
    };
    let api = file.start();
    for _ in 0..3 {
        for (path, a, b) in [
            ("/pairs/a:b/c", "a:b", "c"),
            ("/pairs/a/b:c", "a", "b:c"),
            ("/pairs/a%3Ab/c", "a:b", "c"),
            ("/pairs/a/b%3ac", "a", "b:c"),
            ("/pairs/a/b", "a", "b"),
            ("/pairs/a@1/b", "a@1", "b"),
        ] {
            assert_eq!(api.get(path).json(), serde_json::json!([a, b]), "{path}");
        }
        assert_eq!(api.get("/pairs/a:b:c/").status, 404);
        assert_eq!(api.get("/pairs/b/a").status, 404);
    }
}

const JSON: File<'static> = File {
    tables: r#"
create table documents (id text primary key, plain json, binary_form jsonb);
insert into documents values
  ('spaced', '{"a" :  1, "a":2, "z": [ ]}', '{"a" :  1, "a":2, "z": [ ]}'),
  ('text', '"x"', '"x"'), ('number', '1.50', '1.50'), ('null', 'null', 'null'), ('é', '"é"', '"\u00e9"'),
  ('nothing', null, null)"#,
    rules: r#"
  document: {table: documents, delete: ["plain:{id}", "binary:{id}"]}
"#,
    reads: r#"
  plain:
    path: /plain/{id}
    key: "plain:{id}"
    negative_ttl: 1m
    sql: select d.plain from documents d where d.id = $1
  binary:
    path: /binary/{id}
    key: "binary:{id}"
    sql: select d.binary_form from documents d where d.id = $1
"#,
    api: "",
};

#[test]
fn json_and_jsonb_are_served_as_postgresql_writes_them() {
    let api = JSON.start();
    for (id, path) in [("spaced", "spaced"), ("text", "text"), ("number", "number"), ("null", "null"), ("é", "%C3%A9")]
    {
        for (column, read) in [("plain", "plain"), ("binary_form", "binary")] {
            let expected = api.world.value(&format!("select {column}::text from documents where id = '{id}'"));
            for _ in 0..2 {
                let answer = api.get(&format!("/{read}/{path}"));
                assert_eq!((answer.status, answer.text()), (200, expected.clone()), "{read} {id}");
            }
        }
    }
}

#[test]
fn null_and_no_row_are_not_found() {
    let api = JSON.start();
    for path in ["/plain/nothing", "/plain/missing", "/binary/nothing", "/binary/missing"] {
        for _ in 0..2 {
            let answer = api.get(path);
            assert_eq!((answer.status, answer.problem().as_str()), (404, "not-found"), "{path}");
        }
    }
}

#[test]
fn absence_is_cached_until_the_row_is_inserted() {
    let api = JSON.start();
    let ask = |path: &str, times: usize| (0..times).for_each(|_| assert_eq!(api.get(path).status, 404));
    ask("/plain/late", 5);
    assert_eq!(api.stat("plain", "database_reads"), 1);
    assert_eq!(api.stat("plain", "negative"), 5);
    ask("/binary/late", 5);
    assert_eq!(api.stat("binary", "database_reads"), 5, "it was not told to remember");
    api.world.sql("insert into documents values ('late', '1', '1')");
    api.world.settle();
    assert_eq!(api.get("/plain/late").text(), "1");
    assert_eq!(api.get("/binary/late").text(), "1");
    api.warm("/plain/late");
    api.world.sql("delete from documents where id = 'late'");
    api.world.settle();
    assert_eq!(api.get("/plain/late").status, 404);
}

/// Milliseconds until the key expires; it must exist.
fn pttl(api: &Api, key: &str) -> u64 {
    let left: i64 = api.world.redis().pttl(key).unwrap();
    u64::try_from(left).unwrap_or_else(|_| panic!("{key}: {left}"))
}

const TIMED: File<'static> = File {
    tables: "
create table timed (id text primary key, until timestamptz);
insert into timed values ('soon', now() + interval '1 hour'), ('past', now() - interval '1 hour'), ('open', null);
insert into timed select n::text, null from generate_series(1, 20) n",
    rules: r#"
  timed: {table: timed, delete: ["spread:{id}", "exact:{id}", "until:{id}"]}
"#,
    reads: r#"
  spread:
    path: /spread/{id}
    key: "spread:{id}"
    ttl: 1000s
    sql: select to_json(t.id) from timed t where t.id = $1
  exact:
    path: /exact/{id}
    key: "exact:{id}"
    ttl: 1000s
    jitter: 0%
    sql: select to_json(t.id) from timed t where t.id = $1
  until:
    path: /until/{id}
    key: "until:{id}"
    ttl: 10h
    sql: select to_json(t.id), t.until from timed t where t.id = $1
"#,
    api: "",
};

#[test]
fn a_value_is_cached_for_its_ttl_plus_or_minus_the_jitter() {
    let api = TIMED.start();
    let kept = |read: &str| -> Vec<u64> {
        let ids = 1..=20;
        ids.map(|id| {
            assert!(api.get(&format!("/{read}/{id}")).is_stored());
            pttl(&api, &format!("v1:{read}:{id}"))
        })
        .collect()
    };
    let (spread, exact) = (kept("spread"), kept("exact"));
    // Allows a slow machine one minute between storing and looking.
    assert!(spread.iter().all(|left| (840_000..=1_100_000).contains(left)), "{spread:?}");
    assert!(spread.iter().max().unwrap() - spread.iter().min().unwrap() > 10_000, "{spread:?}");
    assert!(exact.iter().all(|left| (940_000..=1_000_000).contains(left)), "{exact:?}");
}

#[test]
fn a_second_column_sets_when_a_value_expires() {
    let api = TIMED.start();
    let texts: Vec<_> = ["soon", "open"].iter().map(|id| api.get(&format!("/until/{id}")).text()).collect();
    assert_eq!(texts, [r#""soon""#, r#""open""#]);
    assert!(pttl(&api, "v1:until:soon") <= 3_600_000);
    assert!(pttl(&api, "v1:until:open") > 3_700_000 * 2);
    api.get("/until/past");
    assert!(!api.get("/until/past").is_hit());
}

#[test]
fn values_are_invalidated_by_tag_and_by_version() {
    let file = File {
        tables: "
create table paints (colour text primary key, label text not null);
create table walls (id text primary key, room text not null, colour text not null);
insert into paints values ('red', 'first'), ('green', 'first');
insert into walls values ('w1', 'hall', 'red'), ('w2', 'hall', 'green')",
        rules: r#"
  wall: {table: walls, delete: "wall:{id}", bump: "room-version:{room}"}
  paint: {table: paints, tags: "paint:{colour}"}
"#,
        reads: r#"
  wall:
    path: /walls/{id}
    key: "wall:{id}"
    tags: ["paint:{value.colour}"]
    sql: >-
      select json_build_object('colour', w.colour, 'label', p.label)
      from walls w join paints p on p.colour = w.colour where w.id = $1
  room:
    path: /rooms/{room}
    key: "room:{room}"
    version: "room-version:{room}"
    sql: select json_agg(w.colour order by w.id) from walls w where w.room = $1
"#,
        ..File::default()
    };
    let api = file.start();
    let label = |wall: &str| api.get(&format!("/walls/{wall}")).json()["label"].as_str().unwrap().to_owned();
    for round in 0..5 {
        api.world.sql("update walls set colour = 'red' where id = 'w1'");
        api.world.settle();
        ["/walls/w1", "/walls/w2", "/rooms/hall"].iter().for_each(|path| drop(api.warm(path)));
        api.world.sql(&format!("update paints set label = 'round {round}' where colour = 'red'"));
        api.world.settle();
        assert_eq!(label("w1"), format!("round {round}"));
        assert!(api.get("/walls/w2").is_hit(), "what has another colour stays");
        assert_eq!(api.get("/rooms/hall").json(), serde_json::json!(["red", "green"]));
        api.world.sql("update walls set colour = 'green' where id = 'w1'");
        api.world.settle();
        assert_eq!(label("w1"), "first", "it has another colour now");
        assert_eq!(api.get("/rooms/hall").json(), serde_json::json!(["green", "green"]));
        let versions: Vec<Vec<u8>> = api.world.redis().keys("v1:room:hall@*").unwrap();
        assert!(!versions.is_empty(), "the version is part of the name");
    }
}

#[test]
fn a_value_of_megabytes_is_served_whole() {
    let file = File {
        tables: "create table heavy (id text primary key, body text not null);
                 insert into heavy values ('1', repeat('0123456789', 300000))",
        rules: "  heavy: {table: heavy, delete: \"heavy:{id}\"}\n",
        reads: r#"
  heavy:
    path: /heavy/{id}
    key: "heavy:{id}"
    sql: select to_json(h.body) from heavy h where h.id = $1
"#,
        ..File::default()
    };
    let api = file.start();
    let expected = format!("\"{}\"", "0123456789".repeat(300_000));
    for _ in 0..3 {
        let Answer { status, body, .. } = api.get("/heavy/1");
        assert!(status == 200 && body == expected.as_bytes(), "{status}, {} bytes", body.len());
    }
}
