//! What every request passes through before it is answered, and every answer after.
//!
//! Owns the paths, sizes, request ids and codings. It must not know how a read is answered.
//! Invariants: an answer names its request; every problem has the same form, wherever it was found.

use std::borrow::Cow;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::FutureExt as _;
use percent_encoding::percent_decode_str;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{And, NotForContentType, Predicate as _, SizeAbove};
use tower_http::cors::CorsLayer;

use super::admission::{Checks, decoded, peer};
use super::problem::{HttpProblem, with_instance};
use super::worker::Worker;
use super::{cors, events, http};

/// The longest path and query, in bytes.
const URI_MAX: usize = 8 * 1024;

/// The most bytes that all header lines may have, and the most lines.
const HEADERS_MAX: usize = 16 * 1024;
const LINES_MAX: usize = 64;

/// The longest body that is ignored, in bytes. Nothing here reads one.
const BODY_MAX: u64 = 64 * 1024;

/// The shortest answer that is compressed, in bytes.
const COMPRESS_ABOVE: u64 = 1024;

/// The path of health checks, which need no session and are not counted.
const HEALTH: &str = "/healthz";

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers requests, on one thread.
#[derive(Clone, Debug)]
pub struct Front {
    worker: Arc<Worker>,
    /// The paths of the reads, with the position of each read.
    reads: Arc<matchit::Router<usize>>,
    /// Every other path.
    others: Router,
    compression: CompressionLayer<Compressible>,
    cors: Option<CorsLayer>,
}

/// Which answers are compressed.
type Compressible = And<SizeAbove, NotForContentType>;

