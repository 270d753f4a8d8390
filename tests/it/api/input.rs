//! For any bytes, the answer is correct or a client error, and the next client is served.

use std::net::Shutdown;
use std::thread;

use super::http::request;
use super::{Answer, Api, File};

const SECRET: &str = "s3cr3t-of-the-client";

const INPUT: File<'static> = File {
    tables: "
create table numbers (id int primary key, big bigint not null, uid uuid not null, at timestamptz not null);
insert into numbers values (1, 1, '0a0b0c0d-0000-4000-8000-00000000abcd', now())",
    rules: r#"
  number: {table: numbers, delete: ["number:{id}", "big:{big}", "uid:{uid}", "at:{at}"], pattern: "varied:{id}*"}
  session: {table: sessions, delete: "session:{token_hash}"}
"#,
    reads: r#"
  number: {path: "/numbers/{id}", key: "number:{id}", sql: "select to_json(n.id) from numbers n where n.id = $1"}
  big: {path: "/big/{big}", key: "big:{big}", sql: "select to_json(n.id) from numbers n where n.big = $1"}
  uid: {path: "/uid/{uid}", key: "uid:{uid}", sql: "select to_json(n.id) from numbers n where n.uid = $1"}
  at: {path: "/at/{at}", key: "at:{at}", sql: "select to_json(n.id) from numbers n where n.at = $1"}
  varied:
    path: /varied/{id}
    key: "varied:{id}"
    vary: {query: [page], header: [x-tenant]}
    sql: select json_build_array(n.id, $2::text, $3::text) from numbers n where n.id = $1
  session:
    path: /session
    key: "session:{token}"
    sql: |
      select json_build_object('user_id', s.user_id), s.expires_at
        from sessions s
       where s.token_hash = $1 and s.expires_at > now()
"#,
    api: "  session: session\n  timeout: 5s\n",
};

fn start() -> Api {
    let api = Api::run(INPUT.world(), &[("RUST_LOG", "debug")]);
    api.warm("/probe/1");
    api
}

