//! What happens to a request that matched: sent on, redirected, answered. Source: Envoy `Route.action`.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Criteria, Fault, FilterOverride, Fraction, GlobalOverride, HashPolicy, HeaderChange, HeaderChanges, HedgePolicy,
    LocalRateLimit, Name, RateLimit, Regex, RetryPolicy, RoutingPriority, Session,
};

/// What happens to a request that matched. Source: Envoy `Route.action`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "nearly every rule forwards; a box would be one more step for each")]
pub enum Action {
    /// Send it to a cluster.
    Forward(Forward),
    /// Tell the caller to go elsewhere.
    Redirect(Redirect),
    /// Answer it here.
    DirectResponse(DirectResponse),
    /// Hand it to the application: the only action of inbound routes. Envoy `non_forwarding_action`.
    NonForwarding,
}

/// Sending a request on. Source: Envoy `RouteAction`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Forward {
    /// Where to, by weight: the probability is weight over the sum of weights (RA3). Never empty, sum never zero.
    pub clusters: Vec<WeightedCluster>,
    /// What decides among several destinations. Envoy `WeightedCluster.random_value_specifier`.
    pub split_by: SplitBy,
    /// The status when the cluster does not exist: 503 (also when 0), 404 or 500. Envoy
    /// `RouteAction.cluster_not_found_response_code`.
    pub no_cluster_status: u16,
    /// From the request's end to the response's end, all attempts included; `None` is no limit.
    ///
    /// Envoy `RouteAction.timeout`: absent on the wire means 15 s and 0 means none; translation resolves that. On the wire it
    /// has no effect beside `max_stream_duration`.
    pub timeout: Option<Duration>,
    /// Limit of the whole stream; `None` is that of [`HttpSettings`](crate::config::HttpSettings), zero is none at all.
    ///
    /// Envoy `RouteAction.max_stream_duration.max_stream_duration`.
    pub max_stream_duration: Option<Duration>,
    /// In place of `max_stream_duration` for gRPC calls, even when it is longer; zero is no limit (gRFC A31).
    ///
    /// Envoy `RouteAction.max_stream_duration.grpc_timeout_header_max`.
    pub grpc_timeout_header_max: Option<Duration>,
    /// In place of `timeout` for gRPC calls; zero is no limit. Without effect beside one of the two above.
    ///
    /// Envoy `RouteAction.max_grpc_timeout`, its older form, which Istio writes for sidecars.
    pub max_grpc_timeout: Option<Duration>,
    /// How long the stream may stand still in both directions; `None` is that of
    /// [`HttpSettings`](crate::config::HttpSettings), zero is for ever. Envoy `RouteAction.idle_timeout`.
    pub idle_timeout: Option<Duration>,
    /// When to try again; replaces the virtual host's.
    pub retry: Option<RetryPolicy>,
    /// Whether to begin another try before the first has failed. Envoy `hedge_policy` of the route, else of its host.
    pub hedge: Option<HedgePolicy>,
    /// How many bytes of a streamed body are kept for sending it again; `None` is the client's own limit.
    ///
    /// Envoy `per_request_buffer_limit_bytes` and `request_body_buffer_limit` of the route, else of its host.
    pub replay_limit: Option<u64>,
    /// How many requests are let through, in place of the port's limit; of the route, else of its host. Envoy
    /// `typed_per_filter_config["envoy.filters.http.local_ratelimit"]`.
    pub rate_limit: Option<Arc<LocalRateLimit>>,
    /// What it says of services that count for the whole mesh; of the route, else of its host. Envoy
    /// `typed_per_filter_config["envoy.filters.http.ratelimit"]`.
    pub global_limit: Option<GlobalOverride>,
    /// How sessions stay together, in place of what the port says; of the route, else of its host. Envoy
    /// `typed_per_filter_config["envoy.filters.http.stateful_session"]`.
    pub session: Option<Arc<Session>>,
    /// What it says of the port's filters of the program's own; of the route, else of its host. Envoy
    /// `typed_per_filter_config`.
    pub filters: Vec<FilterOverride>,
    /// What requests are counted by. Envoy `rate_limits` of the route, else (or besides) of its host.
    pub rate_limits: Vec<RateLimit>,
    /// New `:authority`. Envoy `RouteAction.host_rewrite_specifier`.
    pub host_rewrite: Option<HostRewrite>,
    /// Where the authority is rewritten, the one before is added to `x-forwarded-host`. Envoy `append_x_forwarded_host`.
    pub append_forwarded_host: bool,
    /// New path.
    pub path_rewrite: Option<PathRewrite>,
    /// Copies of the request, for nobody's answer; replace the virtual host's. Envoy `request_mirror_policies`.
    pub mirrors: Vec<Mirror>,
    /// Which protocols a request may change to; WebSocket unless said otherwise. Envoy `RouteAction.upgrade_configs`.
    pub upgrades: Vec<Upgrade>,
    /// What requests that belong together have in common. Envoy `RouteAction.hash_policy`.
    pub hash: Vec<HashPolicy>,
    /// Whose limits count. Envoy `RouteAction.priority`.
    pub priority: RoutingPriority,
}

