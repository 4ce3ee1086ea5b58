//! Sessions that stay at the endpoint they began at. Source: Envoy `StatefulSession`, gRFC A55, A60.

use serde::{Deserialize, Serialize};

use super::{HashCookie, Name};

/// How requests of one session stay together. Source: Envoy `StatefulSession`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Session {
    /// Where it says which endpoint that is; `None` keeps nothing together: how a route switches off what its port says.
    ///
    /// Envoy `session_state`, `StatefulSessionPerRoute.disabled`.
    pub state: Option<SessionState>,
    /// That endpoint or none: 503 where it cannot be used any more, instead of another. Envoy `strict`, default false.
    pub strict: bool,
}

/// What a session is known by.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// A cookie that responses set; it counts below its path. Zero or no `ttl` is as long as the browser's own session.
    ///
    /// Envoy `CookieBasedSessionState`.
    Cookie(HashCookie),
    /// A header of responses that callers send back as it is. Envoy `HeaderBasedSessionState`.
    Header(Name),
    /// A header of the application's own, whose value is wrapped on its way out and unwrapped on its way in.
    ///
    /// Envoy `EnvelopeSessionState`.
    Envelope(Name),
}
