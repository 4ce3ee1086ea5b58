//! Tokens of end users: who may issue them, where a request carries them, and which requests must have one. Source: Envoy
//! `envoy.extensions.filters.http.jwt_authn.v3`, Istio `RequestAuthentication`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Name, RouteMatch, StringMatch};

/// Which tokens requests must have. Source: Envoy `JwtAuthentication`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct JwtAuthn {
    /// Whose tokens are known, by the name requirements use.
    pub providers: BTreeMap<Name, Arc<JwtProvider>>,
    /// The first that means a request says what it must have; a request that none means must have nothing.
    pub rules: Vec<JwtRule>,
    /// The question a browser asks before a request to another site needs no token. Envoy `bypass_cors_preflight`, default
    /// false; Istio sets it.
    pub bypass_cors_preflight: bool,
    /// The reason is not told to the caller. Envoy `strip_failure_response`, default false.
    pub hide_reason: bool,
}

/// Which requests must have what. Source: Envoy `RequirementRule`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct JwtRule {
    /// Which requests.
    pub matches: RouteMatch,
    /// What they must have; `None` is nothing. Requirements by name (`requirement_map`) are put in where they are used.
    pub requirement: Option<JwtRequirement>,
}

/// What a request must have. Source: Envoy `JwtRequirement`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JwtRequirement {
    /// A token of this provider.
    Provider {
        /// Its name.
        name: Name,
        /// For one of these audiences in place of the provider's own, where there are any. Envoy `provider_and_audiences`.
        audiences: Option<Vec<String>>,
    },
    /// What any of these demands, asked in order.
    Any(Vec<Self>),
    /// What all of these demand.
    All(Vec<Self>),
    /// Nothing; but tokens that are there must be good.
    AllowMissing,
    /// Nothing; good tokens count, others are passed over.
    AllowMissingOrFailed,
}

/// Whose tokens are known. Source: Envoy `JwtProvider`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct JwtProvider {
    /// The claim `iss` must be this; empty is any.
    pub issuer: String,
    /// The claim `aud` must have one of these; empty is any, also none. Scheme and final slash do not count.
    pub audiences: Vec<String>,
    /// The claim `sub` must match. Envoy `subjects`.
    pub subjects: Option<StringMatch>,
    /// A token without `exp` is refused. Envoy `require_expiration`, default false.
    pub require_expiration: bool,
    /// A token good for longer than this from now is refused, and one without `exp`. Envoy `max_lifetime`.
    pub max_lifetime: Option<Duration>,
    /// How far clocks may differ when `exp` and `nbf` are compared. Envoy `clock_skew_seconds`, default 60 s.
    pub clock_skew: Duration,
    /// Where its keys are.
    pub keys: JwtKeys,
    /// The token goes on to the application. Envoy `forward`, default false: it is taken off.
    pub forward: bool,
    /// Headers that carry it: lower-case name, and what stands in front of the token. With `from_params` and `from_cookies`
    /// all empty: `authorization` with `Bearer `, and the parameter `access_token`.
    pub from_headers: Vec<(Name, String)>,
    /// Query parameters that carry it.
    pub from_params: Vec<String>,
    /// Cookies that carry it.
    pub from_cookies: Vec<String>,
    /// The header in which the application gets the payload, in base64url. Envoy `forward_payload_header`.
    pub payload_header: Option<Name>,
    /// With padding. Envoy `pad_forward_payload_header`.
    pub pad_payload: bool,
    /// The name policy finds the payload under. Envoy `payload_in_metadata`; Istio `payload`.
    pub payload_name: Option<String>,
    /// The name policy finds the token's header under. Envoy `header_in_metadata`.
    pub header_name: Option<String>,
    /// Claims that policy sees as lists, though they are texts with spaces between. Envoy `normalize_payload_in_metadata`.
    pub space_delimited: Vec<String>,
    /// Headers in which the application gets claims: lower-case name, and the way to the claim. Envoy `claim_to_headers`.
    pub claim_headers: Vec<(Name, Vec<String>)>,
    /// Routes are chosen once claims are known. Envoy `clear_route_cache`; here they always are.
    pub before_routing: bool,
}

impl Default for JwtProvider {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            audiences: Vec::new(),
            subjects: None,
            require_expiration: false,
            max_lifetime: None,
            clock_skew: Duration::from_secs(60),
            keys: JwtKeys::default(),
            forward: false,
            from_headers: Vec::new(),
            from_params: Vec::new(),
            from_cookies: Vec::new(),
            payload_header: None,
            pad_payload: false,
            payload_name: None,
            header_name: None,
            space_delimited: Vec::new(),
            claim_headers: Vec::new(),
            before_routing: false,
        }
    }
}

/// Where keys are. Source: Envoy `JwtProvider.jwks_source_specifier`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JwtKeys {
    /// Here: a key set (RFC 7517). Envoy `local_jwks`.
    Inline(Arc<str>),
    /// At an address, fetched by this process. Envoy `remote_jwks`.
    Remote {
        /// The address (`https://issuer.example.com/keys`).
        uri: String,
        /// The cluster it is asked through; nothing else decides where the request goes.
        cluster: Name,
        /// How long fetching may take. Istio default 5 s.
        timeout: Duration,
        /// After which it is fetched anew. Envoy `cache_duration`, default 10 minutes.
        refresh: Duration,
    },
}

impl Default for JwtKeys {
    /// No keys: every token is refused.
    fn default() -> Self {
        Self::Inline(r#"{"keys":[]}"#.into())
    }
}
