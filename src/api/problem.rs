//! Problem details for requests that fail: RFC 9457.
//!
//! Owns the kinds of problems, their texts and their status codes. It must not know what caused
//! one. Invariant: a problem contains no value of a row, no token and no SQL, and repeats nothing
//! of the request.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

/// The media type of a problem.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// The prefix of every problem type.
const TYPE_PREFIX: &str = "urn:unstale:";

/// `Retry-After` while a server is unavailable or busy.
pub(super) const RETRY_SOON: Duration = Duration::from_secs(1);

/// The kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProblemKind {
    NotFound,
    NoSuchPath,
    MethodNotAllowed,
    InvalidParameter,
    InvalidToken,
    TokenAhead,
    Unauthorized,
    UriTooLong,
    HeadersTooLarge,
    BodyTooLarge,
    RateLimited,
    Unavailable,
    Timeout,
    Internal,
}

impl ProblemKind {
    /// The last word of its type, its title and its status.
    pub(super) const fn parts(self) -> (&'static str, &'static str, StatusCode) {
        match self {
            Self::NotFound => ("not-found", "Not found", StatusCode::NOT_FOUND),
            Self::NoSuchPath => ("no-such-path", "No such path", StatusCode::NOT_FOUND),
            Self::MethodNotAllowed => ("method-not-allowed", "Method not allowed", StatusCode::METHOD_NOT_ALLOWED),
            Self::InvalidParameter => ("invalid-parameter", "Invalid parameter", StatusCode::BAD_REQUEST),
            Self::InvalidToken => ("invalid-token", "Invalid consistency token", StatusCode::BAD_REQUEST),
            Self::TokenAhead => ("token-ahead", "Consistency token ahead of the server", StatusCode::BAD_REQUEST),
            Self::Unauthorized => ("unauthorized", "Unauthorized", StatusCode::UNAUTHORIZED),
            Self::UriTooLong => ("uri-too-long", "URI too long", StatusCode::URI_TOO_LONG),
            Self::HeadersTooLarge => {
                ("headers-too-large", "Headers too large", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
            }
            Self::BodyTooLarge => ("body-too-large", "Body too large", StatusCode::PAYLOAD_TOO_LARGE),
            Self::RateLimited => ("rate-limited", "Too many requests", StatusCode::TOO_MANY_REQUESTS),
            Self::Unavailable => ("unavailable", "Unavailable", StatusCode::SERVICE_UNAVAILABLE),
            Self::Timeout => ("timeout", "Took too long", StatusCode::GATEWAY_TIMEOUT),
            Self::Internal => ("internal", "Internal error", StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// Why a request fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HttpProblem {
    kind: ProblemKind,
    detail: Cow<'static, str>,
    retry_after: Option<Duration>,
}

impl HttpProblem {
    fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), retry_after: None }
    }

    fn after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// The read has no row.
    pub(super) fn not_found() -> Self {
        Self::new(ProblemKind::NotFound, "there is no such row")
    }

    /// No read has this path.
    pub(super) fn no_such_path() -> Self {
        Self::new(ProblemKind::NoSuchPath, "no read has this path; /openapi.json lists all paths")
    }

    /// Another method than GET or HEAD.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(ProblemKind::MethodNotAllowed, "only GET and HEAD are supported")
    }

    /// A parameter does not have the type that the query takes.
    pub(super) fn invalid_parameter(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ProblemKind::InvalidParameter, detail)
    }

    /// A consistency token is malformed.
    pub(super) fn invalid_token() -> Self {
        Self::new(
            ProblemKind::InvalidToken,
            "expected a position in the log as the consistency token, such as 0/16B3748",
        )
    }

    /// The consistency token names a position that the log has not reached.
    pub(super) fn token_ahead() -> Self {
        let detail = "the database's log has not reached this position: the token may be from another database";
        Self::new(ProblemKind::TokenAhead, detail)
    }

    /// The request has no token, or its session is not valid.
    pub(super) fn unauthorized() -> Self {
        Self::new(ProblemKind::Unauthorized, "the token of a valid session is required, as `Authorization: Bearer ...`")
    }

    /// The request's URI is too long.
    pub(super) fn uri_too_long() -> Self {
        Self::new(ProblemKind::UriTooLong, "the path and the query together are too long")
    }

    /// The request has too many headers, or they are too long.
    pub(super) fn headers_too_large() -> Self {
        Self::new(ProblemKind::HeadersTooLarge, "there are too many headers, or they are too long")
    }

    /// The request's body is too long.
    pub(super) fn body_too_large() -> Self {
        Self::new(ProblemKind::BodyTooLarge, "the body is too long; request bodies are ignored, so omit it")
    }

    /// A rate limit is exceeded. `wait`: until it lets a request pass again.
    pub(super) fn rate_limited(wait: Duration) -> Self {
        Self::new(ProblemKind::RateLimited, "a rate limit is exceeded; the header RateLimit-Policy has the limits")
            .after(wait)
    }

    /// A server is unavailable or busy. `wait`: until a retry may succeed.
    pub(super) fn unavailable(detail: impl Into<Cow<'static, str>>, wait: Duration) -> Self {
        Self::new(ProblemKind::Unavailable, detail).after(wait)
    }

    /// The request took longer than `api.timeout`, or its query longer than the read's.
    pub(super) fn timeout() -> Self {
        Self::new(ProblemKind::Timeout, "the request took too long")
    }

    /// A bug in this process.
    pub(super) fn internal() -> Self {
        Self::new(ProblemKind::Internal, "the server failed unexpectedly; see its log")
    }

    /// The status of its response.
    pub(super) fn status(&self) -> StatusCode {
        self.kind.parts().2
    }

    fn to_json(&self, instance: Option<&str>) -> Vec<u8> {
        let (word, title, status) = self.kind.parts();
        let mut json = serde_json::json!({
            "type": format!("{TYPE_PREFIX}{word}"),
            "title": title,
            "status": status.as_u16(),
            "detail": self.detail,
        });
        if let (Some(instance), Some(object)) = (instance, json.as_object_mut()) {
            object.insert("instance".to_owned(), instance.into());
        }
        json.to_string().into_bytes()
    }

    fn write_headers(&self, headers: &mut HeaderMap) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.kind == ProblemKind::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds(wait).into());
        }
    }
}

