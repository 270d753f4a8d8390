//! The API's OpenAPI document, compared with what the API does, for the shipped reads.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Answer, Api};
use crate::support::{SHIPPED, World};

/// Values to try for a path parameter: existing, missing, and invalid ones.
const VALUES: &[&str] =
    &["u1", "o1", "missing", "user1@example.com", "a%20b", "%00", "%ff", "'%3B--", "*", "%F0%9F%90%98"];

fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    value["$ref"].as_str().map_or(value, |link| document.pointer(&link[1..]).unwrap())
}

/// Checks that the document describes the answer: status, media type and required headers.
fn assert_described(document: &Value, operation: &Value, asked: &str, answer: &Answer) {
    let response = &operation["responses"][answer.status.to_string()];
    assert!(!response.is_null(), "{asked}: {} is not described: {answer:?}", answer.status);
    let response = resolve(document, response);
    if let Some(content) = response["content"].as_object() {
        let media = answer.header("content-type").unwrap_or_default();
        assert!(content.contains_key(media), "{asked}: {answer:?}");
    }
    for (name, header) in response["headers"].as_object().unwrap() {
        let is_required = resolve(document, header)["required"] == true;
        let is_there = answer.header(&name.to_ascii_lowercase()).is_some();
        assert!(is_there || !is_required, "{asked}: {name} is missing: {answer:?}");
    }
    if answer.status >= 400 && !answer.body.is_empty() {
        answer.problem();
        let problem = answer.json();
        for field in document["components"]["schemas"]["Problem"]["required"].as_array().unwrap() {
            assert!(!problem[field.as_str().unwrap()].is_null(), "{asked}: no {field}: {problem}");
        }
    }
}

fn document(api: &Api) -> Value {
    let answer = api.get("/openapi.json");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    answer.json()
}

#[test]
fn every_read_is_in_the_document() {
    let api = Api::run(World::shipped(), &[]);
    let document = document(&api);
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let file = unstale::config::Document::parse(SHIPPED, &|_| None).unwrap();
    assert!(!file.reads.is_empty());
    let paths = document["paths"].as_object().unwrap();
    for read in &file.reads {
        let operation = &paths[&read.path.value]["get"];
        assert_eq!(operation["operationId"], read.name.value.as_str());
    }
    assert_eq!(paths.len(), file.reads.len() + 4, "and those of the API itself");
    let stats = api.get("/stats").json();
    let counted: BTreeSet<_> = stats["reads"].as_object().unwrap().keys().cloned().collect();
    let named: BTreeSet<_> = file.reads.iter().map(|read| read.name.value.clone()).collect();
    assert_eq!(counted, named);
}

#[test]
fn every_answer_is_described() {
    let api = Api::run(World::shipped(), &[]);
    let document = document(&api);
    let mut statuses = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for value in VALUES {
            let target: String =
                path.split('{').enumerate().fold(String::new(), |target, (at, part)| match part.split_once('}') {
                    Some((_, rest)) if at > 0 => target + value + rest,
                    _ => target + part,
                });
            let head = api.head(&target);
            assert_described(&document, &methods["head"], &target, &head);
            // The stream of events has no end.
            if path != "/events" {
                let answer = api.get(&target);
                assert_described(&document, &methods["get"], &target, &answer);
                statuses.insert(answer.status);
            }
        }
    }
    assert!(statuses.is_superset(&BTreeSet::from([200, 204, 400, 404])), "{statuses:?}");
}

#[test]
fn answers_to_request_headers_are_described() {
    let api = Api::run(World::shipped(), &[]);
    let document = document(&api);
    let read = &document["paths"]["/users/{id}"]["get"];
    let etag = api.get("/users/u1").etag().to_owned();
    let long = "x".repeat(20_000);
    let asked: &[(&str, &str, u16)] = &[
        ("If-None-Match", &etag, 304),
        ("Consistency-Token", "0/1", 200),
        ("Consistency-Token", "FFFFFFFF/0", 400),
        ("X-Min-LSN", "soon", 400),
        ("Cache-Control", "no-cache", 200),
        ("Cache-Control", "no-store", 200),
        ("Content-Length", "99999999", 413),
        ("X-Long", &long, 431),
    ];
    for (name, value, status) in asked {
        let answer = api.get_with("/users/u1", &[(name, value)]);
        let what = format!("{name}: {:.40}", value);
        assert_eq!(answer.status, *status, "{what}: {answer:?}");
        assert_described(&document, read, &what, &answer);
    }
    let answer = api.get(&format!("/users/{}", "x".repeat(9_000)));
    assert_eq!(answer.status, 414);
    assert_described(&document, read, "a long path", &answer);
}
