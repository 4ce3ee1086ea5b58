//! Istio `EnvoyFilter`, as far as it is about rate limits: the filters that count requests, what they count them by, and the cluster of
//! the service that counts. Everything else of it patches the internals of an Envoy and is refused by name.
//!
//! Source: `istio.networking.v1alpha3.EnvoyFilter`; what is patched in is read as it is when it comes over xDS (`value.rs`).

use std::sync::Arc;

use mesh_core::config::{Cluster, Labels, LocalRateLimit, RateLimit};

use super::{
    read::{Fields, Reader},
    yaml::Node,
};
pub use value::HttpLimit;

mod value;

/// An `EnvoyFilter`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EnvoyFilter {
    /// Labels of the workloads meant; empty is the whole namespace, in the root namespace the whole mesh.
    pub selector: Labels,
    /// The lower come first.
    pub priority: i32,
    /// In order.
    pub patches: Vec<Patch>,
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    /// Where requests are counted; `None` is anywhere, for what is no filter.
    pub side: Option<Side>,
    /// What changes.
    pub what: Patched,
}

/// Which requests are counted. Source: Istio `EnvoyFilter.PatchContext`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// Those that come in at gateways.
    Gateway,
    /// Those that come in at workloads.
    Inbound,
}

/// What changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Patched {
    /// A filter that counts, for all requests of the ports meant. `HTTP_FILTER`.
    Filter {
        /// The only port meant.
        port: Option<u16>,
        /// What counts.
        limit: HttpLimit,
    },
    /// What requests of some routes are counted by. `VIRTUAL_HOST`, `HTTP_ROUTE`.
    Routes(Box<RoutesPatch>),
    /// A cluster beside those of services. `CLUSTER`.
    Cluster(Arc<Cluster>),
}

/// Routes, and what their requests are counted by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutesPatch {
    /// The only port meant.
    pub port: Option<u16>,
    /// The route configuration meant: `http.8080`, `inbound|9080||`.
    pub table: Option<String>,
    /// The virtual host meant: `shop.example.com:80`, `inbound|http|9080`.
    pub host: Option<String>,
    /// The route meant, by its name.
    pub route: Option<String>,
    /// Routes, whose word goes before that of hosts. `HTTP_ROUTE`.
    pub is_route: bool,
    /// What requests are counted by.
    pub limits: Vec<RateLimit>,
    /// The local limit in place of the filter's.
    pub local: Option<Arc<LocalRateLimit>>,
}

