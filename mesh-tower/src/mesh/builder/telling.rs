//! What a builder is told of metrics, logs and spans, and of what is switched off.

use std::{net::SocketAddr, sync::Arc};

use mesh_core::switches::Feature;

use super::{Builder, SpansTo};
use crate::{
    admin::LogLevels,
    telemetry::{AccessLog, LogSink, MetricProfiles, Spans},
};

impl Builder {
    /// With a port that shows the metrics and nothing else, at `/stats/prometheus` and `/metrics`. Unlike the admin port it may be
    /// on any address: whoever reaches it reads them.
    #[must_use]
    pub fn metrics_addr(mut self, address: SocketAddr) -> Self {
        self.scraped = Some(address);
        self
    }

    /// With metrics by these conventions, in place of Istio's alone. The console and `meshctl` read Istio's.
    #[must_use]
    pub fn metric_profiles(mut self, profiles: MetricProfiles) -> Self {
        self.profiles = profiles;
        self
    }

    /// With a line per request on standard output.
    #[must_use]
    pub fn access_log(mut self, log: AccessLog) -> Self {
        self.log = log;
        self
    }

    /// With the lines of the access log going to `sink`, in place of standard output.
    #[must_use]
    pub fn access_log_to(mut self, sink: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.sink = Some(LogSink::new(sink));
        self
    }

    /// Lets the admin port's `/logging` change what the program logs: it is given a directive such as `mesh=debug`, for whatever
    /// filter the program's subscriber has, and says in a sentence what is wrong with it.
    #[must_use]
    pub fn on_log_level(mut self, change: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.levels = Some(LogLevels(Arc::new(change)));
        self
    }

    /// With a feature switched off, whatever the configuration says; [`Live::switch`](crate::Live::switch) and the admin port's
    /// `/runtime_modify` do the same while it runs.
    #[must_use]
    pub fn without(mut self, feature: Feature) -> Self {
        self.off.push(feature);
        self
    }

    /// With spans going out by `spans`, in place of where the environment says.
    #[must_use]
    pub fn spans(mut self, spans: Spans) -> Self {
        self.spans = SpansTo::Given(spans);
        self
    }
}
