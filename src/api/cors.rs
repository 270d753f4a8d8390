//! CORS: which other origins may read, and which headers they may send and see.
//!
//! Owns the two lists of headers. It must not know what the headers mean.

use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config::api::Cors;
use crate::reads::{ParameterSource, ReadSet};

/// The headers that a request may have, beside those that reads vary by.
const ALLOWED: [&str; 7] = [
    "authorization",
    "cache-control",
    "consistency-token",
    "if-none-match",
    "last-event-id",
    "x-min-lsn",
    "x-request-id",
];

/// The headers of an answer that a script may see.
const EXPOSED: [&str; 13] = [
    "age",
    "cache-status",
    "consistency-token",
    "etag",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "server-timing",
    "x-cache",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-request-id",
];

/// The layer that answers preflights and adds the headers.
pub(super) fn layer(cors: &Cors, reads: &ReadSet) -> CorsLayer {
    let parameters = reads.reads().iter().flat_map(|read| &read.parameters);
    let varied = parameters.filter(|parameter| parameter.source == ParameterSource::Header);
    let varied = varied.filter_map(|parameter| HeaderName::from_bytes(parameter.name.as_bytes()).ok());
    let allowed: Vec<_> = ALLOWED.map(HeaderName::from_static).into_iter().chain(varied).collect();
    let origins: Vec<HeaderValue> = cors.origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    let is_any = cors.origins.iter().any(|origin| origin == "*");
    CorsLayer::new()
        .allow_origin(if is_any { AllowOrigin::any() } else { AllowOrigin::list(origins) })
        .allow_methods([Method::GET, Method::HEAD])
        .allow_headers(allowed)
        .expose_headers(EXPOSED.map(HeaderName::from_static))
        .max_age(cors.max_age)
}
