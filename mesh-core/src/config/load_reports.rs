//! What of a cluster's load is reported to a control plane. Source: Envoy `Cluster.lrs_server`, gRFC A27, A64, A85.

use serde::{Deserialize, Serialize};

/// What is reported beside the numbers of requests. Source: Envoy `Cluster.lrs_report_endpoint_metrics`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct LoadReports {
    /// Which metrics that endpoints report with their responses (ORCA) are added up and passed on: one of the constants below,
    /// or `named_metrics.KEY`, `utilization.KEY`, `request_cost.KEY`, with `*` for every key. Default: none.
    pub metrics: Vec<String>,
}

impl LoadReports {
    /// Of the processors.
    pub const CPU: &str = "cpu_utilization";
    /// Of the memory.
    pub const MEMORY: &str = "mem_utilization";
    /// As the application measures it.
    pub const APPLICATION: &str = "application_utilization";

    /// Is this the name of a metric that can be passed on?
    pub fn knows(metric: &str) -> bool {
        match metric.split_once('.') {
            Some((map, key)) => ["named_metrics", "utilization", "request_cost"].contains(&map) && !key.is_empty(),
            None => [Self::CPU, Self::MEMORY, Self::APPLICATION].contains(&metric),
        }
    }
}
