//! Per-route policy: retries and injected faults.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Fraction, HeaderMatch};

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
    /// Waiting between tries.
    pub back_off: BackOff,
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
            back_off: BackOff::default(),
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

/// A gRPC status by its Envoy name. Source: `x-envoy-retry-grpc-on`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrpcRetry {
    /// Status 1.
    Cancelled,
    /// Status 4.
    DeadlineExceeded,
    /// Status 8.
    ResourceExhausted,
    /// Status 13.
    Internal,
    /// Status 14.
    Unavailable,
}

impl GrpcRetry {
    /// Envoy's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::ResourceExhausted => "resource-exhausted",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Try n (1, 2, ...) waits uniformly in `[0, (2^n - 1) x base)`, at most `max`. Source: Envoy `RetryBackOff`.
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

/// Faults injected on purpose, once per request and before any try. Source: Envoy `HTTPFault`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Fault {
    /// Wait first.
    pub delay: Option<FaultDelay>,
    /// Then answer with an error instead of sending.
    pub abort: Option<Abort>,
}

/// An injected delay. Source: Envoy `FaultDelay`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct FaultDelay {
    /// How long.
    pub duration: Duration,
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
}