#[derive(Clone, Copy, PartialEq)]
enum To {
    Filter,
    Host,
    Route,
    Cluster,
    Other(&'static str),
}

const APPLY_TO: [(&str, To); 11] = [
    ("HTTP_FILTER", To::Filter),
    ("VIRTUAL_HOST", To::Host),
    ("HTTP_ROUTE", To::Route),
    ("CLUSTER", To::Cluster),
    ("LISTENER", To::Other("LISTENER")),
    ("LISTENER_FILTER", To::Other("LISTENER_FILTER")),
    ("FILTER_CHAIN", To::Other("FILTER_CHAIN")),
    ("NETWORK_FILTER", To::Other("NETWORK_FILTER")),
    ("ROUTE_CONFIGURATION", To::Other("ROUTE_CONFIGURATION")),
    ("EXTENSION_CONFIG", To::Other("EXTENSION_CONFIG")),
    ("BOOTSTRAP", To::Other("BOOTSTRAP")),
];

const OPERATIONS: [(&str, &str); 8] = [
    ("ADD", "ADD"),
    ("MERGE", "MERGE"),
    ("INSERT_BEFORE", "INSERT"),
    ("INSERT_AFTER", "INSERT"),
    ("INSERT_FIRST", "INSERT"),
    ("REMOVE", "REMOVE"),
    ("REPLACE", "REPLACE"),
    ("INVALID", "INVALID"),
];

/// What to do instead of all that is not about rate limits.
const INSTEAD: &str = "there is no Envoy here; of EnvoyFilter rate limits are taken: the filters envoy.filters.http.ratelimit and \
     envoy.filters.http.local_ratelimit for GATEWAY and SIDECAR_INBOUND, rate_limits of hosts and routes, and the cluster of the \
     service; for routing write a VirtualService, for anything else a Tower layer of your own";

impl EnvoyFilter {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let mut out = Self::default();
        if let Some((node, path)) = fields.take("workloadSelector")
            && let Some(mut selector) = reader.fields(node, &path)
        {
            out.selector = selector.read("labels", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
            selector.close(reader);
        }
        fields.refused(reader, &["targetRefs"], "say which workloads with spec.workloadSelector.labels");
        let bounds = (i32::MIN.into(), i32::MAX.into());
        let priority = fields.read("priority", |node, path| reader.integer(node, path, bounds.0, bounds.1));
        out.priority = priority.and_then(|at| i32::try_from(at.value).ok()).unwrap_or(0);
        match fields.take("configPatches") {
            Some((node, path)) => {
                for (node, path) in reader.list(node, &path) {
                    out.patches.extend(patch(node, &path, reader));
                }
            }
            None => reader.missing(fields, "configPatches"),
        }
        out
    }
}

fn patch(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Patch> {
    let mut fields = reader.fields(node, path)?;
    let to = match fields.take("applyTo") {
        Some((node, path)) => match reader.word(node, &path, &APPLY_TO) {
            Some(To::Other(word)) => {
                reader.unsupported(node.at, &format!("{path} {word}"), INSTEAD);
                None
            }
            to => to,
        },
        None => {
            reader.missing(&fields, "applyTo");
            None
        }
    };
    let mut meant = Meant::default();
    let matched = fields.take("match");
    if let (Some((node, path)), true) = (&matched, to.is_some()) {
        meant = Meant::read(node, path, reader);
    }
    let value = fields.take("patch").map(|(node, path)| change(node, &path, to, reader));
    if value.is_none() && !fields.seen("patch") {
        reader.missing(&fields, "patch");
    }
    fields.close(reader);
    let (to, value) = (to?, value??);
    if to != To::Cluster && meant.side.is_none() && !meant.is_wrong {
        reader.invalid(node.at, format!("{path}.match.context is missing")).help = Some(
            "write context: GATEWAY or SIDECAR_INBOUND; what is sent is limited by whoever takes it in".to_owned(),
        );
    }
    let Meant { side, port, table, host, route, .. } = meant;
    let what = match (to, value) {
        (To::Filter, (node, path)) => Patched::Filter { port, limit: value::filter(node, &path, reader)? },
        (To::Cluster, (node, path)) => Patched::Cluster(value::cluster(node, &path, reader)?),
        (To::Host, (node, path)) => {
            let (limits, local) = value::host(node, &path, reader)?;
            Patched::Routes(Box::new(RoutesPatch { port, table, host, route: None, is_route: false, limits, local }))
        }
        (To::Route, (node, path)) => {
            let (limits, local) = value::route(node, &path, reader)?;
            Patched::Routes(Box::new(RoutesPatch { port, table, host, route, is_route: true, limits, local }))
        }
        (To::Other(_), _) => return None,
    };
    Some(Patch { side, what })
}

/// The value of a change, when it is one that can be made.
fn change<'n>(node: &'n Node, path: &str, to: Option<To>, reader: &mut Reader<'_>) -> Option<(&'n Node, String)> {
    let mut fields = reader.fields(node, path)?;
    let operation =
        fields.take("operation").and_then(|(node, path)| Some((node, reader.word(node, &path, &OPERATIONS)?)));
    fields.ignored(reader, &["filterClass"], "what is not allowed is refused before it is counted, whatever the order");
    let value = fields.take("value");
    if operation.is_none() && !fields.seen("operation") {
        reader.missing(&fields, "operation");
    }
    if value.is_none() {
        reader.missing(&fields, "value");
    }
    fields.close(reader);
    let (at, operation) = operation?;
    let taken = match to? {
        To::Filter => matches!(operation, "INSERT" | "ADD"),
        To::Host | To::Route => operation == "MERGE",
        To::Cluster => operation == "ADD",
        To::Other(_) => false,
    };
    if !taken {
        reader.unsupported(at.at, &format!("{path}.operation {operation} there"), INSTEAD);
        return None;
    }
    value
}

/// What a change is about.
#[derive(Default)]
struct Meant {
    side: Option<Side>,
    port: Option<u16>,
    table: Option<String>,
    host: Option<String>,
    route: Option<String>,
    /// It was said what cannot be.
    is_wrong: bool,
}

#[derive(Clone, Copy)]
enum Context {
    Side(Side),
    Any,
    Outbound,
}

impl Meant {
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Self {
        let mut out = Self::default();
        let Some(mut fields) = reader.fields(node, path) else { return out };
        let words = [
            ("GATEWAY", Context::Side(Side::Gateway)),
            ("SIDECAR_INBOUND", Context::Side(Side::Inbound)),
            ("SIDECAR_OUTBOUND", Context::Outbound),
            ("ANY", Context::Any),
        ];
        if let Some((node, path)) = fields.take("context") {
            match reader.word(node, &path, &words) {
                Some(Context::Side(side)) => out.side = Some(side),
                Some(Context::Outbound) => {
                    out.is_wrong = true;
                    reader.unsupported(node.at, &format!("{path} SIDECAR_OUTBOUND"), INSTEAD);
                }
                Some(Context::Any) => {}
                None => out.is_wrong = true,
            }
        }
        fields.refused(reader, &["proxy", "waypoint"], "say which workloads with spec.workloadSelector.labels");
        if let Some((node, path)) = fields.take("listener") {
            out.listener(node, &path, reader);
        }
        if let Some((node, path)) = fields.take("routeConfiguration") {
            out.routes(node, &path, reader);
        }
        fields.ignored(reader, &["cluster"], "a cluster is added whatever it is beside");
        fields.close(reader);
        out
    }

