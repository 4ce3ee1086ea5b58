//! What stood in the way of a request, and what Envoy calls it: status, flags and details.

use http::StatusCode;
use mesh_core::outcome::{Failure, Flags};

/// What stood in the way.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No configuration has arrived yet.
    NotReady,
    /// No virtual host or no route of it means this request (`NR`, 404).
    NoRoute,
    /// The route names a cluster that is not there (`NC`, 503).
    NoCluster,
    /// The cluster has no endpoint that can be used (`UH`, 503).
    NoEndpoint,
    /// The control plane asks for requests to be dropped (`DO`, 503).
    Dropped,
    /// A limit of what may be under way is reached (`UO`, 503).
    Overflow,
    /// No connection could be made (`UF`, 503).
    Connect,
    /// The TLS handshake failed, or the peer is not who it should be (`UF`, 503).
    Tls,
    /// The connection ended before the answer did (`UC`, 503).
    Reset,
    /// The endpoint refused the stream without processing it (`UC`, 503).
    RefusedStream,
    /// The endpoint broke the protocol (`UPE`, 502).
    Protocol,
    /// One try took longer than it may (`UT`, 504).
    TryTimeout,
    /// All tries together took longer than the route allows (`UT`, 504).
    Timeout,
    /// The stream as a whole took longer than it may (`DT`, 504).
    Duration,
    /// Nothing passed in either direction for too long (`SI`, 504).
    Idle,
    /// The caller's own deadline passed (`UT`, 504).
    Deadline,
    /// A rate limit of the route was reached (`RL`, 429).
    RateLimited,
    /// A rate limit service gave no answer, and without one nothing passes (`RLSE`, 500).
    LimitUnknown,
    /// The route does not let the request change its protocol (403).
    Upgrade,
    /// A fault injected on purpose (`FI`).
    Fault,
    /// The route answers by itself: a redirect or a direct response.
    Answered,
    /// The request says nowhere where it is going, or cannot be sent as it is (400).
    Invalid,
    /// The caller's request body failed.
    Body,
}

impl ErrorKind {
    /// The failure policy knows it as; a route's own answer and a bad request are none.
    pub(super) fn failure(self) -> Option<Failure> {
        Some(match self {
            Self::NoRoute => Failure::NoRoute,
            Self::NoCluster => Failure::NoCluster,
            Self::NoEndpoint => Failure::NoEndpoint,
            Self::Dropped => Failure::Dropped,
            Self::Overflow => Failure::Overflow,
            Self::Connect => Failure::Connect,
            Self::Tls => Failure::Tls,
            Self::Reset => Failure::Reset,
            Self::RefusedStream => Failure::RefusedStream,
            Self::Protocol => Failure::Protocol,
            Self::TryTimeout => Failure::PerTryTimeout,
            Self::Timeout | Self::Deadline => Failure::Timeout,
            Self::Duration => Failure::StreamDuration,
            Self::Idle => Failure::StreamIdle,
            Self::RateLimited | Self::LimitUnknown => Failure::RateLimited,
            Self::Fault => Failure::FaultAbort,
            Self::Body => Failure::Cancelled,
            Self::NotReady | Self::Answered | Self::Invalid | Self::Upgrade => return None,
        })
    }

    pub(super) fn flags(self) -> Flags {
        if self == Self::LimitUnknown {
            return Flags::RLSE;
        }
        self.failure().map_or(Flags::NONE, Failure::flags)
    }

    pub(super) fn status(self) -> StatusCode {
        let status = match (self, self.failure()) {
            (Self::Invalid | Self::Body, _) => 400,
            (Self::Upgrade, _) => 403,
            (Self::LimitUnknown, _) => 500,
            (_, Some(failure)) => failure.status(),
            (_, None) => 503,
        };
        StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
    }

    pub(super) fn details(self) -> &'static str {
        match (self, self.failure()) {
            (Self::NotReady, _) => "configuration_not_ready",
            (Self::Deadline, _) => "deadline_exceeded",
            (Self::Invalid, _) => "invalid_request",
            (Self::Upgrade, _) => "upgrade_failed",
            (Self::LimitUnknown, _) => "rate_limiter_error",
            (_, Some(failure)) => failure.details(),
            (_, None) => "direct_response",
        }
    }

    /// Nothing of the request left this process, or the peer said that it processed nothing.
    pub(super) fn is_unsent(self) -> bool {
        self.failure().is_none_or(Failure::is_unsent)
    }

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::NotReady => "no configuration has arrived from the control plane",
            Self::NoRoute => "no route means this request",
            Self::NoCluster => "the route's cluster is not configured",
            Self::NoEndpoint => "no endpoint of the cluster can be used",
            Self::Dropped => "dropped for overload",
            Self::Overflow => "too much is under way already",
            Self::Connect => "no connection to the endpoint",
            Self::Tls => "no secure connection to the endpoint",
            Self::Protocol => "the endpoint broke the protocol",
            Self::Reset => "the connection ended before the answer did",
            Self::RefusedStream => "the endpoint refused the stream",
            Self::TryTimeout => "the try took too long",
            Self::Timeout => "the request took longer than its route allows",
            Self::Duration => "the stream took longer than it may",
            Self::Idle => "nothing passed for too long",
            Self::Deadline => "the caller's deadline passed",
            Self::RateLimited => "a rate limit was reached",
            Self::LimitUnknown => "the rate limit service gave no answer",
            Self::Upgrade => "the route does not let the request change its protocol",
            Self::Fault => "a fault was injected",
            Self::Answered => "the route answers by itself",
            Self::Invalid => "the request cannot be sent",
            Self::Body => "the request's body failed",
        }
    }
}
