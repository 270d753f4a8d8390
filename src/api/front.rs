//! What every request passes before it is answered, and every answer after it was.
//!
//! Owns the paths, sizes, request ids, the time a request may take, who asks and whether he may, codings and origins. It
//! must not know how a read is answered. Invariants: an answer names its request, and a problem is told in one form
//! whoever found it; what is refused has cost no more than the refusal.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::FutureExt as _;
use percent_encoding::percent_decode_str;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{And, NotForContentType, Predicate as _, SizeAbove};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::limit::{Caller, Step};
use super::problem::{AWAY, Problem, with_instance};
use super::reader::ReadError;
use super::session::{Session, Sessions, TokenHash};
use super::{Api, caller, events, http};
use crate::config::api::{Cors, OnError};
use crate::reads::{ReadSet, Source};

/// The longest path and query, in bytes.
const URI_MAX: usize = 8 * 1024;

/// The most that header lines may take together, in bytes, and how many there may be.
const HEADERS_MAX: usize = 16 * 1024;
const LINES_MAX: usize = 64;

/// The longest body that is ignored; nothing here reads one.
const BODY_MAX: u64 = 64 * 1024;

/// What is shorter gains nothing by being compressed.
const COMPRESS_ABOVE: u64 = 1024;

/// Who asks whether the process serves is neither counted nor asked who he is.
const HEALTH: &str = "/healthz";

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers requests, on one thread.
#[derive(Clone, Debug)]
pub struct Front {
    api: Arc<Api>,
    /// The paths of the reads, each with its read's position.
    reads: Arc<matchit::Router<usize>>,
    /// Every other path.
    others: Router,
    packing: CompressionLayer<Packable>,
    cors: Option<CorsLayer>,
}

/// What gains by being compressed.
type Packable = And<SizeAbove, NotForContentType>;

