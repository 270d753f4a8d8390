//! One request for a read: from HTTP to a question, and from the answer to a response.
//!
//! Owns RFC 9110 and 9111 as far as a read needs them: conditional requests, ages, cache status. It
//! must not know how an answer is found. Invariant: whatever bytes a client sends, the response is
//! one that `/openapi.json` describes.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use percent_encoding::percent_decode;

use super::database::DatabaseError;
use super::error::ReadError;
use super::problem::{HttpProblem, RETRY_SOON};
use super::question::{CacheControl, Question};
use super::session::TokenHash;
use super::stats::ReadEvent;
use super::value::{Answer, AnswerOrigin};
use super::worker::Worker;
use crate::change::Lsn;
use crate::reads::{ParameterSource, Read};

/// In an answer: the position up to which it contains every commit. In a request: the position that
/// the answer must contain.
pub(super) static TOKEN: HeaderName = HeaderName::from_static("consistency-token");
/// Another name for [`TOKEN`] in requests.
pub(super) static MIN_LSN: HeaderName = HeaderName::from_static("x-min-lsn");
static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
static X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// The suffixes that content codings add to an entity tag. Strong tags must differ between codings.
const CODINGS: [&str; 3] = ["-gzip", "-br", "-deflate"];

/// Answers a request for a read. The segments are the decoded parameters of the read's path.
pub(super) async fn get(worker: &Worker, at: usize, segments: Vec<Vec<u8>>, request: &Parts) -> Response {
    let begun = Instant::now();
    let Some(read) = worker.shared.reads.reads().get(at) else { return HttpProblem::not_found().into_response() };
    let headers = &request.headers;
    let question = match question(at, read, segments, request) {
        Ok(question) => question,
        Err(problem) => return problem.into_response(),
    };
    match worker.reader.answer(question).await {
        Ok(answer) => respond(worker, at, read, answer, headers, begun),
        Err(error) => problem(&error).into_response(),
    }
}

fn question(at: usize, read: &Read, segments: Vec<Vec<u8>>, request: &Parts) -> Result<Question, HttpProblem> {
    let (headers, query) = (&request.headers, request.uri.query());
    let mut segments = segments.into_iter();
    let arguments = read.parameters.iter().map(|parameter| {
        let name = parameter.name.as_str();
        let value = match parameter.source {
            // The parameters of the path come in its order.
            ParameterSource::Path => segments.next(),
            ParameterSource::Query => from_query(query.unwrap_or_default(), name),
            ParameterSource::Header => headers.get(name).map(|value| value.as_bytes().to_vec()),
            ParameterSource::Session => TokenHash::of(headers).map(|hash| hash.as_str().as_bytes().to_vec()),
        };
        match parameter.source {
            ParameterSource::Session if value.is_none() => Err(HttpProblem::unauthorized()),
            ParameterSource::Path => Ok(value),
            _ => Ok(value.filter(|value| !value.is_empty())),
        }
    });
    let arguments = arguments.collect::<Result<_, _>>()?;
    Ok(Question { read: at, arguments, min: min(headers)?, control: control(headers) })
}

/// The first value of a name in a query string (`application/x-www-form-urlencoded`).
fn from_query(query: &str, name: &str) -> Option<Vec<u8>> {
    let decoded = |text: &str| percent_decode(text.replace('+', " ").as_bytes()).collect::<Vec<u8>>();
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(given, _)| decoded(given) == name.as_bytes()).map(|(_, value)| decoded(value))
}

/// The position that the answer must contain: the furthest of those in the headers.
pub(super) fn min(headers: &HeaderMap) -> Result<Option<Lsn>, HttpProblem> {
    let tokens = headers.get_all(&TOKEN).iter().chain(headers.get_all(&MIN_LSN));
    let positions = tokens.map(|token| token.to_str().ok().and_then(|text| text.trim().parse::<Lsn>().ok()));
    let positions: Option<Vec<Lsn>> = positions.collect();
    match positions {
        Some(positions) => Ok(positions.into_iter().max()),
        None => Err(HttpProblem::invalid_token()),
    }
}

/// RFC 9111, section 5.2.1. Every answer satisfies the other directives anyway.
fn control(headers: &HeaderMap) -> CacheControl {
    let mut control = CacheControl::Serve;
    for value in headers.get_all(header::CACHE_CONTROL) {
        for directive in value.as_bytes().split(|&byte| byte == b',') {
            match directive.trim_ascii().to_ascii_lowercase().as_slice() {
                b"no-store" => return CacheControl::Bypass,
                b"no-cache" | b"max-age=0" => control = CacheControl::Revalidate,
                _ => {}
            }
        }
    }
    control
}