/// One destination of a split. Source: Envoy `WeightedCluster.ClusterWeight`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct WeightedCluster {
    /// Its name; empty with `cluster_header`.
    pub cluster: Name,
    /// Its name is the first value of this request header. Envoy `RouteAction.cluster_header`, `ClusterWeight.cluster_header`.
    pub cluster_header: Option<Name>,
    /// Its share, relative to the sum; 0 is never chosen.
    pub weight: u32,
    /// Applied before the route's. Envoy `ClusterWeight.request_headers_to_add` and siblings.
    pub headers: HeaderChanges,
    /// New authority, before the route's own rewrite. Envoy `ClusterWeight.host_rewrite_literal`.
    pub host_rewrite: Option<String>,
    /// Which of its endpoints, where it has subsets. Envoy `RouteAction.metadata_match`, with `ClusterWeight.metadata_match`
    /// over it.
    pub criteria: Criteria,
    /// Faults instead of the route's; an empty one is none. Envoy `ClusterWeight.typed_per_filter_config`.
    pub fault: Option<Fault>,
}

/// What decides among the destinations of a split. Source: Envoy `WeightedCluster.random_value_specifier`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitBy {
    /// Chance, anew for each request.
    #[default]
    Random,
    /// The number in this request header, where there is one value and it is a decimal `u64`; else chance. Envoy
    /// `header_name`.
    Header(Name),
    /// The hash of the route's hash policies, where they give one; else chance. Envoy `use_hash_policy`.
    Hash,
}

/// How the authority changes on its way. Source: Envoy `RouteAction.host_rewrite_specifier`.
///
/// Where it changes, `x-envoy-original-host` tells the one before.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HostRewrite {
    /// It becomes this. Envoy `host_rewrite_literal`.
    Literal(String),
    /// It becomes the first value of this request header, unless that is empty or not there. Envoy `host_rewrite_header`.
    Header(Name),
    /// It becomes the path, without its query, after the substitution; an empty one changes nothing. Envoy
    /// `host_rewrite_path_regex`.
    PathRegex {
        /// What is replaced (unanchored).
        pattern: Regex,
        /// By what.
        substitution: String,
    },
    /// It becomes the name of the endpoint that is picked, where that has one. Envoy `auto_host_rewrite`.
    Auto,
}

/// How the path changes on its way. Source: Envoy `RouteAction.prefix_rewrite`, `regex_rewrite`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathRewrite {
    /// The whole path becomes this; the query stays, unless this is a redirect and has a query of its own.
    ///
    /// Envoy `path_redirect`; Gateway API `ReplaceFullPath`.
    Full(String),
    /// The matched prefix (of a prefix match) or the whole path (of any other) becomes this; the query stays.
    Prefix(String),
    /// Each match in the path is substituted, `\1` naming a group; the query stays.
    Regex {
        /// What is replaced (unanchored).
        pattern: Regex,
        /// By what.
        substitution: String,
    },
}

/// A copy of requests, sent and forgotten. Source: Envoy `RouteAction.RequestMirrorPolicy`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Mirror {
    /// Where the copy goes; empty with `cluster_header`.
    pub cluster: Name,
    /// Where it goes is the first value of this request header.
    pub cluster_header: Option<Name>,
    /// Which share of requests is copied, drawn for each mirror apart; `None` is all. Envoy `runtime_fraction`.
    pub fraction: Option<Fraction>,
    /// Whether the copy's trace is recorded; `None` is as the request's own. Envoy `trace_sampled`.
    pub trace_sampled: Option<bool>,
    /// The copy's authority stays as it is; else `-shadow` is added to its host. Envoy `disable_shadow_host_suffix_append`.
    pub keep_host: bool,
    /// Changes of the copy's headers alone. Envoy `request_headers_mutations`.
    pub headers: Vec<HeaderChange>,
    /// The copy's authority, instead of the suffix. Envoy `host_rewrite_literal`.
    pub host_rewrite: Option<String>,
}

/// Whether requests may change to a protocol. Source: Envoy `RouteAction.UpgradeConfig`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Upgrade {
    /// As in the `Upgrade` header, in lower case: `websocket`.
    pub protocol: String,
    /// They may.
    pub enabled: bool,
}

/// Sending the caller elsewhere. Source: Envoy `RedirectAction`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// New scheme.
    pub scheme: Option<String>,
    /// New host.
    pub host: Option<String>,
    /// New port.
    pub port: Option<u16>,
    /// New path.
    pub path: Option<PathRewrite>,
    /// Leave the query out.
    pub strip_query: bool,
}

/// Answering here. Source: Envoy `DirectResponseAction`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// The body.
    pub body: String,
}
