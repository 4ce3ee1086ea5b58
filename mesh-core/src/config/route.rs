//! Routes: which requests are meant, and what happens to them. Source: Envoy `RouteConfiguration`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Criteria, Fault, FilterOverride, Fraction, GlobalOverride, HashPolicy, HedgePolicy, LocalRateLimit, Name,
    RateLimit, Regex, RetryPolicy, RoutingPriority, Session, StringMatch,
};

mod action;
mod header;

pub use action::{
    Action, DirectResponse, Forward, HostRewrite, Mirror, PathRewrite, Redirect, SplitBy, Upgrade, WeightedCluster,
};
pub use header::{Format, FormatError, HeaderChange, HeaderChanges, HeaderChoice, Operator};
pub(crate) use header::{HeaderSource, Part};

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
    /// The changes of headers apply from the table inwards, so that the most specific has the last word; a destination's
    /// own still come first. Envoy `most_specific_header_mutations_wins`.
    pub most_specific_wins: bool,
    /// Paths are compared up to their first `;`. Envoy `ignore_path_parameters_in_path_matching`.
    pub ignore_path_parameters: bool,
    /// Copies for virtual hosts without mirrors of their own. Envoy `RouteConfiguration.request_mirror_policies`.
    pub mirrors: Vec<Mirror>,
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
    /// Copies for routes without mirrors of their own. Envoy `VirtualHost.request_mirror_policies`.
    pub mirrors: Vec<Mirror>,
    /// What requests that came in are counted by, where no limit says it itself; those that leave are by their routes. Envoy
    /// `VirtualHost.rate_limits`.
    pub rate_limits: Vec<RateLimit>,
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
#[serde(default)]
pub struct RouteMatch {
    /// The path, without its query.
    pub path: PathMatch,
    /// Headers and the pseudo-headers `:method`, `:authority`, `:scheme`, `:path`.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters.
    pub query: Vec<QueryMatch>,
    /// Cookies.
    pub cookies: Vec<CookieMatch>,
    /// Only this share of the requests that match otherwise. Envoy `RouteMatch.runtime_fraction`.
    pub fraction: Option<Fraction>,
    /// Only gRPC requests (`content-type: application/grpc...`). Envoy `RouteMatch.grpc`.
    pub grpc_only: bool,
}

impl Default for RouteMatch {
    /// Every request.
    fn default() -> Self {
        Self {
            path: PathMatch::any(),
            headers: Vec::new(),
            query: Vec::new(),
            cookies: Vec::new(),
            fraction: None,
            grpc_only: false,
        }
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
    /// The condition on its values, any of them (of a gRPC call: joined by `,`).
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
    /// The condition on its value.
    pub matcher: QueryMatcher,
}

/// The condition of a [`QueryMatch`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryMatcher {
    /// There with any value (true) or not there (false).
    Present(bool),
    /// The value as it stands in the URL.
    Value(StringMatch),
}

/// A condition on one cookie; of several of one name the first counts. Source: Envoy `CookieMatcher`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CookieMatch {
    /// The cookie's name, case-sensitive.
    pub name: String,
    /// The condition on its value, without quotes around it. A cookie that is not there does not meet it.
    pub value: StringMatch,
    /// Turns the answer round: a cookie that is not there matches then, unlike a header (RM14).
    pub invert: bool,
}
