//! Per-route policy: retries, hedging and injected faults.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Fraction, HeaderMatch, Name};

/// When and how often to try again. Source: Envoy `RetryPolicy`, gRFC A44.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct RetryPolicy {
    /// Which outcomes are tried again.
    pub on: RetryConditions,
    /// Tries after the first. Envoy `num_retries`, default 1.
    pub retries: u32,
    /// Limit of each try, the first included; `None` is the route's timeout. Envoy `per_try_timeout`.
    pub per_try_timeout: Option<Duration>,
    /// How long a try may stand still, in both directions; `None` is no limit. Envoy `per_try_idle_timeout`.
    pub per_try_idle_timeout: Option<Duration>,
    /// Waiting between tries.
    pub back_off: BackOff,
    /// Waiting as long as a response's own headers say, where it has them. Envoy `rate_limited_retry_back_off`.
    pub rate_limited: Option<RateLimitedBackOff>,
    /// Only requests that meet any of these conditions are tried again; empty is every request.
    ///
    /// Envoy `retriable_request_headers`. Where one of them is about `:method`, the methods it names are taken to be
    /// safe to repeat, whatever [`only_idempotent`](Self::only_idempotent) says.
    pub request_headers: Vec<HeaderMatch>,
    /// How often a host already tried is drawn again before it is taken all the same; 0 takes the first drawn.
    ///
    /// Envoy `host_selection_retry_max_attempts` where `retry_host_predicate` has `previous_hosts`.
    pub avoid_previous_hosts: u32,
    /// Tries of methods that are not idempotent only when the request provably was not processed (RT15).
    ///
    /// On by default; comparisons with Envoy, which tries any method again, switch it off.
    pub only_idempotent: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            on: RetryConditions::default(),
            retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            back_off: BackOff::default(),
            rate_limited: None,
            request_headers: Vec::new(),
            avoid_previous_hosts: 0,
            only_idempotent: true,
        }
    }
}

/// Which outcomes are tried again. Source: Envoy `RetryPolicy.retry_on` and `retriable_status_codes`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct RetryConditions {
    /// HTTP and transport conditions.
    pub http: Vec<HttpRetry>,
    /// gRPC statuses.
    pub grpc: Vec<GrpcRetry>,
    /// With [`HttpRetry::RetriableStatusCodes`].
    pub status_codes: Vec<u16>,
    /// With [`HttpRetry::RetriableHeaders`]: any of these response headers.
    pub headers: Vec<HeaderMatch>,
}

/// A condition by its Envoy name.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HttpRetry {
    /// `5xx`: any 5xx, a reset, a timeout.
    #[serde(rename = "5xx")]
    ServerError,
    /// `gateway-error`: 502, 503, 504.
    GatewayError,
    /// `reset`: no response at all.
    Reset,
    /// `reset-before-request`: reset before any of the request was sent.
    ResetBeforeRequest,
    /// `connect-failure`.
    ConnectFailure,
    /// `envoy-ratelimited`.
    EnvoyRatelimited,
    /// `retriable-4xx`: 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    /// `refused-stream`: HTTP/2 REFUSED_STREAM.
    RefusedStream,
    /// `retriable-status-codes`.
    RetriableStatusCodes,
    /// `retriable-headers`.
    RetriableHeaders,
}

impl HttpRetry {
    /// All there are.
    pub const ALL: [Self; 10] = [
        Self::ServerError,
        Self::GatewayError,
        Self::Reset,
        Self::ResetBeforeRequest,
        Self::ConnectFailure,
        Self::EnvoyRatelimited,
        Self::Retriable4xx,
        Self::RefusedStream,
        Self::RetriableStatusCodes,
        Self::RetriableHeaders,
    ];

    /// Envoy's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServerError => "5xx",
            Self::GatewayError => "gateway-error",
            Self::Reset => "reset",
            Self::ResetBeforeRequest => "reset-before-request",
            Self::ConnectFailure => "connect-failure",
            Self::EnvoyRatelimited => "envoy-ratelimited",
            Self::Retriable4xx => "retriable-4xx",
            Self::RefusedStream => "refused-stream",
            Self::RetriableStatusCodes => "retriable-status-codes",
            Self::RetriableHeaders => "retriable-headers",
        }
    }
}

/// A gRPC status by name. Envoy knows five of these words (`x-envoy-retry-grpc-on`) and passes over the others; here any
/// status can be named (C4).
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrpcRetry {
    /// Status 1.
    Cancelled,
    /// Status 2.
    Unknown,
    /// Status 3.
    InvalidArgument,
    /// Status 4.
    DeadlineExceeded,
    /// Status 5.
    NotFound,
    /// Status 6.
    AlreadyExists,
    /// Status 7.
    PermissionDenied,
    /// Status 8.
    ResourceExhausted,
    /// Status 9.
    FailedPrecondition,
    /// Status 10.
    Aborted,
    /// Status 11.
    OutOfRange,
    /// Status 12.
    Unimplemented,
    /// Status 13.
    Internal,
    /// Status 14.
    Unavailable,
    /// Status 15.
    DataLoss,
    /// Status 16.
    Unauthenticated,
}

