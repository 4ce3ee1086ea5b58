//! How endpoints are asked whether they are well. Source: Envoy `HealthCheck`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Protocol;

/// How endpoints are asked whether they are well. Source: Envoy `HealthCheck`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// How long an answer may take. Envoy requires it; default here 1 s.
    pub timeout: Duration,
    /// Between checks of a healthy endpoint. Envoy requires it; default here 10 s.
    pub interval: Duration,
    /// Between checks of an unhealthy one; `None` is `interval`.
    pub unhealthy_interval: Option<Duration>,
    /// After the first failure of a healthy one; `None` is `unhealthy_interval`.
    pub unhealthy_edge_interval: Option<Duration>,
    /// After the first success of an unhealthy one; `None` is `interval`.
    pub healthy_edge_interval: Option<Duration>,
    /// While no request has gone to the cluster yet. Envoy default 60 s.
    pub no_traffic_interval: Duration,
    /// The same, once an endpoint is healthy; `None` is `no_traffic_interval`.
    pub no_traffic_healthy_interval: Option<Duration>,
    /// Up to so much is waited before the first check, by chance. Envoy default 0.
    pub initial_jitter: Duration,
    /// Up to so much is added to each interval, by chance. Envoy default 0.
    pub interval_jitter: Duration,
    /// The same in percent of the interval. Envoy default 0.
    pub interval_jitter_percent: u32,
    /// Failures in a row that make an endpoint unhealthy; a wrong answer of HTTP or gRPC does so at once. Envoy requires
    /// it; default here 3.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy again; the first check of all decides alone. Envoy requires it; default
    /// here 2.
    pub healthy_threshold: u32,
    /// Checks share a connection. Envoy default true.
    pub reuse_connection: bool,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            probe: Probe::default(),
            timeout: Duration::from_secs(1),
            interval: Duration::from_secs(10),
            unhealthy_interval: None,
            unhealthy_edge_interval: None,
            healthy_edge_interval: None,
            no_traffic_interval: Duration::from_secs(60),
            no_traffic_healthy_interval: None,
            initial_jitter: Duration::ZERO,
            interval_jitter: Duration::ZERO,
            interval_jitter_percent: 0,
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            reuse_connection: true,
        }
    }
}

/// What an endpoint is asked.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Probe {
    /// A request, answered with an expected status.
    Http(HttpCheck),
    /// gRPC's own health service.
    Grpc(GrpcCheck),
    /// A connection, and bytes.
    Tcp(TcpCheck),
}

impl Default for Probe {
    fn default() -> Self {
        Self::Tcp(TcpCheck::default())
    }
}

/// Source: Envoy `HealthCheck.HttpHealthCheck`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct HttpCheck {
    /// Empty is the cluster's name. Envoy `host`.
    pub host: String,
    /// Envoy requires it; default here `/`.
    pub path: String,
    /// Envoy default GET.
    pub method: String,
    /// Sent with each check. Envoy `request_headers_to_add`.
    pub headers: Vec<(String, String)>,
    /// Never sent. Envoy `request_headers_to_remove`.
    pub remove_headers: Vec<String>,
    /// Statuses of the well, from and to, both included; empty is 200. Envoy `expected_statuses`.
    pub expected: Vec<(u16, u16)>,
    /// Statuses that count up to the threshold instead of at once. Envoy `retriable_statuses`.
    pub retriable: Vec<(u16, u16)>,
    /// HTTP/2 or else HTTP/1.1. Envoy `codec_client_type`; default HTTP/1.1.
    pub protocol: Protocol,
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            host: String::new(),
            path: "/".to_owned(),
            method: "GET".to_owned(),
            headers: Vec::new(),
            remove_headers: Vec::new(),
            expected: Vec::new(),
            retriable: Vec::new(),
            protocol: Protocol::Http1,
        }
    }
}

/// Source: Envoy `HealthCheck.GrpcHealthCheck`, gRFC A17.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct GrpcCheck {
    /// Empty is the server as a whole.
    pub service: String,
    /// Empty is the cluster's name.
    pub authority: String,
    /// Sent with each check. Envoy `initial_metadata`.
    pub metadata: Vec<(String, String)>,
    /// One call of `Watch` that the server answers whenever its health changes, and a server without it is healthy, as
    /// gRFC A17 has it; false is a call of `Check` each interval, and a server without it is not. Default false, as Envoy.
    pub watch: bool,
}

/// In plaintext, also where requests use TLS. Source: Envoy `HealthCheck.TcpHealthCheck`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct TcpCheck {
    /// Written first; empty only connects.
    pub send: Vec<u8>,
    /// Blocks that must come back, in order, anything between them; none only writes.
    pub receive: Vec<Vec<u8>>,
}
