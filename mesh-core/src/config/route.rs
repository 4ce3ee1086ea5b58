//! Routes: which requests are meant, and what happens to them. Source: Envoy `RouteConfiguration`.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Fault, Fraction, HashPolicy, Name, Regex, RetryPolicy, RoutingPriority, StringMatch};

/// All routes of one port. Source: Envoy `RouteConfiguration`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct RouteTable {
    /// Its name, for people (`9080`, `http.8080`).
    pub name: Name,
    /// Hosts; each domain occurs once in the table.
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// Compare the host without its port. Envoy `RouteConfiguration.ignore_port_in_host_matching`.
    pub ignore_port: bool,
    /// Applied after the route's and the host's own. Envoy `RouteConfiguration.request_headers_to_add` and siblings.
    pub headers: HeaderChanges,
}

/// The routes of a set of domains. Source: Envoy `VirtualHost`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct VirtualHost {
    /// Its name, for people (`reviews.default.svc.cluster.local:9080`).
    pub name: Name,
    /// Exact (`reviews`), suffix (`*.example.com`), prefix (`example.*`) or any (`*`), in lower case.
    pub domains: Vec<String>,
    /// In order: the first that matches is taken, none is 404 (flag `NR`).
    pub routes: Vec<Route>,
    /// For routes without their own; a route's own replaces it whole (RT5).
    pub retry: Option<RetryPolicy>,
    /// Applied after the route's. Envoy `VirtualHost.request_headers_to_add` and siblings.
    pub headers: HeaderChanges,
}

/// One rule. Source: Envoy `Route`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Route {
    /// Its name, for people and logs; empty when it has none.
    pub name: Name,
    /// The object it was written in, for `explain`: `virtual-service/default/reviews`. Envoy metadata `istio.config`.
    pub origin: Option<Name>,
    /// Which requests.
    pub matches: RouteMatch,
    /// What to do with them.
    pub action: Action,
    /// Faults injected for this route. Envoy `typed_per_filter_config["envoy.filters.http.fault"]`.
    pub fault: Option<Fault>,
    /// Changed headers of request and response. Envoy `Route.request_headers_to_add` and siblings.
    pub headers: HeaderChanges,
    /// The span name and such. Envoy `Route.decorator.operation`.
    pub operation: Option<Name>,
}

/// Which requests a route means; all parts must hold. Source: Envoy `RouteMatch`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RouteMatch {
    /// The path, without its query.
    pub path: PathMatch,
    /// Headers and the pseudo-headers `:method`, `:authority`, `:scheme`, `:path`.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters.
    pub query: Vec<QueryMatch>,
    /// Only this share of the requests that match otherwise. Envoy `RouteMatch.runtime_fraction`.
    pub fraction: Option<Fraction>,
    /// Only gRPC requests (`content-type: application/grpc...`). Envoy `RouteMatch.grpc`.
    pub grpc_only: bool,
}

impl Default for RouteMatch {
    /// Every request.
    fn default() -> Self {
        Self { path: PathMatch::any(), headers: Vec::new(), query: Vec::new(), fraction: None, grpc_only: false }
    }
}

/// How the path is compared. Source: Envoy `RouteMatch.path_specifier`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    /// The path is the value.
    Exact {
        /// The path.
        value: String,
        /// ASCII case does not count. Envoy `RouteMatch.case_sensitive` = false.
        ignore_case: bool,
    },
    /// The path begins with the value, anywhere in a segment: `/foo` matches `/foobar`.
    Prefix {
        /// The prefix; empty and `/` match every path.
        value: String,
        /// ASCII case does not count.
        ignore_case: bool,
    },
    /// The path is the value or lies below it: `/foo` matches `/foo` and `/foo/x`, not `/foobar`.
    ///
    /// Envoy `path_separated_prefix`; the value does not end in `/`.
    SegmentPrefix {
        /// The prefix.
        value: String,
        /// ASCII case does not count.
        ignore_case: bool,
    },
    /// The whole path matches.
    Regex(Regex),
}

impl PathMatch {
    /// Matches every path.
    pub fn any() -> Self {
        Self::Prefix { value: "/".to_owned(), ignore_case: false }
    }
}

/// A condition on one header. Source: Envoy `HeaderMatcher`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct HeaderMatch {
    /// Lower-case header name, or one of `:method`, `:authority`, `:scheme`, `:path`.
    pub name: Name,
    /// The condition on its values, joined by `,`.
    pub matcher: HeaderMatcher,
    /// Turns the answer round. A missing header still does not match, present or not (RM9), unless treated as empty.
    pub invert: bool,
    /// A missing header is compared as the empty string. Envoy `treat_missing_header_as_empty`.
    pub missing_as_empty: bool,
}

/// The condition of a [`HeaderMatch`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderMatcher {
    /// There (true) or not there (false).
    Present(bool),
    /// A whole base-10 integer in `start..end`.
    Range {
        /// First that matches.
        start: i64,
        /// First that does not match any more.
        end: i64,
    },
    /// The value as a string.
    Value(StringMatch),
}

/// A condition on one query parameter; only its first occurrence is looked at. Source: Envoy `QueryParameterMatcher`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct QueryMatch {
    /// The parameter's name, case-sensitive, as it stands in the URL (no decoding).
    pub name: String,
    /// `None`: present with any value.
    pub value: Option<StringMatch>,
}

/// What happens to a request that matched. Source: Envoy `Route.action`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
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
    /// From the request's end to the response's end, all attempts included; `None` is no limit.
    ///
    /// Envoy `RouteAction.timeout`: absent on the wire means 15 s and 0 means none; translation resolves that.
    pub timeout: Option<Duration>,
    /// Limit of the whole stream. Envoy `RouteAction.max_stream_duration`; `None` is no limit.
    pub max_stream_duration: Option<Duration>,
    /// When to try again; replaces the virtual host's.
    pub retry: Option<RetryPolicy>,
    /// New `:authority`. Envoy `host_rewrite_literal`.
    pub host_rewrite: Option<String>,
    /// New path.
    pub path_rewrite: Option<PathRewrite>,
    /// What requests that belong together have in common. Envoy `RouteAction.hash_policy`.
    pub hash: Vec<HashPolicy>,
    /// Whose limits count. Envoy `RouteAction.priority`.
    pub priority: RoutingPriority,
}

/// One destination of a split. Source: Envoy `WeightedCluster.ClusterWeight`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct WeightedCluster {
    /// Its name.
    pub cluster: Name,
    /// Its share, relative to the sum; 0 is never chosen.
    pub weight: u32,
    /// Applied before the route's. Envoy `ClusterWeight.request_headers_to_add` and siblings.
    pub headers: HeaderChanges,
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

/// Changes of headers on the way there and back. Source: Envoy `request_headers_to_add/remove` and `response_...`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct HeaderChanges {
    /// On the request, in order.
    pub request: Vec<HeaderChange>,
    /// On the response, in order.
    pub response: Vec<HeaderChange>,
}

impl HeaderChanges {
    /// Nothing to change.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// One change of one header.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderChange {
    /// Another value beside those there. Envoy `APPEND_IF_EXISTS_OR_ADD`.
    Append {
        /// Lower-case name.
        name: String,
        /// Value.
        value: String,
    },
    /// This value instead of those there. Envoy `OVERWRITE_IF_EXISTS_OR_ADD`.
    Set {
        /// Lower-case name.
        name: String,
        /// Value.
        value: String,
    },
    /// Gone.
    Remove {
        /// Lower-case name.
        name: String,
    },
}
