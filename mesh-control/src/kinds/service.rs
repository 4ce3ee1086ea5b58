//! Kubernetes `Service`: a name, its ports, and by labels which workloads are behind it.
//!
//! Read for what the mesh needs of it; the rest of Kubernetes' fields has no meaning without Kubernetes and is told as
//! ignored. `ServiceAccount` is here too: its name is all there is to it.

use std::net::IpAddr;

use mesh_core::config::Labels;

use super::{
    read::{Fields, Reader},
    yaml::{Node, Value},
};

/// A `Service`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    /// What it listens on.
    pub ports: Vec<ServicePort>,
    /// The labels of its workloads; empty selects none.
    pub selector: Labels,
    /// Its virtual address; `None` for headless services and when unset.
    pub cluster_ip: Option<IpAddr>,
}

/// A port of a [`Service`] or a [`ServiceEntry`](super::ServiceEntry).
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    /// Callers name it in URLs.
    pub number: u16,
    /// Its name, which endpoints may map to a number of theirs.
    pub name: String,
    /// What is spoken.
    pub protocol: PortProtocol,
    /// Where it is on the workload.
    pub target: TargetPort,
}

/// Where a service's port is on its workloads. Source: Kubernetes `targetPort`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum TargetPort {
    /// The same number.
    #[default]
    Same,
    /// This number.
    Number(u16),
    /// The workload's port of this name.
    Name(String),
}

/// What is spoken on a port. Source: Istio's protocol selection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PortProtocol {
    /// HTTP/1.1, and what names no protocol: whoever calls through an HTTP client speaks HTTP.
    #[default]
    Http,
    /// HTTP/2 without TLS, gRPC.
    Http2,
    /// TLS of the application's own.
    Tls,
    /// Anything else on TCP.
    Tcp,
}

impl PortProtocol {
    /// Is there a route table for it?
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2)
    }

    /// By the `protocol` of a ServiceEntry or Gateway, in any case.
    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Some(match word.to_ascii_uppercase().as_str() {
            "HTTP" | "HTTP_PROXY" | "GRPC-WEB" => Self::Http,
            "HTTP2" | "GRPC" => Self::Http2,
            "HTTPS" | "TLS" => Self::Tls,
            "TCP" | "MONGO" | "REDIS" | "MYSQL" => Self::Tcp,
            _ => return None,
        })
    }

    /// By `appProtocol`, else by the port's name up to its first `-`, else by well-known numbers.
    fn of_service(app_protocol: Option<&str>, name: &str, number: u16) -> Self {
        match app_protocol {
            Some("kubernetes.io/h2c") => return Self::Http2,
            Some("kubernetes.io/ws") => return Self::Http,
            Some("kubernetes.io/wss") => return Self::Tls,
            Some(word) => {
                if let Some(protocol) = Self::from_word(word) {
                    return protocol;
                }
            }
            None => {}
        }
        let word = if name.starts_with("grpc-web") { "grpc-web" } else { name.split('-').next().unwrap_or_default() };
        Self::from_word(word).unwrap_or(match number {
            25 | 53 | 3306 | 27017 => Self::Tcp,
            _ => Self::Http,
        })
    }
}

impl Service {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let selector = fields.read("selector", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
        let cluster_ip = fields
            .read("clusterIP", |node, path| reader.text(node, path))
            .filter(|ip| !ip.is_empty() && ip.value != "None")
            .and_then(|ip| match ip.parse() {
                Ok(ip) => Some(ip),
                Err(_) => {
                    reader.invalid(ip.at, format!("spec.clusterIP is no IP address: {:?}", ip.value));
                    None
                }
            });
        let mut ports = Vec::new();
        if let Some((node, path)) = fields.take("ports") {
            for (node, path) in reader.list(node, &path) {
                ports.extend(ServicePort::read(node, &path, reader));
            }
        }
        fields.refused(reader, &["externalName"], "write a ServiceEntry with resolution: DNS for the outside name");
        // Kubernetes' own upkeep; said by every cluster that is asked for its objects.
        fields.skip(&["type", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
        fields.ignored(
            reader,
            &[
                "sessionAffinity",
                "sessionAffinityConfig",
                "externalIPs",
                "externalTrafficPolicy",
                "healthCheckNodePort",
                "loadBalancerIP",
                "loadBalancerClass",
                "loadBalancerSourceRanges",
                "allocateLoadBalancerNodePorts",
                "publishNotReadyAddresses",
                "trafficDistribution",
            ],
            "of a Service the ports, the selector and clusterIP are read",
        );
        Self { ports, selector, cluster_ip }
    }
}

impl ServicePort {
    fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Self> {
        let mut fields = reader.fields(node, path)?;
        let name = fields.read("name", |node, path| reader.text(node, path)).map(|at| at.value).unwrap_or_default();
        let number = fields.read("port", |node, path| reader.port(node, path));
        let target = fields.read("targetPort", |node, path| target(node, path, reader)).unwrap_or_default();
        let app = fields.read("appProtocol", |node, path| reader.text(node, path)).map(|at| at.value);
        let transport = fields
            .read("protocol", |node, path| reader.word(node, path, &[("TCP", true), ("UDP", false), ("SCTP", false)]));
        fields.skip(&["nodePort"]);
        if number.is_none() && !fields.seen("port") {
            reader.missing(&fields, "port");
        }
        fields.close(reader);
        let number = number?;
        let protocol = PortProtocol::of_service(app.as_deref(), &name, number);
        // UDP carries no requests; the port is left out.
        (transport != Some(false)).then_some(Self { number, name, protocol, target })
    }
}

fn target(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<TargetPort> {
    match &node.value {
        Value::Text(name) => Some(TargetPort::Name(name.clone())),
        _ => reader.port(node, path).map(TargetPort::Number),
    }
}
