//! What a process tells of its requests where the control plane has a say: traces, log lines, labels. Source: Istio
//! `Telemetry`, by way of Envoy `HttpConnectionManager.tracing` and `.access_log` and of Istio's `stats` filter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is told of the requests of one port; what is `None` is as the process's environment says.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Telling {
    /// Which requests are traced, and what is added to their spans. Envoy `HttpConnectionManager.tracing`.
    pub tracing: Option<Tracing>,
    /// The logs a request is written to. Envoy `HttpConnectionManager.access_log`.
    pub access_log: Option<Vec<AccessLog>>,
    /// Changes of metrics, in order. Istio `stats.PluginConfig.metrics`.
    pub metrics: Vec<MetricChange>,
}

/// Which requests are traced. Percentages, 0 to 100; Envoy's default of each is 100.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Tracing {
    /// Of traces that begin here and whose caller asks by `x-client-trace-id`. Envoy `client_sampling`.
    pub client: f64,
    /// Of other traces that begin here. Envoy `random_sampling`.
    pub random: f64,
    /// Of all traces that begin here, after the others said yes; at 0 no span goes out at all. Envoy `overall_sampling`.
    pub overall: f64,
    /// What is added to spans. Envoy `custom_tags`.
    pub tags: Vec<CustomTag>,
}

impl Default for Tracing {
    fn default() -> Self {
        Self { client: 100.0, random: 100.0, overall: 100.0, tags: Vec::new() }
    }
}

/// An attribute of spans. Source: Envoy `envoy.type.tracing.v3.CustomTag`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CustomTag {
    /// Its name.
    pub name: String,
    /// Where its value comes from.
    pub value: TagValue,
}

/// Where a tag's value comes from; without one, and without a default, the span does not have the tag.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TagValue {
    /// Always this.
    Literal(String),
    /// A variable of the process.
    Environment {
        /// Its name.
        name: String,
        /// Where there is none.
        default: String,
    },
    /// A header of the request.
    Header {
        /// Its name.
        name: String,
        /// Where there is none.
        default: String,
    },
    /// A text with the operators of log lines.
    Format(String),
}

/// A log of requests. Source: Envoy `FileAccessLog`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct AccessLog {
    /// `/dev/stdout` or `/dev/stderr`.
    pub path: String,
    /// How a line looks.
    pub format: LogFormat,
    /// Only requests this is true of; in CEL. Envoy `ExpressionFilter.expression`.
    pub filter: Option<String>,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { path: "/dev/stdout".to_owned(), format: LogFormat::Default, filter: None }
    }
}

/// How a log line looks.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Envoy's own.
    #[default]
    Default,
    /// A text with operators, `%RESPONSE_CODE%`.
    Text(String),
    /// An object of such texts.
    Json(BTreeMap<String, String>),
}

/// A change of metrics. Source: Istio `stats.MetricConfig`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct MetricChange {
    /// Which, without `istio_` in front and `_total` behind: `requests`, `request_duration_milliseconds`; empty is all.
    pub name: String,
    /// Labels and the expressions their values come from, in CEL.
    pub labels: BTreeMap<String, String>,
    /// Labels that are left out.
    pub without: Vec<String>,
    /// It is not told at all.
    pub drop: bool,
}
