//! What is told of ejections: who, why, by which figures. Source: Envoy `OutlierDetectionEvent`, gRFC A91.

use std::fmt;

use crate::{
    config::{EndpointAddress, Name},
    time::Time,
};

/// Why an endpoint is an outlier.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Reason {
    /// 5xx in a row.
    Consecutive5xx,
    /// 502, 503 or 504 in a row.
    ConsecutiveGatewayFailure,
    /// Failures without a response in a row.
    ConsecutiveLocalOriginFailure,
    /// It succeeds less often than the others.
    SuccessRate,
    /// It can be reached less often than the others.
    SuccessRateLocalOrigin,
    /// It fails too often.
    FailurePercentage,
    /// It cannot be reached too often.
    FailurePercentageLocalOrigin,
    /// What a monitor counts, in a row; the monitor's place in the configuration.
    Monitor(u8),
    /// It answers much slower than the others.
    Latency,
    /// The request that was to show that it is well failed.
    Probe,
}

impl Reason {
    /// The word for it: Envoy's in lower case where it has one.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGatewayFailure => "consecutive_gateway_failure",
            Self::ConsecutiveLocalOriginFailure => "consecutive_local_origin_failure",
            Self::SuccessRate => "success_rate",
            Self::SuccessRateLocalOrigin => "success_rate_local_origin",
            Self::FailurePercentage => "failure_percentage",
            Self::FailurePercentageLocalOrigin => "failure_percentage_local_origin",
            Self::Monitor(_) => "monitor",
            Self::Latency => "latency",
            Self::Probe => "probe",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happened to an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum What {
    /// It was ejected.
    Ejected(Reason),
    /// It was found to be an outlier and not ejected, because only a share of those is.
    NotEnforced(Reason),
    /// It was found to be an outlier and not ejected, because too many are.
    TooMany(Reason),
    /// It is in use again.
    Returned,
}

/// An endpoint was ejected, or could have been, or returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The endpoint's cluster.
    pub cluster: Name,
    /// The endpoint.
    pub address: EndpointAddress,
    /// What happened.
    pub what: What,
    /// When.
    pub at: Time,
    /// How often it has been ejected in all.
    pub ejections: u32,
    /// By what it was judged, and what would have been good enough: success or failure in percent, or milliseconds.
    /// Only of reasons that compare.
    pub measured: Option<(f64, f64)>,
}
