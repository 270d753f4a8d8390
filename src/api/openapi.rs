//! `/openapi.json`: the API in OpenAPI 3.1.
//!
//! Owns the document. It must not know SQL or keys: the document reveals neither. Invariant: every
//! status, media type and header that a path can answer with is in the document.

use serde_json::{Map, Value, json};

use super::problem::PROBLEM_JSON;
use crate::config::Api;
use crate::reads::{ParameterSource, Read, ReadSet};

/// The name of the security scheme.
const SESSION: &str = "session";

/// The problems of every path, by status.
const ANYWHERE: [(u16, &str); 7] = [
    (401, "A valid session is required."),
    (413, "The body is too long. Bodies are ignored."),
    (414, "The path and the query together are too long."),
    (429, "A rate limit is exceeded."),
    (431, "There are too many headers, or they are too long."),
    (503, "The database or Redis is unavailable or busy."),
    (504, "The request took too long."),
];

/// The problems that only reads have.
const OF_READS: [(u16, &str); 2] = [
    (400, "A parameter has the wrong type, or a consistency token is malformed or ahead of the database."),
    (404, "There is no such row."),
];

/// The document for these reads.
pub(super) fn document(reads: &ReadSet, api: &Api) -> Value {
    let mut paths = Map::new();
    for read in reads.reads() {
        let is_session = reads.session().is_some_and(|session| session.name == read.name);
        // In OpenAPI a catch-all is a parameter like any other.
        let path = read.path.as_str().replace("{*", "{");
        let needs_session = is_session || needs_session(&path, api);
        let form = PathTemplate { parameters: parameters(read), problems: problems(&OF_READS, api), needs_session };
        paths.insert(path, form.path(&read.name, &format!("The read `{}`.", read.name), value_responses));
    }
    for (path, id, summary, answer, parameters) in own_paths() {
        let form = PathTemplate { parameters, problems: problems(&[], api), needs_session: needs_session(path, api) };
        paths.insert(path.to_owned(), form.path(id, summary, answer));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "unstale",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Cached reads that are never stale: once the invalidation of a change is in force, every answer contains the change.",
        },
        "paths": paths,
        "components": components(api),
    })
}

/// Makes the responses of a path without problems; for HEAD, without the body.
type SuccessResponses = fn(is_head: bool) -> Map<String, Value>;