fn problem(error: &ReadError) -> HttpProblem {
    match error {
        ReadError::Timeout => HttpProblem::timeout(),
        ReadError::TokenAhead => HttpProblem::token_ahead(),
        ReadError::Database(DatabaseError::Parameter(_)) => {
            HttpProblem::invalid_parameter("a parameter does not have the type that this read takes")
        }
        ReadError::Database(DatabaseError::Timeout) => HttpProblem::timeout(),
        ReadError::Database(DatabaseError::Overloaded) => {
            HttpProblem::unavailable("the database is busy with other reads", RETRY_SOON)
        }
        ReadError::Database(DatabaseError::Unavailable(_)) => {
            HttpProblem::unavailable("the value is not cached, and the database is unavailable", RETRY_SOON)
        }
        ReadError::Database(DatabaseError::Refused(_)) => {
            HttpProblem::unavailable("the database refused the query of this read", RETRY_SOON)
        }
    }
}

fn respond(worker: &Worker, at: usize, read: &Read, answer: Answer, asked: &HeaderMap, begun: Instant) -> Response {
    let is_session = worker.sessions.as_ref().is_some_and(|sessions| sessions.is_read(at));
    let tag = format!("\"{}\"", answer.etag);
    let mut fields = fields(worker, read, &answer, begun);
    let is_private = is_session || asked.contains_key(header::AUTHORIZATION);
    fields.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static(if is_private { "private, no-cache" } else { "no-cache" }),
    );
    if let (true, Some(sessions), Some(hash)) =
        (answer.body.is_some() && is_session, &worker.sessions, TokenHash::of(asked))
    {
        sessions.prolong(&worker.cache, &worker.shared, &hash);
    }
    let Some(body) = answer.body else {
        worker.shared.stats.of(at).count(ReadEvent::Negative);
        let problem = match is_session {
            true => HttpProblem::unauthorized(),
            false => HttpProblem::not_found(),
        };
        let mut response = problem.into_response();
        fields.remove(header::CACHE_CONTROL);
        response.headers_mut().extend(fields);
        return response;
    };
    if let Some(matched) = matching(asked, &tag) {
        worker.shared.stats.of(at).count(ReadEvent::NotModified);
        fields.insert(header::ETAG, matched);
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        *response.headers_mut() = fields;
        return response;
    }
    insert(&mut fields, header::ETAG, &tag);
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut response = Response::new(Body::from(body));
    *response.headers_mut() = fields;
    response
}

/// The header fields of every answer, whether there is a value or not.
fn fields(worker: &Worker, read: &Read, answer: &Answer, begun: Instant) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(12);
    insert(&mut fields, CACHE_STATUS.clone(), &cache_status(answer));
    let total = begun.elapsed();
    let mut timing = String::with_capacity(40);
    let database = answer.database.unwrap_or_default();
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    // Writing to a String cannot fail.
    let _ = write!(timing, "cache;dur={:.3}", millis(total.saturating_sub(database)));
    if answer.database.is_some() {
        let _ = write!(timing, ", db;dur={:.3}", millis(database));
    }
    insert(&mut fields, SERVER_TIMING.clone(), &timing);
    if let AnswerOrigin::Hit | AnswerOrigin::StaleHit | AnswerOrigin::StaleIfError = answer.origin {
        fields.insert(header::AGE, HeaderValue::from(answer.age.as_secs()));
    }
    if let Some(token) = answer.token {
        insert(&mut fields, TOKEN.clone(), &token.to_string());
    }
    if worker.shared.settings.x_cache {
        let is_hit = matches!(answer.origin, AnswerOrigin::Hit | AnswerOrigin::StaleHit | AnswerOrigin::StaleIfError);
        fields.insert(X_CACHE.clone(), HeaderValue::from_static(if is_hit { "HIT" } else { "MISS" }));
    }
    // A 304 has the same fields as the 200 would have.
    fields.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    for parameter in &read.parameters {
        match parameter.source {
            ParameterSource::Header => {
                if let Ok(name) = HeaderValue::from_str(&parameter.name) {
                    fields.append(header::VARY, name);
                }
            }
            ParameterSource::Session => drop(fields.append(header::VARY, HeaderValue::from_static("authorization"))),
            ParameterSource::Path | ParameterSource::Query => {}
        }
    }
    fields
}

