//! The mesh as it is, in the words in which the console tells it: what pages draw and what `meshctl stat`, `edges`, `trace` and others read. What
//! is wanted of it, and how it comes to be known, is the console's.

use serde::{Deserialize, Serialize};

use crate::{api::ProxyStatus, registry::Registered};

/// What labels say when nobody knows. Source: Istio's standard metrics.
pub const UNKNOWN: &str = mesh_core::telemetry::UNKNOWN;

/// The mesh at a moment: what `GET /console/live` tells once a second.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Live {
    /// Unix milliseconds.
    pub at: u64,
    /// All requests of the mesh.
    pub total: Figures,
    /// Every one with requests in the last quarter of an hour.
    pub edges: Vec<Edge>,
    /// Who runs, and who did until lately.
    pub workloads: Vec<Running>,
    /// What became of what they were sent.
    pub proxies: Vec<ProxyStatus>,
    /// Edges that were not kept, since there are too many.
    pub left_out: u64,
    /// Changes with every change of an object.
    pub version: u64,
}

/// A workload with its process.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Running {
    /// What it said of itself.
    #[serde(flatten)]
    pub workload: Registered,
    /// The number of its process, when the console can look at it.
    pub process: Option<u32>,
}

/// One end of an edge. [`UNKNOWN`] where nobody knows.
#[derive(Clone, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Place {
    /// `default`.
    pub namespace: String,
    /// `reviews-v1`.
    pub workload: String,
    /// Its canonical service: `reviews`.
    pub service: String,
    /// Its canonical revision: `v1`.
    pub version: String,
}

impl Place {
    /// `reviews-v1.default`, or what stands for nobody known.
    pub fn name(&self) -> String {
        match self.workload.as_str() {
            UNKNOWN | "" => UNKNOWN.to_owned(),
            workload => format!("{workload}.{}", self.namespace),
        }
    }
}

/// Who calls whom as what, and what that comes to now.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Edge {
    /// The caller.
    pub from: Place,
    /// The callee.
    pub to: Place,
    /// The host that was asked for.
    pub host: String,
    /// `http` or `grpc`.
    pub protocol: String,
    /// Of the last ten seconds.
    #[serde(flatten)]
    pub figures: Figures,
    /// `None` where the callee says nothing.
    pub mtls: Option<bool>,
    /// SPIFFE id of the caller; empty is not known.
    #[serde(default)]
    pub source_principal: String,
    /// SPIFFE id of the callee; empty is not known.
    #[serde(default)]
    pub destination_principal: String,
    /// How requests ended since the edge is known, the most frequent first.
    #[serde(default)]
    pub outcomes: Vec<(Outcome, u64)>,
}

/// How a request ended, in the words of the labels.
#[derive(Clone, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Outcome {
    /// `response_code`; 0 is no answer.
    pub code: String,
    /// `grpc_response_status`; empty or [`UNKNOWN`] where it is no gRPC.
    pub grpc: String,
    /// `response_flags`; `-` is none.
    #[serde(default)]
    pub flags: String,
}

impl Outcome {
    /// 5xx, no answer, or a gRPC status that says so. Source: Kiali's and Istio's dashboards.
    pub fn is_failure(&self) -> bool {
        is_failure(&self.code, &self.grpc)
    }
}

/// The same of labels.
pub(crate) fn is_failure(code: &str, grpc: &str) -> bool {
    code.starts_with('5') || code == "0" || !matches!(grpc, "" | "0" | UNKNOWN)
}

/// Requests of a stretch of time in figures.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Figures {
    /// Requests a second.
    pub rate: f64,
    /// Of these the share that failed, 0 to 1.
    pub errors: f64,
    /// Milliseconds; `None` without requests.
    pub p50: Option<f64>,
    /// Milliseconds.
    pub p95: Option<f64>,
    /// Milliseconds.
    pub p99: Option<f64>,
}

/// Traces in a list: what `GET /console/traces` answers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Traces {
    /// The newest first.
    pub items: Vec<Summary>,
    /// So many are kept, whether they were wanted or not.
    #[serde(default)]
    pub kept: usize,
}

/// A trace in a list.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Summary {
    /// In hexadecimal.
    pub id: String,
    /// Of the earliest span.
    pub name: String,
    /// Of the earliest span.
    pub service: String,
    /// Unix microseconds.
    pub start: u64,
    /// Microseconds.
    pub duration: u64,
    /// How many.
    pub spans: usize,
    /// Each once, sorted.
    pub services: Vec<String>,
    /// Some span failed.
    pub is_error: bool,
}

/// One trace: what `GET /console/traces/{id}` answers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Spans {
    /// By their beginning.
    pub spans: Vec<Span>,
}

/// A part of a trace.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Span {
    /// In hexadecimal.
    pub id: String,
    /// Empty is none.
    pub parent: String,
    /// `service.name` of whoever sent it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// `client`, `server` or `internal`.
    pub kind: String,
    /// Unix microseconds.
    pub start: u64,
    /// Microseconds.
    pub duration: u64,
    /// Its status says so.
    pub is_error: bool,
    /// Names and values, in the order in which they came.
    pub attributes: Vec<(String, String)>,
}

impl Span {
    /// One of these attributes, the first that is there.
    pub fn attribute(&self, names: &[&str]) -> Option<&str> {
        names
            .iter()
            .find_map(|name| self.attributes.iter().find(|(key, _)| key == name))
            .map(|(_, value)| value.as_str())
    }

    /// The status that it was answered with, HTTP's or gRPC's.
    pub fn status(&self) -> Option<&str> {
        self.attribute(&["http.response.status_code", "http.status_code", "rpc.response.status_code"])
    }
}
