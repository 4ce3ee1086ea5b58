//! Istio's metrics of connections whose bytes a gateway hands on: how many were opened and closed, and what passed.
//!
//! They are told by the gateway as reporter `source`, with the labels of requests except for those that bytes have not:
//! status codes. What passes is told every few seconds and at the end, so that long connections are seen while they last.

use std::sync::Arc;

use mesh_core::{cluster::Cluster, config::Workload, endpoint::Endpoint, outcome::Flags, telemetry::TCP};

use super::{Peer, Reporter, Telemetry, conventions::ISTIO_TCP, metrics, sheet::Line};

/// One connection that is handed on; it is closed when this is dropped.
pub(crate) struct Relayed {
    telemetry: Telemetry,
    cluster: Arc<Cluster>,
    endpoint: Option<Arc<Endpoint>>,
    flags: Flags,
    /// What was told of it: sent to the caller, received from it.
    told: (u64, u64),
}

impl Telemetry {
    /// A connection is handed on to an endpoint, or is not for want of one.
    pub(crate) fn relays(&self, cluster: &Arc<Cluster>, endpoint: Option<&Arc<Endpoint>>, flags: Flags) -> Relayed {
        let endpoint = endpoint.cloned();
        let it = Relayed { telemetry: self.clone(), cluster: Arc::clone(cluster), endpoint, flags, told: (0, 0) };
        it.tell([f64::NAN, f64::NAN, 1.0, f64::NAN]);
        it
    }
}

impl Relayed {
    /// So much has passed in all: to the caller, and from it.
    pub(crate) fn passed(&mut self, sent: u64, received: u64) {
        let more = (sent.saturating_sub(self.told.0), received.saturating_sub(self.told.1));
        if more != (0, 0) {
            self.tell([more.0 as f64, more.1 as f64, f64::NAN, f64::NAN]);
        }
        self.told = (sent, received);
    }

    fn tell(&self, values: [f64; 4]) {
        let shared = &self.telemetry.shared;
        if !shared.measures.profiles.istio {
            return;
        }
        let config = self.cluster.config();
        let workload = self.endpoint.as_ref().and_then(|endpoint| endpoint.config().workload.as_deref());
        let (name, namespace) = workload.map_or(("", ""), |workload| (&*workload.name, &*workload.namespace));
        let line = Line {
            table: &ISTIO_TCP,
            texts: [&config.name, name, namespace],
            numbers: [self.flags.bits(), 0, 0],
            admits: true,
            service: config.service.as_ref().map(|service| &service.host),
            is_over: false,
        };
        let spell = |line: &Line<'_>| {
            let peer = match (line.is_over, workload) {
                (true, _) => Peer::new(Workload { name: line.table.other.into(), ..Workload::default() }, None),
                (false, workload) => Peer::new(workload.cloned().unwrap_or_default(), None),
            };
            let service = config.service.as_ref().filter(|_| !line.is_over);
            let kind = metrics::Kind::of_bytes(Reporter::Source, Flags::from_bits(line.numbers[0]));
            let labels = metrics::labels(Reporter::Source, &shared.local, &peer, service, kind);
            let value = |name: &&str| match *name {
                "request_protocol" => TCP.to_owned(),
                name => labels.iter().find(|it| it.key() == name).map_or_else(String::new, |it| it.value().to_owned()),
            };
            line.table.labels.iter().map(value).collect()
        };
        shared.measures.sheet.add(&line, &values, spell, true);
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        self.tell([f64::NAN, f64::NAN, f64::NAN, 1.0]);
    }
}
