//! What became of one try: a status, or a failure without one; and the short flags telemetry tells it by.
//!
//! The same value feeds ejection, the retry verdict and telemetry, so that they cannot disagree. Flags and statuses of
//! failures are Envoy's (`%RESPONSE_FLAGS%`), gRPC statuses are those of the gRPC core library.

use std::fmt;

use http::{HeaderMap, HeaderName};

use crate::request::header;

/// What became of one try.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// HTTP status of the response; `None` when there was none.
    pub status: Option<u16>,
    /// gRPC status from headers or trailers, or what the HTTP status amounts to; `None` when it was not a gRPC call.
    pub grpc: Option<u32>,
    /// What went wrong on the way; `None` when a response came, whatever its status.
    pub failure: Option<Failure>,
    /// It is proven that no server processed the request.
    pub unsent: bool,
}

impl Outcome {
    /// A response to a call that was not gRPC.
    pub fn response(status: u16) -> Self {
        Self { status: Some(status), ..Self::default() }
    }

    /// A response to a gRPC call; `grpc_status` from headers or trailers. Without one the HTTP status tells, and 200
    /// without one is `UNKNOWN`, as the gRPC protocol asks.
    pub fn grpc_response(status: u16, grpc_status: Option<u32>) -> Self {
        let grpc = grpc_status.unwrap_or_else(|| grpc_of_http(status));
        Self { status: Some(status), grpc: Some(grpc), ..Self::default() }
    }

    /// No response, and why not.
    pub fn failed(failure: Failure) -> Self {
        Self { failure: Some(failure), unsent: failure.is_unsent(), ..Self::default() }
    }

    /// Marks the request as proven never processed.
    #[must_use]
    pub fn with_unsent(self) -> Self {
        Self { unsent: true, ..self }
    }

    /// The HTTP status that ejection counts: a gRPC status stands for its HTTP counterpart, a failure for the answer the
    /// caller gets. Source: Envoy `OutlierDetection.consecutive_5xx`.
    pub fn effective_status(&self) -> u16 {
        match (self.failure, self.status, self.grpc) {
            (Some(failure), _, _) => failure.status(),
            (None, Some(200), Some(grpc)) => http_of_grpc(grpc),
            (None, Some(status), _) => status,
            (None, None, Some(grpc)) => http_of_grpc(grpc),
            (None, None, None) => 503,
        }
    }

    /// It went well as far as the endpoint is concerned: no failure, no 5xx.
    pub fn is_success(&self) -> bool {
        self.failure.is_none() && self.effective_status() < 500
    }

    /// The flags of this try alone.
    pub fn flags(&self) -> Flags {
        self.failure.map_or(Flags::NONE, Failure::flags)
    }
}

/// Why there was no response.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Failure {
    /// The connection could not be made.
    Connect,
    /// The TLS handshake failed or the server is not who it should be.
    Tls,
    /// The connection or stream ended before the response did.
    Reset,
    /// HTTP/2 `REFUSED_STREAM`, or a GOAWAY that did not cover the stream: not processed.
    RefusedStream,
    /// The other side broke the protocol.
    Protocol,
    /// The try took longer than its own limit.
    PerTryTimeout,
    /// The request took longer than it may in all.
    Timeout,
    /// The stream as a whole took longer than it may.
    StreamDuration,
    /// Nothing passed in either direction for too long.
    StreamIdle,
    /// A circuit breaker was open.
    Overflow,
    /// The cluster has no endpoint that may be used.
    NoEndpoint,
    /// The control plane asked for requests to be dropped.
    Dropped,
    /// No route matched.
    NoRoute,
    /// The route's cluster does not exist or cannot be used.
    NoCluster,
    /// Answered by an injected fault.
    FaultAbort,
    /// A rate limit was reached.
    RateLimited,
    /// The caller went away.
    Cancelled,
}

impl Failure {
    /// The status of the answer made up for it. `Cancelled` has none on the wire; Envoy logs 0.
    pub const fn status(self) -> u16 {
        match self {
            Self::PerTryTimeout | Self::Timeout | Self::StreamDuration | Self::StreamIdle => 504,
            Self::NoRoute => 404,
            Self::RateLimited => 429,
            Self::Protocol => 502,
            Self::Cancelled => 0,
            _ => 503,
        }
    }

