//! The Gateway API's kinds: `Gateway`, `HTTPRoute`, `GRPCRoute`, `ReferenceGrant`.
//!
//! Routes are read into the rules of a `VirtualService`, one condition a rule, since from there on both mean the same; what differs
//! (which of several rules comes first, what a missing destination answers) is settled in `compile/gateway_api.rs`. Source:
//! `gateway.networking.k8s.io/v1`, and for meshes GAMMA (GEP-1324).

use mesh_core::config::Labels;

use super::{
    Destination, HttpRoute, PortProtocol, ServerTls,
    read::{Fields, Reader},
    yaml::{At, Node},
};
use crate::diagnostic::{Level, codes};

mod filter;
mod route;
mod tls;

/// Gateway workloads of the Gateway API say whose they are with this label. Source: Gateway API `GEP-1762`.
pub(crate) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// A `Gateway`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApiGateway {
    /// What it listens for.
    pub listeners: Vec<ApiListener>,
}

/// One listener of a gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiListener {
    /// Its name, which routes may ask for as `sectionName`.
    pub name: At<String>,
    /// Bound as written; a gateway may map it to another.
    pub port: u16,
    /// The host served; `None` is every one.
    pub hostname: Option<At<String>>,
    /// Routes of every namespace may join; else those of the gateway's own.
    pub from_all: bool,
    /// What is spoken.
    pub protocol: PortProtocol,
    /// What TLS ends for is no HTTP.
    pub raw: bool,
    /// How TLS is treated. A certificate of another namespace is named `namespace/name`.
    pub tls: Option<ServerTls>,
}

/// An `HTTPRoute` or `GRPCRoute`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApiRoute {
    /// What it joins.
    pub parents: Vec<ApiParent>,
    /// The hosts meant, at gateways; empty is all that the listener serves.
    pub hostnames: Vec<At<String>>,
    /// Each with one condition at most.
    pub rules: Vec<HttpRoute>,
}

/// A `TLSRoute` or `TCPRoute`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApiByteRoute {
    /// The gateways it joins.
    pub parents: Vec<ApiParent>,
    /// The names meant that are asked for in the handshake; of a `TCPRoute` none.
    pub hostnames: Vec<At<String>>,
    /// Where each rule sends what comes; the first counts.
    pub rules: Vec<(At<()>, Vec<Destination>)>,
}

/// What a route joins.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiParent {
    /// Which kind.
    pub kind: ParentKind,
    /// Its namespace; `None` is the route's.
    pub namespace: Option<String>,
    /// Its name.
    pub name: At<String>,
    /// Only this listener of a gateway.
    pub section: Option<At<String>>,
    /// Only this port.
    pub port: Option<u16>,
}

/// The kind of what a route joins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ParentKind {
    /// A `Gateway` of the Gateway API.
    Gateway,
    /// A `Service`: requests of the mesh to it.
    Service,
    /// A `ServiceEntry`: requests of the mesh to its hosts.
    ServiceEntry,
}

/// One of the permissions of a `ReferenceGrant`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    /// Kind and namespace of those who may.
    pub from: Vec<(String, String)>,
    /// Kinds they may name, and the only name, if there is one.
    pub to: Vec<(String, Option<String>)>,
}

impl ApiGateway {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let class = fields.read("gatewayClassName", |node, path| reader.text(node, path));
        if class.is_none() && !fields.seen("gatewayClassName") {
            reader.missing(fields, "gatewayClassName");
        }
        let mut listeners: Vec<ApiListener> = Vec::new();
        match fields.take("listeners") {
            Some((node, path)) => {
                for (node, path) in reader.list(node, &path) {
                    let Some(new) = listener(node, &path, reader) else { continue };
                    if let Some(other) = listeners.iter().find(|other| other.name == new.name) {
                        let note = format!("first in line {}", other.name.at.line);
                        reader.invalid(new.name.at, format!("{path}.name {:?} is used twice", new.name.value)).note =
                            Some(note);
                        continue;
                    }
                    listeners.push(new);
                }
            }
            None => reader.missing(fields, "listeners"),
        }
        fields.ignored(
            reader,
            &["addresses", "infrastructure", "backendTLS", "allowedListeners", "defaultScope"],
            "gateways are started by whoever runs them, and say themselves where they listen",
        );
        fields.refused(reader, &["tls"], "callers' certificates are demanded by Istio's Gateway, with tls.mode MUTUAL");
        Self { listeners }
    }
}

