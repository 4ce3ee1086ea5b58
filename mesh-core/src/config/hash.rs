//! What requests that belong together have in common: hash policies. Source: Envoy `RouteAction.HashPolicy`, gRFC A42.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Name, Regex};

/// One source of a request's hash. Source: Envoy `RouteAction.HashPolicy`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// The policies behind this one are not looked at once there is a hash. Envoy `HashPolicy.terminal`, default false.
    pub terminal: bool,
}

/// What is hashed. Source: Envoy `RouteAction.HashPolicy.policy_specifier`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HashSource {
    /// The values of a header, sorted. Envoy `HashPolicy.Header`.
    Header {
        /// Lower-case name, or one of `:method`, `:authority`, `:scheme`, `:path`.
        name: Name,
        /// Each value is rewritten first: what is replaced, and by what. Envoy `regex_rewrite`.
        rewrite: Option<(Regex, String)>,
    },
    /// A cookie. Envoy `HashPolicy.Cookie`.
    Cookie(HashCookie),
    /// The address the request came from: that of the caller being served, else one value for the whole client.
    ///
    /// Envoy `HashPolicy.ConnectionProperties.source_ip`.
    SourceIp,
    /// The first value of a query parameter, as it stands in the URL. Envoy `HashPolicy.QueryParameter`.
    Query(Name),
    /// One value for the whole client. Envoy `HashPolicy.FilterState` with key `io.grpc.channel_id`, the only one gRPC knows.
    Channel,
}

/// A cookie that keeps requests together. Source: Envoy `HashPolicy.Cookie`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct HashCookie {
    /// Its name.
    pub name: Name,
    /// A request without it gets one that lasts this long, zero as long as the browser's session; `None` sets none.
    pub ttl: Option<Duration>,
    /// Where it counts; empty says nothing about it.
    pub path: String,
    /// Further attributes, by name; an empty value is the name alone.
    pub attributes: Vec<(String, String)>,
}

/// Whose limits count for a request. Source: Envoy `RoutingPriority`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RoutingPriority {
    /// Those of ordinary requests.
    #[default]
    Default,
    /// Those of important ones.
    High,
}
