//! What holds for all requests of one outbound port. Source: Envoy `HttpConnectionManager` of the port's listener.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Fault, GlobalRateLimit, LocalRateLimit, Name, Session, Telling};

/// Defaults of a port's routes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct HttpSettings {
    /// How long a stream may stand still in both directions; `None` is for ever.
    ///
    /// Envoy `stream_idle_timeout`: absent on the wire means 5 minutes and 0 means none; translation resolves that.
    pub idle_timeout: Option<Duration>,
    /// Limit of whole streams; `None` is no limit. Envoy `common_http_protocol_options.max_stream_duration`.
    pub max_stream_duration: Option<Duration>,
    /// Faults injected for routes without their own. Envoy `HTTPFault` among the `http_filters`.
    pub fault: Option<Fault>,
    /// The rate limit of routes without their own. Envoy `LocalRateLimit` among the `http_filters`.
    pub rate_limit: Option<Arc<LocalRateLimit>>,
    /// Who counts requests for the whole mesh, in order; asked after `rate_limit`. Envoy `RateLimit` among the `http_filters`.
    pub global_limits: Vec<Arc<GlobalRateLimit>>,
    /// How sessions stay together on routes that do not say. Envoy `StatefulSession` among the `http_filters`.
    pub session: Option<Arc<Session>>,
    /// Filters of the program's own, in order: before the rate limit and the fault of the port. Envoy `http_filters` of types
    /// that are [registered](crate::filter::register).
    pub filters: Vec<OwnFilter>,
    /// What is told of requests; `None` is as the process's environment says. Envoy `tracing`, `access_log`.
    pub telling: Option<Arc<Telling>>,
}

/// A filter that the program brought along. Source: Envoy `HttpFilter`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct OwnFilter {
    /// What routes call it.
    pub name: Name,
    /// The full name of its configuration message.
    pub message: Name,
    /// The message.
    pub config: Vec<u8>,
    /// Only routes that say so have it.
    pub disabled: bool,
}

/// What a route says of a filter of its port. Source: Envoy `typed_per_filter_config`, `FilterConfig`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct FilterOverride {
    /// Which one.
    pub name: Name,
    /// It is not for requests of this route; otherwise it is, also when disabled at the port.
    pub disabled: bool,
    /// Another message, by its full name, in place of the port's.
    pub config: Option<(Name, Vec<u8>)>,
}
