//! When a failing endpoint is left out. Source: Envoy `OutlierDetection`, gRFC A50.
//!
//! What Envoy has no word for is marked as ours: monitors of gRPC codes and of slow answers, ejection by latency, and
//! returning through a single probe. All of it is off unless asked for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Name;

/// When a failing endpoint is left out, and for how long. Source: Envoy `OutlierDetection`.
///
/// A count of 0 is off. `enforcing_*` is the share of detected outliers that are ejected, in percent; at 0 they are only
/// reported.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct OutlierDetection {
    /// 5xx in a row. Envoy default 5.
    pub consecutive_5xx: u32,
    /// In percent. Envoy default 100.
    pub enforcing_consecutive_5xx: u32,
    /// 502, 503 and 504 in a row. Envoy default 5.
    pub consecutive_gateway_failure: u32,
    /// In percent. Envoy default 0: not enforced unless asked for.
    pub enforcing_consecutive_gateway_failure: u32,
    /// Failures without a response (connecting, resets, timeouts) are counted apart instead of as 5xx. Envoy
    /// `split_external_local_origin_errors`, default false.
    pub split_local_origin: bool,
    /// Failures to connect in a row, where they are counted apart. Envoy default 5.
    pub consecutive_local_origin_failure: u32,
    /// In percent. Envoy default 100.
    pub enforcing_consecutive_local_origin_failure: u32,
    /// Ejection of endpoints that succeed less often than the others.
    pub success_rate: SuccessRate,
    /// Ejection of endpoints that fail too often.
    pub failure_percentage: FailurePercentage,
    /// Between sweeps, which look at rates and bring endpoints back. Envoy default 10 s.
    pub interval: Duration,
    /// Times the number of ejections. Envoy default 30 s.
    pub base_ejection_time: Duration,
    /// Envoy default 300 s, at least the base.
    pub max_ejection_time: Duration,
    /// Up to so much is added to each ejection, by chance. Envoy default 0.
    pub max_ejection_time_jitter: Duration,
    /// Of the cluster's endpoints: no ejection may bring the share above it. Envoy default 10.
    pub max_ejection_percent: u32,
    /// The first ejection is made whatever its share. Envoy default false.
    pub always_eject_one_host: bool,
    /// An active health check that passes ends an ejection. Envoy `successful_active_health_check_uneject_host`, default
    /// true.
    pub uneject_on_health_check: bool,
    /// Further kinds of failures in a row, at most [`OutlierDetection::MOST_MONITORS`].
    pub monitors: Vec<Monitor>,
    /// Ejection of endpoints that answer much slower than the others; `None` is off. Ours.
    pub latency: Option<LatencyOutlier>,
    /// After its ejection an endpoint gets one request at a time until one succeeds; a failure ejects it anew. Ours,
    /// default false: Envoy gives it its full share at once.
    pub half_open: bool,
}

impl OutlierDetection {
    /// Monitors beyond this many are refused.
    pub const MOST_MONITORS: usize = 4;
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            enforcing_consecutive_5xx: 100,
            consecutive_gateway_failure: 5,
            enforcing_consecutive_gateway_failure: 0,
            split_local_origin: false,
            consecutive_local_origin_failure: 5,
            enforcing_consecutive_local_origin_failure: 100,
            success_rate: SuccessRate::default(),
            failure_percentage: FailurePercentage::default(),
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            always_eject_one_host: false,
            uneject_on_health_check: true,
            monitors: Vec::new(),
            latency: None,
            half_open: false,
        }
    }
}

/// Ejects whose success rate is below the mean of all by more than some standard deviations. Source: Envoy
/// `success_rate_*`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct SuccessRate {
    /// Endpoints with enough requests in the interval for there to be a mean. Envoy default 5.
    pub minimum_hosts: u32,
    /// Requests in the interval for an endpoint to be looked at. Envoy default 100.
    pub request_volume: u32,
    /// Thousandths of a standard deviation. Envoy default 1900.
    pub stdev_factor: u32,
    /// In percent. Envoy default 100.
    pub enforcing: u32,
    /// The same of failures without a response, where they are counted apart. Envoy default 100.
    pub enforcing_local_origin: u32,
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { minimum_hosts: 5, request_volume: 100, stdev_factor: 1900, enforcing: 100, enforcing_local_origin: 100 }
    }
}

/// Ejects whose share of failures reaches a threshold. Source: Envoy `failure_percentage_*`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct FailurePercentage {
    /// In percent. Envoy default 85.
    pub threshold: u32,
    /// Endpoints with enough requests in the interval. Envoy default 5.
    pub minimum_hosts: u32,
    /// Requests in the interval for an endpoint to be looked at. Envoy default 50.
    pub request_volume: u32,
    /// In percent. Envoy default 0.
    pub enforcing: u32,
    /// The same of failures without a response, where they are counted apart. Envoy default 0.
    pub enforcing_local_origin: u32,
}

impl Default for FailurePercentage {
    fn default() -> Self {
        Self { threshold: 85, minimum_hosts: 5, request_volume: 50, enforcing: 0, enforcing_local_origin: 0 }
    }
}

/// A further kind of failures in a row that ejects. What it names are failures, everything else ends the row.
///
/// Source: Envoy `OutlierDetection.monitors` (`consecutive_errors`) for HTTP statuses and local origin; gRPC codes and slow
/// answers are ours.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Monitor {
    /// What reports call it.
    pub name: Name,
    /// How many in a row. Envoy default 3.
    pub consecutive: u32,
    /// In percent. Envoy default 100.
    pub enforcing: u32,
    /// HTTP statuses that are failures, from and to, both included.
    pub statuses: Vec<(u16, u16)>,
    /// gRPC codes that are failures. Ours.
    pub grpc_codes: Vec<u32>,
    /// An answer whose headers take longer is a failure. Ours.
    pub slower_than: Option<Duration>,
    /// Failures without a response are failures.
    pub local_origin: bool,
}

impl Default for Monitor {
    fn default() -> Self {
        Self {
            name: Name::default(),
            consecutive: 3,
            enforcing: 100,
            statuses: Vec::new(),
            grpc_codes: Vec::new(),
            slower_than: None,
            local_origin: false,
        }
    }
}

/// Ejects whose mean time to answer in an interval is a multiple of what is usual among the others. Ours: Envoy ejects
/// nobody for being slow.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct LatencyOutlier {
    /// In percent of the mean of the other endpoints. Default 300.
    pub factor: u32,
    /// Whoever answers within this time is never too slow. Default 50 ms.
    pub at_least: Duration,
    /// Endpoints with enough requests in the interval. Default 3.
    pub minimum_hosts: u32,
    /// Requests in the interval for an endpoint to be looked at. Default 20.
    pub request_volume: u32,
    /// In percent. Default 100.
    pub enforcing: u32,
}

impl Default for LatencyOutlier {
    fn default() -> Self {
        Self { factor: 300, at_least: Duration::from_millis(50), minimum_hosts: 3, request_volume: 20, enforcing: 100 }
    }
}