fn insert(fields: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        fields.insert(name, value);
    }
}

/// RFC 9211. Without the key, which may contain what only the client should know.
fn cache_status(answer: &Answer) -> String {
    let stored = |stored: bool| if stored { "; stored" } else { "; detail=refused" };
    match answer.origin {
        AnswerOrigin::Hit => format!("unstale; hit; ttl={}", answer.ttl.as_secs()),
        AnswerOrigin::StaleHit => "unstale; hit; detail=refreshing".to_owned(),
        AnswerOrigin::StaleIfError => "unstale; hit; detail=stale-if-error".to_owned(),
        AnswerOrigin::Miss { stored: was } => format!("unstale; fwd=miss{}", stored(was)),
        AnswerOrigin::Request { stored: was } => format!("unstale; fwd=request{}", stored(was)),
        AnswerOrigin::Bypass(why) => format!("unstale; fwd=bypass; detail={why}"),
    }
}

/// The entity tag in `If-None-Match` that stands for this value, in any coding. RFC 9110, section
/// 13.1.2.
fn matching(asked: &HeaderMap, tag: &str) -> Option<HeaderValue> {
    let bare = tag.trim_matches('"');
    for value in asked.get_all(header::IF_NONE_MATCH) {
        let Ok(text) = value.to_str() else { continue };
        for candidate in text.split(',').map(str::trim) {
            if candidate == "*" {
                return HeaderValue::from_str(tag).ok();
            }
            // A weak comparison.
            let quoted = candidate.strip_prefix("W/").unwrap_or(candidate);
            let opaque = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            let Some(opaque) = opaque else { continue };
            let plain = CODINGS.iter().find_map(|coding| opaque.strip_suffix(coding)).unwrap_or(opaque);
            if plain == bare {
                return HeaderValue::from_str(&format!("\"{opaque}\"")).ok();
            }
        }
    }
    None
}

/// Adds the content coding to the entity tag of a compressed answer.
pub(super) fn mark_coding(headers: &mut HeaderMap) {
    let Some(coding) = headers.get(header::CONTENT_ENCODING).and_then(|coding| coding.to_str().ok()) else { return };
    let Some(tag) = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()) else { return };
    let Some(bare) = tag.strip_suffix('"') else { return };
    if let Ok(marked) = HeaderValue::from_str(&format!("{bare}-{coding}\"")) {
        headers.insert(header::ETAG, marked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn an_entity_tag_matches_in_every_coding() {
        let check = |sent: &str, expected: Option<&str>| {
            let found = matching(&headers(&[("if-none-match", sent)]), "\"abc\"");
            assert_eq!(found.as_ref().map(|tag| tag.to_str().unwrap()), expected, "{sent}");
        };
        check("\"abc\"", Some("\"abc\""));
        check("W/\"abc\"", Some("\"abc\""));
        check("\"x\", \"abc-gzip\"", Some("\"abc-gzip\""));
        check("*", Some("\"abc\""));
        check("\"abcd\"", None);
        check("abc\"", None);
        check("", None);
    }

    #[test]
    fn the_furthest_of_all_tokens_counts() {
        let check = |lines: &[(&'static str, &str)], expected: Option<&str>| {
            assert_eq!(min(&headers(lines)).unwrap().map(|lsn| lsn.to_string()).as_deref(), expected);
        };
        check(&[], None);
        check(&[("consistency-token", "0/16B3748")], Some("0/16B3748"));
        check(&[("x-min-lsn", " 1/0 "), ("consistency-token", "0/FF")], Some("1/0"));
        for bad in ["", "x", "0/", "0/16B3748, 0/1", "-1", "FFFFFFFFF/0"] {
            assert!(min(&headers(&[("x-min-lsn", bad)])).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_client_may_ask_for_the_database() {
        let check = |value: &str, expected: CacheControl| {
            assert_eq!(control(&headers(&[("cache-control", value)])), expected, "{value}");
        };
        check("max-age=60", CacheControl::Serve);
        check("No-Cache", CacheControl::Revalidate);
        check("max-age=0", CacheControl::Revalidate);
        check("no-cache, no-store", CacheControl::Bypass);
    }
}
