//! Istio `ServiceEntry`: a service that is written down, inside or outside the mesh.
//!
//! Source: `istio.networking.v1.ServiceEntry`.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::config::Labels;

use super::{
    read::{Fields, Reader},
    service::{PortProtocol, ServicePort, TargetPort},
    workload_entry::WorkloadEntry,
    yaml::{At, Node},
};

/// A `ServiceEntry`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceEntry {
    /// The names it goes by.
    pub hosts: Vec<At<String>>,
    /// Addresses it goes by; networks (CIDR) match nothing here, since no packets are captured.
    pub addresses: Vec<String>,
    /// What it listens on.
    pub ports: Vec<ServicePort>,
    /// Outside the mesh (the default): no automatic mutual TLS.
    pub external: bool,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// Its endpoints, written down in it.
    pub endpoints: Vec<WorkloadEntry>,
    /// Or the labels of workloads and WorkloadEntries of its namespace.
    pub selector: Labels,
    /// Names its servers' certificates must show one of.
    pub subject_alt_names: Vec<String>,
    /// Who may see it.
    pub export_to: Vec<String>,
}

/// How endpoints are found. Source: Istio `ServiceEntry.Resolution`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Resolution {
    /// The host the caller named, resolved as it is.
    #[default]
    None,
    /// Written down.
    Static,
    /// By DNS, every address.
    Dns,
    /// By DNS, one address at a time.
    DnsRoundRobin,
}

impl ServiceEntry {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let mut out = Self { external: true, ..Self::default() };
        let hosts = fields.take("hosts");
        out.hosts = hosts.as_ref().map(|(node, path)| reader.texts(node, path)).unwrap_or_default();
        if hosts.is_none() {
            reader.missing(fields, "hosts");
        }
        for host in &out.hosts {
            if host.value == "*" {
                reader.invalid(host.at, "spec.hosts cannot be a bare *".to_owned());
            }
        }
        let addresses = fields.read("addresses", |node, path| Some(reader.texts(node, path))).unwrap_or_default();
        for address in &addresses {
            let network = address.parse::<IpNet>().is_ok();
            if network && matches!(fields.word("resolution"), Some("DNS" | "DNS_ROUND_ROBIN")) {
                reader.invalid(address.at, format!("spec.addresses: {:?} is a network", address.value)).help =
                    Some("networks go with spec.resolution NONE or STATIC only".to_owned());
            } else if !network && address.parse::<IpAddr>().is_err() {
                reader.invalid(address.at, format!("spec.addresses: {:?} is no IP address or network", address.value));
            }
        }
        out.addresses = addresses.into_iter().map(|at| at.value).collect();
        if let Some((node, path)) = fields.take("ports") {
            out.read_ports(node, &path, reader);
        }
        let locations = [("MESH_EXTERNAL", true), ("MESH_INTERNAL", false)];
        if let Some((node, path)) = fields.take("location") {
            out.external = reader.word(node, &path, &locations).unwrap_or(true);
        }
        let resolution = fields.take("resolution");
        if let Some((node, path)) = &resolution {
            let words = [
                ("NONE", Resolution::None),
                ("STATIC", Resolution::Static),
                ("DNS", Resolution::Dns),
                ("DNS_ROUND_ROBIN", Resolution::DnsRoundRobin),
            ];
            out.resolution = reader.word(node, path, &words).unwrap_or_default();
        }
        if let Some((node, path)) = fields.take("workloadSelector")
            && let Some(mut selector) = reader.fields(node, &path)
        {
            out.selector = selector.read("labels", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
            selector.close(reader);
        }
        let endpoints = fields.take("endpoints");
        if let Some((node, path)) = &endpoints {
            for (node, path) in reader.list(node, path) {
                if let Some(mut fields) = reader.fields(node, &path) {
                    out.endpoints.push(WorkloadEntry::read(&mut fields, reader));
                    fields.close(reader);
                }
            }
        }
        let names = fields.read("subjectAltNames", |node, path| Some(reader.texts(node, path))).unwrap_or_default();
        out.subject_alt_names = names.into_iter().map(|at| at.value).collect();
        out.export_to = super::export_to(fields, reader);
        out.check(endpoints.map(|(node, _)| node), reader);
        out
    }

    fn read_ports(&mut self, node: &Node, path: &str, reader: &mut Reader<'_>) {
        for (node, path) in reader.list(node, path) {
            let Some(mut fields) = reader.fields(node, &path) else { continue };
            let number = fields.read("number", |node, path| reader.port(node, path));
            let name = fields.read("name", |node, path| reader.text(node, path));
            let protocol = fields.read("protocol", |node, path| protocol(node, path, reader));
            let target = fields.read("targetPort", |node, path| reader.port(node, path));
            if number.is_none() && !fields.seen("number") {
                reader.missing(&fields, "number");
            }
            if name.is_none() && !fields.seen("name") {
                reader.missing(&fields, "name");
            }
            fields.close(reader);
            let (Some(number), Some(name)) = (number, name) else { continue };
            if self.ports.iter().any(|port| port.number == number || port.name == name.value) {
                reader.invalid(node.at, format!("{path}: number {number} or name {:?} is used twice", name.value));
                continue;
            }
            let target = target.map_or(TargetPort::Same, TargetPort::Number);
            self.ports.push(ServicePort {
                number,
                name: name.value,
                protocol: protocol.unwrap_or(PortProtocol::Tcp),
                target,
            });
        }
    }

    fn check(&self, endpoints: Option<&Node>, reader: &mut Reader<'_>) {
        let Some(host) = self.hosts.first() else { return };
        let dns = matches!(self.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
        if let (Some(node), false) = (endpoints, self.selector.is_empty()) {
            reader.invalid(node.at, "spec.endpoints and spec.workloadSelector exclude each other".to_owned());
        }
        if let (Some(node), Resolution::None) = (endpoints, self.resolution) {
            reader.invalid(node.at, "spec.endpoints needs spec.resolution STATIC or DNS".to_owned());
        }
        if self.resolution == Resolution::Static && self.endpoints.is_empty() && self.selector.is_empty() {
            reader.invalid(host.at, "spec.resolution STATIC needs spec.endpoints or spec.workloadSelector".to_owned());
        }
        if dns && self.endpoints.is_empty() {
            for host in self.hosts.iter().filter(|host| host.starts_with('*')) {
                reader.invalid(host.at, format!("{:?} cannot be resolved by DNS", host.value)).help =
                    Some("name the hosts one by one, or list spec.endpoints".to_owned());
            }
        }
        for endpoint in &self.endpoints {
            let is_ip = endpoint.address.parse::<IpAddr>().is_ok() || endpoint.address.starts_with("unix://");
            if self.resolution == Resolution::Static && !is_ip && !endpoint.address.is_empty() {
                let message = format!("endpoint {:?} is no IP address, as STATIC demands", endpoint.address.value);
                reader.invalid(endpoint.address.at, message);
            }
        }
    }
}

/// The `protocol` of a port of a ServiceEntry or Gateway.
pub(crate) fn protocol(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<PortProtocol> {
    let text = reader.text(node, path)?;
    let protocol = PortProtocol::from_word(&text);
    if protocol.is_none() {
        reader.invalid(text.at, format!("{path} cannot be {:?}", text.value)).help =
            Some("it is one of HTTP, HTTP2, GRPC, GRPC-Web, HTTPS, TLS, TCP, Mongo, Redis, MySQL".to_owned());
    }
    protocol
}
