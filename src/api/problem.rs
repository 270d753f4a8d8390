//! What is answered when a request cannot be: problem details, as in RFC 9457.
//!
//! Owns the kinds of problems, their words and their status. It must not know what led to one. Invariant: no value of a
//! row, no token and no SQL is ever part of a problem; what was asked for is not repeated.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

/// The media type of a problem.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// What every type of problem begins with.
const TYPE: &str = "urn:unstale:";

/// When to come again after something was away.
pub(super) const AWAY: Duration = Duration::from_secs(1);

/// The kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
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

impl Kind {
    /// Its word, its title and its status.
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

/// Why a request is not answered as it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    kind: Kind,
    detail: Cow<'static, str>,
    retry_after: Option<Duration>,
}

impl Problem {
    fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), retry_after: None }
    }

    fn after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// The read found nothing.
    pub(super) fn not_found() -> Self {
        Self::new(Kind::NotFound, "there is nothing under this name")
    }

    /// No read has this path.
    pub(super) fn no_such_path() -> Self {
        Self::new(Kind::NoSuchPath, "no read has this path; /openapi.json lists those that there are")
    }

    /// Another method than GET or HEAD.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(Kind::MethodNotAllowed, "only GET and HEAD are answered here")
    }

    /// The database does not take a parameter for its type.
    pub(super) fn invalid_parameter(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::InvalidParameter, detail)
    }

    /// The consistency token is none.
    pub(super) fn invalid_token() -> Self {
        Self::new(Kind::InvalidToken, "a consistency token is a position in the log, such as 0/16B3748")
    }

    /// The consistency token names a position that the log has not reached.
    pub(super) fn token_ahead() -> Self {
        Self::new(Kind::TokenAhead, "the server's log has not come as far as this token: is it another server's?")
    }

    /// There is no session, or it is over.
    pub(super) fn unauthorized() -> Self {
        Self::new(Kind::Unauthorized, "this needs the token of a session, as `Authorization: Bearer ...`")
    }

    /// The request's URI is too long.
    pub(super) fn uri_too_long() -> Self {
        Self::new(Kind::UriTooLong, "the path and the query are too long together")
    }

    /// The request's headers are too many or too long.
    pub(super) fn headers_too_large() -> Self {
        Self::new(Kind::HeadersTooLarge, "the headers are too many or too long")
    }

    /// The request's body is too long.
    pub(super) fn body_too_large() -> Self {
        Self::new(Kind::BodyTooLarge, "nothing here reads a body, and this one is long")
    }

    /// A limit is reached; `wait` until there is room again.
    pub(super) fn rate_limited(wait: Duration) -> Self {
        Self::new(Kind::RateLimited, "too many requests; the header RateLimit-Policy has the limit").after(wait)
    }

    /// Something is away, or busy; worth trying again after `wait`.
    pub(super) fn unavailable(detail: impl Into<Cow<'static, str>>, wait: Duration) -> Self {
        Self::new(Kind::Unavailable, detail).after(wait)
    }

    /// The answer took longer than a request may.
    pub(super) fn timeout() -> Self {
        Self::new(Kind::Timeout, "the answer took longer than a request may")
    }

    /// A fault of ours, or of the read's SQL; the log has more.
    pub(super) fn internal() -> Self {
        Self::new(Kind::Internal, "this is a fault of the server; its log has the request's id")
    }

    /// The status of its response.
    pub(super) fn status(&self) -> StatusCode {
        self.kind.parts().2
    }

    fn to_json(&self, instance: Option<&str>) -> Vec<u8> {
        let (word, title, status) = self.kind.parts();
        let mut json = serde_json::json!({
            "type": format!("{TYPE}{word}"),
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
        if self.kind == Kind::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds(wait).into());
        }
    }
}

/// Whole seconds, at least one: who comes back too early is refused again.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// Without the request's id, which [`with_instance`] adds in one place for all.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json(None)));
        *response.status_mut() = self.status();
        self.write_headers(response.headers_mut());
        response.extensions_mut().insert(self);
        response
    }
}

/// The same response; if it is a problem, then one that names the request. Headers that others added stay.
pub(super) fn with_instance(mut response: Response, request_id: &str) -> Response {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        response.headers_mut().remove(CONTENT_LENGTH);
        *response.body_mut() = Body::from(problem.to_json(Some(request_id)));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Problem> {
        let wait = Duration::from_millis(1_200);
        vec![
            Problem::not_found(),
            Problem::no_such_path(),
            Problem::method_not_allowed(),
            Problem::invalid_parameter("`id` is not an integer"),
            Problem::invalid_token(),
            Problem::token_ahead(),
            Problem::unauthorized(),
            Problem::uri_too_long(),
            Problem::headers_too_large(),
            Problem::body_too_large(),
            Problem::rate_limited(wait),
            Problem::unavailable("PostgreSQL is away", wait),
            Problem::timeout(),
            Problem::internal(),
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
    fn who_may_come_back_is_told_when_and_who_needs_a_session_is_told_so() {
        for problem in all() {
            let response = problem.clone().into_response();
            let wait = response.headers().get(RETRY_AFTER).map(|wait| wait.to_str().unwrap().to_owned());
            let expected = matches!(problem.kind, Kind::RateLimited | Kind::Unavailable).then(|| "2".to_owned());
            assert_eq!(wait, expected, "{problem:?}");
            assert_eq!(response.headers().contains_key(WWW_AUTHENTICATE), problem.kind == Kind::Unauthorized);
        }
        assert_eq!([0, 1, 1_000, 1_001].map(|millis| seconds(Duration::from_millis(millis))), [1, 1, 1, 2]);
    }

    #[test]
    fn what_others_added_stays_and_what_is_no_problem_is_left_alone() {
        let mut response = Problem::rate_limited(Duration::from_secs(1)).into_response();
        response.headers_mut().insert("ratelimit", HeaderValue::from_static("\"a\";r=0"));
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("7"));
        let response = with_instance(response, "r-1");
        assert!(response.headers().contains_key("ratelimit") && !response.headers().contains_key(CONTENT_LENGTH));
        assert_eq!(json(response)["instance"], "r-1");
        assert_eq!(json(with_instance(Response::new(Body::from("{}")), "r-1")), serde_json::json!({}));
    }
}