/// Whole seconds, at least one, rounded up: a retry that comes too early is refused again.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// Without the request's id; [`with_instance`] adds it.
impl IntoResponse for HttpProblem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json(None)));
        *response.status_mut() = self.status();
        self.write_headers(response.headers_mut());
        response.extensions_mut().insert(self);
        response
    }
}

/// Adds the request's id to a response that is a problem. Headers added by others stay.
pub(super) fn with_instance(mut response: Response, request_id: &str) -> Response {
    if let Some(problem) = response.extensions_mut().remove::<HttpProblem>() {
        response.headers_mut().remove(CONTENT_LENGTH);
        *response.body_mut() = Body::from(problem.to_json(Some(request_id)));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<HttpProblem> {
        let wait = Duration::from_millis(1_200);
        vec![
            HttpProblem::not_found(),
            HttpProblem::no_such_path(),
            HttpProblem::method_not_allowed(),
            HttpProblem::invalid_parameter("`id` is not an integer"),
            HttpProblem::invalid_token(),
            HttpProblem::token_ahead(),
            HttpProblem::unauthorized(),
            HttpProblem::uri_too_long(),
            HttpProblem::headers_too_large(),
            HttpProblem::body_too_large(),
            HttpProblem::rate_limited(wait),
            HttpProblem::unavailable("PostgreSQL is unavailable", wait),
            HttpProblem::timeout(),
            HttpProblem::internal(),
        ]
    }

    fn json(response: Response) -> serde_json::Value {
        let body = axum::body::to_bytes(response.into_body(), usize::MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        serde_json::from_slice(&runtime.block_on(body).unwrap()).unwrap()
    }

    #[test]
    fn a_problem_says_what_it_is_and_is_never_stored() {
        let mut words = Vec::new();
        for problem in all() {
            let (word, title, status) = problem.kind.parts();
            let response = problem.clone().into_response();
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
            let json = json(with_instance(response, "r-1"));
            let expected = serde_json::json!({
                "type": format!("urn:unstale:{word}"), "title": title, "status": status.as_u16(),
                "detail": problem.detail, "instance": "r-1",
            });
            assert_eq!(json, expected);
            words.push(word);
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), all().len(), "each kind has a word of its own");
    }

    #[test]
    fn retry_after_and_www_authenticate_are_set_for_their_problems() {
        for problem in all() {
            let response = problem.clone().into_response();
            let wait = response.headers().get(RETRY_AFTER).map(|wait| wait.to_str().unwrap().to_owned());
            let expected =
                matches!(problem.kind, ProblemKind::RateLimited | ProblemKind::Unavailable).then(|| "2".to_owned());
            assert_eq!(wait, expected, "{problem:?}");
            assert_eq!(response.headers().contains_key(WWW_AUTHENTICATE), problem.kind == ProblemKind::Unauthorized);
        }
        assert_eq!([0, 1, 1_000, 1_001].map(|millis| seconds(Duration::from_millis(millis))), [1, 1, 1, 2]);
    }

    #[test]
    fn headers_of_others_stay_and_other_responses_are_unchanged() {
        let mut response = HttpProblem::rate_limited(Duration::from_secs(1)).into_response();
        response.headers_mut().insert("ratelimit", HeaderValue::from_static("\"a\";r=0"));
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("7"));
        let response = with_instance(response, "r-1");
        assert!(response.headers().contains_key("ratelimit") && !response.headers().contains_key(CONTENT_LENGTH));
        assert_eq!(json(response)["instance"], "r-1");
        assert_eq!(json(with_instance(Response::new(Body::from("{}")), "r-1")), serde_json::json!({}));
    }
}