impl Front {
    pub(super) fn new(worker: Worker) -> Self {
        let worker = Arc::new(worker);
        let all = &worker.shared.reads;
        let mut reads = matchit::Router::new();
        for (at, read) in all.reads().iter().enumerate() {
            // Cannot fail: conflicting paths were refused when the file was read.
            let _ = reads.insert(read.path.as_str(), at);
        }
        let large = SizeAbove::new(COMPRESS_ABOVE).and(NotForContentType::const_new("text/event-stream"));
        let compression = CompressionLayer::new().compress_when(large);
        let cors = worker.shared.settings.cors.as_ref().map(|cors| cors::layer(cors, all));
        Self { reads: Arc::new(reads), others: others(&worker), compression, cors, worker }
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request) -> Response {
        let Some(cors) = &self.cors else { return self.identify(request).await };
        // Outermost, so that other origins can also read refusals.
        let identified = service_fn(|request| async { Ok::<_, Infallible>(self.identify(request).await) });
        match cors.layer(identified).oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    /// Gives the request an id, and refuses it if it is too large.
    async fn identify(&self, mut request: Request) -> Response {
        let id = request_id(request.headers());
        accept_identity(request.headers_mut());
        let response = match too_large(&request) {
            Some(problem) => problem.into_response(),
            None => catch_panic(self.admit(request)).await,
        };
        let mut response = with_instance(response, &id);
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID.clone(), id);
        }
        response
    }

    /// Checks the session and the rate limits, if the path has any.
    async fn admit(&self, request: Request) -> Response {
        let path = decoded(request.uri().path());
        let checks = Checks::of(&self.worker, &path);
        if !checks.any() || path == HEALTH {
            return self.compress(request).await;
        }
        let path = path.into_owned();
        Box::pin(self.admit_checked(checks, &path, request)).await
    }

    async fn admit_checked(&self, checks: Checks, path: &str, request: Request) -> Response {
        match checks.admit(&self.worker, path, &request.headers().clone(), peer(&request)).await {
            Ok(headers) => {
                let mut response = self.compress(request).await;
                response.headers_mut().extend(headers);
                response
            }
            Err(refusal) => refusal,
        }
    }

    /// Compresses the answer if the client accepts that.
    async fn compress(&self, request: Request) -> Response {
        if !request.headers().contains_key(header::ACCEPT_ENCODING) {
            return self.route(request).await;
        }
        let routed = service_fn(|request| async { Ok::<_, Infallible>(self.route(request).await) });
        match self.compression.layer(routed).oneshot(request).await {
            Ok(response) => {
                let mut response = response.map(Body::new);
                http::mark_coding(response.headers_mut());
                response
            }
            Err(never) => match never {},
        }
    }

    /// Answers by the path. Reads do not pass through axum's router: most requests are for them.
    async fn route(&self, request: Request) -> Response {
        if let Ok(found) = self.reads.at(request.uri().path()) {
            return match *request.method() {
                // hyper omits the body of the answer to a HEAD.
                Method::GET | Method::HEAD => {
                    let at = *found.value;
                    let segments = found.params.iter().map(|(_, segment)| percent_decode_str(segment).collect());
                    let segments: Vec<Vec<u8>> = segments.collect();
                    http::get(&self.worker, at, segments, &request.into_parts().0).await
                }
                _ => ([(header::ALLOW, "GET,HEAD")], HttpProblem::method_not_allowed()).into_response(),
            };
        }
        match self.others.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// Answers the API's own paths.
fn others(worker: &Arc<Worker>) -> Router {
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/stats", get(stats))
        .route("/events", get(follow))
        .route(HEALTH, get(async || StatusCode::NO_CONTENT))
        .fallback(async || HttpProblem::no_such_path())
        .method_not_allowed_fallback(async || HttpProblem::method_not_allowed())
        .with_state(Arc::clone(worker))
}

async fn openapi(State(worker): State<Arc<Worker>>) -> Response {
    json(worker.openapi.clone())
}

async fn stats(State(worker): State<Arc<Worker>>) -> Response {
    let mut response = json(Bytes::from(worker.shared.stats.to_json(SystemTime::now()).to_string()));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn json(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn follow(State(worker): State<Arc<Worker>>, request: Request) -> Response {
    events::get(&worker.events, request.headers(), request.uri().query().unwrap_or_default())
}

/// The answer, or a problem if a handler panicked. That is a bug here, but the client still gets an
/// answer.
async fn catch_panic(answer: impl Future<Output = Response>) -> Response {
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| HttpProblem::internal().into_response())
}

/// Removes an `Accept-Encoding` that forbids answers without compression. RFC 9110, section 12.5.3,
/// allows a server to ignore it.
fn accept_identity(headers: &mut HeaderMap) {
    let forbids = |value: &HeaderValue| {
        let mut elements = value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        elements.any(|element| element.starts_with(b"*") || element.starts_with(b"identity"))
    };
    if headers.get_all(header::ACCEPT_ENCODING).iter().any(forbids) {
        headers.remove(header::ACCEPT_ENCODING);
    }
}

/// The client's own id if it is safe to log, otherwise a new one.
fn request_id(headers: &HeaderMap) -> Cow<'static, str> {
    let is_safe = |id: &&str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    match headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok()).filter(is_safe) {
        Some(id) => id.to_owned().into(),
        None => format!("{:016x}", rand::random::<u64>()).into(),
    }
}

fn too_large(request: &Request) -> Option<HttpProblem> {
    let uri = request.uri();
    if uri.path().len() + uri.query().map_or(0, str::len) > URI_MAX {
        return Some(HttpProblem::uri_too_long());
    }
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if headers.len() > LINES_MAX || bytes > HEADERS_MAX {
        return Some(HttpProblem::headers_too_large());
    }
    let length = headers.get(header::CONTENT_LENGTH)?;
    let length: Option<u64> = length.to_str().ok().and_then(|length| length.parse().ok());
    length.is_none_or(|length| length > BODY_MAX).then(HttpProblem::body_too_large)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_safe_id_is_kept() {
        let check = |id: &str, is_kept: bool| {
            let headers = HeaderMap::from_iter([(REQUEST_ID.clone(), HeaderValue::from_str(id).unwrap())]);
            assert_eq!(request_id(&headers) == id, is_kept, "{id}");
        };
        check("a-B_3.4", true);
        check("", false);
        check("a b", false);
        check(&"x".repeat(65), false);
    }
}