/// The server still works, has not panicked, and its log contains no secret that was sent.
fn assert_unharmed(mut api: Api) {
    assert_eq!(api.get("/healthz").status, 204);
    assert_eq!(api.get("/users/u1").status, 200);
    let errors: u64 =
        ["user", "number", "big", "uid", "at", "varied"].iter().map(|read| api.stat(read, "errors")).sum();
    assert_eq!(errors, 0, "what the client did wrong is no error of ours");
    api.process.signal("TERM");
    assert_eq!(api.process.wait(), Some(0));
    for line in api.process.log() {
        assert!(!line.contains("panicked") && !line.contains(SECRET), "{line}");
        assert!(!line.contains(r#""level":"ERROR""#), "{line}");
    }
}

/// A request as given; the connection is closed after the answer.
fn close(text: &str) -> Vec<u8> {
    format!("{text}\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes()
}

/// The status of each answer must be among the expected ones; 0 allows no answer.
fn check(api: &Api, bytes: &[u8], expected: &[u16]) -> Vec<Answer> {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let answers = Answer::all(&api.raw(bytes), "GET");
    for answer in &answers {
        assert!(expected.contains(&answer.status), "{shown:?}: {answer:?}");
    }
    assert!(!answers.is_empty() || expected.contains(&0), "{shown:?}: no answer");
    answers
}

fn check_problem(api: &Api, bytes: &[u8], status: u16, word: &str) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let answers = check(api, bytes, &[status]);
    assert_eq!(answers.len(), 1, "{shown:?}");
    assert_eq!(answers[0].problem(), word, "{shown:?}");
}

#[test]
fn a_path_of_any_bytes_is_handled() {
    let api = start();
    let not_found = [
        "/users/missing",
        "/users/'%20or%201=1%20--",
        "/users/';drop%20table%20users;--",
        "/users/$1",
        "/users/%24%24",
        "/users/%25",
        "/users/%2e%2e%2fstats",
        "/users/..%2f..%2fetc%2fpasswd",
        "/users/%0d%0aX-Injected:%201",
        "/users/*",
        "/users/%3F",
        "/users/%01%02",
        "/users/%E2%80%AE",
        "/users/unstale:{unstale}:applied",
        "/users/-1",
        "/users/null",
        "/users/%F0%9F%98%80",
        "/users/u1;x=1",
        "/users/u1@7",
        "/users/%5Bu%5D",
        "/users/{id}",
    ];
    for path in not_found {
        for _ in 0..2 {
            check_problem(&api, &close(&format!("GET {path} HTTP/1.1")), 404, "not-found");
        }
    }
    let no_such_path = [
        "/",
        "/nothing",
        "/users",
        "/users/",
        "//users/u1",
        "/users//u1",
        "/users/u1/",
        "/users/u1/x",
        "/users/../stats",
        "/./users/u1",
        "/USERS/u1",
        "/%2e%2e/stats",
        "/favicon.ico",
        "/users/u1/../u2",
        "/{id}",
        "/users%2fu1",
    ];
    for path in no_such_path {
        check_problem(&api, &close(&format!("GET {path} HTTP/1.1")), 404, "no-such-path");
    }
    for path in ["/users/%00", "/users/a%00b", "/numbers/%00"] {
        check_problem(&api, &close(&format!("GET {path} HTTP/1.1")), 400, "invalid-parameter");
    }
    for path in ["/users/%ff", "/users/%C3", "/users/%C3%28", "/users/%ED%A0%80", "/users/%F8%88", "/numbers/%ff"] {
        check_problem(&api, &close(&format!("GET {path} HTTP/1.1")), 400, "invalid-parameter");
    }
    for path in
        ["/users/%", "/users/%z", "/users/%zz", "/users/%u0041", "/users/\\", "/users/\"", "/users/<x>", "/users/^`|"]
    {
        check(&api, &close(&format!("GET {path} HTTP/1.1")), &[400, 404]);
    }
    for byte in 0..=u8::MAX {
        let bytes = [b"GET /users/".as_slice(), &[byte], b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"].concat();
        // A request line that ends too early is not one.
        check(&api, &bytes, &[400, 404, 0]);
    }
    for target in ["users/u1", "*", "http://", "?", "#", "http:///users/u1", ""] {
        check(&api, &close(&format!("GET {target} HTTP/1.1")), &[400, 404, 0]);
    }
    for origin in ["http://elsewhere", "ftp://x"] {
        check(&api, &close(&format!("GET {origin}/users/u1 HTTP/1.1")), &[200, 400, 404]);
    }
    assert_unharmed(api);
}

#[test]
fn an_id_of_any_length_gets_404_or_414() {
    let api = start();
    for length in [1000, 4000, 7000] {
        let path = format!("/users/{}", "x".repeat(length));
        check_problem(&api, &close(&format!("GET {path} HTTP/1.1")), 404, "not-found");
    }
    for path in [format!("/users/{}", "x".repeat(10_000)), format!("/users/u1?{}", "x".repeat(10_000))] {
        check_problem(&api, &close(&format!("GET {path} HTTP/1.1")), 414, "uri-too-long");
    }
    for path in [format!("/{}", "x/".repeat(4000)), "/".repeat(8000)] {
        check_problem(&api, &close(&format!("GET {path} HTTP/1.1")), 404, "no-such-path");
    }
    check(&api, &close(&format!("GET /users/{} HTTP/1.1", "x".repeat(100_000))), &[414, 431, 0]);
    check(&api, &close(&format!("GET /users/{} HTTP/1.1", "x".repeat(3_000_000))), &[414, 431, 0]);
    assert_unharmed(api);
}

#[test]
fn a_parameter_of_the_wrong_type_is_a_client_error() {
    let api = start();
    let invalid = [
        "/numbers/x",
        "/numbers/1.5",
        "/numbers/1e3",
        "/numbers/2147483648",
        "/numbers/-2147483649",
        "/numbers/99999999999999999999999",
        "/numbers/1'",
        "/numbers/1%20or%201=1",
        "/numbers/NaN",
        "/numbers/--1",
        "/numbers/1;select%201",
        "/numbers/%D9%A1",
        "/big/9223372036854775808",
        "/big/x",
        "/uid/x",
        "/uid/0a0b0c0d-0000-4000-8000-00000000abcg",
        "/uid/%00",
        "/at/x",
        "/at/2026-13-01",
        "/at/2026-02-30T00:00:00Z",
        "/at/999999-01-01",
        "/varied/x",
        "/varied/x?page=1",
    ];
    for path in invalid {
        for _ in 0..2 {
            check_problem(&api, &close(&format!("GET {path} HTTP/1.1")), 400, "invalid-parameter");
        }
    }
    for path in ["/numbers/2", "/numbers/-1", "/numbers/2147483647", "/numbers/-2147483648", "/big/9223372036854775807"]
    {
        check_problem(&api, &close(&format!("GET {path} HTTP/1.1")), 404, "not-found");
    }
    // PostgreSQL accepts these words as timestamps, and they mean another time at every read.
    for path in ["/at/now", "/at/infinity", "/at/epoch", "/at/tomorrow"] {
        check(&api, &close(&format!("GET {path} HTTP/1.1")), &[400, 404]);
    }
    assert_eq!(api.get("/numbers/1").text(), "1");
    assert_unharmed(api);
}

#[test]
fn a_query_string_of_any_bytes_is_handled() {
    let api = start();
    check_problem(&api, &close("GET /varied/1?page=%00 HTTP/1.1"), 400, "invalid-parameter");
    let odd = [
        "page",
        "page=",
        "=",
        "&",
        "&&&=",
        "=page",
        "page=1&page=2",
        "page=%ff",
        "page=%C3%28",
        "page=%ED%A0%80",
        "page=%",
        "page=%zz",
        "page[]=1",
        "page=a=b=c",
        "%70age=1",
        "PAGE=1",
        "page=1;page=2",
        "page=%0d%0a",
        "x=%00",
        "%ff=%ff",
        "page=$1",
        "page='%20or%201=1%20--",
    ];
    for query in odd {
        for _ in 0..2 {
            check(&api, &close(&format!("GET /varied/1?{query} HTTP/1.1")), &[200, 400]);
        }
    }
    let many: String = (0..1000).map(|n| format!("p{n}&")).collect();
    check(&api, &close(&format!("GET /varied/1?{many} HTTP/1.1")), &[200]);
    let long = format!("GET /varied/1?page={} HTTP/1.1", "x".repeat(7000));
    let answers = check(&api, &close(&long), &[200]);
    assert_eq!(answers[0].json()[1].as_str().unwrap().len(), 7000);
    for byte in 0..=u8::MAX {
        let bytes = [b"GET /varied/1?page=".as_slice(), &[byte], b" HTTP/1.1\r\nConnection: close\r\n\r\n"].concat();
        check(&api, &bytes, &[200, 400, 0]);
    }
    assert_unharmed(api);
}

#[test]
fn a_header_of_any_bytes_is_handled() {
    let api = start();
    let with = |name: &[u8], value: &[u8]| {
        [b"GET /varied/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".as_slice(), name, b": ", value, b"\r\n\r\n"]
            .concat()
    };
    for byte in 0..=u8::MAX {
        check(&api, &with(b"X-Tenant", &[b'a', byte, b'b']), &[200, 400]);
        check(&api, &with(&[b'X', byte], b"a"), &[200, 400]);
        check(&api, &with(b"Authorization", &[b"Bearer ", SECRET.as_bytes(), &[byte]].concat()), &[200, 400, 401]);
    }
    check_problem(&api, &with(b"X-Tenant", b"\xff\xfe"), 400, "invalid-parameter");
    let odd: &[(&str, &str)] = &[
        ("If-None-Match", "\"\"\"\",,,W/"),
        ("If-None-Match", "W/W/\"x\""),
        ("If-Modified-Since", "yesterday"),
        ("If-Match", "\"x\""),
        ("Range", "bytes=0-0,5-1,-"),
        ("Accept", "text/html;q=9,,"),
        ("Accept-Encoding", "gzip;q=x, br;q=-1, *;q=2, identity;q=0"),
        ("Cache-Control", "max-age=\"x, no-store=,,=, only-if-cached"),
        ("Cache-Control", "max-age=99999999999999999999"),
        ("Expect", "100-continue"),
        ("Expect", "the unexpected"),
        ("Upgrade", "h2c"),
        ("Upgrade", "websocket"),
        ("X-Forwarded-For", "x, ::ffff:1.2.3.4, 999.1.1.1, [::1]:80"),
        ("Forwarded", "for=\"[::1\";by=;;"),
        ("Host", ""),
        ("Host", "a b\\"),
        ("Origin", "null"),
        ("Access-Control-Request-Method", "x"),
        ("Last-Event-ID", "x"),
        ("Authorization", "Bearer s3cr3t-of-the-client"),
        ("Authorization", "Basic s3cr3t-of-the-client"),
        ("Authorization", "s3cr3t-of-the-client"),
        ("X-Request-Id", "a\tb"),
    ];
    for (name, value) in odd {
        check(&api, &with(name.as_bytes(), value.as_bytes()), &[200, 206, 304, 400, 401, 412, 416, 417]);
    }
    let shown = |id: &str| {
        let answer = api.get_with("/varied/1", &[("X-Request-Id", id)]);
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(shown("Order_66.a-b"), "Order_66.a-b");
    let long = "x".repeat(65);
    for id in ["", "a b", "a\"b", "<script>", "é", &long] {
        let made = shown(id);
        assert!(made != id && !made.is_empty(), "{id}: {made}");
    }
    assert_ne!(shown("?"), shown("?"), "each has its own");
    assert_unharmed(api);
}

#[test]
fn too_many_or_too_long_headers_get_431() {
    let api = start();
    let lines = |count: usize| (0..count).map(|n| format!("X-{n}: {SECRET}\r\n")).collect::<String>();
    let with =
        |lines: &str| format!("GET /users/u1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n").into_bytes();
    check(&api, &with(&lines(60)), &[200]);
    check_problem(&api, &with(&lines(70)), 431, "headers-too-large");
    check_problem(&api, &with(&format!("X-Long: {}\r\n", "x".repeat(20_000))), 431, "headers-too-large");
    check_problem(&api, &with(&format!("Authorization: Bearer {}\r\n", SECRET.repeat(1000))), 431, "headers-too-large");
    check(&api, &with(&lines(5000)), &[431, 0]);
    check(&api, &with(&format!("X-Long: {}\r\n", "x".repeat(5_000_000))), &[431, 0]);
    check(&api, &with(&format!("{}: x\r\n", "x".repeat(70_000))), &[400, 431, 0]);
    assert_unharmed(api);
}

#[test]
fn only_get_and_head_are_allowed() {
    let api = start();
    for path in ["/users/u1", "/numbers/x", "/stats", "/session"] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE", "PURGE", "get", "PROPFIND"] {
            let answer = api.request(method, path, &[]);
            assert_eq!((answer.status, answer.problem().as_str()), (405, "method-not-allowed"), "{method} {path}");
            let allowed = answer.header("allow").unwrap();
            assert!(allowed.contains("GET") && allowed.contains("HEAD") && !allowed.contains(method), "{answer:?}");
        }
    }
    assert_eq!(api.request("POST", "/nothing", &[]).problem(), "no-such-path");
    check(&api, &close("CONNECT x:80 HTTP/1.1"), &[400, 404, 405]);
    for line in ["G\x01T /users/u1 HTTP/1.1", "GET\t/users/u1\tHTTP/1.1", "GET  /users/u1 HTTP/1.1", "GET /users/u1"] {
        check(&api, &close(line), &[200, 400, 0]);
    }
    for version in ["HTTP/9.9", "HTTP/1.2", "HTTP/1", "http/1.1", "HTTP/11", "XTTP/1.1", "HTTP/1.1 x"] {
        check(&api, &close(&format!("GET /users/u1 {version}")), &[400, 0]);
    }
    check(&api, b"GET /users/u1 HTTP/1.0\r\n\r\n", &[200]);
    check(&api, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[400, 0]);
    check(&api, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", &[400, 0]);
    assert_unharmed(api);
}

#[test]
fn a_body_is_ignored_or_refused_and_never_read_as_a_request() {
    let api = start();
    let with = |headers: &str, body: &str| {
        format!("GET /users/u1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n\r\n{body}").into_bytes()
    };
    check(&api, &with("Content-Length: 5", "12345"), &[200]);
    check(&api, &with("Content-Length: 60000", &"x".repeat(60_000)), &[200]);
    check(&api, &with("Content-Length: 0", ""), &[200]);
    check(&api, &with("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n"), &[200]);
    // The announced size is enough to refuse it.
    check_problem(&api, &with("Content-Length: 70000", ""), 413, "body-too-large");
    check_problem(&api, &with("Content-Length: 1000000000000", ""), 413, "body-too-large");
    let chunk = format!("{:x}\r\n{}\r\n", 50_000, "x".repeat(50_000));
    check(&api, &with("Transfer-Encoding: chunked", &format!("{}0\r\n\r\n", chunk.repeat(20))), &[200, 413, 0]);
    let garbage = [
        "Content-Length: -1",
        "Content-Length: x",
        "Content-Length: 1e3",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: 99999999999999999999999999",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 0x5",
        "Transfer-Encoding: x",
        "Transfer-Encoding: chunked, x",
        "Transfer-Encoding: x, chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length : 5",
        " Content-Length: 5",
    ];
    for headers in garbage {
        let hidden = String::from_utf8(close("GET /stats HTTP/1.1")).unwrap();
        let bytes = format!("GET /users/u1 HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n{hidden}");
        let answers = check(&api, bytes.as_bytes(), &[200, 400, 413, 431, 0]);
        let taken = answers.iter().any(|answer| answer.text().contains("hit_rate"));
        assert!(!taken, "{headers}: the body was taken for a request: {answers:?}");
    }
    for chunks in ["x\r\n", "-1\r\n", "ffffffffffffffffff\r\n", "3\r\nabcdef\r\n0\r\n\r\n", "0\r\nX: y\r\n\r\n"] {
        check(&api, &with("Transfer-Encoding: chunked", chunks), &[200, 400, 413, 0]);
    }
    assert_unharmed(api);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let api = start();
    let mut bytes = Vec::new();
    for number in 1..=9 {
        bytes.extend(request(if number == 5 { "HEAD" } else { "GET" }, &format!("/users/u{number}"), &[]));
    }
    bytes.extend(request("GET", "/users/missing", &[]));
    bytes.extend(request("GET", "/users/u10", &[("Connection", "close")]));
    bytes.extend(request("GET", "/users/u1", &[]));
    let mut connection = api.connect();
    connection.send(&bytes);
    for number in 1..=9 {
        let answer = connection.answer(if number == 5 { "HEAD" } else { "GET" }).unwrap();
        assert_eq!(answer.status, 200);
        assert!(number == 5 || answer.json()["id"] == format!("u{number}"), "{answer:?}");
    }
    assert_eq!(connection.answer("GET").unwrap().problem(), "not-found");
    assert_eq!(connection.answer("GET").unwrap().json()["id"], "u10");
    assert_eq!(connection.answer("GET"), None, "the client said that this was the last");
    assert_unharmed(api);
}

#[test]
fn slow_clients_do_not_delay_others() {
    let api = start();
    let half = request("GET", "/users/u1", &[("Authorization", &format!("Basic {SECRET}"))]);
    let (beginning, end) = half.split_at(half.len() - 3);
    let mut slow: Vec<_> = (0..200)
        .map(|_| {
            let mut connection = api.connect();
            connection.send(beginning);
            connection
        })
        .collect();
    let mut silent: Vec<_> = (0..200).map(|_| api.connect()).collect();
    for _ in 0..20 {
        assert_eq!(api.get("/users/u1").status, 200);
    }
    // One byte at a time is a request too.
    let client = api.client();
    let dripping = thread::spawn(move || {
        let mut connection = client.connect();
        request("GET", "/users/u2", &[]).chunks(1).for_each(|byte| connection.send(byte));
        connection.answer("GET").unwrap().status
    });
    assert_eq!(dripping.join().unwrap(), 200);
    let mut late = slow.pop().unwrap();
    late.send(end);
    assert!([200, 401].contains(&late.answer("GET").unwrap().status));
    // A client that never sends the rest is disconnected, and so is one that reads nothing.
    let mut never = slow.pop().unwrap();
    assert!(never.answer("GET").is_none_or(|answer| (400..500).contains(&answer.status)), "its time is over");
    for connection in slow.iter_mut().chain(&mut silent) {
        connection.shut(Shutdown::Both);
    }
    drop((slow, silent));
    assert_eq!(api.get("/users/u1").status, 200);
    assert_unharmed(api);
}

/// A valid request with bytes changed, inserted and removed. The sequence is fixed, so failures can
/// be reproduced.
#[test]
fn random_bytes_cause_at_most_a_client_error() {
    let api = start();
    let good = request(
        "GET",
        "/varied/1?page=2&x=%20",
        &[("X-Tenant", "t"), ("Authorization", "Bearer token-1"), ("If-None-Match", "\"x\""), ("Content-Length", "0")],
    );
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut below = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % bound as u64).unwrap()
    };
    for _ in 0..1000 {
        let mut bytes = good.clone();
        for _ in 0..=below(4) {
            let at = below(bytes.len());
            match below(4) {
                0 => bytes[at] = u8::try_from(below(256)).unwrap(),
                1 => drop(bytes.splice(at..at, [0, b'\r', b'\n', b'%', b':', 0xff][below(6)..].iter().copied())),
                2 => drop(bytes.drain(at..(at + 5).min(bytes.len()))),
                _ => bytes.extend_from_within(at..(at + 40).min(bytes.len())),
            }
        }
        let mut connection = api.connect();
        connection.send(&bytes);
        // The end of the request may be among the removed bytes, so do not wait for an answer.
        connection.shut(Shutdown::Write);
        for answer in Answer::all(&connection.rest(), "GET") {
            assert!(answer.status < 500, "{:?}: {answer:?}", String::from_utf8_lossy(&bytes));
        }
    }
    assert_unharmed(api);
}

#[test]
fn cors_covers_answers_and_refusals() {
    let file = File {
        reads: "
  tenanted:
    path: /tenanted/{id}
    key: \"tenanted:{id}\"
    vary: {header: [x-tenant]}
    version: \"probe-version:{id}\"
    sql: select to_json(p.id) from probes p where p.id = $1 and $2::text is null
",
        rules: "  versioned: {table: probes, bump: \"probe-version:{id}\"}\n",
        api: "  cors: {origins: [\"https://app.example\"], max_age: 5m}\n",
        ..File::default()
    };
    let api = file.start();
    let from = |origin: &str, path: &str| api.get_with(path, &[("Origin", origin)]);
    for (path, status) in [("/users/u1", 200), ("/users/missing", 404), ("/nowhere", 404)] {
        let answer = from("https://app.example", path);
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"), "{path}");
        assert!(answer.all_of("access-control-expose-headers").contains("consistency-token"), "{path}");
        assert_eq!(from("https://evil.example", path).header("access-control-allow-origin"), None, "{path}");
    }
    let asked = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "x-tenant,consistency-token"),
    ];
    let preflight = api.request("OPTIONS", "/tenanted/1", &asked);
    assert_eq!(preflight.status, 200);
    assert!(preflight.all_of("access-control-allow-headers").contains("x-tenant"), "{preflight:?}");
    assert_eq!(preflight.header("access-control-max-age"), Some("300"));
}