    /// The gRPC status of the answer made up for it.
    pub const fn grpc_status(self) -> u32 {
        match self {
            Self::PerTryTimeout | Self::Timeout | Self::StreamDuration | Self::StreamIdle => 4,
            Self::NoRoute => 12,
            Self::Cancelled => 1,
            Self::Protocol => 13,
            _ => 14,
        }
    }

    /// The flags telemetry shows for it.
    pub const fn flags(self) -> Flags {
        match self {
            Self::Connect | Self::Tls => Flags::UF,
            Self::Reset | Self::RefusedStream => Flags::UC,
            Self::Protocol => Flags::UPE,
            Self::PerTryTimeout | Self::Timeout => Flags::UT,
            Self::StreamDuration => Flags::DT,
            Self::StreamIdle => Flags::SI,
            Self::Overflow => Flags::UO,
            Self::NoEndpoint => Flags::UH,
            Self::Dropped => Flags::DO,
            Self::NoRoute => Flags::NR,
            Self::NoCluster => Flags::NC,
            Self::FaultAbort => Flags::FI,
            Self::RateLimited => Flags::RL,
            Self::Cancelled => Flags::DC,
        }
    }

    /// What to tell people; Envoy's `%RESPONSE_CODE_DETAILS%` where it has a word for it.
    pub const fn details(self) -> &'static str {
        match self {
            Self::Connect => "upstream_reset_before_response_started{connection_failure}",
            Self::Tls => "upstream_reset_before_response_started{tls_failure}",
            Self::Reset => "upstream_reset_before_response_started{connection_termination}",
            Self::RefusedStream => "upstream_reset_before_response_started{remote_refused_stream_reset}",
            Self::Protocol => "upstream_reset_before_response_started{protocol_error}",
            Self::PerTryTimeout => "upstream_per_try_timeout",
            Self::Timeout => "response_timeout",
            Self::StreamDuration => "max_duration_timeout",
            Self::StreamIdle => "stream_idle_timeout",
            Self::Overflow => "upstream_reset_before_response_started{overflow}",
            Self::NoEndpoint => "no_healthy_upstream",
            Self::Dropped => "drop_overload",
            Self::NoRoute => "route_not_found",
            Self::NoCluster => "cluster_not_found",
            Self::FaultAbort => "fault_filter_abort",
            Self::RateLimited => "request_rate_limited",
            Self::Cancelled => "downstream_remote_disconnect",
        }
    }

    /// The failure itself proves that no server processed the request.
    pub const fn is_unsent(self) -> bool {
        !matches!(
            self,
            Self::Reset
                | Self::Protocol
                | Self::PerTryTimeout
                | Self::Timeout
                | Self::StreamDuration
                | Self::StreamIdle
                | Self::Cancelled
        )
    }

    /// The endpoint is to blame, so that ejection counts it; a full circuit or a cancelled caller is not its doing.
    pub const fn blames_endpoint(self) -> bool {
        matches!(
            self,
            Self::Connect
                | Self::Tls
                | Self::Reset
                | Self::RefusedStream
                | Self::Protocol
                | Self::PerTryTimeout
                | Self::Timeout
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.details())
    }
}

/// What happened to a request in Envoy's short words, a small set. Source: Envoy access log `%RESPONSE_FLAGS%`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Flags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:expr;)*) => {
        impl Flags {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*
            const NAMES: &[(Self, &str)] = &[$((Self::$name, stringify!($name))),*];
        }
    };
}