fn listener(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<ApiListener> {
    let mut fields = reader.fields(node, path)?;
    let name = fields.read("name", |node, path| reader.text(node, path));
    let port = fields.read("port", |node, path| reader.port(node, path));
    let hostname = fields.read("hostname", |node, path| reader.text(node, path));
    let protocol = fields.read("protocol", |node, path| reader.text(node, path));
    for (field, there) in [("name", name.is_some()), ("port", port.is_some()), ("protocol", protocol.is_some())] {
        if !there && !fields.seen(field) {
            reader.missing(&fields, field);
        }
    }
    let mut from_all = false;
    if let Some((node, path)) = fields.take("allowedRoutes")
        && let Some(mut allowed) = reader.fields(node, &path)
    {
        if let Some((node, path)) = allowed.take("namespaces")
            && let Some(mut namespaces) = reader.fields(node, &path)
        {
            let words = [("Same", Some(false)), ("All", Some(true)), ("Selector", None)];
            if let Some((node, path)) = namespaces.take("from") {
                match reader.word(node, &path, &words) {
                    Some(Some(all)) => from_all = all,
                    Some(None) => {
                        let help = "namespaces have no labels here; write Same or All";
                        reader.unsupported(node.at, &format!("{path} Selector"), help);
                    }
                    None => {}
                }
            }
            namespaces.skip(&["selector"]);
            namespaces.close(reader);
        }
        allowed.ignored(reader, &["kinds"], "a listener takes the routes that its protocol is for");
        allowed.close(reader);
    }
    let tls = fields.take("tls").map(|(node, path)| (node, tls::read(node, &path, reader)));
    fields.close(reader);
    let protocol = protocol?;
    let (spoken, raw) = match protocol.value.as_str() {
        "HTTP" => (PortProtocol::Http, false),
        "HTTPS" => (PortProtocol::Tls, false),
        "TLS" => (PortProtocol::Tls, true),
        "TCP" => (PortProtocol::Tcp, true),
        other => {
            let help = "listeners are of protocol HTTP, HTTPS, TLS or TCP";
            reader.unsupported(protocol.at, &format!("{path}.protocol {other}"), help);
            (PortProtocol::Http, false)
        }
    };
    match (&tls, spoken) {
        (None, PortProtocol::Tls) => {
            reader.invalid(protocol.at, format!("{path}: protocol {} needs tls", protocol.value)).help =
                Some("write tls: {certificateRefs: [{name: SECRET}]}, or tls: {mode: Passthrough}".to_owned());
        }
        (Some((node, _)), PortProtocol::Http | PortProtocol::Tcp) => {
            reader.invalid(node.at, format!("{path}.tls is not for protocol {}", protocol.value));
        }
        (Some((node, Some(ServerTls::Passthrough))), PortProtocol::Tls) if !raw => {
            reader.invalid(node.at, format!("{path}.tls: Passthrough goes with protocol TLS"));
        }
        _ => {}
    }
    let (tls, hostname) = (tls.and_then(|(_, tls)| tls), hostname.filter(|host| !host.is_empty()));
    Some(ApiListener { name: name?, port: port?, hostname, from_all, protocol: spoken, raw, tls })
}

impl ApiRoute {
    /// `namespace` is the object's.
    pub(crate) fn read(fields: &mut Fields<'_>, namespace: &str, grpc: bool, reader: &mut Reader<'_>) -> Self {
        let mut out = Self::default();
        match fields.take("parentRefs") {
            Some((node, path)) => {
                for (node, path) in reader.list(node, &path) {
                    out.parents.extend(parent(node, &path, reader));
                }
            }
            None => {
                reader
                    .report(
                        codes::INVALID_WARNING,
                        Level::Warning,
                        fields.at,
                        "spec.parentRefs is missing, so the route is nobody's".to_owned(),
                    )
                    .help = Some("name the Service whose requests it is for, or a Gateway".to_owned());
            }
        }
        out.hostnames = fields.read("hostnames", |node, path| Some(reader.texts(node, path))).unwrap_or_default();
        if let Some((node, path)) = fields.take("rules") {
            for (node, path) in reader.list(node, &path) {
                route::rule(node, &path, namespace, grpc, &mut out.rules, reader);
            }
        }
        if !fields.seen("rules") {
            reader.missing(fields, "rules");
        }
        fields.ignored(reader, &["useDefaultGateways"], "no gateway is a default");
        out
    }
}

impl ApiByteRoute {
    /// `namespace` is the object's.
    pub(crate) fn read(fields: &mut Fields<'_>, namespace: &str, by_name: bool, reader: &mut Reader<'_>) -> Self {
        let mut out = Self::default();
        match fields.take("parentRefs") {
            Some((node, path)) => {
                for (node, path) in reader.list(node, &path) {
                    let parent = parent(node, &path, reader);
                    if let Some(parent) = parent.as_ref().filter(|parent| parent.kind != ParentKind::Gateway) {
                        let help = "connections of programs are not routed; those at a Gateway are";
                        reader.unsupported(parent.name.at, &format!("{path}.kind"), help);
                    }
                    out.parents.extend(parent);
                }
            }
            None => reader.missing(fields, "parentRefs"),
        }
        if by_name {
            out.hostnames = fields.read("hostnames", |node, path| Some(reader.texts(node, path))).unwrap_or_default();
        }
        match fields.take("rules") {
            Some((node, path)) => {
                for (node, path) in reader.list(node, &path) {
                    out.rules.extend(route::bytes(node, &path, namespace, reader));
                }
            }
            None => reader.missing(fields, "rules"),
        }
        fields.ignored(reader, &["useDefaultGateways"], "no gateway is a default");
        out
    }
}

fn parent(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<ApiParent> {
    let mut fields = reader.fields(node, path)?;
    let group = fields.read("group", |node, path| reader.text(node, path)).map(|at| at.value);
    let kind = fields.read("kind", |node, path| reader.text(node, path));
    let namespace = fields.read("namespace", |node, path| reader.text(node, path)).map(|at| at.value);
    let name = fields.read("name", |node, path| reader.text(node, path));
    if name.is_none() && !fields.seen("name") {
        reader.missing(&fields, "name");
    }
    let section = fields.read("sectionName", |node, path| reader.text(node, path));
    let port = fields.read("port", |node, path| reader.port(node, path));
    fields.close(reader);
    let word = kind.as_ref().map_or("Gateway", |kind| kind.as_str());
    let known = match (group.as_deref(), word) {
        (None | Some("gateway.networking.k8s.io"), "Gateway") => Some(ParentKind::Gateway),
        (Some("" | "core"), "Service") => Some(ParentKind::Service),
        (Some("networking.istio.io"), "ServiceEntry") => Some(ParentKind::ServiceEntry),
        _ => None,
    };
    let Some(kind) = known else {
        let at = kind.as_ref().map_or(node.at, |kind| kind.at);
        let group = group.unwrap_or_else(|| "gateway.networking.k8s.io".to_owned());
        reader.unsupported(
            at,
            &format!("{path}: kind {word:?} of group {group:?}"),
            "a route joins a Gateway, a Service (group: \"\"), or a ServiceEntry (group: networking.istio.io)",
        );
        return None;
    };
    Some(ApiParent { kind, namespace, name: name?, section, port })
}

impl Grant {
    /// One object is one grant: everyone of `from` may name everything of `to`.
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Vec<Self> {
        let mut grant = Self::default();
        let text = |fields: &mut Fields<'_>, name, reader: &mut Reader<'_>| {
            fields.read(name, |node, path| reader.text(node, path)).map(|at| at.value)
        };
        for side in ["from", "to"] {
            let Some((node, path)) = fields.take(side) else {
                reader.missing(fields, side);
                continue;
            };
            for (node, path) in reader.list(node, &path) {
                let Some(mut fields) = reader.fields(node, &path) else { continue };
                fields.skip(&["group"]);
                let kind = text(&mut fields, "kind", reader);
                if side == "from" {
                    let namespace = text(&mut fields, "namespace", reader);
                    grant.from.extend(kind.zip(namespace));
                } else {
                    let name = text(&mut fields, "name", reader);
                    grant.to.extend(kind.map(|kind| (kind, name)));
                }
                fields.close(reader);
            }
        }
        vec![grant]
    }

    /// May an object of this kind and namespace name the service?
    pub(crate) fn lets(&self, kind: &str, namespace: &str, service: &str) -> bool {
        self.lets_name(kind, namespace, "Service", service)
    }

    /// May an object of this kind and namespace name an object of that kind?
    pub(crate) fn lets_name(&self, kind: &str, namespace: &str, to: &str, named: &str) -> bool {
        self.from.iter().any(|(of, from)| of == kind && from == namespace)
            && self.to.iter().any(|(of, only)| of == to && only.as_ref().is_none_or(|name| name == named))
    }
}

/// The labels of workloads that are a gateway of the Gateway API.
pub(crate) fn gateway_labels(name: &str) -> Labels {
    Labels::from([(GATEWAY_NAME.to_owned(), name.to_owned())])
}
