//! Admission: whether a request may proceed, by its session and the rate limits.
//!
//! Owns the order of the checks. It must not know how a session is resolved or how requests are
//! counted. Invariants: what is refused has cost no more than the refusal; a session that cannot be
//! verified admits a request only through no fault of the client.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::{ConnectInfo, Request};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use percent_encoding::percent_decode_str;

use super::error::ReadError;
use super::limit::{Caller, LimitPhase};
use super::problem::{HttpProblem, RETRY_SOON};
use super::session::{ClientSession, Sessions, TokenHash};
use super::worker::Worker;
use super::{caller, http};
use crate::causes::with_causes;
use crate::config::api::OnError;

/// Which checks the path of a request needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checks {
    requires_session: bool,
    is_limited: bool,
}

impl Checks {
    /// The checks for a path as [`decoded`].
    pub(super) fn of(worker: &Worker, path: &str) -> Self {
        Self {
            requires_session: worker.sessions.as_ref().is_some_and(|sessions| sessions.is_required(path)),
            is_limited: worker.limits.applies(path),
        }
    }

    /// Whether there are any.
    pub(super) fn any(self) -> bool {
        self.requires_session || self.is_limited
    }

    /// Returns the headers to add to the answer of a request that may proceed, or the refusal.
    pub(super) async fn admit(
        self,
        worker: &Worker,
        path: &str,
        headers: &HeaderMap,
        peer: IpAddr,
    ) -> Result<HeaderMap, Response> {
        let ip = caller::address(peer, headers, &worker.shared.settings.trusted_proxies);
        let mut caller = Caller { ip, session: None, user: None };
        let mut limit_headers = HeaderMap::new();
        limit(worker, (path, LimitPhase::ByAddress), &caller, &mut limit_headers).await?;
        let needs_session = self.requires_session || worker.limits.applies_in(path, LimitPhase::BySession);
        let session = if needs_session { session(worker, headers).await } else { Ok(None) };
        if let Ok(Some(session)) = &session {
            caller.session = Some(session.hash.as_str().to_owned());
            caller.user.clone_from(&session.user);
        }
        // Also if the session cannot be verified.
        limit(worker, (path, LimitPhase::BySession), &caller, &mut limit_headers).await?;
        let fails_open = worker.sessions.as_ref().is_some_and(Sessions::fails_open);
        let refusal = match session {
            Ok(None) if self.requires_session => HttpProblem::unauthorized(),
            Err(problem) if problem.status().is_client_error() || self.requires_session && !fails_open => problem,
            _ => return Ok(limit_headers),
        };
        let mut response = refusal.into_response();
        response.headers_mut().extend(limit_headers);
        Err(response)
    }
}

/// The session of a request; None if it has no token, or one that is not valid.
async fn session(worker: &Worker, headers: &HeaderMap) -> Result<Option<ClientSession>, HttpProblem> {
    let (Some(sessions), Some(hash)) = (&worker.sessions, TokenHash::of(headers)) else { return Ok(None) };
    match sessions.resolve(&worker.reader, hash, http::min(headers)?).await {
        Ok(Some(session)) => {
            sessions.prolong(&worker.cache, &worker.shared, &session.hash);
            Ok(Some(session))
        }
        Ok(None) => Ok(None),
        // The client's fault: no server is unavailable.
        Err(ReadError::TokenAhead) => Err(HttpProblem::token_ahead()),
        Err(error) => {
            tracing::debug!(error = with_causes(&error), "a session could not be resolved");
            Err(HttpProblem::unavailable("the session cannot be verified at the moment", RETRY_SOON))
        }
    }
}

/// Counts the request against the limits of a phase, and adds their headers. Returns the refusal if
/// one is exceeded.
async fn limit(
    worker: &Worker,
    (path, phase): (&str, LimitPhase),
    caller: &Caller,
    headers: &mut HeaderMap,
) -> Result<(), Response> {
    if !worker.limits.applies_in(path, phase) {
        return Ok(());
    }
    let decision = match worker.cache.connection() {
        Ok(mut connection) => {
            let checked = worker.limits.check(&mut connection, (path, phase), caller).await;
            worker.cache.observe(checked).ok()
        }
        Err(_) => None,
    };
    match decision {
        Some(decision) => {
            for (name, value) in decision.headers {
                match name.as_str().starts_with("x-") {
                    // Not a list: the later phase replaces the earlier one.
                    true => headers.insert(name, value).is_none(),
                    false => headers.append(name, value),
                };
            }
            if decision.allowed {
                return Ok(());
            }
            worker.shared.stats.count_rate_limited();
            let mut response = HttpProblem::rate_limited(decision.retry_after).into_response();
            response.headers_mut().extend(std::mem::take(headers));
            Err(response)
        }
        None if worker.limits.on_error(path) == OnError::Open => Ok(()),
        None => {
            let detail = "the rate limit cannot be checked, because Redis is unavailable";
            Err(HttpProblem::unavailable(detail, RETRY_SOON).into_response())
        }
    }
}

/// The address at the other end of the connection. Without one the request is from this process
/// itself.
pub(super) fn peer(request: &Request) -> IpAddr {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.0.ip())
}

/// The path as the reads see it, so that no other way of writing it evades a glob. An encoded `/`
/// stays encoded: to a read it is part of a segment.
pub(super) fn decoded(path: &str) -> Cow<'_, str> {
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
    fn a_path_is_decoded_but_keeps_its_segments() {
        let check = |path: &str, expected: &str| assert_eq!(decoded(path), expected, "{path}");
        check("/users/u1", "/users/u1");
        check("/%75sers/u%31", "/users/u1");
        check("/users/a%2Fb%2fc", "/users/a%2Fb%2Fc");
        check("/%FF", "/\u{fffd}");
        check("/%2", "/%2");
    }
}