/// The paths of the API itself.
fn own_paths() -> [(&'static str, &'static str, &'static str, SuccessResponses, Vec<Value>); 4] {
    [
        ("/stats", "unstale.stats", "Counters for each read.", object, Vec::new()),
        ("/events", "unstale.events", "Invalidations as they happen.", stream, event_parameters()),
        ("/healthz", "unstale.healthz", "Whether this instance serves.", no_content, Vec::new()),
        ("/openapi.json", "unstale.openapi", "This document.", object, Vec::new()),
    ]
}

/// What GET and HEAD of a path have in common.
struct PathTemplate {
    parameters: Vec<Value>,
    problems: Vec<(u16, &'static str)>,
    needs_session: bool,
}

impl PathTemplate {
    fn path(&self, id: &str, summary: &str, answer: SuccessResponses) -> Value {
        json!({
            "get": self.operation(id, summary, answer, false),
            "head": self.operation(&format!("{id}.head"), summary, answer, true),
        })
    }

    fn operation(&self, id: &str, summary: &str, answer: SuccessResponses, is_head: bool) -> Value {
        let mut responses = answer(is_head);
        for (status, description) in &self.problems {
            let response = match is_head {
                true => json!({"description": description, "headers": problem_headers(*status)}),
                false => json!({"$ref": format!("#/components/responses/Problem{status}")}),
            };
            responses.insert(status.to_string(), response);
        }
        let mut operation = json!({
            "operationId": id,
            "summary": summary,
            "parameters": self.parameters,
            "responses": responses,
        });
        if let (true, Some(operation)) = (self.needs_session, operation.as_object_mut()) {
            operation.insert("security".to_owned(), json!([{SESSION: []}]));
        }
        operation
    }
}

fn needs_session(path: &str, api: &Api) -> bool {
    api.session.as_ref().is_some_and(|session| session.required.iter().any(|glob| glob.matches(path)))
}

/// The problems that can occur with these settings.
fn problems(more: &[(u16, &'static str)], api: &Api) -> Vec<(u16, &'static str)> {
    let may = |status| match status {
        401 => api.session.is_some(),
        429 => !api.rate_limits.is_empty(),
        _ => true,
    };
    let mut problems: Vec<_> = more.iter().chain(&ANYWHERE).copied().filter(|(status, _)| may(*status)).collect();
    problems.sort_unstable();
    problems
}

fn parameters(read: &Read) -> Vec<Value> {
    let own = read.parameters.iter().filter_map(|parameter| {
        let (place, schema) = match parameter.source {
            ParameterSource::Path => ("path", json!({"type": "string", "minLength": 1})),
            ParameterSource::Query => ("query", json!({"type": "string"})),
            ParameterSource::Header => ("header", json!({"type": "string"})),
            // In the security scheme.
            ParameterSource::Session => return None,
        };
        Some(json!({"name": parameter.name, "in": place, "required": place == "path", "schema": schema}))
    });
    let shared = ["ConsistencyToken", "MinLsn", "IfNoneMatch", "CacheControl"];
    own.chain(shared.map(|name| json!({"$ref": format!("#/components/parameters/{name}")}))).collect()
}

fn event_parameters() -> Vec<Value> {
    let parameter = |name, place| {
        json!({
            "name": name,
            "in": place,
            "required": false,
            "description": "The id of the last event that was received. The stream resumes after it.",
            "schema": {"type": "string"},
        })
    };
    vec![parameter("Last-Event-ID", "header"), parameter("last_event_id", "query")]
}

/// A response with these headers of [`components`], and with the request's id.
fn response(description: &str, headers: &[&str]) -> Map<String, Value> {
    let headers: Map<_, _> = std::iter::once(&"X-Request-Id").chain(headers).map(|name| header(name)).collect();
    let mut response = Map::new();
    response.insert("description".to_owned(), description.into());
    response.insert("headers".to_owned(), headers.into());
    response
}

fn header(name: &str) -> (String, Value) {
    (name.to_owned(), json!({"$ref": format!("#/components/headers/{name}")}))
}

fn with_body(mut response: Map<String, Value>, media: &str, schema: Value, is_head: bool) -> Value {
    if !is_head {
        response.insert("content".to_owned(), json!({media: {"schema": schema}}));
    }
    response.into()
}

fn value_responses(is_head: bool) -> Map<String, Value> {
    let headers = ["ETag", "Cache-Control", "Age", "Cache-Status", "Consistency-Token", "Server-Timing"];
    let value = response("The value, as the database returned it.", &headers);
    let same = response("The client already has the value.", &headers);
    [("200".to_owned(), with_body(value, "application/json", json!({}), is_head)), ("304".to_owned(), same.into())]
        .into_iter()
        .collect()
}

fn object(is_head: bool) -> Map<String, Value> {
    one(200, with_body(response("The current state.", &[]), "application/json", json!({"type": "object"}), is_head))
}

fn stream(is_head: bool) -> Map<String, Value> {
    let description = "An endless stream of server-sent events: `invalidation` names what to discard, `flush` means to \
                       discard everything.";
    one(
        200,
        with_body(response(description, &["Cache-Control"]), "text/event-stream", json!({"type": "string"}), is_head),
    )
}

fn no_content(_: bool) -> Map<String, Value> {
    one(204, response("It serves.", &[]).into())
}

fn one(status: u16, response: Value) -> Map<String, Value> {
    std::iter::once((status.to_string(), response)).collect()
}

fn problem_headers(status: u16) -> Value {
    let more: &[&str] = match status {
        401 => &["WWW-Authenticate"],
        429 => &["Retry-After", "RateLimit", "RateLimit-Policy"],
        503 => &["Retry-After"],
        _ => &[],
    };
    let all = ["X-Request-Id", "Cache-Control"];
    all.iter().chain(more).map(|name| header(name)).collect::<Map<_, _>>().into()
}

fn components(api: &Api) -> Value {
    let responses = problems(&OF_READS, api).into_iter().map(|(status, description)| {
        let problem = json!({PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}});
        let response = json!({"description": description, "headers": problem_headers(status), "content": problem});
        (format!("Problem{status}"), response)
    });
    let mut components = json!({
        "schemas": {"Problem": problem()},
        "responses": responses.collect::<Map<_, _>>(),
        "parameters": shared_parameters(),
        "headers": headers(),
    });
    if let (true, Some(components)) = (api.session.is_some(), components.as_object_mut()) {
        let scheme = json!({"type": "http", "scheme": "bearer", "description": "The token of a session."});
        components.insert("securitySchemes".to_owned(), json!({SESSION: scheme}));
    }
    components
}

fn problem() -> Value {
    json!({
        "type": "object",
        "description": "Problem details: RFC 9457.",
        "required": ["type", "title", "status", "detail", "instance"],
        "properties": {
            "type": {"type": "string", "format": "uri", "description": "`urn:unstale:` and the kind of the problem."},
            "title": {"type": "string"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string"},
            "instance": {"type": "string", "description": "The request's id, as in X-Request-Id."},
        },
    })
}

fn shared_parameters() -> Value {
    let position = json!({"type": "string", "pattern": "^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$"});
    let header = |name, description, schema: &Value| json!({"name": name, "in": "header", "required": false, "description": description, "schema": schema});
    let text = json!({"type": "string"});
    json!({
        "ConsistencyToken": header(
            "Consistency-Token",
            "A position in the database's log, from an earlier answer. The answer contains every commit up to it.",
            &position,
        ),
        "MinLsn": header("X-Min-LSN", "Another name for Consistency-Token.", &position),
        "IfNoneMatch": header("If-None-Match", "The entity tags of the values that the client has.", &text),
        "CacheControl": header(
            "Cache-Control",
            "`no-cache` queries the database and stores the result; `no-store` queries it and stores nothing.",
            &text,
        ),
    })
}

fn headers() -> Value {
    let header = |required: bool, kind: &str, description: &str| json!({"required": required, "description": description, "schema": {"type": kind}});
    json!({
        "Age": header(false, "integer", "Seconds since the value was stored."),
        "Cache-Control": header(true, "string", "A stored answer must be revalidated before use."),
        "Cache-Status": header(true, "string", "How the cache handled the request: RFC 9211."),
        "Consistency-Token": header(false, "string", "A position in the database's log. The answer contains every commit up to it."),
        "ETag": header(true, "string", "A strong entity tag of the value in this coding."),
        "RateLimit": header(false, "string", "What is left of each rate limit."),
        "RateLimit-Policy": header(false, "string", "The rate limits."),
        "Retry-After": header(true, "integer", "Seconds to wait before a retry."),
        "Server-Timing": header(false, "string", "How long the parts of the answer took, in ms."),
        "WWW-Authenticate": header(true, "string", "`Bearer`: the token of a session."),
        "X-Request-Id": header(true, "string", "The request's id: the client's own, or a new one."),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Document;

    const FILE: &str = r#"
version: 1
rules:
  user: {table: users, delete: ["user:{id}", "page:{id}"]}
reads:
  user: {path: "/users/{id}", key: "user:{id}", sql: select 1}
  page:
    path: /pages/{id}
    key: "page:{id}"
    sql: select 1
    vary: {query: [page], header: [x-tenant]}
"#;

    const API: &str = r#"
  session: {path: /session, key: "session:{hash}", sql: select 1}
api:
  session: {read: session, required: ["/users/*"]}
  rate_limits:
    all: {path: "/**", limit: 10, window: 1m}
"#;

    fn described(text: &str) -> Value {
        let file = Document::parse(text, &|_| None).unwrap();
        let reads = ReadSet::compile(file.reads, &file.settings).unwrap();
        document(&reads, &file.settings.api)
    }

    fn each(value: &Value, visit: &mut impl FnMut(&str, &Value)) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    visit(name, value);
                    each(value, visit);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| each(item, visit)),
            _ => {}
        }
    }

    fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
        value["$ref"].as_str().map_or(value, |link| document.pointer(&link[1..]).unwrap())
    }

    #[test]
    fn every_reference_resolves() {
        let document = described(&format!("{FILE}{API}"));
        assert_eq!(
            (&document["openapi"], &document["info"]["version"]),
            (&json!("3.1.0"), &json!(env!("CARGO_PKG_VERSION")))
        );
        let mut links = 0;
        let mut ids = Vec::new();
        each(&document, &mut |name, value| match name {
            "$ref" => {
                links += 1;
                assert!(document.pointer(&value.as_str().unwrap()[1..]).is_some(), "{value}");
            }
            "operationId" => ids.push(value.clone()),
            _ => {}
        });
        assert!(links > 50, "{links}");
        let distinct: BTreeSet<_> = ids.iter().map(Value::to_string).collect();
        assert_eq!((distinct.len(), ids.len()), (14, 14), "seven paths, two methods");
    }

    #[test]
    fn every_parameter_of_a_path_is_declared_once() {
        let document = described(&format!("{FILE}{API}"));
        for (path, methods) in document["paths"].as_object().unwrap() {
            let expected: BTreeSet<_> =
                path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap().to_owned()).collect();
            for method in ["get", "head"] {
                let parameters = methods[method]["parameters"].as_array().unwrap();
                let declared: Vec<_> = parameters
                    .iter()
                    .map(|parameter| resolve(&document, parameter))
                    .map(|parameter| (parameter["in"].as_str().unwrap(), parameter["name"].as_str().unwrap()))
                    .collect();
                assert_eq!(declared.iter().collect::<BTreeSet<_>>().len(), declared.len(), "{path}");
                let in_path = declared.iter().filter(|(place, _)| *place == "path");
                assert_eq!(in_path.map(|(_, name)| (*name).to_owned()).collect::<BTreeSet<_>>(), expected, "{path}");
            }
        }
        let page = &document["paths"]["/pages/{id}"]["get"]["parameters"];
        assert_eq!((&page[1]["name"], &page[1]["in"]), (&json!("page"), &json!("query")));
        assert_eq!((&page[2]["name"], &page[2]["in"]), (&json!("x-tenant"), &json!("header")));
    }

    #[test]
    fn a_status_is_listed_where_the_settings_let_it_occur() {
        let statuses = |document: &Value, path: &str| -> Vec<String> {
            document["paths"][path]["get"]["responses"].as_object().unwrap().keys().cloned().collect()
        };
        let plain = described(FILE);
        let read = ["200", "304", "400", "404", "413", "414", "431", "503", "504"];
        assert_eq!(statuses(&plain, "/users/{id}"), read);
        assert_eq!(statuses(&plain, "/healthz"), ["204", "413", "414", "431", "503", "504"]);
        assert!(plain["components"]["securitySchemes"].is_null());
        let full = described(&format!("{FILE}{API}"));
        let read = ["200", "304", "400", "401", "404", "413", "414", "429", "431", "503", "504"];
        assert_eq!(statuses(&full, "/users/{id}"), read);
        let needs = |path: &str| !full["paths"][path]["get"]["security"].is_null();
        assert_eq!(["/users/{id}", "/session", "/pages/{id}", "/stats"].map(needs), [true, true, false, false]);
    }

    #[test]
    fn a_head_has_no_body_and_the_same_statuses() {
        let document = described(&format!("{FILE}{API}"));
        for (path, methods) in document["paths"].as_object().unwrap() {
            let [get, head] = ["get", "head"].map(|method| methods[method]["responses"].as_object().unwrap());
            assert!(get.keys().eq(head.keys()), "{path}");
            for (status, response) in head {
                assert!(response["content"].is_null() && response["$ref"].is_null(), "{path} {status}");
                assert_eq!(response["headers"], resolve(&document, &get[status])["headers"], "{path} {status}");
            }
        }
    }

    #[test]
    fn neither_sql_nor_keys_are_revealed() {
        let text = described(&format!("{FILE}{API}")).to_string();
        assert!(!text.contains("select") && !text.contains("user:{id}"));
    }
}