impl GrpcRetry {
    /// All there are, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// Its word in a policy: Envoy's, and of the same make where Envoy has none.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
            Self::InvalidArgument => "invalid-argument",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::PermissionDenied => "permission-denied",
            Self::ResourceExhausted => "resource-exhausted",
            Self::FailedPrecondition => "failed-precondition",
            Self::Aborted => "aborted",
            Self::OutOfRange => "out-of-range",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data-loss",
            Self::Unauthenticated => "unauthenticated",
        }
    }

    /// Its number.
    pub const fn code(self) -> u32 {
        match self {
            Self::Cancelled => 1,
            Self::Unknown => 2,
            Self::InvalidArgument => 3,
            Self::DeadlineExceeded => 4,
            Self::NotFound => 5,
            Self::AlreadyExists => 6,
            Self::PermissionDenied => 7,
            Self::ResourceExhausted => 8,
            Self::FailedPrecondition => 9,
            Self::Aborted => 10,
            Self::OutOfRange => 11,
            Self::Unimplemented => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::DataLoss => 15,
            Self::Unauthenticated => 16,
        }
    }
}

/// Retry n (1, 2, ...) waits uniformly in `[0, (2^n - 1) x base)`, at most `max`; that of a gRPC call waits
/// `min(base x 2^(n-1), max)`, a fifth more or less. Source: Envoy `RetryBackOff`, gRFC A6 and A44.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct BackOff {
    /// Envoy `base_interval`, default 25 ms; below 1 ms counts as 1 ms.
    pub base: Duration,
    /// Envoy `max_interval`, default 10 x base.
    pub max: Duration,
}

impl Default for BackOff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

/// Waiting as long as a response says. Source: Envoy `RateLimitedRetryBackOff`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RateLimitedBackOff {
    /// The first of these that a response has and that can be read counts.
    pub headers: Vec<ResetHeader>,
    /// What is longer than this is not believed: the ordinary back-off applies. Envoy `max_interval`, default 300 s.
    pub max: Duration,
}

/// A response header that says when to come back.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ResetHeader {
    /// Lower-case name, such as `retry-after` or `x-ratelimit-reset`.
    pub name: Name,
    /// How it says so.
    pub format: ResetFormat,
}

/// How a [`ResetHeader`] says when to come back. Source: Envoy `ResetHeaderFormat`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetFormat {
    /// In so many seconds; a date, as HTTP writes them, is understood as well.
    #[default]
    Seconds,
    /// At that many seconds since 1970.
    UnixTimestamp,
}

/// Sending a request again before the first try has failed; the first good answer counts. Requests that are not
/// idempotent are not hedged. Source: Envoy `HedgePolicy`, gRFC A6 `hedgingPolicy`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct HedgePolicy {
    /// A try that takes longer than [`RetryPolicy::per_try_timeout`] is not given up: another is begun beside it, as
    /// long as the policy has retries. Envoy `hedge_on_per_try_timeout`.
    pub on_per_try_timeout: bool,
    /// Another try begins each time this has passed. gRFC A6 `hedgingDelay`; no form on the wire of xDS.
    pub delay: Option<Duration>,
    /// With `delay`: so many tries in all, at most 5. gRFC A6 `maxAttempts`.
    pub attempts: u32,
    /// With `delay`: a gRPC call that ends in one of these begins its next try at once; any other status ends it. HTTP
    /// requests go by the conditions of the retry policy. gRFC A6 `nonFatalStatusCodes`.
    pub non_fatal: Vec<GrpcRetry>,
}

/// Faults injected on purpose, once per request and before any try. Source: Envoy `HTTPFault`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Fault {
    /// Wait first.
    pub delay: Option<FaultDelay>,
    /// Then answer with an error instead of sending.
    pub abort: Option<Abort>,
    /// Only into requests that meet all of these (FI5).
    pub headers: Vec<HeaderMatch>,
    /// Only into requests to this cluster; empty is any. Envoy `upstream_cluster`.
    pub cluster: Name,
    /// Only into requests whose `x-envoy-downstream-service-node` is one of these; empty is any. Envoy `downstream_nodes`.
    pub nodes: Vec<String>,
    /// So many requests at once, of this process; more are let through as they are. Envoy `max_active_faults` (FI4).
    pub max_active: Option<u32>,
}

/// An injected delay. Source: Envoy `FaultDelay`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct FaultDelay {
    /// How long; `None` is as long as the request's own `x-envoy-fault-delay-request` says. Envoy `header_delay` (FI3).
    pub duration: Option<Duration>,
    /// Of which share of requests; absent on the wire is 0 % (FI1).
    pub fraction: Fraction,
}

/// An injected answer. Source: Envoy `FaultAbort`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Abort {
    /// What.
    pub status: AbortStatus,
    /// Of which share of requests, drawn apart from the delay's.
    pub fraction: Fraction,
}

/// The answer of an [`Abort`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AbortStatus {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status.
    Grpc(u32),
    /// What the request's own `x-envoy-fault-abort-request` or `x-envoy-fault-abort-grpc-request` says. Envoy
    /// `header_abort` (FI3).
    ByHeader,
}