    fn listener(&mut self, node: &Node, path: &str, reader: &mut Reader<'_>) {
        let Some(mut fields) = reader.fields(node, path) else { return };
        self.port = fields.read("portNumber", |node, path| reader.port(node, path));
        fields.refused(reader, &["portName", "name", "listenerFilter"], "say which port with portNumber");
        if let Some((node, path)) = fields.take("filterChain")
            && let Some(mut chain) = reader.fields(node, &path)
        {
            let others = ["name", "sni", "transportProtocol", "applicationProtocols", "destinationPort"];
            chain.refused(reader, &others, "say which port with listener.portNumber");
            if let Some((node, path)) = chain.take("filter")
                && let Some(mut filter) = reader.fields(node, &path)
            {
                if let Some(name) = filter.read("name", |node, path| reader.text(node, path))
                    && name.value != "envoy.filters.network.http_connection_manager"
                {
                    reader.unsupported(name.at, &format!("{path}.name {:?}", name.value), INSTEAD);
                }
                // Beside which filter it stands: what counts comes after all that decides who may ask.
                if let Some((node, path)) = filter.take("subFilter")
                    && let Some(mut sub) = reader.fields(node, &path)
                {
                    sub.read("name", |node, path| reader.text(node, path));
                    sub.close(reader);
                }
                filter.close(reader);
            }
            chain.close(reader);
        }
        fields.close(reader);
    }

    fn routes(&mut self, node: &Node, path: &str, reader: &mut Reader<'_>) {
        let Some(mut fields) = reader.fields(node, path) else { return };
        let text = |fields: &mut Fields<'_>, name, reader: &mut Reader<'_>| {
            let text = fields.read(name, |node, path| reader.text(node, path)).map(|at| at.value);
            text.filter(|text| !text.is_empty())
        };
        self.port = fields.read("portNumber", |node, path| reader.port(node, path)).or(self.port);
        self.table = text(&mut fields, "name", reader);
        fields.refused(
            reader,
            &["portName", "gateway"],
            "say which hosts with vhost.name, such as shop.example.com:80",
        );
        if let Some((node, path)) = fields.take("vhost")
            && let Some(mut host) = reader.fields(node, &path)
        {
            self.host = text(&mut host, "name", reader);
            host.refused(reader, &["domainName"], "say which host with vhost.name, such as shop.example.com:80");
            if let Some((node, path)) = host.take("route")
                && let Some(mut route) = reader.fields(node, &path)
            {
                self.route = text(&mut route, "name", reader);
                if let Some((node, path)) = route.take("action") {
                    let words = [("ANY", true), ("ROUTE", true), ("REDIRECT", false), ("DIRECT_RESPONSE", false)];
                    if reader.word(node, &path, &words) == Some(false) {
                        reader.unsupported(node.at, &path, "what is answered here is not counted");
                    }
                }
                route.close(reader);
            }
            host.close(reader);
        }
        fields.close(reader);
    }
}
