//! Tokens of end users at a server: who the request says to be for, proven, and what it hears when it cannot prove it.

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header, request::Parts};
use mesh_core::{
    claims::Claims,
    config::{Guard, Inbound, JwtAuthn},
    jwt::{Jwt, JwtError},
    outcome::Flags,
    request::RequestView,
};

use super::{super::Caller, Refusal};
use crate::server::Server;

/// The longest path that is told back. Source: Envoy `MaximumUriLength`.
const LONGEST: usize = 256;

impl Server {
    /// Begins to fetch keys that requests of a connection will need.
    pub(in crate::server) fn prepare(&self, inbound: &Inbound) {
        for guard in &inbound.guards {
            if let Guard::Jwt(config) = guard {
                self.tokens.prepare(config);
            }
        }
    }

    /// What the request's tokens say; they are taken off, and the application is told what it is to know.
    pub(super) async fn authenticate(
        &self,
        config: &JwtAuthn,
        jwt: &Arc<Jwt>,
        caller: &Caller,
        port: u16,
        parts: &mut Parts,
    ) -> Result<Claims, Box<Refusal>> {
        match self.tokens.decide(jwt, parts, port).await {
            Ok(proven) => {
                proven.apply(parts);
                Ok(proven.claims)
            }
            Err(error) => Err(refusal(config, error, caller, parts)),
        }
    }
}

/// Source: Envoy `jwt_authn`; RFC 6750 3.
fn refusal(config: &JwtAuthn, error: JwtError, caller: &Caller, parts: &Parts) -> Box<Refusal> {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::UNAUTHORIZED);
    let text = error.to_string();
    let mut refusal = Refusal::new(status, Flags::NONE, if config.hide_reason { "" } else { text.as_str() });
    refusal.details = format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_")).into();
    let scheme = if caller.peer.is_some() { "https" } else { "http" };
    let view = RequestView::of(parts, None);
    let path: String = view.path.chars().take(LONGEST).filter(|c| !matches!(c, '"' | '\\')).collect();
    let mut challenge = format!("Bearer realm=\"{scheme}://{}{path}\"", view.authority);
    if error != JwtError::Missing {
        challenge.push_str(", error=\"invalid_token\"");
    }
    if let Ok(challenge) = HeaderValue::try_from(challenge) {
        refusal.headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    refusal
}
