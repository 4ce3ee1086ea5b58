//! Rate limits, of one process and of a whole mesh, and what requests are counted by. Source: Envoy `LocalRateLimit`,
//! `RateLimit`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Fraction, HeaderMatch, Name, QueryMatch};

/// Token buckets of this process: a request that finds one of its buckets empty is answered here.
///
/// Source: Envoy `envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct LocalRateLimit {
    /// The answer's status, default 429.
    pub status: u16,
    /// The bucket of requests that none of `descriptors` means, and of all where `always_default`; `None` is no limit.
    pub bucket: Option<TokenBucket>,
    /// Which share of requests is counted at all. Envoy `filter_enabled`: absent on the wire is none (RL1).
    pub enabled: Fraction,
    /// Which share of requests over the limit is refused. Envoy `filter_enforced`: absent on the wire is none (RL1).
    pub enforced: Fraction,
    /// Buckets of their own for requests that have these descriptors.
    pub descriptors: Vec<LimitDescriptor>,
    /// How requests get their descriptors; in place of those of their route. Envoy `rate_limits`.
    pub limits: Vec<RateLimit>,
    /// Of the routes' own, those of this stage count. Envoy `stage`, 0 to 10.
    pub stage: u32,
    /// What a bucket of a descriptor takes is taken from `bucket` as well. Envoy `always_consume_default_token_bucket`,
    /// default true.
    pub always_default: bool,
    /// Each connection has buckets of its own; for servers only. Envoy `local_rate_limit_per_downstream_connection`.
    pub per_connection: bool,
    /// gRPC calls are told `RESOURCE_EXHAUSTED` and not `UNAVAILABLE`. Envoy `rate_limited_as_resource_exhausted`.
    pub resource_exhausted: bool,
    /// How many values of one descriptor have a bucket at a time; the one not used for longest makes room. Envoy
    /// `max_dynamic_descriptors`, default 20.
    pub most_values: u32,
}

impl Default for LocalRateLimit {
    fn default() -> Self {
        Self {
            status: 429,
            bucket: None,
            enabled: Fraction::NONE,
            enforced: Fraction::NONE,
            descriptors: Vec::new(),
            limits: Vec::new(),
            stage: 0,
            always_default: true,
            per_connection: false,
            resource_exhausted: false,
            most_values: 20,
        }
    }
}

/// Starts full, and is filled evenly. Source: Envoy `TokenBucket`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct TokenBucket {
    /// As many requests at once.
    pub max: u32,
    /// So many tokens each interval. Envoy `tokens_per_fill`, default 1.
    pub per_fill: u32,
    /// The interval. Envoy `fill_interval`, at least 50 ms.
    pub every: Duration,
}

/// A bucket for requests with these entries. Source: Envoy `LocalRateLimitDescriptor`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct LimitDescriptor {
    /// Key and value, in order; an empty value stands for any, and each value found has a bucket of its own.
    pub entries: Vec<(String, String)>,
    /// How much.
    pub bucket: TokenBucket,
}

/// Who is asked, once a request, whether it is one too many: a service that counts for the whole mesh (RL3).
///
/// Source: Envoy `envoy.extensions.filters.http.ratelimit.v3.RateLimit`; the service speaks
/// `envoy.service.ratelimit.v3.RateLimitService`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct GlobalRateLimit {
    /// The cluster asked. Envoy `rate_limit_service.grpc_service.envoy_grpc.cluster_name`.
    pub cluster: Name,
    /// What `:authority` says; empty is the cluster's name. Envoy `EnvoyGrpc.authority`.
    pub authority: String,
    /// Whose limits are meant, at the service.
    pub domain: String,
    /// Of the routes' descriptors, those of this stage count. Envoy `stage`, 0 to 10.
    pub stage: u32,
    /// Which requests are asked about. Envoy `request_type`, default both.
    pub requests: LimitedRequests,
    /// How long the answer may take; 20 ms. Envoy `timeout`.
    pub timeout: Duration,
    /// Without an answer this share of requests is refused. Default: none. Envoy `failure_mode_deny`, which is all or none,
    /// and `failure_mode_deny_percent` over it.
    pub failure_denies: Fraction,
    /// The status of requests that are refused for want of an answer, 500. Envoy `status_on_error`.
    pub status_on_error: u16,
    /// The status of requests over the limit, 429. Envoy `rate_limited_status`.
    pub status: u16,
    /// gRPC calls are told `RESOURCE_EXHAUSTED` and not `UNAVAILABLE`. Envoy `rate_limited_as_resource_exhausted`.
    pub resource_exhausted: bool,
    /// Answers say how much is left, in `x-ratelimit-limit`, `-remaining` and `-reset`. Envoy `enable_x_ratelimit_headers`
    /// `DRAFT_VERSION_03`.
    pub tells_limits: bool,
    /// A refused request's answer has `x-envoy-ratelimited`. Default true. Envoy `disable_x_envoy_ratelimited_header`.
    pub tells_refusal: bool,
    /// Headers of a refused request's answer, and whether each stands beside those there are. Envoy
    /// `response_headers_to_add`.
    pub refused_headers: Vec<(Name, String, bool)>,
    /// Which share of requests is asked about; all. Envoy `filter_enabled`.
    pub enabled: Fraction,
    /// Which share of requests over the limit is refused; all. Envoy `filter_enforced`.
    pub enforced: Fraction,
    /// How requests get their descriptors; in place of those of their route. Envoy `rate_limits`.
    pub limits: Vec<RateLimit>,
}