flags! {
    /// No healthy upstream.
    UH = 0;
    /// Upstream connection failure.
    UF = 1;
    /// Upstream overflow: a circuit breaker was open.
    UO = 2;
    /// No route.
    NR = 3;
    /// No cluster.
    NC = 4;
    /// Upstream retry limit reached.
    URX = 5;
    /// Upstream request timeout.
    UT = 6;
    /// Upstream connection termination.
    UC = 7;
    /// Upstream protocol error.
    UPE = 8;
    /// Downstream connection termination: the caller went away.
    DC = 9;
    /// Downstream protocol error.
    DPE = 10;
    /// Delay injected.
    DI = 11;
    /// Fault (abort) injected.
    FI = 12;
    /// Rate limited.
    RL = 13;
    /// Refused by an external authorisation service.
    UAEX = 14;
    /// Max stream duration reached before any response.
    UMSDR = 15;
    /// The limit of the stream's whole duration was reached.
    DT = 16;
    /// The stream stood still for too long.
    SI = 17;
    /// Dropped for overload.
    DO = 18;
    /// A rate limit service gave no answer, and without one there is no passing.
    RLSE = 19;
}

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);

    /// As one number, for a cell that collects them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Of such a number.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Is none set?
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Are all of `other` set?
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl std::ops::BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Display for Flags {
    /// `UF,URX`, or `-` for none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut separator = "";
        for (flag, name) in Self::NAMES {
            if self.contains(*flag) {
                write!(f, "{separator}{name}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The gRPC status in these headers or trailers; what is not a number is `UNKNOWN`.
pub fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    let value = header(headers, &GRPC_STATUS)?;
    Some(value.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(2))
}

/// The gRPC status of an HTTP status without one. Source: gRPC `http-grpc-status-mapping`.
pub const fn grpc_of_http(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The HTTP status that a gRPC status stands for in ejection. Source: Envoy `grpcToHttpStatus`.
pub const fn http_of_grpc(status: u32) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// TE17: each failure has Envoy's flag and status.
    #[test]
    fn failures_have_envoys_flags_and_statuses() {
        for (failure, flags, status, grpc) in [
            (Failure::Connect, "UF", 503, 14),
            (Failure::Tls, "UF", 503, 14),
            (Failure::Reset, "UC", 503, 14),
            (Failure::RefusedStream, "UC", 503, 14),
            (Failure::Protocol, "UPE", 502, 13),
            (Failure::PerTryTimeout, "UT", 504, 4),
            (Failure::Timeout, "UT", 504, 4),
            (Failure::StreamDuration, "DT", 504, 4),
            (Failure::StreamIdle, "SI", 504, 4),
            (Failure::Overflow, "UO", 503, 14),
            (Failure::NoEndpoint, "UH", 503, 14),
            (Failure::Dropped, "DO", 503, 14),
            (Failure::NoRoute, "NR", 404, 12),
            (Failure::NoCluster, "NC", 503, 14),
            (Failure::FaultAbort, "FI", 503, 14),
            (Failure::RateLimited, "RL", 429, 14),
            (Failure::Cancelled, "DC", 0, 1),
        ] {
            assert_eq!(
                (failure.flags().to_string().as_str(), failure.status(), failure.grpc_status()),
                (flags, status, grpc)
            );
        }
        assert_eq!((Flags::URX | Flags::UF).to_string(), "UF,URX");
        assert_eq!((Flags::NONE.to_string().as_str(), Flags::NONE.is_empty()), ("-", true));
        assert!((Flags::DI | Flags::FI).contains(Flags::DI) && !Flags::DI.contains(Flags::FI));
    }

    /// OD1: a gRPC status counts as its HTTP counterpart; `NOT_FOUND` is no failure of the endpoint, `INTERNAL` is.
    #[test]
    fn grpc_statuses_count_as_http_statuses() {
        for (grpc, http, success) in [
            (0, 200, true),
            (1, 499, true),
            (2, 500, false),
            (4, 504, false),
            (5, 404, true),
            (13, 500, false),
            (14, 503, false),
            (99, 500, false),
        ] {
            let outcome = Outcome::grpc_response(200, Some(grpc));
            assert_eq!((outcome.effective_status(), outcome.is_success()), (http, success), "{grpc}");
        }
        assert_eq!(Outcome::response(404).effective_status(), 404);
        assert!(!Outcome::failed(Failure::Connect).is_success());
        assert_eq!(Outcome::grpc_response(200, None).grpc, Some(2), "200 without a status");
    }

    #[test]
    fn a_grpc_status_is_read_from_headers_or_trailers() {
        let mut headers = HeaderMap::new();
        assert_eq!(grpc_status(&headers), None);
        headers.insert("grpc-status", "14".parse().unwrap());
        assert_eq!(grpc_status(&headers), Some(14));
        headers.insert("grpc-status", "x".parse().unwrap());
        assert_eq!(grpc_status(&headers), Some(2));
    }
}