impl Front {
    pub(super) fn new(api: Api) -> Self {
        let api = Arc::new(api);
        let mut reads = matchit::Router::new();
        for (at, read) in api.reader.reads.reads().iter().enumerate() {
            // Conflicts were found when the file was read.
            let _ = reads.insert(read.path.as_str(), at);
        }
        let large = SizeAbove::new(COMPRESS_ABOVE).and(NotForContentType::const_new("text/event-stream"));
        let packing = CompressionLayer::new().compress_when(large);
        let cors = api.reader.settings.cors.as_ref().map(|cors| cross_origin(cors, &api.reader.reads));
        Self { reads: Arc::new(reads), others: others(&api), packing, cors, api }
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request) -> Response {
        let Some(cors) = &self.cors else { return self.name(request).await };
        // Outside of everything, so that a refusal can be read there, too.
        let named = service_fn(|request| async { Ok::<_, Infallible>(self.name(request).await) });
        match cors.layer(named).oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    /// Names the request, and refuses what is too large.
    async fn name(&self, mut request: Request) -> Response {
        let id = request_id(request.headers());
        accept_identity(request.headers_mut());
        let response = match too_large(&request) {
            Some(problem) => problem.into_response(),
            None => survive(self.admit(request)).await,
        };
        let mut response = with_instance(response, &id);
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID.clone(), id);
        }
        response
    }

    /// Finds out who asks, and whether he may.
    async fn admit(&self, request: Request) -> Response {
        let api = &self.api;
        let path = decoded(request.uri().path());
        let is_required = api.sessions.as_ref().is_some_and(|sessions| sessions.is_required(&path));
        let is_limited = api.limits.applies(&path);
        if !is_required && !is_limited || path == HEALTH {
            return self.route(request).await;
        }
        let path = path.into_owned();
        Box::pin(self.admit_caller(&path, request, is_required)).await
    }

    async fn admit_caller(&self, path: &str, request: Request, is_required: bool) -> Response {
        match self.admitted(path, &request.headers().clone(), peer(&request), is_required).await {
            Ok(headers) => {
                let mut response = self.route(request).await;
                response.headers_mut().extend(headers);
                response
            }
            Err(refusal) => refusal,
        }
    }

    /// What to tell a client that may go on, or why it may not.
    async fn admitted(
        &self,
        path: &str,
        headers: &HeaderMap,
        peer: IpAddr,
        is_required: bool,
    ) -> Result<HeaderMap, Response> {
        let api = &self.api;
        let ip = caller::address(peer, headers, &api.reader.settings.trusted_proxies);
        let mut caller = Caller { ip, session: None, user: None };
        let mut told = HeaderMap::new();
        limit(api, (path, Step::ByAddress), &caller, &mut told).await?;
        let is_needed = is_required || api.limits.applies_in(path, Step::BySession);
        let session = if is_needed { session(api, headers).await } else { Ok(None) };
        if let Ok(Some(session)) = &session {
            caller.session = Some(session.hash.as_str().to_owned());
            caller.user.clone_from(&session.user);
        }
        // Also of whoever shows a token that nobody can judge.
        limit(api, (path, Step::BySession), &caller, &mut told).await?;
        let is_open = api.sessions.as_ref().is_some_and(Sessions::is_open);
        let refusal = match session {
            Ok(None) if is_required => Problem::unauthorized(),
            // That nobody can judge a session lets a request pass only if it is nothing that the client brought about.
            Err(problem) if problem.status().is_client_error() || is_required && !is_open => problem,
            _ => return Ok(told),
        };
        let mut response = refusal.into_response();
        response.headers_mut().extend(told);
        Err(response)
    }

    /// Compresses the answer if the client takes that.
    async fn route(&self, request: Request) -> Response {
        if !request.headers().contains_key(header::ACCEPT_ENCODING) {
            return self.find(request).await;
        }
        let found = service_fn(|request| async { Ok::<_, Infallible>(self.find(request).await) });
        match self.packing.layer(found).oneshot(request).await {
            Ok(response) => {
                let mut response = response.map(Body::new);
                http::mark_coding(response.headers_mut());
                response
            }
            Err(never) => match never {},
        }
    }

    /// Answers by the path. Reads are found without more ado: most requests are for them.
    async fn find(&self, request: Request) -> Response {
        if let Ok(found) = self.reads.at(request.uri().path()) {
            return match *request.method() {
                // A HEAD is answered as a GET; whoever sends it leaves the body out.
                Method::GET | Method::HEAD => {
                    let at = *found.value;
                    let segments = found.params.iter().map(|(_, segment)| percent_decode_str(segment).collect());
                    let segments: Vec<Vec<u8>> = segments.collect();
                    http::get(&self.api, at, segments, &request.into_parts().0).await
                }
                _ => ([(header::ALLOW, "GET,HEAD")], Problem::method_not_allowed()).into_response(),
            };
        }
        match self.others.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// What answers the paths that are the API's own.
fn others(api: &Arc<Api>) -> Router {
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/stats", get(stats))
        .route("/events", get(follow))
        .route(HEALTH, get(async || StatusCode::NO_CONTENT))
        .fallback(async || Problem::no_such_path())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .with_state(Arc::clone(api))
}

async fn openapi(State(api): State<Arc<Api>>) -> Response {
    json(api.openapi.clone())
}

async fn stats(State(api): State<Arc<Api>>) -> Response {
    let mut response = json(Bytes::from(api.reader.stats.to_json(SystemTime::now()).to_string()));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn json(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn follow(State(api): State<Arc<Api>>, request: Request) -> Response {
    events::get(&api.events, request.headers(), request.uri().query().unwrap_or_default())
}

fn cross_origin(cors: &Cors, reads: &ReadSet) -> CorsLayer {
    const ALLOWED: [&str; 7] = [
        "authorization",
        "cache-control",
        "consistency-token",
        "if-none-match",
        "last-event-id",
        "x-min-lsn",
        "x-request-id",
    ];
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
    let parameters = reads.reads().iter().flat_map(|read| &read.parameters);
    let varied = parameters.filter(|parameter| parameter.source == Source::Header);
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

/// The answer. That it panicked is a bug of ours, and no reason to leave the client without one.
async fn survive(answer: impl Future<Output = Response>) -> Response {
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| Problem::internal().into_response())
}

/// An answer that is not compressed is acceptable whatever the client says: RFC 9110, section 12.5.3, leaves that to us.
fn accept_identity(headers: &mut HeaderMap) {
    let forbids = |value: &HeaderValue| {
        let mut elements = value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        elements.any(|element| element.starts_with(b"*") || element.starts_with(b"identity"))
    };
    if headers.get_all(header::ACCEPT_ENCODING).iter().any(forbids) {
        headers.remove(header::ACCEPT_ENCODING);
    }
}

/// The client's own id, if it is one that fits into a log; else a new one.
fn request_id(headers: &HeaderMap) -> Cow<'static, str> {
    let fits = |id: &&str| {
        (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    match headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok()).filter(fits) {
        Some(id) => id.to_owned().into(),
        None => format!("{:016x}", rand::random::<u64>()).into(),
    }
}

fn too_large(request: &Request) -> Option<Problem> {
    let uri = request.uri();
    if uri.path().len() + uri.query().map_or(0, str::len) > URI_MAX {
        return Some(Problem::uri_too_long());
    }
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if headers.len() > LINES_MAX || bytes > HEADERS_MAX {
        return Some(Problem::headers_too_large());
    }
    let length = headers.get(header::CONTENT_LENGTH)?;
    let length: Option<u64> = length.to_str().ok().and_then(|length| length.parse().ok());
    length.is_none_or(|length| length > BODY_MAX).then(Problem::body_too_large)
}

/// The session of a request, if it has one that is valid.
async fn session(api: &Api, headers: &HeaderMap) -> Result<Option<Session>, Problem> {
    let (Some(sessions), Some(hash)) = (&api.sessions, TokenHash::of(headers)) else { return Ok(None) };
    match sessions.resolve(&api.reader, hash, http::min(headers)?).await {
        Ok(Some(session)) => {
            sessions.touch(&api.reader, &session.hash);
            Ok(Some(session))
        }
        Ok(None) => Ok(None),
        // What the client sent is wrong: nobody is away.
        Err(ReadError::Ahead) => Err(Problem::token_ahead()),
        Err(error) => {
            tracing::debug!(%error, "a session could not be looked up");
            Err(Problem::unavailable("nobody can say whether the session is valid", AWAY))
        }
    }
}

/// Counts the request against its limits, and adds what to tell the client of them; or the refusal.
async fn limit(api: &Api, (path, step): (&str, Step), caller: &Caller, told: &mut HeaderMap) -> Result<(), Response> {
    if !api.limits.applies_in(path, step) {
        return Ok(());
    }
    let verdict = match api.reader.cache.connection() {
        Ok(mut connection) => {
            let checked = api.limits.check(&mut connection, (path, step), caller).await;
            api.reader.cache.noted(checked).ok()
        }
        Err(_) => None,
    };
    match verdict {
        Some(verdict) => {
            for (name, value) in verdict.headers {
                match name.as_str().starts_with("x-") {
                    // One says all there is to say.
                    true => told.insert(name, value).is_none(),
                    false => told.append(name, value),
                };
            }
            if verdict.allowed {
                return Ok(());
            }
            api.reader.stats.count_rate_limited();
            let mut response = Problem::rate_limited(verdict.retry_after).into_response();
            response.headers_mut().extend(std::mem::take(told));
            Err(response)
        }
        None if api.limits.on_error(path) == OnError::Open => Ok(()),
        None => Err(Problem::unavailable("nobody can count requests while Redis is away", AWAY).into_response()),
    }
}

/// Who is at the other end of the connection. Without one nobody but this process itself asks.
fn peer(request: &Request) -> IpAddr {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.0.ip())
}

/// The path as the reads see it, so that no other way of writing it gets past a glob. An encoded `/` stays: to a read it
/// is part of a segment.
fn decoded(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let segments = path.split("%2F").flat_map(|part| part.split("%2f"));
    let decoded: Vec<_> = segments.map(|part| percent_decode_str(part).decode_utf8_lossy()).collect();
    Cow::Owned(decoded.join("%2F"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_however_it_is_written() {
        let check = |path: &str, expected: &str| assert_eq!(decoded(path), expected, "{path}");
        check("/users/u1", "/users/u1");
        check("/%75sers/u%31", "/users/u1");
        check("/users/a%2Fb%2fc", "/users/a%2Fb%2Fc");
        check("/%FF", "/\u{fffd}");
        check("/%2", "/%2");
    }

    #[test]
    fn only_a_harmless_id_is_taken_over() {
        let check = |id: &str, is_taken: bool| {
            let headers = HeaderMap::from_iter([(REQUEST_ID.clone(), HeaderValue::from_str(id).unwrap())]);
            assert_eq!(request_id(&headers) == id, is_taken, "{id}");
        };
        check("a-B_3.4", true);
        check("", false);
        check("a b", false);
        check(&"x".repeat(65), false);
    }
}