impl Default for GlobalRateLimit {
    fn default() -> Self {
        Self {
            cluster: Name::default(),
            authority: String::new(),
            domain: String::new(),
            stage: 0,
            requests: LimitedRequests::All,
            timeout: Duration::from_millis(20),
            failure_denies: Fraction::NONE,
            status_on_error: 500,
            status: 429,
            resource_exhausted: false,
            tells_limits: false,
            tells_refusal: true,
            refused_headers: Vec::new(),
            enabled: Fraction::ALL,
            enforced: Fraction::ALL,
            limits: Vec::new(),
        }
    }
}

/// Which requests a service is asked about. Envoy `RateLimit.request_type`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitedRequests {
    /// All of them.
    #[default]
    All,
    /// Those that say `x-envoy-internal: true`.
    Internal,
    /// The others.
    External,
}

/// What a route says of services that count. Source: Envoy `RateLimitPerRoute`, `FilterConfig.disabled`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct GlobalOverride {
    /// Nobody is asked.
    pub disabled: bool,
    /// Another domain; empty is the one of the port.
    pub domain: String,
    /// How its requests get their descriptors, in place of all others; `None` is as the port and the route say.
    pub limits: Option<Vec<RateLimit>>,
}

/// A descriptor that requests get: all of its actions must yield a value, or there is none. Source: Envoy `RateLimit`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct RateLimit {
    /// For limits of this stage.
    pub stage: u32,
    /// One entry each, in order.
    pub actions: Vec<LimitAction>,
    /// So many at once; `None` is one. For services that count. Envoy `hits_addend.number`.
    pub hits: Option<u64>,
}

/// One entry of a descriptor. Source: Envoy `RateLimit.Action`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitAction {
    /// `source_cluster`: what this process is part of. Envoy `--service-cluster`; here the node's cluster.
    SourceCluster,
    /// `destination_cluster`: where the request goes.
    DestinationCluster,
    /// The key's value is that of a request header.
    RequestHeader {
        /// Its name in lower case.
        name: Name,
        /// The key.
        key: String,
        /// Without the header the descriptor goes without this entry, instead of not being there.
        skip_if_absent: bool,
    },
    /// The key's value is that of a query parameter.
    Query {
        /// Its name.
        name: String,
        /// The key.
        key: String,
        /// As of a header.
        skip_if_absent: bool,
    },
    /// `remote_address`: who calls.
    RemoteAddress,
    /// `masked_remote_address`: the network of who calls.
    MaskedRemoteAddress {
        /// Bits that count of an IPv4 address.
        v4: u8,
        /// Bits that count of an IPv6 address.
        v6: u8,
    },
    /// Always the same.
    GenericKey {
        /// The key, `generic_key` unless set.
        key: String,
        /// The value.
        value: String,
    },
    /// A value for requests whose headers meet all conditions, or do not.
    HeaderMatch {
        /// The key, `header_match` unless set.
        key: String,
        /// The value.
        value: String,
        /// They have to (true) or must not (false) meet them.
        expect: bool,
        /// The conditions.
        headers: Vec<HeaderMatch>,
    },
    /// A value for requests whose query meets all conditions, or does not.
    QueryMatch {
        /// The key, `query_match` unless set.
        key: String,
        /// The value.
        value: String,
        /// They have to (true) or must not (false) meet them.
        expect: bool,
        /// The conditions.
        query: Vec<QueryMatch>,
    },
    /// Who the caller proved to be by its certificate: its SPIFFE ID (RL5). On the wire as the metadata in which Istio's
    /// sidecars keep it, `istio_authn` `source.principal`.
    Peer {
        /// The key.
        key: String,
    },
}
